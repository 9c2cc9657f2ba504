"""Room for sealed bytes on their way in: how much of it is lent at one time is bounded.

Memory that is lent comes back by itself (`storage.pages`), and so not before a request that was left behind
has let go of it. Little of it comes from the heap, which is quicker.
"""

from __future__ import annotations

import trio

from storage.pages import PagePool


class BufferPool:
    """Buffers of a given size; contents are whatever was there before."""

    def __init__(self, pages: PagePool, lent_bytes_max: int) -> None:
        self._pages = pages
        self._lent_bytes_max = lent_bytes_max
        self._turn = trio.StrictFIFOLock()
        self._room = trio.Event()
        self.lent_bytes = 0

    async def take(self, size: int) -> memoryview:
        """Borrow a buffer; waits, first come first served, while more than the bound would be lent.

        A size above the bound is lent alone. Pass it to `give` in any case. A checkpoint only if it waits.
        """
        if self._has_room(size) and not self._turn.locked():
            return self._lend(size)
        async with self._turn:
            while not self._has_room(size):
                self._room = trio.Event()
                await self._room.wait()
            return self._lend(size)

    def take_nowait(self, size: int) -> memoryview:
        """Borrow above the bound: for one who holds a buffer already, and must not wait for others who do."""
        return self._lend(size)

    def give(self, buffer: memoryview) -> None:
        """Who borrowed it needs it no more. It is used again when nothing refers to it."""
        self.lent_bytes -= len(buffer)
        self._room.set()

    def _has_room(self, size: int) -> bool:
        return not self.lent_bytes or self.lent_bytes + size <= self._lent_bytes_max

    def _lend(self, size: int) -> memoryview:
        self.lent_bytes += size
        return self._pages.room(size)
