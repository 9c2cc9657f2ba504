"""The FUSE handlers: the kernel's requests as calls of the file system, and nothing more."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import Any

import pyfuse3

from gridfs.files.filesystem import FileSystem
from gridfs.files.namespace import Change
from gridfs.fuse.errors import firewall
from gridfs.meta.rows import Inode
from storage.ports import Buffer

DOT, DOT_DOT = 1, 2
"""Cookies of `.` and `..`; those of the metadata begin behind them."""
BATCH = 512
"""Directory entries fetched at a time."""
BLOCK_SIZE = 65536
WANTS_WRITE = os.O_WRONLY | os.O_RDWR


class Handlers(pyfuse3.Operations):
    """One mount's handlers. `attr_timeout_s`: how long the kernel may keep attributes and names."""

    supports_dot_lookup = True
    enable_writeback_cache = True

    def __init__(self, files: FileSystem, attr_timeout_s: float) -> None:
        super().__init__()
        self._files = files
        self._namespace = files.namespace
        self._timeout = attr_timeout_s

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
        entry.st_atime_ns = inode.atime
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
        mode = None
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
        self._namespace.change(inode, change)
        return self._attributes(self._namespace.inode(inode))

    @firewall
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Inode numbers are never used twice, so nothing is kept per lookup."""

    @firewall
    async def readlink(self, inode: int, ctx: object) -> bytes:
        return self._namespace.inode(inode).target

    @firewall
    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
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
        cloned = self._files.trees.make(parent, name, mode, ctx.pid)
        return cloned or self._namespace.make(parent, name, mode, ctx.uid, ctx.gid, rdev, target)

    @firewall
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        return self._attributes(await self._make(parent_inode, name, mode & ~ctx.umask, ctx, rdev))

    @firewall
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        mode = stat.S_IFDIR | stat.S_IMODE(mode & ~ctx.umask)
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
        self._namespace.unlink(parent_inode, name)

    @firewall
    async def rmdir(self, parent_inode: int, name: bytes, ctx: object) -> None:
        self._files.require_writable()
        self._namespace.rmdir(parent_inode, name)

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
        self._files.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    # ---- directories

    @firewall
    async def opendir(self, inode: int, ctx: object) -> int:
        return self._files.open_directory(inode)

    @firewall
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        directory = self._files.directory(fh)
        if not start_id:
            self._files.rewind_directory(fh)
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
                attributes = self._attributes(self._namespace.inode(entry.ino))
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
        if flags & os.O_TRUNC:
            self._namespace.change(inode, Change(size=0))
        return pyfuse3.FileInfo(fh=self._files.open(inode), keep_cache=True)

    @firewall
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        mode = stat.S_IFREG | stat.S_IMODE(mode & ~ctx.umask)
        inode = await self._make(parent_inode, name, mode, ctx)
        info = pyfuse3.FileInfo(fh=self._files.open(inode.ino), keep_cache=True)
        return info, self._attributes(inode)

    @firewall
    async def read(self, fh: int, off: int, size: int) -> Buffer:  # type: ignore[override]
        return await self._files.read(fh, off, size)

    @firewall
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._files.write(fh, off, buf)

    @firewall
    async def flush(self, fh: int) -> None:
        """close(2): what was written is in the spool already."""

    @firewall
    async def release(self, fh: int) -> None:
        self._files.release(fh)

    @firewall
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._files.fsync(self._files.inode_of(fh))

    # ---- extended attributes

    @firewall
    async def getxattr(self, inode: int, name: bytes, ctx: object) -> bytes:
        return self._namespace.xattr(inode, name)

    @firewall
    async def listxattr(self, inode: int, ctx: object) -> Sequence[bytes]:
        return self._namespace.xattrs(inode)

    @firewall
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: object) -> None:
        self._files.require_writable()
        if name.startswith(b"system."):
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        self._namespace.set_xattr(inode, name, value)

    @firewall
    async def removexattr(self, inode: int, name: bytes, ctx: object) -> None:
        self._files.require_writable()
        self._namespace.remove_xattr(inode, name)
