"""Pages given to the kernel unasked: what had to be opened beside what it asked for.

The smallest piece that can be fetched, decrypted and checked is a segment of 64 KiB; a program that reads
here and there asks for a page of it. The rest goes into the kernel's page cache (FUSE_NOTIFY_STORE), so that
each segment is fetched once, as long as the kernel has memory.

A page that is stored must never be older than the file. Nobody stores pages of a file that is open for
writing; and whoever changes one in another way, or opens it for that, waits first until what is on its way
has arrived (`still`), and lets reads that are under way have nothing stored. The kernel keeps pages locked
that it asks for: those are left out as far as they are known, and a thread, which may wait, stores the rest.
"""

from __future__ import annotations

import errno
import os
import queue
import struct
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import trio

from gridfs.files.reader import Opened
from storage.ports import Buffer

PAGE = 4096
WAITING_BYTES_MAX = 4 << 20
"""On their way to the kernel; what comes while so many are is dropped."""
INODES_MAX = 100
"""More are looked through for those that nothing is on its way for."""
CLOSE_S_MAX = 1.0

NOTIFY_STORE = 4
_NOTICE = struct.Struct("<IiQQQIxxxx")
"""fuse_out_header and fuse_notify_store_out: length, code, 0; inode, offset, size."""

Store = Callable[[int, int, Buffer], None]
"""store(inode, offset, data): puts data into the page cache. Raises OSError."""


def store_to(device: int) -> Store:
    """Through a FUSE device that serves a mount; its descriptor is the caller's."""

    def store(ino: int, offset: int, data: Buffer) -> None:
        size = memoryview(data).nbytes
        os.writev(device, [_NOTICE.pack(_NOTICE.size + size, NOTIFY_STORE, 0, ino, offset, size), data])

    return store


@dataclass(slots=True, eq=False)
class Reading:
    """A read under way."""

    ino: int
    low: int
    high: int
    """The bytes that the kernel asks for: [low, high)."""
    opened: list[Opened] = field(default_factory=list)
    is_stale: bool = False
    """The file may have changed since it began."""


class Pages:
    """What one mount gives to the kernel. `file_bytes_max`: of larger files nothing is stored."""

    def __init__(self, file_bytes_max: int, store: Store | None = None) -> None:
        self.store = store
        """None for a kernel that takes nothing."""
        self.file_bytes_max = file_bytes_max
        self._writing: dict[int, int] = {}
        """Inode -> handles that may write it."""
        self._readings: dict[int, list[Reading]] = {}
        self._queue: queue.SimpleQueue[tuple[int, int, Buffer] | threading.Event | None] = queue.SimpleQueue()
        self._last: dict[int, int] = {}
        """Inode -> number of the last piece that was sent on its way."""
        self._sent = self._sent_bytes = 0
        self._arrived = self._arrived_bytes = 0
        """Counted by the thread alone."""
        self._thread: threading.Thread | None = None

    # ---- what happens to files

    def opened_to_write(self, ino: int) -> None:
        """After `still`, without awaiting between."""
        self._writing[ino] = self._writing.get(ino, 0) + 1

    def closed(self, ino: int) -> None:
        """A handle that may write was released: the kernel has sent all that it held back."""
        self._writing[ino] -= 1
        if not self._writing[ino]:
            del self._writing[ino]

    async def still(self, ino: int) -> None:
        """Right before a change: nothing older is on its way to the kernel when this returns."""
        self._make_stale(ino)
        while self._last.get(ino, 0) > self._arrived and self.store is not None:
            await self._reach()
            self._make_stale(ino)

    async def all_still(self, inodes: Collection[int]) -> None:
        """The same for many at once, where what changed them has happened already."""
        for ino in inodes:
            self._make_stale(ino)
        if self._sent > self._arrived and self.store is not None:
            await self._reach()

    async def _reach(self) -> None:
        """Wait for all that is on its way."""
        reached = threading.Event()
        self._queue.put(reached)
        await trio.to_thread.run_sync(reached.wait, abandon_on_cancel=True)

    def _make_stale(self, ino: int) -> None:
        for reading in self._readings.get(ino, ()):
            reading.is_stale = True

    # ---- reads

    def begin(self, ino: int, offset: int, length: int) -> Reading | None:
        """A read of an inode begins; None if nothing may be stored of it."""
        if self.store is None or ino in self._writing:
            return None
        reading = Reading(ino, offset, offset + length)
        self._readings.setdefault(ino, []).append(reading)
        return reading

    def end(self, reading: Reading, size: int | None) -> None:
        """It is over: store what was opened for it, but for what the kernel asks for just now. `size`: of the
        file; None for a read that failed."""
        others = self._readings[reading.ino]
        if size is not None and reading.opened and self._may_store(reading, size):
            asked = sorted((each.low, each.high) for each in others)
            for opened in reading.opened:
                for start, data in whole_pages(opened, asked, size):
                    self._send(reading.ino, start, data)
        others.remove(reading)
        if not others:
            del self._readings[reading.ino]

    def takes(self, size: int) -> bool:
        """Whether pages of a file of so many bytes are stored at all."""
        return self.store is not None and size <= self.file_bytes_max

    def _may_store(self, reading: Reading, size: int) -> bool:
        return not reading.is_stale and reading.ino not in self._writing and self.takes(size)

    def _send(self, ino: int, start: int, data: memoryview) -> None:
        if self._sent_bytes - self._arrived_bytes >= WAITING_BYTES_MAX:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pages", daemon=True)
            self._thread.start()
        if len(self._last) > INODES_MAX:
            self._last = {ino: number for ino, number in self._last.items() if number > self._arrived}
        self._sent += 1
        self._sent_bytes += len(data)
        self._last[ino] = self._sent
        self._queue.put((ino, start, data))

    def close(self) -> None:
        """Store nothing any more: the device is about to be closed."""
        self.store = None
        self._queue.put(None)
        if self._thread is not None:
            # One that waits in the kernel goes on when the device is closed, and touches nothing then.
            self._thread.join(CLOSE_S_MAX)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            store = self.store
            try:
                if store is not None:
                    store(*item)
            except OSError as error:  # mostly ENOENT: the kernel has forgotten the inode
                if error.errno == errno.ENOSYS:
                    self.store = None
            self._arrived_bytes += memoryview(item[2]).nbytes
            self._arrived += 1


def whole_pages(opened: Opened, asked: list[tuple[int, int]], size: int) -> Iterator[tuple[int, memoryview]]:
    """The pages of what was opened of a file of `size` bytes, without those that touch one of the ranges
    `asked`, which are ascending: (offset, bytes)."""
    end = min(opened.start + len(opened.data), size)
    low = opened.start
    for start, stop in (*asked, (end, end)):
        first, last = -(-low // PAGE) * PAGE, min(start, end)
        if last != size:
            last = last // PAGE * PAGE
        if first < last:
            yield first, opened.data[first - opened.start : last - opened.start]
        low = max(low, stop)
