"""The contents of files: writes go to the spool and the overlays, truncates clip everything at once.

Keeps overlays, flights and what handles have read ahead in step with the operation log; nothing but
`write` awaits (for room in the spool).
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from gridfs.files.dirty import DirtyData
from gridfs.files.log import OperationLog
from gridfs.files.pause import Pause
from gridfs.files.readahead import Prefetcher, Readahead
from gridfs.files.stamps import Stamps
from gridfs.files.writer import Writer
from gridfs.meta.operations import Write
from storage.client import Traffic
from storage.ports import Buffer

CHUNK = 65536
FILE_SIZE_MAX = 1 << 62
"""Bytes."""


@dataclass(frozen=True, slots=True)
class ContentsConfig:
    room_timeout_s: float = 30.0
    """How long a write waits for room in a full spool before it fails with ENOSPC."""
    piece_bytes: int = 1 << 20
    """Longer writes become several records."""


class Contents:
    """The data of all inodes of a mount."""

    def __init__(
        self,
        log: OperationLog,
        dirty: DirtyData,
        writer: Writer,
        prefetcher: Prefetcher,
        clock: Stamps,
        config: ContentsConfig,
    ) -> None:
        self._log = log
        self._dirty = dirty
        self._writer = writer
        self._prefetcher = prefetcher
        self._clock = clock
        self._config = config
        self._readaheads: dict[int, list[Readahead]] = {}
        self.pause = Pause()
        """While it is on, writes wait."""

    async def write(self, ino: int, offset: int, data: Buffer, *, stamped: bool = False) -> None:
        """Write all of `data`. It is acknowledged, and every read sees it, when this returns.

        `stamped`: the caller sets the times of the inode by itself.

        Raises Exhausted when the spool stays full, OSError when the disk refuses or the file gets too large.
        """
        view = memoryview(data)
        if offset + len(view) > FILE_SIZE_MAX:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        step = self._config.piece_bytes
        for low in range(0, len(view), step):
            piece = view[low : low + step]
            if not self._dirty.has_room(len(piece)):
                await self._dirty.room(len(piece), self._config.room_timeout_s)
            while self.pause.is_on:
                await self.pause.over()
                await self._dirty.room(len(piece), self._config.room_timeout_s)
            self._write_piece(ino, offset + low, piece, None if stamped else self._clock.now_ns())

    def _write_piece(self, ino: int, offset: int, piece: memoryview, time: int | None) -> None:
        operation = Write(ino, offset, len(piece), time)
        number, source = self._log.record(operation, piece, offset % CHUNK)
        self._dirty.written(ino, offset, len(piece), number, source)
        self.forget_readahead(ino)
        self._writer.written(ino)

    def truncated(self, ino: int, size: int) -> None:
        """The inode's size was set: nothing beyond it may come back."""
        if self._dirty.overlay(ino) is not None:  # what is in flight is in the overlay, too
            self._dirty.truncated(ino, size)
            self._writer.truncated(ino, size)
        self.forget_readahead(ino)

    def cloned(self, ino: int, to: int, number: int) -> bool:
        """Operation `number` made `to`, a copy of `ino`; returns whether bytes of it are in no pack yet."""
        is_dirty = self._dirty.cloned(ino, to)
        if is_dirty:
            self._writer.want(to, number)
        return is_dirty

    def dropped(self, ino: int) -> None:
        """The inode is gone."""
        self.truncated(ino, 0)

    def open(self, ino: int) -> Readahead:
        readahead = Readahead(self._prefetcher, ino)
        self._readaheads.setdefault(ino, []).append(readahead)
        return readahead

    def close(self, ino: int, readahead: Readahead) -> None:
        readahead.clear()
        remaining = self._readaheads[ino]
        remaining.remove(readahead)
        if not remaining:
            del self._readaheads[ino]

    async def fetch(self, ino: int, start: int, out: memoryview) -> None:
        """Fill `out` with what somebody may want soon."""
        await self._prefetcher.reader.read_into(ino, start, out, Traffic.PREFETCH)

    def forget_readahead(self, ino: int) -> None:
        """What was fetched ahead of this inode may be old."""
        for readahead in self._readaheads.get(ino, ()):
            readahead.clear()

    def forget_all_readahead(self) -> None:
        for ino in self._readaheads:
            self.forget_readahead(ino)
