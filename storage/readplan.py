"""The answer to a readv, and how what is not in memory gets there.

Large ranges come straight from the disk into memory of our own: filling the kernel's page cache costs more
CPU than all the rest of a read (`storage.pages`), and a stream that passes once would push out what is worth
keeping. Small ranges come through the page cache, from which the next reader has them without a copy, and so
does what is asked a second time of a disk that is slow.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Protocol
from weakref import WeakKeyDictionary

from storage.backends.port import Piece, ShareBackend, ShareKey
from storage.pages import PagePool
from storage.ports import Brief, File, Offload
from storage.wire import messages as wire
from storage.wire.body import FileRange, Part

DIRECT_SIZE_MIN = 256 * 1024
"""Smaller ranges gain nothing from the direct way."""
STEP = 64 * 1024
"""In steps of so many bytes it is remembered what of a file was read."""
OWN_BYTES_MAX = 64 * 1024 * 1024
"""Memory for reads that a thread makes; beyond it the page cache is used."""
COPIED_SIZE_MAX = 136 * 1024
"""Answers up to this size, two blocks, are copied: less work than a second system call from another task."""
PROMPT_SIZE_MAX = 320 * 1024
"""Answers up to this size are read in the loop while the disk is quick: less work than to a thread and back.
It is a server's part of a MiB at k = 4."""
BRIEF_READS_MAX = 2
"""Reads from the disk that one answer may make in the loop."""
SHORTER = "a share is shorter than its index says"
_PAGE_SIZE = 4096


class PageCache(Protocol):
    """What is known of the memory between a file and its disk."""

    def is_resident(self, file: File, offset: int, length: int) -> bool:
        """Whether the range can be sent without waiting for the disk. Never waits."""

    def load(self, file: File, offset: int, length: int) -> None:
        """Make it so. Waits: run it through `Offload`."""


class ReadPlan:
    """Lengths, and where the bytes lie. Pins its shares until `close`."""

    __slots__ = (
        "_backend",
        "_pieces",
        "_pool",
        "copied",
        "is_cold",
        "lengths",
        "parts",
        "size",
        "whole",
    )

    def __init__(self, backend: ShareBackend, pool: PagePool) -> None:
        self._backend = backend
        self._pool = pool
        self._pieces: list[Piece] = []
        self.lengths: list[int] = []
        """Bytes per span, in the order asked."""
        self.parts: list[Part] = []
        """The bytes, neighbours joined."""
        self.size = 0
        self.whole = True
        """Whether every span is as long as asked."""
        self.copied = 0
        """Bytes that were copied into a buffer of their own."""
        self.is_cold = False
        """Whether some of it was, or still is, on the disk only."""

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

    def use(self, copy: bytearray) -> None:
        """All bytes are in this buffer: it is what is sent, and the shares may go."""
        self.close()
        self.parts = [copy] if copy else []
        self.copied = len(copy)

    def memory(self, size: int) -> memoryview:
        """Page-aligned memory."""
        return self._pool.take(size)

    def close(self) -> None:
        """Idempotent. The parts are not to be used any more."""
        while self._pieces:
            self._backend.unpin(self._pieces.pop())
        self.parts = []

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


Loading = Callable[[], Awaitable[None]]
"""What is left to do until a plan can be sent. Raises OSError."""


class _Copy:
    """A small answer on its way into one buffer."""

    __slots__ = ("buffer", "missing")

    def __init__(self, plan: ReadPlan) -> None:
        """Takes what is in memory. Raises OSError."""
        self.buffer = bytearray(plan.size)
        self.missing: list[tuple[FileRange, memoryview]] = []
        view = memoryview(self.buffer)
        for part in plan.parts:
            assert isinstance(part, FileRange)
            file, offset, length = part
            if (got := file.read_ready(view[:length], offset)) < length:
                self.missing.append((FileRange(file, offset + got, length - got), view[got:length]))
            view = view[length:]

    def fetch(self) -> None:
        """Read the rest. Waits for the disk. Raises OSError."""
        for (file, offset, length), view in self.missing:
            if file.read_into(view, offset) < length:
                raise OSError(0, SHORTER)


