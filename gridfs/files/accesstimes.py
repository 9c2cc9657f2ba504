"""Access times, moved by the rule of relatime and kept in memory until they have to be recorded.

A read must not cost an operation, nor wait for the grid in any way: so, as with ext4's lazytime, a killed
daemon forgets them. They are recorded when the file system is unmounted, and when they become many.
"""

from __future__ import annotations

from gridfs.files.log import OperationLog
from gridfs.files.stamps import Stamps
from gridfs.meta.operations import SetAttributes
from gridfs.meta.rows import Inode

DAY_NS = 24 * 3600 * 10**9
PENDING_MAX = 4096


class AccessTimes:
    """Of one mount."""

    def __init__(self, log: OperationLog, clock: Stamps) -> None:
        self._log = log
        self._clock = clock
        self._pending: dict[int, int] = {}

    def of(self, inode: Inode) -> int:
        """Nanoseconds since 1970, as stat shows it."""
        return self._pending.get(inode.ino, inode.atime)

    def accessed(self, inode: Inode) -> bool:
        """The inode was read; whether its access time moves.

        It does where it is not behind mtime and ctime, or is a day old, so that it tells what was read
        since it was written and costs next to nothing. Raises what recording an operation raises.
        """
        now, before = self._clock.now_ns(), self.of(inode)
        if inode.read_only or (before > inode.mtime and before > inode.ctime and now - before < DAY_NS):
            return False
        self._pending.pop(inode.ino, None)
        self._pending[inode.ino] = now
        if len(self._pending) > PENDING_MAX:
            self.settle(next(iter(self._pending)))
        return True

    @property
    def are_pending(self) -> bool:
        return bool(self._pending)

    def forget(self, ino: int) -> None:
        """The inode is gone, or its access time was set."""
        self._pending.pop(ino, None)

    def settle(self, ino: int) -> None:
        """Record the access time of one inode. Raises what recording an operation raises."""
        atime = self._pending.get(ino)
        if atime is None:
            return
        inode = self._log.metadata.inode(ino)
        if inode is not None:
            self._log.record(SetAttributes(ino, None, None, None, atime, None, None, inode.ctime))
        del self._pending[ino]

    def settle_all(self) -> None:
        """Record them all; some thousands at most. Raises what recording an operation raises."""
        for ino in list(self._pending):
            self.settle(ino)
