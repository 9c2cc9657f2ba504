"""Errors by who must act: try elsewhere, repair, retry, correct the caller, or make room."""


class StorageError(Exception):
    """Any failure that a storage server or its client reports. `str()` is one line for a person."""


class Unavailable(StorageError):
    """The server cannot be reached or went away: try elsewhere, or later."""


class Corrupt(StorageError):
    """Bytes do not match their hashes: take another share and repair this one."""


class Missing(StorageError):
    """The server does not hold what was asked for."""


class Conflict(StorageError):
    """Somebody else changed it first (a newer epoch, another record): look again before retrying."""


class Refused(StorageError):
    """The request itself is wrong, or not allowed to this account: the caller must change."""


class Exhausted(StorageError):
    """No room, or a quota is used up: the operator must act."""
