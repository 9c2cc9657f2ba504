"""The file system as its front ends see it: open files, durability, numbers.

A front end (FUSE, or a test) calls `namespace` for names and attributes, and the methods here for open
files. Everything raises OSError, `storage.errors` or `gridfs.grid.errors`; the edge turns them into errno.
"""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass

import trio

from gridfs.files.claiming import TakenOver
from gridfs.files.contents import Contents
from gridfs.files.dirty import DirtyData
from gridfs.files.journal import Journal
from gridfs.files.log import OperationLog
from gridfs.files.namespace import Namespace
from gridfs.files.readahead import Readahead
from gridfs.files.reader import Opened
from gridfs.files.trees import Trees
from gridfs.files.writer import Writer
from gridfs.grid.capacity import Capacity
from gridfs.grid.errors import GridError, NotEnoughShares
from gridfs.meta.rows import Listed
from storage.errors import StorageError, Unavailable
from storage.ports import Buffer

logger = logging.getLogger(__name__)

BLOCK_SIZE = 4096
ROOM_BYTES = 1 << 20
"""Room in the spool that a create, or an open for writing, wants to see."""
UNREADABLE_S = 10.0
"""How long an unmount waits for operations that may wait for bytes that cannot be read."""
ACCESS_TIMES_S = 2.0
"""How long an unmount waits for access times to reach the grid."""


