"""POSIX access control lists: their bytes, and how they and the mode follow each other. Pure.

An ACL is kept as the extended attribute that programs see: a version, then 8 bytes an entry. The access
ACL of a file and its permission bits say the same thing twice: the owner's and the others' entries are
the bits of owner and others; the mask, or without one the entry of the owning group, is the bits of the
group. A minimal ACL (those three entries alone) says no more than the mode and is not kept.

The rules are those of POSIX 1003.1e draft 17, sections 23.1 and 23.3, as Linux has them.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"
"""Of a directory: what is made in it inherits this."""
NAMES = frozenset((ACCESS, DEFAULT))

VERSION = 2
NOBODY = 0xFFFFFFFF
"""The id of an entry that names none."""

_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")


class Tag(IntEnum):
    """Whom an entry is for, in the order in which entries stand."""

    USER_OBJ = 0x01
    USER = 0x02
    GROUP_OBJ = 0x04
    GROUP = 0x08
    MASK = 0x10
    OTHER = 0x20


NAMED = (Tag.USER, Tag.GROUP)


class Entry(NamedTuple):
    """`permissions`: 4 read, 2 write, 1 execute. `id`: of a named user or group, else NOBODY."""

    tag: Tag
    permissions: int
    id: int = NOBODY


Acl = tuple[Entry, ...]


def _invalid() -> OSError:
    return OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def parse(data: bytes) -> Acl:
    """Raises OSError: EOPNOTSUPP for another version, EINVAL for what is no ACL."""
    if len(data) < _HEADER.size:
        raise _invalid()
    if _HEADER.unpack_from(data)[0] != VERSION:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    body = memoryview(data)[_HEADER.size :]
    if len(body) % _ENTRY.size:
        raise _invalid()
    try:
        acl = tuple(
            Entry(Tag(tag), permissions, identity if Tag(tag) in NAMED else NOBODY)
            for tag, permissions, identity in _ENTRY.iter_unpack(body)
        )
    except ValueError:
        raise _invalid() from None
    check(acl)
    return acl


def check(acl: Acl) -> None:
    """The three entries that every ACL has, once each; a mask where anybody is named; all in order."""
    tags = [entry.tag for entry in acl]
    is_named = any(tag in NAMED for tag in tags)
    if (
        tags != sorted(tags)
        or any(tags.count(tag) != 1 for tag in (Tag.USER_OBJ, Tag.GROUP_OBJ, Tag.OTHER))
        or tags.count(Tag.MASK) > 1
        or (is_named and Tag.MASK not in tags)
        or any(entry.permissions & ~7 for entry in acl)
        or any(entry.tag in NAMED and entry.id == NOBODY for entry in acl)
    ):
        raise _invalid()


def encode(acl: Acl) -> bytes:
    """The inverse of `parse`."""
    return _HEADER.pack(VERSION) + b"".join(_ENTRY.pack(*entry) for entry in acl)


def is_minimal(acl: Acl) -> bool:
    """Whether the mode says all of it."""
    return len(acl) == 3


def permissions_of(acl: Acl) -> int:
    """The nine permission bits of a file with this access ACL."""
    by_tag = {entry.tag: entry.permissions for entry in acl}
    group = by_tag.get(Tag.MASK, by_tag[Tag.GROUP_OBJ])
    return by_tag[Tag.USER_OBJ] << 6 | group << 3 | by_tag[Tag.OTHER]


def with_permissions(acl: Acl, mode: int) -> Acl:
    """The access ACL after a chmod to `mode`."""
    return tuple(_replaced(acl, _of_mode(acl, mode)))


def inherited(default: Acl, mode: int) -> tuple[Acl, int]:
    """Access ACL and mode of what is made with `mode` where this default ACL is; no umask counts there."""
    wanted = _of_mode(default, mode)
    acl = tuple(
        _replaced(default, {entry.tag: entry.permissions & wanted.get(entry.tag, 7) for entry in default})
    )
    return acl, mode & ~0o777 | permissions_of(acl)


def _of_mode(acl: Acl, mode: int) -> dict[Tag, int]:
    """What the permission bits say of the entries that they stand for."""
    has_mask = any(entry.tag == Tag.MASK for entry in acl)
    group = Tag.MASK if has_mask else Tag.GROUP_OBJ
    return {Tag.USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, Tag.OTHER: mode & 7}


def _replaced(acl: Acl, permissions: dict[Tag, int]) -> Iterable[Entry]:
    for entry in acl:
        if entry.tag in NAMED:
            yield entry
        else:
            yield entry._replace(permissions=permissions.get(entry.tag, entry.permissions))
