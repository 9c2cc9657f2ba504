"""The port between the service and what keeps shares.

Shares arrive here verified (the service checked their hashes); a backend keeps bytes, leases and an index
and knows nothing of hashes. It hands out (file, offset, length), so that a reader never knows whether a
share lies in a file of its own or among others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

import trio

from storage.leases import Holder, Lease
from storage.ports import Buffer, File, Space

__all__ = ["IncomingShare", "Lease", "Piece", "ShareBackend", "ShareKey", "SyncPolicy"]


class SyncPolicy(StrEnum):
    """When stored shares are made durable. Only group and each count for `happy` in fsync."""

    NONE = "none"
    """Never: the operating system writes when it likes."""
    GROUP = "group"
    """Before the answer, many calls in one sync."""
    EACH = "each"
    """Before the answer, every call in a sync of its own."""


class ShareKey(NamedTuple):
    """A server stores by these two."""

    pack_id: bytes
    """32 bytes."""
    number: int
    """0..255."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a share's bytes lie. Valid until it is given to `unpin`, even if the share is removed."""

    file: File
    offset: int
    length: int
    token: object = field(default=None, repr=False, compare=False)
    """The backend's own mark of the pin."""


@dataclass(slots=True)
class IncomingShare:
    """A share to store: verified, whole."""

    key: ShareKey
    parts: Sequence[Buffer]
    """The share's bytes, one part after the other; the backend's until `store` returns or raises."""
    lease: Lease | None
    """Taken with the share in the same durable step; None keeps the share without a lease of this caller."""


class ShareBackend(Protocol):
    """Keeps shares and leases. Calls before `run` has started or after it ended raise Unavailable.

    Synchronous calls answer from what is committed and are cheap. Asynchronous ones are checkpoints, are
    idempotent, and if cancelled either did nothing or did everything. Errors: Exhausted where there is no
    room, Unavailable where the disk fails, Refused for malformed keys and leases.
    """

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open, recover after a crash, then commit what is asked for until cancelled; closes cleanly.

        Raises Refused where the directory is of another server or an unknown version, Conflict where
        another process has it open.
        """

    def has(self, keys: Sequence[ShareKey]) -> list[bool]:
        """Which shares are here, in the order of the keys."""

    async def store(self, shares: Sequence[IncomingShare]) -> list[bool]:
        """Keep shares and their leases; both are durable on return, as the sync policy says.

        True where the share is new, False where it was there (its lease is asserted all the same).
        """

    def pin(self, key: ShareKey) -> Piece | None:
        """Where the share lies, kept readable until `unpin`; None where it is not here."""

    def unpin(self, piece: Piece) -> None:
        """Give a piece back, exactly once."""

    async def assert_leases(self, keys: Sequence[ShareKey], lease: Lease) -> list[bool]:
        """Take or renew a lease on every share that is here; durable on return. True where it is here."""

    async def release(self, keys: Sequence[ShareKey], lease: Lease) -> list[bool]:
        """Take away the holder's lease where its stamp is lower; a share that thereby loses its last goes.

        True where the holder has no lease (any more), False where one with a stamp as high or higher stays.
        """

    def leased(self, holder: Holder, after: ShareKey | None, limit: int) -> list[ShareKey]:
        """Up to `limit` shares on which the holder has a lease, ascending, behind `after`."""

    def space(self) -> Space:
        """Bytes of capacity, and bytes that shares may still take."""

    def counts(self) -> tuple[int, int]:
        """(shares, bytes of shares) held."""
