"""The FUSE handlers: the kernel's requests as calls of the file system, and nothing more."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pyfuse3

from gridfs.files import acl
from gridfs.files.filesystem import FileSystem
from gridfs.files.namespace import Change
from gridfs.fuse import setid
from gridfs.fuse.errors import firewall
from gridfs.fuse.nameless import Nameless
from gridfs.fuse.pages import Pages
from gridfs.fuse.rows import Rows
from gridfs.fuse.setid import Occasion
from gridfs.meta.rows import Inode
from storage.errors import StorageError
from storage.ports import Buffer

logger = logging.getLogger(__name__)

DOT, DOT_DOT = 1, 2
"""Cookies of `.` and `..`; those of the metadata begin behind them."""
BATCH = 64
"""Directory entries fetched at a time; the kernel has room for some 200 of them in one request."""
BLOCK_SIZE = 65536
XATTR_NAMESPACES = (b"user.", b"trusted.", b"security.")
LABEL = b"security.selinux"
"""The kernel takes no labels from FUSE. Told that there are none, `ls -l` stops asking for one per file."""
WANTS_WRITE = os.O_WRONLY | os.O_RDWR
TICK_NS = 100_000_000
"""More than the kernel's clock of inode times may differ from ours."""


def _tells_times(fields: Any) -> bool:
    """Whether a SETATTR is the kernel's own: the times of what it keeps."""
    asked = fields.update_mode or fields.update_uid or fields.update_gid or fields.update_size
    return fields.update_mtime and fields.update_ctime and not (asked or fields.update_atime)


