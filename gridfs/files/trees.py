"""Clones and snapshots: copies of files and whole trees by metadata alone.

A file is cloned by one operation. A tree is built where nobody sees it, a few inodes a step, while all
other changes wait, so it shows one moment; one operation then gives it its name. Whoever wants a clone
makes its name by an ordinary system call: `prepared` says what that call is to find. So the kernel
checks the permissions and its caches are right, and a name is there exactly when the clone is whole.

A snapshot's inodes are marked: the namespace refuses every change of them. Removing its directory takes
the name from the whole tree at once. What has no name is cleared away by `run`, also after a restart.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from gridfs.files.contents import Contents
from gridfs.files.dirty import DirtyData
from gridfs.files.journal import Journal
from gridfs.files.log import OperationLog
from gridfs.files.namespace import Namespace
from gridfs.files.stamps import Stamps
from gridfs.meta.operations import Attach, Clone, Drop, Link, SetAttributes, Unlink
from gridfs.meta.rows import Inode
from storage.errors import Exhausted, Unavailable

logger = logging.getLogger(__name__)

STEP = 32
"""Inodes cloned or removed before others get their turn."""
STEP_BYTES = STEP << 10
"""Room in the spool that the operations of one step take at most."""


@dataclass(frozen=True, slots=True)
class TreesConfig:
    room_timeout_s: float = 10.0
    """How long a clone waits for room in a full spool."""
    retry_s: float = 5.0
    """Pause before what could not be cleared away, or is still open, is looked at again."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A clone that waits for its name."""

    source: int
    root: int
    """The tree that was built; 0 for what is not a directory."""
    mode: int
    read_only: bool