class _OwnRead:
    """A range on its way from the disk into memory of our own. Made in the loop; only `fetch` may wait."""

    __slots__ = ("_is_direct", "_part", "_start", "pages", "wanted")

    def __init__(self, part: FileRange, plan: ReadPlan, *, is_direct: bool) -> None:
        """`is_direct`: past the page cache."""
        self._part = part
        self._is_direct = is_direct
        skip = part.offset % _PAGE_SIZE if is_direct else 0
        self._start = part.offset - skip
        size = skip + part.length
        self.pages = plan.memory(-(-size // _PAGE_SIZE) * _PAGE_SIZE if is_direct else size)
        """All pages that the range touches, of a direct read; else the range."""
        self.wanted = self.pages[skip:size]

    def fetch(self) -> None:
        """Waits for the disk. Raises OSError."""
        file, offset, length = self._part
        read = file.read_direct if self._is_direct else file.read_into
        if read(self.pages, self._start) < offset - self._start + length:
            raise OSError(0, SHORTER)


class ColdReads:
    """Brings into memory what a plan still has on the disk."""

    def __init__(
        self, page_cache: PageCache, offload: Offload, copied_size_max: int = COPIED_SIZE_MAX
    ) -> None:
        """`copied_size_max`: bytes of an answer that is small."""
        self._page_cache = page_cache
        self._copied_size_max = copied_size_max
        self._offload = offload
        self._own_bytes = 0
        self._read: WeakKeyDictionary[File, int] = WeakKeyDictionary()
        """A bit for each `STEP` that was read whole."""

    def prepare(self, plan: ReadPlan) -> Loading | None:
        """Make a plan ready to be sent. Where the disk would hold up the loop, returns what is to be awaited
        first. Small answers are copied, to leave with their header in one system call. Raises OSError."""
        if plan.size <= self._copied_size_max:
            copy = _Copy(plan)
            if copy.missing:
                plan.is_cold = True
                if len(copy.missing) > BRIEF_READS_MAX or not self._offload.is_brief(Brief.READ):
                    return partial(self._fetch, plan, copy)
                self._offload.run_here(Brief.READ, copy.fetch)
            plan.use(copy.buffer)
            return None
        is_resident = self._page_cache.is_resident
        cold = [
            index
            for index, part in enumerate(plan.parts)
            if isinstance(part, FileRange) and not is_resident(*part)
        ]
        plan.is_cold = bool(cold)
        if not cold:
            return None
        is_crowded = self._own_bytes > OWN_BYTES_MAX
        if plan.size > PROMPT_SIZE_MAX or len(cold) > BRIEF_READS_MAX or is_crowded:
            return partial(self._load, plan, cold)
        reads = {index: self._own_read(plan, index) for index in cold}
        calls = [read.fetch for read in reads.values()]
        fetch = partial(self._offload.run_here, Brief.LONGER_READ, _call, calls)
        if not self._offload.is_brief(Brief.LONGER_READ):
            return partial(self._fetch_own, plan, reads, fetch)
        fetch()
        _use_own(plan, reads)
        return None

    def _own_read(self, plan: ReadPlan, index: int) -> _OwnRead:
        part = plan.parts[index]
        assert isinstance(part, FileRange)
        is_direct = self._goes_direct(part, Brief.LONGER_READ)
        if not is_direct:
            plan.copied += part.length
        return _OwnRead(part, plan, is_direct=is_direct)

    async def _fetch_own(
        self, plan: ReadPlan, reads: Mapping[int, _OwnRead], fetch: Callable[[], None]
    ) -> None:
        """In a thread."""
        size = sum(len(each.pages) for each in reads.values())
        self._own_bytes += size
        try:
            await self._offload.run(fetch)
        finally:
            self._own_bytes -= size
        _use_own(plan, reads)

    def _goes_direct(self, part: FileRange, kind: Brief) -> bool:
        """Past the page cache. `kind`: of reads that tell how quick the disk is."""
        if part.length < DIRECT_SIZE_MIN or self._own_bytes > OWN_BYTES_MAX:
            return False
        is_known = self._is_known(part)
        return not is_known or self._offload.is_brief(kind)

    async def _fetch(self, plan: ReadPlan, copy: _Copy) -> None:
        await self._offload.run(self._offload.run_here, Brief.READ, copy.fetch)
        plan.use(copy.buffer)

    async def _load(self, plan: ReadPlan, indexes: Sequence[int]) -> None:
        """All in one go: each way to a thread and back costs as much as a part of a hundred kilobytes."""
        calls: list[Callable[[], None]] = []
        reads: dict[int, _OwnRead] = {}
        for index in indexes:
            part = plan.parts[index]
            assert isinstance(part, FileRange)
            if self._goes_direct(part, Brief.LARGE_READ):
                reads[index] = _OwnRead(part, plan, is_direct=True)
                calls.append(reads[index].fetch)
            else:
                calls.append(partial(self._page_cache.load, *part))
        fetch = partial(self._offload.run_here, Brief.LARGE_READ, _call, calls)
        await self._fetch_own(plan, reads, fetch)

    def _is_known(self, part: FileRange) -> bool:
        """Whether some of the range was read before."""
        before = self._read.get(part.file, 0)
        first, end = -(-part.offset // STEP), (part.offset + part.length) // STEP
        steps = ((1 << end - first) - 1) << first
        self._read[part.file] = before | steps
        return bool(before & steps)


def _use_own(plan: ReadPlan, reads: Mapping[int, _OwnRead]) -> None:
    for index, read in reads.items():
        plan.parts[index] = read.wanted


def _call(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()
