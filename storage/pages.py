"""Page-aligned memory that is used again: what direct disk access needs, and fresh pages cost too much for.

The kernel zeroes every page that a process touches first, and a virtual machine may have to fetch it from
its host: up to 2.3 ms of CPU a megabyte were measured, ten times the cost of receiving and writing it. On
the heap large buffers of many sizes leave holes that the next one does not fit into, and it only grows.

What is lent comes back by itself when no view of it is left: nobody says so, and nobody can go on using what
is somebody else's by now. Taken in the loop's thread only; filled, and let go, in any.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections import OrderedDict, deque

_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_BLOCK_SIZE = 65536 + 16
"""A block of a share, as `storage.format`, which lies above, has it. Others only fit less well."""
HEAP_BYTES_MAX = 2 * _BLOCK_SIZE
"""So little comes from the heap where it need not begin on a page: that is quicker."""
_SLACK = 2 * mmap.PAGESIZE
"""Beside the blocks of a class: a share's header and table, or what direct access reads beside a range."""
_FORGOTTEN = 64
"""A loan makes us forget one part in so many of what was lent at one time before."""


class _Loan(weakref.ref[ctypes.Array[ctypes.c_char]]):
    """What all views of something lent refer to."""

    __slots__ = ("pages",)
    pages: mmap.mmap


class PagePool:
    """Lends memory; keeps what came back, of the sizes that are in use, while that and what is lent are no
    more than `bytes_max`, or than what was lent at one time of late."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._kept: OrderedDict[int, list[mmap.mmap]] = OrderedDict()
        """By size, the least used size first."""
        self._loans: dict[int, _Loan] = {}
        """By identity."""
        self._back: deque[mmap.mmap] = deque()
        """Came back, in whatever thread, and is not sorted in yet."""
        self._kept_bytes = 0
        self._lent_bytes = 0
        """Of what is referred to, and of `_back`."""
        self._lent_lately = 0
        """The most at one time, less and less of it with every loan."""

    @property
    def kept_bytes(self) -> int:
        """Memory for the next ones."""
        self._settle()
        return self._kept_bytes

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
        rounded = class_size(size)
        pages = self._reused(rounded) or mmap.mmap(-1, rounded, flags=_PRIVATE)
        # All views refer to the loan, and so it ends with the last of them.
        lent = (ctypes.c_char * rounded).from_buffer(pages)
        loan = _Loan(lent, self._ended)
        loan.pages = pages
        self._loans[id(loan)] = loan
        self._lent_bytes += rounded
        self._lent_lately = max(self._lent_bytes, self._lent_lately - self._lent_lately // _FORGOTTEN)
        self._trim()
        return memoryview(lent).cast("B")[:size]

    def _reused(self, size: int) -> mmap.mmap | None:
        kept = self._kept.get(size)
        if not kept:
            return None
        self._kept.move_to_end(size)
        self._kept_bytes -= size
        return kept.pop()

    def _ended(self, loan: _Loan) -> None:
        """In whatever thread the last view went, between any two steps of the others."""
        self._back.append(self._loans.pop(id(loan)).pages)

    def _settle(self) -> None:
        """Keep what came back, in place of what was not used for long."""
        while self._back:
            pages = self._back.popleft()
            size = len(pages)
            self._kept.setdefault(size, []).append(pages)
            self._kept.move_to_end(size)
            self._kept_bytes += size
            self._lent_bytes -= size
        self._trim()

    def _trim(self) -> None:
        bytes_max = max(self._bytes_max, self._lent_lately)
        while self._kept_bytes and self._kept_bytes + self._lent_bytes > bytes_max:
            size, kept = next(iter(self._kept.items()))
            if kept:
                del kept[0]
                self._kept_bytes -= size
            if not kept:
                del self._kept[size]


def class_size(size: int) -> int:
    """A power of two of blocks, and a little; pages of it that are never touched take no memory."""
    blocks = -(-max(0, size - _SLACK) // _BLOCK_SIZE)
    rounded = (1 << max(0, blocks - 1).bit_length()) * _BLOCK_SIZE + _SLACK
    return -(-rounded // mmap.PAGESIZE) * mmap.PAGESIZE
