"""A grid of storage servers in memory: real backends and verification, with faults to order.

`open_grid` runs it; when it closes, every gauge must be at zero.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from blake3 import blake3

from gridfs.codec.cipher import TAG_SIZE
from gridfs.codec.pack import RunPlace, SealedPack, seal_pack, segment_span
from gridfs.grid.downloader import Downloader, DownloaderConfig, PackRef, SegmentRead
from gridfs.grid.roster import Roster, Server, ServerId
from gridfs.grid.uploader import Receipt, Uploader, UploaderConfig
from storage.backends.memory import MemoryBackend
from storage.backends.port import IncomingShare, ShareKey
from storage.client import SharePut, Span, Traffic
from storage.errors import Unavailable
from storage.format.share import verify_share
from storage.leases import Lease
from storage.pages import PagePool
from storage.ports import UnixAddress
from storage.wire.url import Access

FILE_SYSTEM = b"f" * 16
ACCOUNT = b"a" * 16
SECRET = b"c" * 32
STAMP = (1, 1)

Distort = Callable[[Span, bytes], bytes]
"""What a lying server answers to a span, in place of the right bytes."""


class MemoryServer:
    """A `GridServer` that behaves as it is told."""

    def __init__(self, server_id: ServerId) -> None:
        self.server_id = server_id
        self.backend = MemoryBackend()
        self.dead = False
        self.hung = False
        self.delay_s = 0.0
        self.distort: Distort | None = None
        self.put_error: Exception | None = None
        self.readvs: list[tuple[Span, ...]] = []
        self.puts: list[tuple[int, ...]] = []
        self.haves = 0
        self.cancelled = 0

    async def readv(
        self, spans: Sequence[Span], destinations: Sequence[memoryview], traffic: Traffic
    ) -> list[int]:
        self.readvs.append(tuple(spans))
        await self._behave()
        return [self._read(span, out) for span, out in zip(spans, destinations, strict=True)]

    def readv_nowait(self, *_: object) -> None:
        """It takes a task."""

    async def put(
        self, shares: Sequence[SharePut], file_system: bytes, stamp: tuple[int, int], traffic: Traffic
    ) -> list[bool]:
        self.puts.append(tuple(share.number for share in shares))
        await self._behave()
        if self.put_error is not None:
            raise self.put_error
        incoming = []
        for share in shares:
            verify_share(share.pack_id, share.number, b"".join(share.parts))
            lease = Lease(file_system, ACCOUNT, *stamp)
            incoming.append(IncomingShare(ShareKey(share.pack_id, share.number), share.parts, lease))
        return await self.backend.store(incoming)

    async def have(
        self, keys: Sequence[tuple[bytes, int]], file_system: bytes, stamp: tuple[int, int]
    ) -> list[bool]:
        self.haves += 1
        await self._behave()
        return await self.backend.assert_leases(
            [ShareKey(*key) for key in keys], Lease(file_system, ACCOUNT, *stamp)
        )

    async def drop(self, pack_id: bytes, number: int) -> None:
        """Lose a share."""
        lease = Lease(FILE_SYSTEM, ACCOUNT, 9, 9)
        assert await self.backend.release([ShareKey(pack_id, number)], lease) == [True]

    @property
    def asked_bytes(self) -> int:
        return sum(span.length for spans in self.readvs for span in spans)

    async def _behave(self) -> None:
        try:
            if self.hung:
                await trio.sleep_forever()
            await trio.sleep(self.delay_s)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if self.dead:
            raise Unavailable("nobody answers")

    def _read(self, span: Span, out: memoryview) -> int:
        assert len(out) == span.length > 0
        piece = self.backend.pin(ShareKey(span.pack_id, span.number))
        if piece is None:
            return 0
        assert span.offset + span.length <= piece.length, "asked past the known length of a share"
        data = bytearray(span.length)
        assert piece.file.read_into(memoryview(data), piece.offset + span.offset) == span.length
        self.backend.unpin(piece)
        answer = bytes(data) if self.distort is None else self.distort(span, bytes(data))
        out[: len(answer)] = answer
        return len(answer)


@dataclass
class Stored:
    """A pack in the grid and what it should read as."""

    ref: PackRef
    sealed: SealedPack
    plain: list[bytes]
    receipt: Receipt

    def segments(self, run: int = 0) -> list[SegmentRead]:
        """Reads of all segments of a run, each into memory of its own."""
        sealed = self.sealed.runs[run]
        place = RunPlace(sealed.offset, sealed.length)
        spans = [segment_span(place, index) for index in range(place.segment_count)]
        return [
            SegmentRead(self.ref, sealed.key, ordinal, offset, length, memoryview(bytearray(length)))
            for ordinal, (offset, length) in enumerate(spans)
        ]


@dataclass
class Grid:
    k: int
    n: int
    servers: list[MemoryServer]
    roster: Roster
    downloader: Downloader
    uploader: Uploader
    nursery: trio.Nursery
    pages: PagePool
    """The memory of reads."""
    packs: list[Stored] = field(default_factory=list)

    async def store(self, *runs: bytes) -> Stored:
        """Seal and upload runs as one pack (convergent if it is one run)."""
        key = None if len(runs) == 1 else b"p" * 32
        sealed = seal_pack(self.k, self.n, runs, pack_key=key, convergence_secret=SECRET)
        receipt = await self.uploader.store(sealed, STAMP)
        ref = PackRef(sealed.pack_id, sealed.geometry, receipt.places)
        return Stored(ref, sealed, list(runs), receipt)

    async def read(self, stored: Stored, run: int = 0) -> bytes:
        segments = stored.segments(run)
        await self.downloader.read(segments, Traffic.DEMAND)
        return b"".join(bytes(segment.out) for segment in segments)

    def server(self, server_id: ServerId | None) -> MemoryServer:
        (found,) = [server for server in self.servers if server.server_id == server_id]
        return found

    def holder(self, stored: Stored, number: int) -> MemoryServer:
        """The server that has a share."""
        return self.server(stored.ref.places[number])

    def forget_requests(self) -> None:
        for server in self.servers:
            server.readvs.clear()
            server.puts.clear()

    @property
    def asked_bytes(self) -> int:
        return sum(server.asked_bytes for server in self.servers)

    @property
    def requests(self) -> int:
        return sum(len(server.readvs) for server in self.servers)


def plaintext(size: int, seed: int = 0) -> bytes:
    return blake3(b"plaintext %d" % seed).digest(size)


def server_id(index: int) -> bytes:
    return blake3(b"server %d" % index).digest()


def make_roster(count: int) -> Roster:
    return Roster(
        tuple(
            Server(i, Access(server_id(i), UnixAddress(f"/{i}"), ACCOUNT, b"s" * 32, "full"))
            for i in range(count)
        )
    )


@asynccontextmanager
async def open_grid(
    k: int,
    n: int,
    *,
    count: int | None = None,
    happy: int | None = None,
    shares_per_server: int = 1,
    reading: DownloaderConfig | None = None,
    writing: UploaderConfig | None = None,
) -> AsyncIterator[Grid]:
    roster = make_roster(n if count is None else count)
    servers = [MemoryServer(server.server_id) for server in roster]
    clients = {server.server_id: server for server in servers}
    pages = PagePool(1 << 30)
    downloader = Downloader(clients, roster, reading, pages)
    uploader = Uploader(
        clients, roster, FILE_SYSTEM, k, n, k if happy is None else happy, shares_per_server, writing
    )
    async with trio.open_nursery() as nursery:
        for server in servers:
            await nursery.start(server.backend.run)
        await nursery.start(downloader.run)
        yield Grid(k, n, servers, roster, downloader, uploader, nursery, pages)
        assert downloader.statistics().lent_bytes == 0
        assert uploader.statistics().packs_in_flight == uploader.statistics().bytes_in_flight == 0
        assert all(server.backend.statistics() == (0, 0) for server in servers)
        nursery.cancel_scope.cancel()


def flip(span: Span, data: bytes) -> bytes:
    """A lie in every answer: one bit of its last byte."""
    return data[:-1] + bytes([data[-1] ^ 1])


def invert(span: Span, data: bytes) -> bytes:
    """A lie in every byte."""
    return bytes(byte ^ 255 for byte in data)


def sealed_size(length: int) -> int:
    """Bytes of a sealed segment."""
    return length + TAG_SIZE