class Trees:
    """Makes clones and snapshots in one mount, and clears away trees without a name."""

    def __init__(
        self,
        log: OperationLog,
        dirty: DirtyData,
        contents: Contents,
        namespace: Namespace,
        journal: Journal,
        clock: Stamps,
        config: TreesConfig,
    ) -> None:
        self._log = log
        self._metadata = log.metadata
        self._dirty = dirty
        self._contents = contents
        self._namespace = namespace
        self._journal = journal
        self._clock = clock
        self._config = config
        self._building: set[int] = set()
        self._prepared: dict[tuple[int, int, bytes], _Prepared] = {}
        self._wake = trio.Event()
        self._ending = False

    # ---- making

    @asynccontextmanager
    async def prepared(
        self, source: int, parent: int, name: bytes, maker: int, *, read_only: bool
    ) -> AsyncIterator[None]:
        """Within the block a mkdir, mknod or symlink of this name by the process `maker` makes the clone.

        A clone that has no name when the block is left is dropped. Raises OSError where the name is
        taken or the source is gone, ENOTDIR for a snapshot of anything but a directory, and Exhausted
        where the spool stays full.
        """
        inode = self._namespace.inode(source)
        self._namespace.require_vacant(parent, name)
        is_directory = stat.S_ISDIR(inode.mode)
        if read_only and not is_directory:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        root = await self.build(source, read_only=read_only) if is_directory else 0
        key = (maker, parent, name)
        self._prepared[key] = _Prepared(source, root, stat.S_IFMT(inode.mode), read_only)
        try:
            yield
        finally:
            if self._prepared.pop(key, None) is not None and root:
                self.give_up(root)

    def make(self, parent: int, name: bytes, mode: int, maker: int) -> Inode | None:
        """The clone that is prepared for this name and process, now with its name; None if there is none."""
        key = (maker, parent, name)
        prepared = self._prepared.get(key)
        if prepared is None or prepared.mode != stat.S_IFMT(mode):
            return None
        if prepared.root:
            inode = self.attach(prepared.root, parent, name)
        else:
            inode = self.clone(prepared.source, parent, name)
        del self._prepared[key]
        return inode

    def clone(self, source: int, parent: int, name: bytes) -> Inode:
        """A copy of anything but a directory, with its name, by one operation."""
        inode = self._namespace.inode(source)
        self._namespace.require_vacant(parent, name)
        return self._namespace.inode(self._clone(inode, parent, name, read_only=False))

    async def build(self, source: int, *, read_only: bool) -> int:
        """A copy of a directory and all below it, that nobody sees yet; returns its inode."""
        with self._contents.pause.held():
            root = self._clone(self._namespace.inode(source), 0, b"", read_only)
            self._building.add(root)
            try:
                await self._fill(source, root, read_only)
            except BaseException:
                self.give_up(root)
                raise
        return root

    def attach(self, root: int, parent: int, name: bytes) -> Inode:
        """Give a tree that was built its name."""
        self._namespace.require_vacant(parent, name, is_directory=True)
        self._log.record(Attach(root, parent, name, self._clock.now_ns()))
        self._building.discard(root)
        return self._namespace.inode(root)

    def give_up(self, root: int) -> None:
        """A tree that was being built, or was built, gets no name: it is cleared away."""
        self._building.discard(root)
        self._wake.set()

    async def _fill(self, source: int, root: int, read_only: bool) -> None:
        links: dict[int, int] = {}
        waiting = [(source, root)]
        while waiting:
            directory, target = waiting.pop()
            after = 0
            while entries := self._metadata.listing(directory, after, STEP):
                await self._dirty.room(STEP_BYTES, self._config.room_timeout_s)
                await trio.lowlevel.checkpoint()
                for _, name, inode in entries:
                    if inode.ino in links:
                        self._log.record(Link(links[inode.ino], target, name, self._clock.now_ns()))
                        continue
                    ino = self._clone(inode, target, name, read_only)
                    if stat.S_ISDIR(inode.mode):
                        waiting.append((inode.ino, ino))
                    elif inode.nlink > 1:
                        links[inode.ino] = ino
                after = entries[-1].cookie
            self._set_times(target, self._namespace.inode(directory))

    def _clone(self, source: Inode, parent: int, name: bytes, read_only: bool) -> int:
        self._namespace.access.settle(source.ino)
        ino = self._metadata.reserve_inode()
        operation = Clone(ino, source.ino, parent, name, read_only, self._clock.now_ns())
        number, _ = self._log.record(operation)
        if self._contents.cloned(source.ino, ino, number):
            # Elsewhere, or here after a loss of power, it would have bytes that the source had before: those
            # never were in the clone.
            self._journal.hold(number, ino)
            self._log.order(number)
        return ino

    def _set_times(self, ino: int, like: Inode) -> None:
        """What was put into a directory has changed its times."""
        now = self._clock.now_ns()
        self._log.record(SetAttributes(ino, None, None, None, like.atime, like.mtime, None, now))

    # ---- clearing away

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Clear away trees without a name until cancelled, or `end`."""
        task_status.started()
        while not self._ending:
            self._wake = self._namespace.tree_detached = trio.Event()
            left = not await self._clear_all()
            with trio.move_on_after(self._config.retry_s if left else float("inf")):
                await self._wake.wait()

    def end(self) -> None:
        """Leave the rest to the next mount."""
        self._ending = True
        self._wake.set()

    async def _clear_all(self) -> bool:
        """Whether all are gone with what lies in them. What is open stays until it is closed."""
        try:
            gone = True
            for root in self._metadata.detached():
                # While others were cleared away, one that was being built may have got its name.
                if root not in self._building and root in self._metadata.detached():
                    gone = await self._empty(root) and self._drop(root) and gone
        except (Exhausted, Unavailable, OSError) as error:
            logger.error("a tree without a name is cleared away later: %s", error)
            return False
        return gone

    async def _empty(self, root: int) -> bool:
        path = [(0, b"", root)]
        while path:
            if self._ending or self._journal.taken_over is not None:
                return False
            parent, name, directory = path[-1]
            entries = self._metadata.entries(directory, 0, STEP)
            deeper = next((entry for entry in entries if stat.S_ISDIR(entry.mode)), None)
            for entry in entries:
                if not stat.S_ISDIR(entry.mode):
                    self._remove(directory, entry.name, entry.ino)
            if deeper is not None:
                path.append((directory, deeper.name, deeper.ino))
            elif not entries:
                path.pop()
                if path:
                    self._remove(parent, name, directory)
            await trio.lowlevel.checkpoint()
        return True

    def _remove(self, parent: int, name: bytes, ino: int) -> None:
        self._log.record(Unlink(parent, name, ino, self._clock.now_ns()))
        self._namespace.drop_unused([ino])

    def _drop(self, root: int) -> bool:
        if self._namespace.is_open(root) or self._metadata.has_entries(root):
            return False
        self._log.record(Drop(root))
        return True
