"""Names and attributes: what directories hold and what inodes say of themselves.

Each change is checked against the metadata and recorded as one operation, without an await between
the two. Permissions are the kernel's business (default_permissions). Failures are OSError with the
errno that Linux gives, in its order of precedence.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Sequence

import msgspec
import trio

from gridfs.files import acl
from gridfs.files.accesstimes import AccessTimes
from gridfs.files.contents import FILE_SIZE_MAX, Contents
from gridfs.files.log import OperationLog
from gridfs.files.stamps import Stamps
from gridfs.meta.operations import (
    PARTS_MAX,
    Detach,
    Drop,
    Link,
    Make,
    RemoveXattr,
    Rename,
    SetAttributes,
    SetXattr,
    Together,
    Unlink,
)
from gridfs.meta.rows import ROOT, Entry, Inode, Listed
from storage.errors import Exhausted, Unavailable

logger = logging.getLogger(__name__)

NAME_MAX = 255
TARGET_MAX = 4095
LINK_MAX = (1 << 31) - 1
"""Names of a file, and subdirectories: what a signed count of 32 bits holds."""
XATTR_VALUE_MAX = 65536
XATTR_LIST_MAX = 65536
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


def _fail(code: int) -> OSError:
    return OSError(code, os.strerror(code))


class Change(msgspec.Struct, frozen=True, gc=False):
    """Attributes to be set; None leaves one as it is. Times in nanoseconds."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime: int | None = None
    mtime: int | None = None
    size: int | None = None
    ctime: int | None = None