@dataclass(frozen=True, slots=True)
class FileSystemConfig:
    read_only: bool = False
    fsync: str = "grid"
    """grid: fsync returns when the data is in the grid; spool: when it is durable on this machine."""
    grid_timeout_s: float = 30.0
    """How long fsync, or a read, waits for the grid before it fails with EIO."""
    again_s: float = 0.5
    """How long a read waits that begins within `again_within_s` after another one of the same file waited in
    vain: the kernel asks up to three times before it tells a program of one failure."""
    again_within_s: float = 2.0
    retry_s_max: float = 0.5
    """Longest pause before a read that too few servers could serve is tried again."""
    room_timeout_s: float = 10.0
    """How long a create, or an open for writing, waits for room in a full spool."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """What statfs tells."""

    block_size: int
    total: int
    """Bytes."""
    free: int
    """Bytes."""
    inodes: int
    inodes_free: int


@dataclass(slots=True, eq=False)
class OpenFile:
    """One open handle."""

    ino: int
    readahead: Readahead


@dataclass(slots=True, eq=False)
class OpenDirectory:
    """One open directory handle."""

    ino: int
    last: int | None = None
    """Highest cookie of the listing under way: entries made later would keep it from ending."""
    ended: int | None = None
    """Cookie behind which the listing under way found no more."""


class FileSystem:
    """One mounted file system, without its front end."""

    def __init__(
        self,
        log: OperationLog,
        dirty: DirtyData,
        writer: Writer,
        journal: Journal,
        contents: Contents,
        namespace: Namespace,
        trees: Trees,
        capacity: Capacity,
        config: FileSystemConfig,
    ) -> None:
        self._log = log
        self._dirty = dirty
        self._writer = writer
        self._journal = journal
        self._contents = contents
        self._capacity = capacity
        self._config = config
        self._handles: dict[int, OpenFile] = {}
        self._directories: dict[int, OpenDirectory] = {}
        self._next_handle = 1
        self._in_vain: dict[int, float] = {}
        """By inode: when a read waited for the grid in vain."""
        self.namespace = namespace
        self.trees = trees
        self.pause = contents.pause
        """Front ends let changes wait while it is on."""

    # ---- open files

    def open(self, ino: int) -> int:
        """A new handle for a regular file."""
        self.namespace.inode(ino)
        handle = self._next_handle
        self._next_handle += 1
        self._handles[handle] = OpenFile(ino, self._contents.open(ino))
        self.namespace.opened(ino)
        return handle

    def release(self, handle: int) -> None:
        file = self._handles.pop(handle)
        self._contents.close(file.ino, file.readahead)
        self.namespace.closed(file.ino)

    async def read(
        self,
        handle: int,
        offset: int,
        length: int,
        opened: list[Opened] | None = None,
        *,
        around_max: int = 0,
    ) -> Buffer:
        """Waits for servers that are away, up to `grid_timeout`. `opened`, `around_max`: as for
        `Readahead.read`.

        Raises Unavailable, with the file's path, when they stay away, and at once where servers that answer
        have too few good shares; OSError where the local disk fails.
        """
        file = self._handles[handle]
        trouble = ""
        delay = self._config.retry_s_max / 8
        seconds = self._patience_s(file.ino)
        try:
            with trio.move_on_after(seconds):
                while True:
                    try:
                        size = self.namespace.inode(file.ino).size
                        return await file.readahead.read(offset, length, size, opened, around_max=around_max)
                    except NotEnoughShares as error:
                        if not error.may_pass:
                            raise
                        trouble = f": {error}"
                    await trio.sleep(delay)
                    delay = min(2 * delay, self._config.retry_s_max)
        except (GridError, StorageError) as error:
            raise Unavailable(f"{self.path_of(file.ino)}, at byte {offset}: {error}") from error
        except OSError as error:
            reason = f"{self.path_of(file.ino)}, at byte {offset}: {error.strerror or error}"
            raise OSError(error.errno or errno.EIO, reason) from error
        self._in_vain.setdefault(file.ino, trio.current_time())
        where = f"{self.path_of(file.ino)}, at byte {offset}"
        raise Unavailable(f"{where}: no answer from the grid for {seconds:g} s{trouble}")

    def jumped(self, handle: int) -> bool:
        """Whether the last read of a handle was nowhere near those before it, and brought nothing else."""
        return self._handles[handle].readahead.jumped

    def size_of(self, ino: int) -> int:
        """Bytes of a regular file. Raises OSError where it is gone."""
        return self.namespace.inode(ino).size

    async def fetch(self, ino: int, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `start` on, which somebody may want soon. Raises what the grid
        raises, and Unavailable where it takes as long as no read may."""
        with trio.move_on_after(self._config.grid_timeout_s) as scope:
            await self._contents.fetch(ino, start, out)
        if scope.cancelled_caught:
            raise Unavailable("no answer from the grid")

    def _patience_s(self, ino: int) -> float:
        """How long a read of this inode may wait for the grid."""
        config = self._config
        if self._in_vain:
            oldest = trio.current_time() - config.again_within_s
            self._in_vain = {each: since for each, since in self._in_vain.items() if since > oldest}
        return min(config.again_s, config.grid_timeout_s) if ino in self._in_vain else config.grid_timeout_s

    def path_of(self, ino: int) -> str:
        """One path of an inode, for a person."""
        return self._log.metadata.path_of(ino)

    async def write(self, handle: int, offset: int, data: Buffer, *, stamped: bool = False) -> int:
        """Returns the bytes written: all of them. `stamped`: the front end sets the times by itself."""
        ino = self._handles[handle].ino
        self.require_writable(ino)
        await self._contents.write(ino, offset, data, stamped=stamped)
        return len(data)

    def inode_of(self, handle: int) -> int:
        return self._handles[handle].ino

    def data_blocks(self, ino: int) -> int:
        """Dirty bytes of an inode that no extent counts yet, in units of 512 bytes."""
        return -(-self._dirty.bytes_of(ino) // 512)

    # ---- directories

    def open_directory(self, ino: int) -> int:
        """A new handle for a directory; it stays usable when the directory is removed."""
        handle = self._next_handle
        self._next_handle += 1
        self._directories[handle] = OpenDirectory(ino)
        self.namespace.opened(ino)
        return handle

    def directory(self, handle: int) -> int:
        """The inode behind a directory handle."""
        return self._directories[handle].ino

    def list_directory(self, handle: int, after: int, limit: int) -> list[Listed]:
        """Entries behind the cookie `after`. A listing ends where the directory ended when it began."""
        directory = self._directories[handle]
        if directory.last is None:
            directory.last = self._log.metadata.last_cookie
        if directory.ended is not None and after >= directory.ended:
            return []
        last = directory.last
        entries = self.namespace.listing(directory.ino, after, limit)
        if len(entries) < limit:
            directory.ended = entries[-1].cookie if entries else after
        elif entries[-1].cookie <= last:
            return entries
        return [entry for entry in entries if entry.cookie <= last]

    def rewind_directory(self, handle: int) -> None:
        """The next listing sees what is there then."""
        directory = self._directories[handle]
        directory.last = directory.ended = None

    def release_directory(self, handle: int) -> None:
        self.namespace.closed(self._directories.pop(handle).ino)

    async def require_order(self, parent: int, name: bytes, new_parent: int, new_name: bytes) -> None:
        """For a rename, right before it: data of what takes another's place gets ahead of it on the disk.

        Raises OSError where the disk fails.
        """
        find = self._log.metadata.lookup
        inodes = [find(parent, name), find(new_parent, new_name)]
        if None not in inodes:
            await self._dirty.require_order([ino for ino in inodes if ino is not None])
        await self.pause.over()

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """Like rename(2). A name that replaces another leaves this machine only after its data."""
        self.require_writable()
        number, inodes = self.namespace.rename(parent, name, new_parent, new_name, flags)
        self._dirty.renamed(number, inodes)
        for ino in inodes:
            self._journal.hold(number, ino)

    # ---- durability

    async def fsync(self, ino: int) -> None:
        """Everything done to this inode so far is safe by the mount's fsync policy.

        Raises Unavailable (EIO) after `grid_timeout`; nothing is lost then, and it goes on.
        """
        if self._config.fsync == "spool":
            await self._log.spool.sync()
            return
        number = self._log.number
        try:
            with trio.move_on_after(self._config.grid_timeout_s):
                await self._journal.synced(ino, number)
                return
        except OSError as error:
            raise OSError(error.errno, f"{self.path_of(ino)}: {error.strerror}") from error
        seconds = self._config.grid_timeout_s
        raise Unavailable(f"{self.path_of(ino)}: fsync waited {seconds:g} s. {self.trouble()}")

    async def sync(self, *, unmounting: bool = False) -> None:
        """Everything written so far is in the grid. Waits as long as it takes.

        `unmounting`: what a mount before this one has shipped counts without a record of this one, so that
        a mount that changed nothing ends where too few servers are left to change anything.
        Raises OSError, with a path, where the local disk does not give back what was written.
        """
        if self._config.read_only:
            return
        number = self._log.number
        await self._writer.all_stored(number)
        if not unmounting or self._journal.up_to < self._log.number:
            await self._journal.shipped(self._log.number)

    async def drain(self) -> None:
        """For unmounting: everything is in the grid and durable in the metadata."""
        self.trees.end()
        self._writer.drain()
        while not self._writer.idle:
            try:
                await self._writer.all_stored(self._log.number)
            except OSError as error:
                logger.error("it stays in the spool: %s", error.strerror)
            if not self._writer.idle:  # a pack is on its way that a truncate has emptied
                await self._writer.progressed()
        while self._journal.up_to < self._log.number:  # shipping itself may record an operation
            with trio.move_on_after(UNREADABLE_S):
                await self._journal.shipped(self._log.number)
            if self._journal.up_to < self._log.number and self._writer.unreadable:
                logger.error("what waits for those bytes stays there, too")
                break
        await self._settle_access_times()
        await self._log.make_durable()

    async def _settle_access_times(self) -> None:
        """Record them where the grid takes records just now; the next mount would have to wait for it."""
        access = self.namespace.access
        if not access.are_pending:
            return
        try:
            with trio.fail_after(ACCESS_TIMES_S):
                await self._journal.reach()
        except (GridError, StorageError, TakenOver, trio.TooSlowError) as error:
            logger.warning("access times are lost: %s", str(error) or "too few head servers answer")
            return
        try:
            access.settle_all()
        except (OSError, StorageError) as error:
            logger.warning("access times are lost: %s", error)
        with trio.move_on_after(ACCESS_TIMES_S):
            await self._journal.shipped(self._log.number)

    def trouble(self) -> str:
        """Why data does not get into the grid, in words; empty while all is well."""
        writer, journal = self._writer, self._journal
        return writer.trouble or journal.trouble or journal.taken_over or writer.unreadable or ""

    # ---- numbers

    @property
    def writable(self) -> bool:
        return not self._config.read_only and self._journal.taken_over is None

    def require_writable(self, ino: int | None = None) -> None:
        """Raises EROFS where nothing may be changed, or not this inode."""
        if ino is not None:
            self.namespace.require_changeable(self.namespace.inode(ino))
        if not self.writable:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def numbers(self) -> Numbers:
        """For statfs: bytes of user data that the grid takes, after the expansion n/k."""
        totals = self._log.metadata.totals()
        space = self._capacity.space
        free = max(0, space.free - self._dirty.bytes)
        # Never less than there is, even before the servers have told anything.
        total = max(space.total, free + totals.live_bytes)
        inodes = totals.files + totals.directories
        return Numbers(BLOCK_SIZE, total, free, inodes, max(1 << 20, free // 4096))

    @property
    def dirty_bytes(self) -> int:
        return self._dirty.bytes

    async def require_room(self) -> None:
        """For creates and opens for writing: they wait while the spool is nearly full, but not for long.

        Raises Exhausted (ENOSPC) sooner than a write that is under way does.
        """
        if not self._dirty.has_room(ROOM_BYTES):
            config = self._config
            await self._dirty.room(ROOM_BYTES, min(config.room_timeout_s, config.grid_timeout_s))
        if self.pause.is_on:
            await self.pause.over()
