"""The answer to a readv, and how what is not in memory gets there.

Large ranges that are read once come straight from the disk into memory of our own: filling the kernel's page
cache costs more CPU than all the rest of a read (`storage.pages`), and a stream that passes once would push
out what is worth keeping. Small ranges, and what is asked a second time, come through the page cache, from
which the next reader has them without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

from storage.backends.port import Piece, ShareBackend, ShareKey
from storage.pages import PagePool
from storage.ports import File, Offload
from storage.wire import messages as wire
from storage.wire.body import FileRange, Part

DIRECT_SIZE_MIN = 256 * 1024
"""Smaller ranges gain nothing from the direct way."""
DIRECT_BYTES_MAX = 64 * 1024 * 1024
"""Memory for direct answers under way; beyond it the page cache is used."""
_PAGE_SIZE = 4096


class PageCache(Protocol):
    """What is known of the memory between a file and its disk."""

    def is_resident(self, file: File, offset: int, length: int) -> bool:
        """Whether the range can be sent without waiting for the disk. Never waits."""

    def load(self, file: File, offset: int, length: int) -> None:
        """Make it so. Waits: run it through `Offload`."""


class ReadPlan:
    """Lengths, and where the bytes lie. Pins its shares until `close`."""

    __slots__ = ("_backend", "_pages", "_pieces", "_pool", "lengths", "parts", "size", "whole")

    def __init__(self, backend: ShareBackend, pool: PagePool) -> None:
        self._backend = backend
        self._pool = pool
        self._pieces: list[Piece] = []
        self._pages: list[memoryview] = []
        self.lengths: list[int] = []
        """Bytes per span, in the order asked."""
        self.parts: list[Part] = []
        """The bytes, neighbours joined."""
        self.size = 0
        self.whole = True
        """Whether every span is as long as asked."""

    def add(self, share: wire.ShareRead) -> None:
        """Take one share's ranges up."""
        piece = self._backend.pin(ShareKey(share.pack_id, share.number))
        held = 0
        if piece is not None:
            self._pieces.append(piece)
            held = piece.length
        ranges = iter(share.ranges)
        for offset, length in zip(ranges, ranges, strict=True):
            got = max(0, min(length, held - offset))
            self.lengths.append(got)
            if got < length:
                self.whole = False
            if got and piece is not None:
                self._add_range(FileRange(piece.file, piece.offset + offset, got))

    def copy(self) -> None:
        """Read the bytes into memory and let the shares go."""
        buffer = bytearray(self.size)
        view = memoryview(buffer)
        for part in self.parts:
            length = part.length if isinstance(part, FileRange) else len(part)
            if isinstance(part, FileRange):
                if part.file.read_into(view[:length], part.offset) < length:
                    raise OSError(0, "a share is shorter than its index says")
            else:
                view[:length] = part
            view = view[length:]
        self.close()
        self.parts = [buffer] if self.size else []

    def borrow(self, size: int) -> memoryview:
        """Page-aligned memory, the plan's until `close`."""
        pages = self._pool.take(size)
        self._pages.append(pages)
        return pages

    def close(self) -> None:
        """Idempotent. The parts are not to be used any more."""
        while self._pieces:
            self._backend.unpin(self._pieces.pop())
        while self._pages:
            self._pool.give(self._pages.pop())

    def _add_range(self, wanted: FileRange) -> None:
        self.size += wanted.length
        last = self.parts[-1] if self.parts else None
        if (
            isinstance(last, FileRange)
            and last.file is wanted.file
            and last.offset + last.length == wanted.offset
        ):
            self.parts[-1] = FileRange(last.file, last.offset, last.length + wanted.length)
        else:
            self.parts.append(wanted)


class ColdReads:
    """Brings into memory what a plan still has on the disk."""

    def __init__(self, page_cache: PageCache, offload: Offload) -> None:
        self._page_cache = page_cache
        self._offload = offload
        self._direct_bytes = 0
        self._read_up_to: WeakKeyDictionary[File, int] = WeakKeyDictionary()

    def indexes(self, plan: ReadPlan) -> list[int]:
        """Which parts of the plan have to come from the disk first."""
        is_resident = self._page_cache.is_resident
        return [
            index
            for index, part in enumerate(plan.parts)
            if isinstance(part, FileRange) and not is_resident(*part)
        ]

    async def load(self, plan: ReadPlan, indexes: Sequence[int]) -> None:
        """Away from the loop. Raises OSError."""
        for index in indexes:
            part = plan.parts[index]
            assert isinstance(part, FileRange)
            if part.length < DIRECT_SIZE_MIN or self._direct_bytes > DIRECT_BYTES_MAX or self._is_known(part):
                await self._offload.run(self._page_cache.load, *part)
            else:
                plan.parts[index] = await self._read(plan, part)

    def _is_known(self, part: FileRange) -> bool:
        """Whether some of the range was read before."""
        up_to = self._read_up_to.get(part.file, 0)
        self._read_up_to[part.file] = max(up_to, part.offset + part.length)
        return part.offset < up_to

    async def _read(self, plan: ReadPlan, part: FileRange) -> memoryview:
        start = part.offset // _PAGE_SIZE * _PAGE_SIZE
        skip = part.offset - start
        size = -(-(skip + part.length) // _PAGE_SIZE) * _PAGE_SIZE
        self._direct_bytes += size
        try:
            pages = plan.borrow(size)
            count = await self._offload.run(part.file.read_direct, pages, start)
        finally:
            self._direct_bytes -= size
        if count < skip + part.length:
            raise OSError(0, "a share is shorter than its index says")
        return pages[skip : skip + part.length]
