"""Page-aligned memory that is used again: what direct disk access needs, and fresh pages cost too much for.

The kernel zeroes every page that a process touches first, and a virtual machine may have to fetch it from
its host: up to 2.3 ms of CPU a megabyte were measured, ten times the cost of receiving and writing it.
Used from the loop's thread only; what is lent may be filled in any thread.
"""

from __future__ import annotations

import mmap

from storage.ports import Buffer

_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class PagePool:
    """Lends buffers; keeps up to `kept_bytes_max` of those that came back."""

    def __init__(self, kept_bytes_max: int) -> None:
        self._kept_bytes_max = kept_bytes_max
        self._kept: dict[int, list[mmap.mmap]] = {}
        self.kept_bytes = 0

    def take(self, size: int) -> memoryview:
        """`size` bytes that begin on a page. Contents are whatever was there before."""
        rounded = _class_size(size)
        kept = self._kept.get(rounded)
        if kept:
            self.kept_bytes -= rounded
            return memoryview(kept.pop())[:size]
        return memoryview(mmap.mmap(-1, rounded, flags=_PRIVATE))[:size]

    def give(self, buffer: Buffer) -> None:
        """Take a buffer back, once nobody uses it any more. What was not lent here is left alone."""
        if not isinstance(buffer, memoryview) or not isinstance(buffer.obj, mmap.mmap):
            return
        pages = buffer.obj
        buffer.release()
        if self.kept_bytes + len(pages) <= self._kept_bytes_max:
            self.kept_bytes += len(pages)
            self._kept.setdefault(len(pages), []).append(pages)


def _class_size(size: int) -> int:
    """The next power of two; pages of it that are never touched take no memory."""
    return max(mmap.PAGESIZE, 1 << max(0, size - 1).bit_length())
