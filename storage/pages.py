"""Page-aligned memory that is used again: what direct disk access needs, and fresh pages cost too much for.

The kernel zeroes every page that a process touches first, and a virtual machine may have to fetch it from
its host: up to 2.3 ms of CPU a megabyte were measured, ten times the cost of receiving and writing it. On
the heap large buffers of many sizes leave holes that the next one does not fit into, and it only grows.

Memory lies in arenas. A loan is the smallest free range that has the room, whatever was there before, so that
what a stream has outgrown is taken over by what it needs now. Of what is free the highest goes back to the
kernel. Large pools do so in huge pages: with memory that came page by page, receiving into it and handing it
on to the kernel took up to a quarter more CPU.

What is lent comes back by itself when no view of it is left: nobody says so, and nobody can go on using what
is somebody else's by now. Taken in the loop's thread only; filled, and let go, in any.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import weakref
from bisect import bisect_left
from collections import deque
from functools import lru_cache

HEAP_BYTES_MAX = 2 * (65536 + 16)
"""Two blocks of a share. So little comes from the heap where it need not begin on a page: that is quicker."""
ARENA_SIZE = 64 << 20
"""Address space that is taken at one time; it takes memory where it is touched."""
HUGE_PAGE_SIZE = 2 << 20
STEP_SIZE = 64 << 10
"""Without huge pages memory goes back to the kernel in multiples of this."""
_GRAIN = 64 << 10
_SLACK = 3 * mmap.PAGESIZE
"""What blocks of a share take beside their plaintext, or direct access reads beside a range: a loan for them
fits where one for the plaintext was. Pages of it that are never touched take no memory."""
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_FORGOTTEN = 512
"""A loan makes us forget one part in so many of what was lent at one time before."""


class _Loan(weakref.ref[ctypes.Array[ctypes.c_char]]):
    """What all views of something lent refer to."""

    __slots__ = ("arena", "size", "start")
    arena: _Arena
    start: int
    size: int


class _Arena:
    """Address space, of which ranges of whole pages are lent. Offsets are those in `memory`."""

    def __init__(self, size: int, *, huge_pages: bool) -> None:
        self.memory = mmap.mmap(-1, size + HUGE_PAGE_SIZE, flags=_PRIVATE)
        start = -ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) % HUGE_PAGE_SIZE
        self._step = STEP_SIZE
        if huge_pages:
            self._step = HUGE_PAGE_SIZE
            with contextlib.suppress(OSError):  # a kernel without them
                self.memory.madvise(mmap.MADV_HUGEPAGE)
        self._first_step = start
        self._starts = [start]
        """Of the free ranges, in order; never two that touch."""
        self._ends = [start + size]
        self._touched = bytearray(-(-size // self._step))
        """Of each step, 1 where it may take memory."""
        self.touched_bytes = 0

    def take(self, size: int) -> int | None:
        """Take `size` bytes of the smallest free range that has the room: their start, or None."""
        found = -1
        least = len(self.memory)
        for index, start in enumerate(self._starts):
            room = self._ends[index] - start
            if size <= room < least:
                found, least = index, room
        if found < 0:
            return None
        start = self._starts[found]
        if least > size:
            self._starts[found] += size
        else:
            del self._starts[found], self._ends[found]
        first, end = self._down(start), self._up(start + size)
        self.touched_bytes += self._touched.count(0, first, end) * self._step
        self._touched[first:end] = b"\1" * (end - first)
        return start

    def give(self, start: int, size: int) -> None:
        """The range is free again."""
        end = start + size
        index = bisect_left(self._starts, start)
        if index < len(self._starts) and self._starts[index] == end:
            end = self._ends[index]
            del self._starts[index], self._ends[index]
        if index and self._ends[index - 1] == start:
            self._ends[index - 1] = end
        else:
            self._starts.insert(index, start)
            self._ends.insert(index, end)

    def trim(self, excess: int) -> None:
        """Give free memory back to the kernel, the highest first: the whole steps in `excess`."""
        wanted = excess // self._step
        for start, end in zip(reversed(self._starts), reversed(self._ends), strict=True):
            first, last = self._up(start), self._down(end)
            while wanted > 0:
                last = self._touched.rfind(1, first, last) + 1
                if last <= first:
                    break
                low = max(first, last - wanted, self._touched.rfind(0, first, last) + 1)
                count = last - low
                self._touched[low:last] = bytes(count)
                at = self._first_step + low * self._step
                self.memory.madvise(mmap.MADV_DONTNEED, at, count * self._step)
                self.touched_bytes -= count * self._step
                wanted -= count
                last = low

    def _down(self, offset: int) -> int:
        """The step that an offset is in."""
        return (offset - self._first_step) // self._step

    def _up(self, offset: int) -> int:
        """The first step that begins there or later."""
        return -(-(offset - self._first_step) // self._step)


class PagePool:
    """Lends memory; keeps what came back while that and what is lent are not a step more than `bytes_max`, or
    than what was lent at one time of late."""

    def __init__(self, bytes_max: int, *, huge_pages: bool = False) -> None:
        """`huge_pages`: for a pool that lends tens of megabytes; memory comes and goes by two MiB then."""
        self._bytes_max = bytes_max
        self._huge_pages = huge_pages
        self._arenas: list[_Arena] = []
        self._loans: dict[int, _Loan] = {}
        """By identity."""
        self._back: deque[_Loan] = deque()
        """Came back, in whatever thread, and are not sorted in yet."""
        self._lent_bytes = 0
        """Of what is referred to, and of `_back`."""
        self._lent_lately = 0
        """The most at one time, less and less of it with every loan."""

    @property
    def kept_bytes(self) -> int:
        """Memory for the next ones."""
        self._settle()
        self._trim()
        return self._touched_bytes() - self._lent_bytes

    @property
    def lent_bytes(self) -> int:
        """Memory that is referred to."""
        self._settle()
        return self._lent_bytes

    def room(self, size: int) -> memoryview:
        """`size` bytes that begin anywhere. Contents are whatever was there before."""
        return memoryview(bytearray(size)) if size <= HEAP_BYTES_MAX else self.take(size)

    def take(self, size: int) -> memoryview:
        """`size` bytes that begin on a page. Contents are whatever was there before."""
        self._settle()
        rounded = lent_size(size)
        arena, start = self._range(rounded)
        # All views refer to the loan, and so it ends with the last of them.
        lent = _array(rounded).from_buffer(arena.memory, start)
        loan = _Loan(lent, self._ended)
        loan.arena, loan.start, loan.size = arena, start, rounded
        self._loans[id(loan)] = loan
        self._lent_bytes += rounded
        self._lent_lately = max(self._lent_bytes, self._lent_lately - self._lent_lately // _FORGOTTEN)
        self._trim()
        return memoryview(lent).cast("B")[:size]

    def _range(self, size: int) -> tuple[_Arena, int]:
        for arena in self._arenas:
            start = arena.take(size)
            if start is not None:
                return arena, start
        arena = _Arena(max(size, ARENA_SIZE), huge_pages=self._huge_pages)
        self._arenas.append(arena)
        start = arena.take(size)
        assert start is not None
        return arena, start

    def _ended(self, loan: _Loan) -> None:
        """In whatever thread the last view went, between any two steps of the others."""
        self._back.append(self._loans.pop(id(loan)))

    def _settle(self) -> None:
        """Sort in what came back."""
        while self._back:
            loan = self._back.popleft()
            loan.arena.give(loan.start, loan.size)
            self._lent_bytes -= loan.size

    def _trim(self) -> None:
        """Give away what is too much: after a loan, which may have needed it."""
        for arena in reversed(self._arenas):
            excess = self._touched_bytes() - max(self._bytes_max, self._lent_lately)
            if excess <= 0:
                return
            arena.trim(excess)

    def _touched_bytes(self) -> int:
        return sum(arena.touched_bytes for arena in self._arenas)


def lent_size(size: int) -> int:
    """Bytes that a loan of `size` takes: whole pages, and what differs by a little takes the same."""
    grains = max(0, -(-(size - _SLACK) // _GRAIN))
    return grains * _GRAIN + _SLACK


@lru_cache(256)
def _array(size: int) -> type[ctypes.Array[ctypes.c_char]]:
    """ctypes makes a class for every length."""
    return ctypes.c_char * size