class Handlers(pyfuse3.Operations):
    """One mount's handlers. `attr_timeout_s`: how long the kernel may keep attributes and names."""

    supports_dot_lookup = True

    def __init__(
        self,
        files: FileSystem,
        attr_timeout_s: float,
        *,
        acl: bool = True,
        atime: bool = True,
        writeback: bool = True,
        pages: Pages | None = None,
    ) -> None:
        """`writeback`: the kernel keeps what is written, and takes sizes and times for its own to tell.
        `pages`: gives it what was read beside what it asked for; None: nobody does."""
        super().__init__()
        self._pages = pages or Pages(0)
        self.rows = Rows(files, self._pages)
        self._flags: dict[int, int] = {}
        """Handle -> what it was opened with."""
        self.enable_writeback_cache = writeback
        self.enable_acl = acl
        self.calls: dict[str, int] = {}
        self.own_init = False
        """Whether the set-ID bits are ours to clear, and umasks ours to apply."""
        self._files = files
        self._namespace = files.namespace
        self.nameless = Nameless(files.namespace)
        self._keeps_atime = atime
        self._timeout = attr_timeout_s
        self._begun_ns = time.time_ns() - TICK_NS
        """What was changed before has no page in the kernel yet when it is opened first."""
        self._unseen: dict[int, int] = {}
        """By handle: inodes whose access time its open has moved, and the kernel shows the old one. Most
        programs ask right after the open, and not again after the first read."""

    # ---- attributes

    def _attributes(self, inode: Inode) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode.ino
        entry.generation = 0
        entry.entry_timeout = entry.attr_timeout = self._timeout
        entry.st_mode = inode.mode
        entry.st_nlink = inode.nlink
        entry.st_uid = inode.uid
        entry.st_gid = inode.gid
        entry.st_rdev = inode.rdev
        entry.st_size = inode.size
        entry.st_blksize = BLOCK_SIZE
        entry.st_blocks = inode.blocks
        if stat.S_ISREG(inode.mode):
            whole = -(-inode.size // 512)
            entry.st_blocks = min(whole, inode.blocks + self._files.data_blocks(inode.ino))
        entry.st_atime_ns = self._namespace.access.of(inode)
        entry.st_mtime_ns = inode.mtime
        entry.st_ctime_ns = inode.ctime
        return entry

    @firewall
    async def lookup(self, parent_inode: int, name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
        inode = self._namespace.lookup(parent_inode, name)
        if inode is not None:
            return self._attributes(inode)
        absent = pyfuse3.EntryAttributes()
        absent.st_ino = 0  # the kernel keeps the absence for the entry timeout
        absent.entry_timeout = self._timeout
        return absent

    @firewall
    async def getattr(self, inode: int, ctx: object) -> pyfuse3.EntryAttributes:
        return self._attributes(self._namespace.inode(inode))

    @firewall
    async def setattr(
        self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: object
    ) -> pyfuse3.EntryAttributes:
        self._files.require_writable()
        current = self._namespace.inode(inode)
        if current.nlink == 0 and stat.S_ISREG(current.mode) and _tells_times(fields):
            # After each unlink. Nobody but the kernel will show them, and the inode goes when it forgets it.
            return self._attributes(current._replace(mtime=attr.st_mtime_ns, ctime=attr.st_ctime_ns))
        mode = None
        if self.own_init or fields.update_size:
            mode = self._without_set_id(current, fields, ctx)
        if fields.update_mode:
            mode = stat.S_IFMT(current.mode) | stat.S_IMODE(attr.st_mode)
        change = Change(
            mode=mode,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime=attr.st_atime_ns if fields.update_atime else None,
            mtime=attr.st_mtime_ns if fields.update_mtime else None,
            ctime=attr.st_ctime_ns if fields.update_ctime else None,
            size=attr.st_size if fields.update_size else None,
        )
        if fields.update_size:
            await self._pages.still(inode)
        if fields.update_size and not fields.update_mtime:
            # The kernel keeps the times of what it caches, and leaves them where the size stays as it is.
            change = msgspec.structs.replace(change, mtime=current.mtime, ctime=change.ctime or current.ctime)
        self._namespace.change(inode, change)
        return self._attributes(self._namespace.inode(inode))

    def _without_set_id(self, inode: Inode, fields: Any, ctx: Any) -> int | None:
        """The mode that a SETATTR without a mode leaves; None where it stays."""
        if not setid.has_bits(inode.mode):
            return None
        who = setid.caller(ctx.uid, ctx.gid, ctx.pid)
        mode = setid.cleared(inode.mode, inode.gid, who)
        if mode == inode.mode:
            return None
        match setid.occasion(fields):
            case Occasion.NOTHING:
                return None
            case Occasion.TRUNCATE if who.can(setid.CAP_FSETID):
                return None
            case Occasion.CHOWN_NOBODY if who.uid != inode.uid and not who.can(setid.CAP_FOWNER):
                raise pyfuse3.FUSEError(errno.EPERM)
            case _:
                return mode

    @firewall
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Inode numbers are never used twice, so nothing is kept per lookup."""
        self.nameless.forgotten(ino for ino, _ in inode_list)

    @firewall
    async def readlink(self, inode: int, ctx: object) -> bytes:
        self._accessed(inode)
        return self._namespace.inode(inode).target

    def _accessed(self, ino: int) -> bool:
        """Something was read of an inode; whether that moved its access time."""
        if not self._keeps_atime or not self._files.writable:
            return False
        try:
            return self._namespace.accessed(ino)
        except (OSError, StorageError) as error:
            logger.warning("inode %d: its access time stays: %s", ino, error)  # no reason to refuse a read
            return False

    @firewall
    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        self.nameless.drop()
        numbers = self._files.numbers()
        result = pyfuse3.StatvfsData()
        result.f_bsize = result.f_frsize = numbers.block_size
        result.f_blocks = numbers.total // numbers.block_size
        result.f_bfree = result.f_bavail = numbers.free // numbers.block_size
        result.f_files = numbers.inodes + numbers.inodes_free
        result.f_ffree = result.f_favail = numbers.inodes_free
        result.f_namemax = 255
        return result

    # ---- names

    async def _make(
        self, parent: int, name: bytes, mode: int, ctx: Any, rdev: int = 0, target: bytes = b""
    ) -> Inode:
        self._files.require_writable()
        await self._files.require_room()
        return self._files.trees.make(parent, name, mode, ctx.pid) or self._namespace.make(
            parent, name, mode, ctx.uid, ctx.gid, rdev, target, ctx.umask
        )

    @firewall
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        return self._attributes(await self._make(parent_inode, name, mode, ctx, rdev))

    @firewall
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        return self._attributes(await self._make(parent_inode, name, mode, ctx))

    @firewall
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        mode = stat.S_IFLNK | 0o777
        return self._attributes(await self._make(parent_inode, name, mode, ctx, target=target))

    @firewall
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: object
    ) -> pyfuse3.EntryAttributes:
        self._files.require_writable()
        return self._attributes(self._namespace.link(inode, new_parent_inode, new_name))

    @firewall
    async def unlink(self, parent_inode: int, name: bytes, ctx: object) -> None:
        self._files.require_writable()
        self.nameless.outlived(parent_inode, name, self._namespace.unlink, parent_inode, name)

    @firewall
    async def rmdir(self, parent_inode: int, name: bytes, ctx: object) -> None:
        self._files.require_writable()
        self.nameless.outlived(parent_inode, name, self._namespace.rmdir, parent_inode, name)

    @firewall
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: object,
    ) -> None:
        await self._files.require_order(parent_inode_old, name_old, parent_inode_new, name_new)
        where = parent_inode_new, name_new
        self.nameless.outlived(*where, self._files.rename, parent_inode_old, name_old, *where, flags)

    # ---- directories

    @firewall
    async def opendir(self, inode: int, ctx: object) -> int:
        return self._files.open_directory(inode)

    @firewall
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        directory = self._files.directory(fh)
        if not start_id:
            self._files.rewind_directory(fh)
            self._accessed(directory)
        if start_id < DOT and not pyfuse3.readdir_reply(
            token, b".", self._attributes(self._namespace.inode(directory)), DOT
        ):
            return
        if start_id < DOT_DOT:
            parent = self._namespace.inode(self._namespace.parent_of(directory))
            if not pyfuse3.readdir_reply(token, b"..", self._attributes(parent), DOT_DOT):
                return
        after = max(start_id, DOT_DOT)
        while entries := self._files.list_directory(fh, after, BATCH):
            for entry in entries:
                attributes = self._attributes(entry.inode)
                if not pyfuse3.readdir_reply(token, entry.name, attributes, entry.cookie):
                    return
                after = entry.cookie

    @firewall
    async def releasedir(self, fh: int) -> None:
        self._files.release_directory(fh)

    @firewall
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._files.fsync(self._files.directory(fh))

    # ---- files

    @firewall
    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        if flags & WANTS_WRITE:
            self._files.require_writable(inode)
            await self._files.require_room()
            await self._pages.still(inode)
        if flags & os.O_TRUNC:
            mode = self._truncated_mode(inode, ctx)
            self._namespace.change(inode, Change(size=0, mode=mode))
            if mode is not None:
                self._forget_attributes(inode)
        handle = self._opened(inode, flags)
        if not flags & (WANTS_WRITE | os.O_NOATIME):
            # Reads from the page cache do not come here, so an open to read counts as one.
            is_new = self._namespace.inode(inode).ctime >= self._begun_ns
            if self._accessed(inode):
                if is_new:
                    self._forget_attributes(inode)
                else:
                    self._unseen[handle] = inode
        return pyfuse3.FileInfo(fh=handle, keep_cache=True)

    def _opened(self, ino: int, flags: int) -> int:
        handle = self._files.open(ino)
        self._flags[handle] = flags
        if flags & WANTS_WRITE:
            self._pages.opened_to_write(ino)
        return handle

    def _show_access(self, fh: int) -> None:
        """From now on the kernel shows the access time that an open has moved."""
        ino = self._unseen.pop(fh, None)
        if ino is not None:
            self._forget_attributes(ino)

    @staticmethod
    def _forget_attributes(ino: int) -> None:
        """The answer to an open has no attributes, and the kernel would go on with the old ones."""
        with contextlib.suppress(OSError):
            pyfuse3.invalidate_inode(pyfuse3.InodeT(ino), attr_only=True)

    def _truncated_mode(self, ino: int, ctx: Any) -> int | None:
        inode = self._namespace.inode(ino)
        if not setid.has_bits(inode.mode):
            return None
        who = setid.caller(ctx.uid, ctx.gid, ctx.pid)
        return None if who.can(setid.CAP_FSETID) else setid.cleared(inode.mode, inode.gid, who)

    @firewall
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        inode = await self._make(parent_inode, name, mode, ctx)
        info = pyfuse3.FileInfo(fh=self._opened(inode.ino, flags), keep_cache=True)
        return info, self._attributes(inode)

    @firewall
    async def read(self, fh: int, off: int, size: int) -> Buffer:  # type: ignore[override]
        if self._unseen:
            self._show_access(fh)
        ino, size_now = self._files.inode_of(fh), None
        # With O_DIRECT a read goes past the page cache.
        reading = None if self._flags[fh] & os.O_DIRECT else self._pages.begin(ino, off, size)
        if reading is None:
            return await self._files.read(fh, off, size)
        try:
            around_max = self._pages.file_bytes_max
            data = await self._files.read(fh, off, size, reading.opened, around_max=around_max)
            size_now = self._namespace.inode(ino).size if reading.opened else None
        finally:
            self._pages.end(reading, size_now)
        if self._files.jumped(fh):
            self.rows.jumped(ino, off)
        return data

    @firewall
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        # With its write-back cache the kernel stamps each write when it is made, and sends that stamp; this
        # may come any time later, and not at all where the stamp is the one that we gave.
        return await self._files.write(fh, off, buf, stamped=True)

    @firewall
    async def flush(self, fh: int) -> None:
        """close(2): what the kernel's cache held back has come before, and is in the spool.

        Asked for nothing, it still has to be answered: a kernel that no longer asks lets close succeed after
        the daemon died, although what it held back went nowhere. Where nobody writes it need not ask again.
        """
        if not self.enable_writeback_cache:
            raise pyfuse3.FUSEError(errno.ENOSYS)

    @firewall
    async def release(self, fh: int) -> None:
        if self._unseen:
            self._show_access(fh)
        ino = self._files.inode_of(fh)
        self._files.release(fh)
        if self._flags.pop(fh) & WANTS_WRITE:
            self._pages.closed(ino)

    @firewall
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._files.fsync(self._files.inode_of(fh))

    # ---- extended attributes

    @firewall
    async def getxattr(self, inode: int, name: bytes, ctx: object) -> bytes:
        self._require_namespace(name)
        try:
            return self._namespace.xattr(inode, name)
        except OSError as error:
            if name == LABEL and error.errno == errno.ENODATA:
                raise pyfuse3.FUSEError(errno.EOPNOTSUPP) from None
            raise

    @firewall
    async def listxattr(self, inode: int, ctx: Any) -> Sequence[bytes]:
        names = self._namespace.xattrs(inode)
        if not any(name.startswith(b"trusted.") for name in names):
            return names
        # Linux shows these to administrators only.
        sees_all = setid.caller(ctx.uid, ctx.gid, ctx.pid).can(setid.CAP_SYS_ADMIN)
        return [name for name in names if sees_all or not name.startswith(b"trusted.")]

    @firewall
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> None:
        self._files.require_writable()
        self._require_namespace(name)
        if name not in acl.NAMES:
            self._namespace.set_xattr(inode, name, value)
            return
        found = self._namespace.inode(inode)
        who = setid.caller(ctx.uid, ctx.gid, ctx.pid)
        self._namespace.set_acl(inode, name, value, keeps_set_gid=setid.in_group(found.gid, who))

    @firewall
    async def removexattr(self, inode: int, name: bytes, ctx: object) -> None:
        self._files.require_writable()
        self._require_namespace(name)
        if name in acl.NAMES:
            self._namespace.remove_acl(inode, name)
        else:
            self._namespace.remove_xattr(inode, name)

    def _require_namespace(self, name: bytes) -> None:
        if not name.startswith(XATTR_NAMESPACES) and not (self.enable_acl and name in acl.NAMES):
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        if name in XATTR_NAMESPACES:
            raise pyfuse3.FUSEError(errno.EINVAL)
