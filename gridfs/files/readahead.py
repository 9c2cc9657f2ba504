"""Read-ahead: windows of a file that a sequential reader will want next, fetched before it asks.

A handle that reads on from where it stopped gets windows that double up to `window_bytes_max`, one
being read and one on its way, or several where servers are far; a handle that jumps gets just what it asks
for, or whole rows (`surroundings`). Each window is one fetch, so each server sees one readv for it, and its
buffer is handed to the kernel without another copy. A reader waits for whole windows: over a slow line they
stay small.

All windows of a mount share one byte budget, and handles that read on at the same time share it evenly:
windows are as large as to let each of them have its own. Past the budget reads go on without read-ahead.
Large windows end at multiples of their size, as packs of large files do, too.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import trio

from gridfs.files.reader import Opened, Reader
from gridfs.files.surroundings import LARGE, Surroundings, rows_of
from storage.client import Traffic
from storage.pages import PagePool
from storage.ports import Buffer

ALIGNED_BYTES_MIN = 4 << 20
"""Smaller windows end where they may: they come first, before it is known how slow the line is."""
WINDOWS_FAR = 5
"""Windows on their way where servers are far. Each takes as long as the distance before it begins to come,
and is asked for when another was read: with two of twice the size the line would be empty in between."""
BEHIND = 1
"""Windows of a handle that are read but for pieces that others have overtaken."""


@dataclass(frozen=True, slots=True)
class ReadaheadConfig:
    window_bytes_min: int = 1 << 20
    window_bytes_max: int = 8 << 20
    """Where servers are far they are half as large, and together twice bandwidth times delay at 100 MB/s and
    100 ms."""
    window_s_max: float = 2.0
    """No window is larger than what comes in this time: readers wait for whole windows."""
    window_bytes_least: int = 128 << 10
    """However slow the line is."""
    far_s: float = 0.08
    """Where no large window came sooner of late, several are kept on their way."""
    budget_bytes: int = 48 << 20
    """All windows of all handles."""
    near_bytes: int = 8 << 20
    """The kernel's own read-ahead comes in pieces that overtake each other by this much."""


@dataclass(slots=True, eq=False)
class _Window:
    start: int
    end: int
    buffer: memoryview | None
    traffic: Traffic
    ready: trio.Event = field(default_factory=trio.Event)
    fetching: trio.CancelScope = field(default_factory=trio.CancelScope)
    error: Exception | None = None
    stale: bool = False
    served: int = 0


