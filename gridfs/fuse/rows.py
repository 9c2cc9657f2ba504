"""Rows: a reader that jumps about in one place gets the place.

A read that jumps costs a round trip to k servers, whatever its length. Where a second jump lands in the same
MiB of a file, more are to be expected, and the row is fetched as a whole and given to the kernel (`pages`).
Far jumps of small reads in a large file fetch nothing that nobody asked for (large ones may bring their row
at once: `files.surroundings`); a file that is read densely, in any order, is
read with not many more requests than from its beginning to its end.
"""

from __future__ import annotations

import logging
from collections import OrderedDict

import trio

from gridfs.files.filesystem import FileSystem
from gridfs.files.reader import SEGMENT, Opened
from gridfs.files.surroundings import ROW
from gridfs.fuse.pages import Pages
from gridfs.grid.errors import GridError
from storage.errors import StorageError

logger = logging.getLogger(__name__)

FETCHES = 2
"""Rows that are fetched at a time."""
WAITING_MAX = 16
KNOWN_MAX = 8192
"""Rows remembered, all in all."""


class Rows:
    """The rows of one mount."""

    def __init__(self, files: FileSystem, pages: Pages) -> None:
        self._files = files
        self._pages = pages
        self._jumps: OrderedDict[tuple[int, int], int] = OrderedDict()
        """(inode, row) -> the segment in which the last jump landed."""
        self._send, self._receive = trio.open_memory_channel[tuple[int, int]](WAITING_MAX)

    def jumped(self, ino: int, offset: int) -> None:
        """A read of this inode landed at `offset` and nowhere near the last one."""
        row, segment = (ino, offset // ROW), offset // SEGMENT
        last = self._jumps.pop(row, None)
        if last is not None and last != segment:
            try:
                self._send.send_nowait(row)
            except trio.WouldBlock:
                pass
            else:
                return
        self._jumps[row] = segment
        if len(self._jumps) > KNOWN_MAX:
            self._jumps.popitem(last=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fetch rows until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(FETCHES):
                nursery.start_soon(self._fetch_all)
            task_status.started()

    async def _fetch_all(self) -> None:
        async for ino, row in self._receive:
            try:
                await self._fetch(ino, row * ROW)
            except (GridError, StorageError, OSError) as error:
                # Whoever wants these bytes asks for them, and is told.
                logger.debug("inode %d, row at %d: %s", ino, row * ROW, error)
            except Exception:
                logger.exception("inode %d, row at %d", ino, row * ROW)

    async def _fetch(self, ino: int, start: int) -> None:
        size = self._files.size_of(ino)
        reading = self._pages.begin(ino, start, 0) if self._pages.takes(size) else None
        if reading is None:
            return
        length = None
        try:
            buffer = memoryview(bytearray(max(0, min(ROW, size - start))))
            await self._files.fetch(ino, start, buffer)
            reading.opened.append(Opened(start, buffer))
            length = self._files.size_of(ino)
        finally:
            self._pages.end(reading, length)
