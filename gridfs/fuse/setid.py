"""The set-user-ID and set-group-ID bits: when they go, as HANDLE_KILLPRIV_V2 leaves to the file system.

Linux's rules: a write or a truncate clears them unless the caller holds CAP_FSETID, a chown of anything
but a directory always. The set-group-ID bit means so only where the group may execute; without that it
once stood for mandatory locks, and goes where the caller is not in the file's group.

The kernel drops its own change of mode from the SETATTR that it sends before such a write, of its own
accord and only where bits are to go: what arrives names nothing at all. From a chown to no owner and no
group, which clears the bits too, the change time is left; nothing else sends these two.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

CAP_FOWNER = 3
CAP_FSETID = 4
CAP_SYS_ADMIN = 21
BITS = stat.S_ISUID | stat.S_ISGID

_FIELD = re.compile(r"^(CapEff|Groups):\s*(.*)$", re.MULTILINE)


class Fields(Protocol):
    """What a SETATTR names, as pyfuse3 tells it."""

    update_mode: bool
    update_uid: bool
    update_gid: bool
    update_size: bool
    update_atime: bool
    update_mtime: bool
    update_ctime: bool


class Occasion(Enum):
    """What a SETATTR is about, as far as the bits are concerned."""

    WRITE = "somebody without CAP_FSETID writes"
    TRUNCATE = "a new size"
    CHOWN = "a new owner or group"
    CHOWN_NOBODY = "a chown that changes neither"
    NOTHING = "the bits stay"


def occasion(fields: Fields) -> Occasion:
    if fields.update_uid or fields.update_gid:
        return Occasion.CHOWN
    if fields.update_size:
        return Occasion.TRUNCATE
    if fields.update_mode or fields.update_atime or fields.update_mtime:
        return Occasion.NOTHING
    return Occasion.CHOWN_NOBODY if fields.update_ctime else Occasion.WRITE


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request, as far as these rules ask."""

    uid: int
    groups: frozenset[int]
    capabilities: int
    """The effective ones, a bit each."""

    def can(self, capability: int) -> bool:
        return bool(self.capabilities >> capability & 1)


def caller(uid: int, gid: int, pid: int) -> Caller:
    """What /proc tells of a process; only root has capabilities, and all, where it tells nothing."""
    capabilities = -1 if uid == 0 else 0
    groups = {gid}
    try:
        with open(f"/proc/{pid}/status") as file:
            for name, value in _FIELD.findall(file.read()):
                if name == "CapEff":
                    capabilities = int(value, 16)
                else:
                    groups.update(map(int, value.split()))
    except (OSError, ValueError):
        pass  # it has gone, or lives in another namespace of processes
    return Caller(uid, frozenset(groups), capabilities)


def has_bits(mode: int) -> bool:
    """Whether there is anything to clear, for whoever it may be."""
    return bool(mode & BITS) and stat.S_ISREG(mode)


def cleared(mode: int, gid: int, who: Caller) -> int:
    """The mode after a chown, or after a write or truncate without CAP_FSETID; `gid` is the file's."""
    if not has_bits(mode):
        return mode
    result = mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP or not in_group(gid, who):
        result &= ~stat.S_ISGID
    return result


def in_group(gid: int, who: Caller) -> bool:
    """Whether set-group-ID of that group is the caller's to keep."""
    return gid in who.groups or who.can(CAP_FSETID)
