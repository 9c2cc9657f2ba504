"""Reading a range of an inode: spool first, then extents, zeros elsewhere.

The snapshot is taken in one step without awaiting: dirty bytes are copied out of the spool at once,
extents become segments to fetch. Whole segments are opened straight into the caller's buffer; one that
is wanted in part goes through a small cache, which serves neighbouring small reads.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import trio

from gridfs.codec.pack import run_key
from gridfs.files.dirty import DirtyData
from gridfs.files.spool import Spool
from gridfs.grid.downloader import Downloader, PackRef, SegmentRead
from gridfs.meta.store import Extent, Metadata
from storage.client import Traffic
from storage.format.share import BLOCK_SIZE, Geometry

SEGMENT = 65536
PACK_REFS_MAX = 4096
_ZEROS = memoryview(bytes(SEGMENT))

SegmentName = tuple[int, int, int]
"""Pack reference, run, ordinal of the segment in the run."""


@dataclass(frozen=True, slots=True)
class ReaderConfig:
    segment_cache_bytes: int = 16 << 20
    """Opened segments that were wanted in part only."""
    in_place: bool = True
    """Whole segments are opened where they are wanted; else beside it and copied, to measure the cost."""


@dataclass(frozen=True, slots=True)
class Opened:
    """Bytes of a file that were opened because a read wanted some of them."""

    start: int
    """Where they are in the file."""
    data: memoryview


@dataclass(frozen=True, slots=True)
class _Part:
    """Part of a segment: bytes [skip, skip + len(out)) go to `out`."""

    name: SegmentName
    skip: int
    out: memoryview
    start: int
    """Where the segment's first byte is in the file, or would be."""
    low: int
    high: int
    """Bytes of the segment that are in the file there: [low, high)."""