class Prefetcher:
    """Runs the fetches of all handles and keeps their byte budget."""

    def __init__(self, reader: Reader, config: ReadaheadConfig, pages: PagePool | None = None) -> None:
        """`pages`: the memory of all who move much data."""
        self.reader = reader
        self.config = config
        self.pages = pages or PagePool(config.budget_bytes)
        self.bytes = 0
        self.handles = 0
        """Those that have windows now."""
        self.surroundings = Surroundings()
        self._times: deque[float] = deque(maxlen=8)
        """Seconds that the last large windows took."""
        self._bytes_per_s: float | None = None
        """At which the last window came; None before the first of this mount. Until then none is larger
        than the first: over a slow line it would hold that up."""
        self._send, self._receive = trio.open_memory_channel[tuple[int, _Window]](256)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fetch windows until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            async for ino, window in self._receive:
                nursery.start_soon(self._fetch, ino, window)

    def begin(self, ino: int, start: int, end: int, traffic: Traffic) -> _Window | None:
        """Start fetching a window, up to `end` if the budget has the room; None if it has next to none."""
        config = self.config
        room = config.budget_bytes - self.bytes
        if end - start > room:
            if room < config.window_bytes_min:
                return None
            end = start + room // config.window_bytes_min * config.window_bytes_min
        window = _Window(start, end, self.pages.take(end - start), traffic)
        try:
            self._send.send_nowait((ino, window))
        except trio.WouldBlock:
            return None
        self.bytes += end - start
        return window

    @property
    def windows_ahead(self) -> int:
        """To be kept on their way for each handle."""
        return WINDOWS_FAR if len(self._times) > 1 and min(self._times) >= self.config.far_s else 1

    @property
    def first_size(self) -> int:
        """Bytes of the window that a handle begins with."""
        return min(self.config.window_bytes_min, self._window_bytes_max())

    def size_after(self, size: int) -> int:
        """Bytes of the window that follows one of `size` bytes."""
        config = self.config
        if self._bytes_per_s is None:
            return min(size, self._window_bytes_max())
        size, coming = min(2 * size, self._window_bytes_max()), self._bytes_per_s * config.window_s_max
        if coming >= size:
            return size
        least = config.window_bytes_least
        return max(least, int(coming) // least * least)

    def _window_bytes_max(self) -> int:
        """Of each handle, if all that read on have as many windows."""
        config, size = self.config, self.config.window_bytes_max
        part = config.budget_bytes // (max(1, self.handles) * (BEHIND + 1 + self.windows_ahead))
        while size > part and size > config.window_bytes_least:
            size //= 2
        return size

    def finish(self, window: _Window) -> None:
        """The handle lets go of a window; its memory is free once no reply uses it.

        Whoever waits for it reads by itself; a fetch that is under way is given up.
        """
        if not window.stale:
            window.stale = True
            self.bytes -= window.end - window.start
        window.buffer = None
        window.fetching.cancel()

    async def _fetch(self, ino: int, window: _Window) -> None:
        buffer = window.buffer
        if buffer is not None:
            began = trio.current_time()
            with window.fetching:
                try:
                    await self.reader.read_into(ino, window.start, buffer, window.traffic)
                    self._came(len(buffer), trio.current_time() - began)
                except Exception as error:  # told to whoever waits for the window
                    window.error = error
        window.ready.set()

    def _came(self, size: int, seconds: float) -> None:
        self._bytes_per_s = size / seconds if seconds else float("inf")
        if size >= ALIGNED_BYTES_MIN:
            self._times.append(seconds)


class Readahead:
    """The windows of one open file handle."""

    def __init__(self, prefetcher: Prefetcher, ino: int) -> None:
        self._prefetcher = prefetcher
        self._config = prefetcher.config
        self._ino = ino
        self._windows: list[_Window] = []
        self._next = 0
        self._step = self._config.window_bytes_min
        self.jumped = False
        """The last read was nowhere near those before it, and brought nothing else."""

    async def read(
        self, offset: int, length: int, size: int, opened: list[Opened] | None = None, *, around_max: int = 0
    ) -> Buffer:
        """Bytes [offset, offset + length) of a file of `size` bytes, short at its end. `opened`: as for the
        reader; nothing of what was fetched ahead. `around_max`: in files up to so many bytes a large read
        that jumps may bring what lies around it, as `opened`."""
        end = min(offset + length, size)
        if end <= offset:
            return b""
        window = self._covering(offset)
        self.jumped = window is None and not self._sequential(offset)
        if window is None and not self.jumped and end < size:  # else there is nothing ahead
            self._restart(offset, end, size)
            window = self._covering(offset)
        if window is None:
            if self.jumped:
                self.clear()
            self._next = end if not self._windows else max(self._next, end)
            if self.jumped and opened is not None and end - offset >= LARGE and size <= around_max:
                return await self._with_surroundings(offset, end, size, opened)
            return await self._direct(offset, end, opened)
        self._next = max(self._next, end)
        self._extend(offset, end, size)
        covering = self._through(window, end)
        for each in covering:
            await each.ready.wait()
        if not covering or any(each.error is not None or each.buffer is None for each in covering):
            # Failed, overwritten meanwhile, or not fetched ahead: the plain way answers, or says why not.
            return await self._direct(offset, end)
        parts = [self._serve(each, max(offset, each.start), min(end, each.end)) for each in covering]
        if len(parts) == 1:
            return parts[0]
        self._prefetcher.reader.copied_bytes += end - offset
        return b"".join(parts)

    def _through(self, window: _Window, end: int) -> list[_Window]:
        """The windows from `window` on that hold everything up to `end`; none if they do not."""
        first = self._windows.index(window)
        covering = [window]
        for following in self._windows[first + 1 :]:
            if covering[-1].end >= end:
                break
            covering.append(following)
        return covering if covering[-1].end >= end else []

    def _serve(self, window: _Window, start: int, end: int) -> memoryview:
        assert window.buffer is not None
        part = window.buffer[start - window.start : end - window.start]
        window.served += end - start
        if window.served >= window.end - window.start and window in self._windows:
            self._drop(window)
        return part

    def clear(self) -> None:
        """The file changed, or the handle is closed: forget everything fetched ahead."""
        for window in list(self._windows):
            self._drop(window)

    async def _direct(self, offset: int, end: int, opened: list[Opened] | None = None) -> memoryview:
        prefetcher = self._prefetcher
        out = prefetcher.pages.room(end - offset)
        await prefetcher.reader.read_into(self._ino, offset, out, Traffic.DEMAND, opened)
        return out

    async def _with_surroundings(self, offset: int, end: int, size: int, opened: list[Opened]) -> Buffer:
        """A large read that jumped."""
        prefetcher = self._prefetcher
        surroundings = prefetcher.surroundings
        brings = surroundings.are_wanted() and prefetcher.reader.is_stored(self._ino)
        began = trio.current_time()
        if not brings:
            out = await self._direct(offset, end, opened)
        else:
            low, high = rows_of(offset, end, size)
            self.jumped = False
            self._next = high
            row = await self._direct(low, high)
            opened.append(Opened(low, row))
            out = row[offset - low : end - low]
        surroundings.took(trio.current_time() - began, brought=brings)
        return out

    def _covering(self, offset: int) -> _Window | None:
        for window in self._windows:
            if window.start <= offset < window.end:
                return window
        return None

    def _sequential(self, offset: int) -> bool:
        if not self._windows:
            return offset == self._next
        near = self._config.near_bytes
        return self._windows[0].start - near <= offset <= self._windows[-1].end + near

    def _restart(self, offset: int, end: int, size: int) -> None:
        if self._windows:
            if offset >= self._windows[-1].end:
                self._extend(offset, end, size)
            return  # what lies before the windows was overtaken, or is read once more
        self._step = self._prefetcher.first_size
        stop = min(size, max(end, _end_of(offset, self._step)))
        window = self._prefetcher.begin(self._ino, offset, stop, Traffic.DEMAND)
        if window is not None:
            self._prefetcher.handles += 1
            self._windows.append(window)

    def _extend(self, offset: int, end: int, size: int) -> None:
        """Keep as many windows ahead of the reader as are needed."""
        for window in list(self._windows):
            if window.end + self._config.near_bytes < offset:
                self._drop(window)
        while self._windows:
            ahead = self._windows[-1].end
            unread = sum(window.start >= end for window in self._windows)
            if ahead >= size or unread >= self._prefetcher.windows_ahead:
                return
            self._step = self._prefetcher.size_after(self._step)
            stop = min(size, _end_of(ahead, self._step))
            further = self._prefetcher.begin(self._ino, ahead, stop, Traffic.PREFETCH)
            if further is None:
                return
            self._windows.append(further)

    def _drop(self, window: _Window) -> None:
        self._windows.remove(window)
        if not self._windows:
            self._prefetcher.handles -= 1
        self._prefetcher.finish(window)


def _end_of(start: int, size: int) -> int:
    """Where a window of about `size` bytes ends: a large power of two at a multiple of it."""
    if size < ALIGNED_BYTES_MIN or size & (size - 1):
        return start + size
    return (start + size + size // 2) // size * size
