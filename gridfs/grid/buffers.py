"""Buffers for sealed bytes on their way in: lent, bounded, and used again.

Fresh memory costs more than the bytes that pass through it (the kernel zeroes every page), so buffers are
kept, in sizes of a power of two of blocks. What is lent at one time is bounded too.
"""

from __future__ import annotations

import trio

from storage.format.share import BLOCK_SIZE


class BufferPool:
    """Buffers of at least a given size; contents are whatever was there before."""

    def __init__(self, kept_bytes_max: int, lent_bytes_max: int) -> None:
        self._kept_bytes_max = kept_bytes_max
        self._lent_bytes_max = lent_bytes_max
        self._kept: dict[int, list[bytearray]] = {}
        self._turn = trio.StrictFIFOLock()
        self._room = trio.Event()
        self.kept_bytes = 0
        self.lent_bytes = 0

    async def take(self, size: int) -> bytearray:
        """Borrow a buffer; waits, first come first served, while more than the bound would be lent.

        A size above the bound is lent alone. Pass it to `give` in any case. A checkpoint only if it waits.
        """
        size = _class_size(size)
        if self._has_room(size) and not self._turn.locked():
            return self._lend(size)
        async with self._turn:
            while not self._has_room(size):
                self._room = trio.Event()
                await self._room.wait()
            return self._lend(size)

    def take_nowait(self, size: int) -> bytearray:
        """Borrow above the bound: for one who holds a buffer already, and must not wait for others who do."""
        return self._lend(_class_size(size))

    def give(self, buffer: bytearray, *, reuse: bool) -> None:
        """Return a buffer. Not for reuse while anybody might still write into it."""
        size = len(buffer)
        self.lent_bytes -= size
        if reuse and self.kept_bytes + size <= self._kept_bytes_max:
            self._kept.setdefault(size, []).append(buffer)
            self.kept_bytes += size
        self._room.set()

    def _has_room(self, size: int) -> bool:
        return not self.lent_bytes or self.lent_bytes + size <= self._lent_bytes_max

    def _lend(self, size: int) -> bytearray:
        self.lent_bytes += size
        kept = self._kept.get(size)
        if kept:
            self.kept_bytes -= size
            return kept.pop()
        return bytearray(size)


def _class_size(size: int) -> int:
    blocks = -(-size // BLOCK_SIZE)
    return (1 << max(0, blocks - 1).bit_length()) * BLOCK_SIZE