class SegmentCache:
    """Opened segments, least recently used first, bounded in bytes."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._segments: OrderedDict[SegmentName, bytearray] = OrderedDict()
        self.bytes = 0

    def get(self, name: SegmentName) -> bytearray | None:
        data = self._segments.get(name)
        if data is not None:
            self._segments.move_to_end(name)
        return data

    def put(self, name: SegmentName, data: bytearray) -> None:
        old = self._segments.pop(name, None)
        self.bytes += len(data) - (len(old) if old is not None else 0)
        self._segments[name] = data
        while self.bytes > self.bytes_max:
            _, gone = self._segments.popitem(last=False)
            self.bytes -= len(gone)


class Reader:
    """Reads of all inodes of a mount."""

    def __init__(
        self,
        metadata: Metadata,
        dirty: DirtyData,
        spool: Spool,
        downloader: Downloader,
        config: ReaderConfig,
    ) -> None:
        self._metadata = metadata
        self._dirty = dirty
        self._spool = spool
        self._downloader = downloader
        self._cache = SegmentCache(config.segment_cache_bytes)
        self._fetching: dict[SegmentName, trio.Event] = {}
        self._pack_refs: OrderedDict[int, tuple[PackRef, bytes, bool]] = OrderedDict()
        self._in_place = config.in_place
        self.copied_bytes = 0
        """Bytes from the grid that were copied from one buffer of ours to another."""

    def forget(self) -> None:
        """The metadata are others now: what was kept of packs may be of others."""
        self._cache = SegmentCache(self._cache.bytes_max)
        self._fetching = {}
        self._pack_refs.clear()

    def is_stored(self, ino: int) -> bool:
        """Whether all its bytes are in packs."""
        return not self._dirty.bytes_of(ino)

    async def read_into(
        self, ino: int, start: int, out: memoryview, traffic: Traffic, opened: list[Opened] | None = None
    ) -> None:
        """Fill `out` with the bytes of `ino` from `start` on; holes are zeros.

        `opened`: gets what had to be opened for it and was not asked for whole; as it was when the read
        began, and nothing of a file with bytes that are in no pack yet.
        Raises the errors of `gridfs.grid.errors` where too few shares answer.
        """
        if self._in_place:
            await self._read_into(ino, start, out, traffic, opened)
        else:
            beside = memoryview(bytearray(len(out)))
            await self._read_into(ino, start, beside, traffic, opened)
            out[:] = beside
            self.copied_bytes += len(out)

    async def _read_into(
        self, ino: int, start: int, out: memoryview, traffic: Traffic, opened: list[Opened] | None
    ) -> None:
        end = start + len(out)
        gaps = []
        position = start
        for piece in self._dirty.pieces(ino, start, end):
            if piece.start > position:
                gaps.append((position, piece.start))
            self._spool.read_into(piece.source, piece.skip, out[piece.start - start : piece.end - start])
            position = piece.end
        if position < end:
            gaps.append((position, end))
        if opened is not None and not self.is_stored(ino):
            opened = None
        whole: list[SegmentRead] = []
        parts: list[_Part] = []
        segments: dict[SegmentName, SegmentRead] = {}
        for low, high in gaps:
            position = low
            for extent in self._metadata.extents(ino, low, high):
                a, b = max(low, extent.start), min(high, extent.start + extent.length)
                _zero(out[position - start : a - start])
                self._plan(extent, a, out[a - start : b - start], whole, parts, segments)
                position = b
            _zero(out[position - start : high - start])
        if whole and not parts:
            await self._downloader.read(whole, traffic)
        elif parts:
            await self._read_parts(whole, parts, segments, traffic, opened)

    def _plan(
        self,
        extent: Extent,
        start: int,
        out: memoryview,
        whole: list[SegmentRead],
        parts: list[_Part],
        segments: dict[SegmentName, SegmentRead],
    ) -> None:
        """Split one extent's bytes from file offset `start` into segments."""
        pack, key, convergent = self._pack(extent.pack_ref)
        key = run_key(key, convergent, extent.run)
        at = extent.skip + start - extent.start
        done = 0
        while done < len(out):
            ordinal, skip = divmod(at + done, SEGMENT)
            length = min(SEGMENT, extent.run_length - ordinal * SEGMENT)
            take = min(length - skip, len(out) - done)
            target = out[done : done + take]
            offset = extent.run_offset + ordinal * BLOCK_SIZE
            if take == length:
                whole.append(SegmentRead(pack, key, ordinal, offset, length, target))
            else:
                name = (extent.pack_ref, extent.run, ordinal)
                low = max(0, extent.skip - ordinal * SEGMENT)
                high = min(length, extent.skip + extent.length - ordinal * SEGMENT)
                parts.append(_Part(name, skip, target, start + done - skip, low, high))
                if name not in segments:
                    scratch = memoryview(bytearray(length))
                    segments[name] = SegmentRead(pack, key, ordinal, offset, length, scratch)
            done += take

    async def _read_parts(
        self,
        whole: list[SegmentRead],
        parts: list[_Part],
        segments: dict[SegmentName, SegmentRead],
        traffic: Traffic,
        opened: list[Opened] | None,
    ) -> None:
        # What `forget` leaves behind stays with those who began.
        cache, fetching = self._cache, self._fetching
        ready: dict[SegmentName, bytearray] = {}
        mine: dict[SegmentName, SegmentRead] = {}
        waiting: list[tuple[SegmentName, trio.Event]] = []
        for name, segment in segments.items():
            cached = cache.get(name)
            if cached is not None:
                ready[name] = cached
            elif name in fetching:
                waiting.append((name, fetching[name]))
            else:
                mine[name] = segment
                fetching[name] = trio.Event()
        try:
            if whole or mine:
                await self._downloader.read([*whole, *mine.values()], traffic)
            for name, segment in mine.items():
                data = segment.out.obj
                assert isinstance(data, bytearray)
                cache.put(name, data)
                ready[name] = data
        finally:
            for name in mine:
                fetching.pop(name).set()
        for name, event in waiting:
            await event.wait()
            cached = cache.get(name)
            if cached is None:  # the other reader failed, or the cache is very small
                await self._downloader.read([segments[name]], traffic)
                data = segments[name].out.obj
                assert isinstance(data, bytearray)
                cached = data
            ready[name] = cached
        for part in parts:
            data = memoryview(ready[part.name])
            part.out[:] = data[part.skip : part.skip + len(part.out)]
            self.copied_bytes += len(part.out)
            if opened is not None and part.name in mine and part.high - part.low > len(part.out):
                opened.append(Opened(part.start + part.low, data[part.low : part.high]))

    def forget_pack(self, ref: int) -> None:
        """Its shares lie elsewhere from now on."""
        self._pack_refs.pop(ref, None)

    def _pack(self, ref: int) -> tuple[PackRef, bytes, bool]:
        found = self._pack_refs.get(ref)
        if found is None:
            pack = self._metadata.pack(ref)
            geometry = Geometry(pack.k, pack.n, pack.stream_length)
            found = (PackRef(pack.pack_id, geometry, tuple(pack.places)), pack.key, pack.convergent)
            self._pack_refs[ref] = found
            if len(self._pack_refs) > PACK_REFS_MAX:
                self._pack_refs.popitem(last=False)
        else:
            self._pack_refs.move_to_end(ref)
        return found


def _zero(out: memoryview) -> None:
    for start in range(0, len(out), SEGMENT):
        part = out[start : start + SEGMENT]
        part[:] = _ZEROS[: len(part)]