class Namespace:
    """The tree of one mount."""

    def __init__(self, log: OperationLog, contents: Contents, clock: Stamps) -> None:
        self._log = log
        self._contents = contents
        self._metadata = log.metadata
        self._clock = clock
        self._open: dict[int, int] = {}
        self.access = AccessTimes(log, clock)
        self.tree_detached = trio.Event()
        """Set when a snapshot lost its name: all that lies in it is to be cleared away."""

    # ---- looking

    def inode(self, ino: int) -> Inode:
        """Raises ESTALE for an inode that is gone."""
        found = self._metadata.inode(ino)
        if found is None:
            raise _fail(errno.ESTALE)
        return found

    def lookup(self, parent: int, name: bytes) -> Inode | None:
        """The inode of a name, None if there is none."""
        if name == b".":
            return self.inode(parent)
        if name == b"..":
            return self.inode(self._metadata.parent_of(parent))
        if len(name) > NAME_MAX:
            raise _fail(errno.ENAMETOOLONG)
        ino = self._metadata.lookup(parent, name)
        return None if ino is None else self.inode(ino)

    def listing(self, parent: int, after: int, limit: int) -> list[Listed]:
        return self._metadata.listing(parent, after, limit)

    def entries(self, parent: int, after: int, limit: int) -> list[Entry]:
        return self._metadata.entries(parent, after, limit)

    def parent_of(self, ino: int) -> int:
        return self._metadata.parent_of(ino)

    def require_changeable(self, inode: Inode) -> None:
        """Raises EROFS for what is part of a snapshot."""
        if inode.read_only:
            raise _fail(errno.EROFS)

    def require_vacant(self, parent: int, name: bytes, *, is_directory: bool = False) -> None:
        """Raises what making this name would raise: EEXIST, ENAMETOOLONG, EROFS, EMLINK..."""
        directory = self._directory(parent, name)
        if self._metadata.lookup(parent, name) is not None:
            raise _fail(errno.EEXIST)
        if is_directory and directory.nlink >= LINK_MAX:
            raise _fail(errno.EMLINK)

    # ---- names

    def make(
        self,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        rdev: int = 0,
        target: bytes = b"",
        umask: int = 0,
    ) -> Inode:
        """A new inode of any type. In a set-group-ID directory it takes the directory's group.

        A default ACL of the directory is inherited, and `umask` counts only where there is none.
        """
        directory = self._directory(parent, name)
        if self._metadata.lookup(parent, name) is not None:
            raise _fail(errno.EEXIST)
        if len(target) > TARGET_MAX:
            raise _fail(errno.ENAMETOOLONG)
        if stat.S_ISDIR(mode) and directory.nlink >= LINK_MAX:
            raise _fail(errno.EMLINK)
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        ino = self._metadata.reserve_inode()
        mode, xattrs = self._inherited(parent, mode, umask)
        now = self._clock.now_ns()
        made = Make(ino, parent, name, mode, uid, gid, rdev, target, now)
        if xattrs:
            self._log.record(Together([made, *(SetXattr(ino, *xattr, now) for xattr in xattrs)]))
        else:
            self._log.record(made)
        return self.inode(ino)

    def _inherited(self, parent: int, mode: int, umask: int) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Mode and ACLs of what is made in a directory."""
        if stat.S_ISLNK(mode):
            return mode, []
        default = self._metadata.xattr(parent, acl.DEFAULT)
        if default is None:
            return mode & ~umask, []
        access, mode = acl.inherited(acl.parse(default), mode)
        xattrs = [] if acl.is_minimal(access) else [(acl.ACCESS, acl.encode(access))]
        if stat.S_ISDIR(mode):
            xattrs.append((acl.DEFAULT, default))
        return mode, xattrs

    def link(self, ino: int, parent: int, name: bytes) -> Inode:
        inode = self.inode(ino)
        self._directory(parent, name)
        if stat.S_ISDIR(inode.mode):
            raise _fail(errno.EPERM)
        self.require_changeable(inode)
        if self._metadata.lookup(parent, name) is not None:
            raise _fail(errno.EEXIST)
        if inode.nlink >= LINK_MAX:
            raise _fail(errno.EMLINK)
        self._log.record(Link(ino, parent, name, self._clock.now_ns()))
        return self.inode(ino)

    def unlink(self, parent: int, name: bytes) -> None:
        inode = self._child(parent, name)
        if stat.S_ISDIR(inode.mode):
            raise _fail(errno.EISDIR)
        self._unlink(parent, name, inode)

    def rmdir(self, parent: int, name: bytes) -> None:
        inode = self._child(parent, name)
        if not stat.S_ISDIR(inode.mode):
            raise _fail(errno.ENOTDIR)
        if inode.read_only:  # the directory of a snapshot goes with all below it
            self._log.record(Detach(parent, name, inode.ino, self._clock.now_ns()))
            self.tree_detached.set()
            return
        if self._metadata.has_entries(inode.ino):
            raise _fail(errno.ENOTEMPTY)
        self._unlink(parent, name, inode)

    def _unlink(self, parent: int, name: bytes, inode: Inode) -> None:
        self._log.record(Unlink(parent, name, inode.ino, self._clock.now_ns()))
        self.drop_unused([inode.ino])

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> tuple[int, list[int]]:
        """Move a name. Returns the operation's number and the inodes that took another one's place."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise _fail(errno.EINVAL)
        moved = self._child(parent, name)
        self._directory(new_parent, new_name)
        old_ino = self._metadata.lookup(new_parent, new_name)
        exchange = bool(flags & RENAME_EXCHANGE)
        if old_ino is None and exchange:
            raise _fail(errno.ENOENT)
        if old_ino is not None and flags & RENAME_NOREPLACE:
            raise _fail(errno.EEXIST)
        if old_ino == moved.ino:
            return self._log.number, []
        if stat.S_ISDIR(moved.mode):
            if self._is_inside(new_parent, moved.ino):
                raise _fail(errno.EINVAL)
            if parent != new_parent and not old_ino and self.inode(new_parent).nlink >= LINK_MAX:
                raise _fail(errno.EMLINK)
        if old_ino is not None:
            self._may_replace(moved, self.inode(old_ino), parent, exchange)
        number, _ = self._log.record(
            Rename(
                parent, name, new_parent, new_name, moved.ino, old_ino or 0, exchange, self._clock.now_ns()
            )
        )
        if old_ino is None:
            return number, []
        if exchange:
            return number, [moved.ino, old_ino]
        self.drop_unused([old_ino])
        return number, [moved.ino]

    def _may_replace(self, moved: Inode, old: Inode, parent: int, exchange: bool) -> None:
        if exchange:
            if stat.S_ISDIR(old.mode) and self._is_inside(parent, old.ino):
                raise _fail(errno.EINVAL)
            return
        if stat.S_ISDIR(moved.mode) and not stat.S_ISDIR(old.mode):
            raise _fail(errno.ENOTDIR)
        if stat.S_ISDIR(old.mode):
            if not stat.S_ISDIR(moved.mode):
                raise _fail(errno.EISDIR)
            if self._metadata.has_entries(old.ino):
                raise _fail(errno.ENOTEMPTY)

    def _is_inside(self, directory: int, ancestor: int) -> bool:
        while directory != ROOT:
            if directory == ancestor:
                return True
            directory = self._metadata.parent_of(directory)
        return ancestor == ROOT

    def _directory(self, parent: int, name: bytes) -> Inode:
        """The directory in which `name` is to be made."""
        directory = self.inode(parent)
        if not stat.S_ISDIR(directory.mode):
            raise _fail(errno.ENOTDIR)
        if len(name) > NAME_MAX:
            raise _fail(errno.ENAMETOOLONG)
        if directory.nlink == 0:
            raise _fail(errno.ENOENT)
        self.require_changeable(directory)
        return directory

    def _child(self, parent: int, name: bytes) -> Inode:
        """What a name that is to be taken away or moved stands for."""
        inode = self.lookup(parent, name)
        if inode is None:
            raise _fail(errno.ENOENT)
        self.require_changeable(self.inode(parent))
        return inode

    # ---- attributes

    def change(self, ino: int, change: Change) -> None:
        """Set attributes; a size cuts the file or extends it by a hole. Raises EFBIG past the largest."""
        self.require_changeable(self.inode(ino))
        if change.size is not None and change.size > FILE_SIZE_MAX:
            raise _fail(errno.EFBIG)
        if change.ctime is not None:
            self._clock.seen(change.ctime)
        now = self._clock.now_ns()
        mtime = now if change.size is not None and change.mtime is None else change.mtime
        ctime = now if change.ctime is None else change.ctime
        operation = SetAttributes(
            ino, change.mode, change.uid, change.gid, change.atime, mtime, change.size, ctime
        )
        access = None if change.mode is None else self._metadata.xattr(ino, acl.ACCESS)
        if access is None or change.mode is None:
            self._log.record(operation)
        else:
            value = acl.encode(acl.with_permissions(acl.parse(access), change.mode))
            self._log.record(Together([operation, SetXattr(ino, acl.ACCESS, value, ctime)]))
        if change.atime is not None:
            self.access.forget(ino)
        if change.size is not None:
            self._contents.truncated(ino, change.size)

    def accessed(self, ino: int) -> bool:
        """The inode was read; whether its access time moves."""
        return self.access.accessed(self.inode(ino))

    # ---- extended attributes

    def xattr(self, ino: int, name: bytes) -> bytes:
        value = self._metadata.xattr(ino, name)
        if value is None:
            raise _fail(errno.ENODATA)
        return value

    def xattrs(self, ino: int) -> list[bytes]:
        return self._metadata.xattrs(ino)

    def set_xattr(self, ino: int, name: bytes, value: bytes) -> None:
        self.require_changeable(self.inode(ino))
        if len(name) > NAME_MAX:
            raise _fail(errno.ERANGE)
        if len(value) > XATTR_VALUE_MAX:
            raise _fail(errno.E2BIG)
        names = self._metadata.xattrs(ino)
        if name not in names and sum(map(len, names)) + len(names) + len(name) + 1 > XATTR_LIST_MAX:
            raise _fail(errno.ENOSPC)
        self._log.record(SetXattr(ino, name, value, self._clock.now_ns()))

    def set_acl(self, ino: int, name: bytes, value: bytes, *, keeps_set_gid: bool) -> None:
        """Set an ACL, and the mode with an access ACL. `keeps_set_gid`: the caller may have that bit.

        A minimal ACL is not kept. Raises OSError: EINVAL or EOPNOTSUPP for what is no ACL, EACCES for a
        default ACL of anything but a directory.
        """
        inode = self.inode(ino)
        self.require_changeable(inode)
        entries = acl.parse(value)
        now = self._clock.now_ns()
        if name == acl.DEFAULT:
            if not stat.S_ISDIR(inode.mode):
                raise _fail(errno.EACCES)
            self._log.record(SetXattr(ino, name, value, now))
            return
        mode = inode.mode & ~0o777 | acl.permissions_of(entries)
        if not keeps_set_gid:
            mode &= ~stat.S_ISGID
        parts: list[SetAttributes | SetXattr | RemoveXattr] = [
            SetAttributes(ino, mode, None, None, None, None, None, now)
        ]
        if not acl.is_minimal(entries):
            parts.append(SetXattr(ino, name, value, now))
        elif self._metadata.xattr(ino, name) is not None:
            parts.append(RemoveXattr(ino, name, now))
        self._log.record(parts[0] if len(parts) == 1 else Together([*parts]))

    def remove_acl(self, ino: int, name: bytes) -> None:
        """Leaves the mode as it is; to remove what is not there is no error."""
        self.require_changeable(self.inode(ino))
        if self._metadata.xattr(ino, name) is not None:
            self._log.record(RemoveXattr(ino, name, self._clock.now_ns()))

    def remove_xattr(self, ino: int, name: bytes) -> None:
        self.require_changeable(self.inode(ino))
        self.xattr(ino, name)
        self._log.record(RemoveXattr(ino, name, self._clock.now_ns()))

    # ---- inodes without a name stay while they are open

    def opened(self, ino: int) -> None:
        self._open[ino] = self._open.get(ino, 0) + 1

    def closed(self, *inodes: int) -> list[int]:
        """One handle less of each; returns the inodes that went with it."""
        last = []
        for ino in inodes:
            count = self._open[ino] - 1
            if count:
                self._open[ino] = count
            else:
                del self._open[ino]
                last.append(ino)
        return self.drop_unused(last)

    def drop_orphans(self) -> list[int]:
        """Drop what a former mount left open and nameless; returns the inodes."""
        orphans = self._metadata.orphans()
        steps = range(0, len(orphans), PARTS_MAX)
        return [ino for step in steps for ino in self.drop_unused(orphans[step : step + PARTS_MAX])]

    def is_open(self, ino: int) -> bool:
        return ino in self._open

    def drop_unused(self, inodes: Sequence[int]) -> list[int]:
        """Drop those of these inodes, PARTS_MAX at most, that have no name and no handle, in one operation;
        returns them.

        Where the disk refuses, they stay until the next mount: what took their names is done and told.
        """
        try:
            gone = [ino for ino in inodes if self._is_unused(ino)]
            if gone:
                self._log.record(Drop(gone[0]) if len(gone) == 1 else Together([*map(Drop, gone)]))
        except (OSError, Exhausted, Unavailable) as error:
            logger.error("inodes %s, which have no name any more, are dropped later: %s", inodes, error)
            return []
        for ino in gone:
            self._contents.dropped(ino)
            self.access.forget(ino)
        return gone

    def _is_unused(self, ino: int) -> bool:
        inode = self._metadata.inode(ino)
        return inode is not None and inode.nlink <= 0 and ino not in self._open
