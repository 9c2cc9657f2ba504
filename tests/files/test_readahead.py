"""Reader and read-ahead against an array of bytes, on a simulated grid, with windows of a few segments.

Reads of several handles, sequential and not, are mixed with writes, truncates, freezes and commits, so
that each read finds its bytes in the spool, in packs, in windows fetched before, or nowhere (zeros).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from gridfs.assembly import Parts
from gridfs.files.contents import Contents, ContentsConfig
from gridfs.files.namespace import Change, Namespace
from gridfs.files.readahead import Prefetcher, Readahead, ReadaheadConfig
from gridfs.files.reader import Opened, Reader
from gridfs.files.stamps import Stamps
from gridfs.files.surroundings import AGAIN, LARGE, LEARN, ROW
from gridfs.meta.rows import ROOT
from storage.client import Traffic
from tests.simulation.entropy import SimClock
from tests.simulation.filesystem import FILE, Client, start_servers
from tests.simulation.machine import World, run_world
from tests.simulation.runner import chance

SIZE_MAX = 400_000
CONFIG = ReadaheadConfig(
    window_bytes_min=40_000, window_bytes_max=160_000, budget_bytes=400_000, near_bytes=30_000
)


@dataclass
class Bench:
    """An open file system whose read-ahead has small windows."""

    parts: Parts
    prefetcher: Prefetcher
    contents: Contents
    namespace: Namespace

    def make(self, name: bytes = b"file") -> int:
        return self.namespace.make(ROOT, name, FILE, 1, 1).ino

    async def read(self, handle: Readahead, ino: int, offset: int, length: int) -> bytes:
        return (await self.read_around(handle, ino, offset, length))[0]

    async def read_around(
        self, handle: Readahead, ino: int, offset: int, length: int
    ) -> tuple[bytes, list[Opened]]:
        """What was asked for, and what came beside it."""
        opened: list[Opened] = []
        data = await handle.read(offset, length, self.namespace.inode(ino).size, opened, around_max=1 << 40)
        return bytes(data), opened


def on_a_bench(seed: int, work: Callable[[Bench], Awaitable[None]], config: ReadaheadConfig = CONFIG) -> None:
    @asynccontextmanager
    async def bench(parts: Parts) -> AsyncIterator[Bench]:
        stamps = Stamps(SimClock())
        prefetcher = Prefetcher(parts.prefetcher.reader, config)
        contents = Contents(parts.log, parts.dirty, parts.writer, prefetcher, stamps, ContentsConfig())
        async with trio.open_nursery() as nursery:
            await nursery.start(prefetcher.run)
            yield Bench(parts, prefetcher, contents, Namespace(parts.log, contents, stamps))
            nursery.cancel_scope.cancel()

    async def scenario(world: World) -> None:
        client = Client(world, await start_servers(world))
        client.create()

        async def session(parts: Parts) -> None:
            async with bench(parts) as made:
                await work(made)
                assert made.prefetcher.bytes == 0
                assert parts.downloader.statistics().lent_bytes == 0

        await client.session(session)

    run_world(seed, scenario)


class TimedReader:
    """Answers with zeros after a round trip and the time that the bytes take; notes what is asked."""

    def __init__(self, round_trip_s: float, bytes_per_s: float) -> None:
        self.round_trip_s, self.bytes_per_s = round_trip_s, bytes_per_s
        self.ranges: list[tuple[int, int]] = []
        self.copied_bytes = 0
        self.under_way = 0
        self.most_under_way = 0

    @property
    def sizes(self) -> list[int]:
        return [end - start for start, end in self.ranges]

    def is_stored(self, ino: int) -> bool:
        return True

    async def read_into(
        self, ino: int, start: int, out: memoryview, traffic: Traffic, opened: list[Opened] | None = None
    ) -> None:
        self.ranges.append((start, start + len(out)))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await trio.sleep(self.round_trip_s + len(out) / self.bytes_per_s)
        self.under_way -= 1


async def read_through(reader: TimedReader, size: int) -> None:
    """Read a file of this size to its end."""
    prefetcher = Prefetcher(cast(Reader, reader), ReadaheadConfig())
    async with trio.open_nursery() as nursery:
        await nursery.start(prefetcher.run)
        handle = Readahead(prefetcher, 1)
        for offset in range(0, size, 1 << 20):
            assert len(await handle.read(offset, 1 << 20, size)) == 1 << 20
        handle.clear()
        nursery.cancel_scope.cancel()


async def test_windows_are_no_larger_than_what_comes_in_two_seconds(autojump_clock: MockClock) -> None:
    reader = TimedReader(0.05, 400_000)
    await read_through(reader, 16 << 20)
    # The first two are asked for before anything is known.
    assert set(reader.sizes[2:-1]) <= {640 << 10, 768 << 10}


@pytest.mark.parametrize(("round_trip_s", "most"), [(0.001, 2), (0.1, 6)])
async def test_more_windows_are_on_their_way_where_servers_are_far(
    autojump_clock: MockClock, round_trip_s: float, most: int
) -> None:
    reader = TimedReader(round_trip_s, 500e6)
    await read_through(reader, 128 << 20)
    assert max(reader.sizes) == 8 << 20
    assert reader.most_under_way == most


async def test_windows_end_at_multiples_of_their_size(autojump_clock: MockClock) -> None:
    reader = TimedReader(0.001, 500e6)
    await read_through(reader, 32 << 20)
    assert [(start >> 20, end >> 20) for start, end in reader.ranges] == [
        *((0, 1), (1, 2)),  # as long as it is not known how quick the line is
        (2, 4),
        (4, 8),
        *((start, start + 8) for start in range(8, 32, 8)),
    ]


@pytest.mark.parametrize(("handles", "largest"), [(1, 8 << 20), (4, 4 << 20), (32, 512 << 10)])
async def test_handles_that_read_on_share_the_budget_evenly(
    autojump_clock: MockClock, handles: int, largest: int
) -> None:
    size = 24 << 20
    reader = TimedReader(0.001, 500e6)
    prefetcher = Prefetcher(cast(Reader, reader), ReadaheadConfig())

    async def read_on(number: int) -> None:
        handle = Readahead(prefetcher, number)
        for offset in range(0, size, 1 << 20):
            assert len(await handle.read(offset, 1 << 20, size)) == 1 << 20
            assert prefetcher.bytes <= prefetcher.config.budget_bytes
            await trio.sleep(0.01)
        handle.clear()

    async with trio.open_nursery() as nursery:
        await nursery.start(prefetcher.run)
        async with trio.open_nursery() as reading:
            for number in range(handles):
                reading.start_soon(read_on, number)
        nursery.cancel_scope.cancel()
    assert sorted(reader.sizes)[len(reader.sizes) // 2] <= largest <= max(reader.sizes)
    assert sum(reader.sizes) < 1.1 * handles * size, "next to nothing is fetched twice"
    assert (prefetcher.bytes, prefetcher.handles, prefetcher.pages.lent_bytes) == (0, 0, 0)


async def test_a_read_that_others_have_overtaken_leaves_their_windows_alone(
    autojump_clock: MockClock,
) -> None:
    size, step = 32 << 20, 1 << 20
    reader = TimedReader(0.001, 500e6)
    prefetcher = Prefetcher(cast(Reader, reader), ReadaheadConfig())
    async with trio.open_nursery() as nursery:
        await nursery.start(prefetcher.run)
        handle = Readahead(prefetcher, 1)
        for offset in (*range(0, 6 * step, step), 9 * step, 8 * step, 7 * step, 6 * step, 10 * step):
            assert len(await handle.read(offset, step, size)) == step
            assert not handle.jumped
        assert sum(reader.sizes) == max(end for _, end in reader.ranges), "nothing is fetched twice"
        handle.clear()
        handle = Readahead(prefetcher, 1)
        await handle.read(0, step, size)
        before = len(reader.ranges)
        for offset in (0, 0):
            await handle.read(offset, step, size)
        assert reader.ranges[before:] == [(0, step)] * 2, "read once more, the windows ahead stay"
        await handle.read(step, step, size)
        assert [each for each in reader.ranges[before:] if each[1] == 3 * step] == []
        handle.clear()
        nursery.cancel_scope.cancel()


async def jump_about(reader: TimedReader, size: int, count: int) -> list[Opened]:
    """Large reads here and there in a file of this size; returns what they brought beside what they asked."""
    prefetcher = Prefetcher(cast(Reader, reader), ReadaheadConfig())
    handle = Readahead(prefetcher, 1)
    stream = chance(0, "jumps")
    brought: list[Opened] = []
    for _ in range(count):
        offset = stream.randrange(1, size // LARGE) * LARGE
        assert len(await handle.read(offset, LARGE, size, brought, around_max=1 << 40)) == LARGE
    return brought


async def test_large_reads_that_jump_bring_their_rows_while_that_pays(autojump_clock: MockClock) -> None:
    size = 64 << 20
    quick = TimedReader(0.001, 500e6)  # a row takes 2.5 times as long as a read
    brought = await jump_about(quick, size, 100)
    alone = [LEARN] + [1] * (100 // AGAIN)
    assert quick.sizes.count(LARGE) == sum(alone)
    assert quick.sizes.count(ROW) == 100 - sum(alone) == len(brought)
    assert all(start % ROW == 0 for start, end in quick.ranges if end - start == ROW)
    slow = TimedReader(0.001, 10e6)  # seven times
    brought = await jump_about(slow, size, 100)
    assert slow.sizes.count(ROW) == 1 + 100 // AGAIN == len(brought)
    assert slow.sizes.count(LARGE) == 100 - len(brought)


async def test_who_reads_on_behind_a_row_is_sequential(autojump_clock: MockClock) -> None:
    size = 64 << 20
    reader = TimedReader(0.001, 500e6)
    prefetcher = Prefetcher(cast(Reader, reader), ReadaheadConfig())
    async with trio.open_nursery() as nursery:
        await nursery.start(prefetcher.run)
        handle = Readahead(prefetcher, 1)
        for row in (3, 9, 20):
            brought: list[Opened] = []
            await handle.read(row * ROW + LARGE, LARGE, size, brought, around_max=1 << 40)
        assert [(each.start, len(each.data)) for each in brought] == [(20 * ROW, ROW)]
        assert not handle.jumped, "nobody need fetch that row"
        await handle.read(21 * ROW, LARGE, size, brought, around_max=1 << 40)
        assert prefetcher.handles == 1, "it has windows"
        handle.clear()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(6))
def test_reads_are_what_an_array_of_bytes_says(seed: int) -> None:
    stream = chance(seed, "reads")

    async def work(bench: Bench) -> None:
        ino = bench.make()
        model = bytearray()
        handles = [bench.contents.open(ino) for _ in range(3)]
        positions = [0] * len(handles)
        for _ in range(400):
            kind = stream.choices(
                ("next", "near", "jump", "write", "cut", "store", "wait"), (8, 2, 2, 3, 1, 2, 1)
            )
            offset = stream.randrange(SIZE_MAX)
            length = stream.choice((1, 100, 4096, 30_000, 65_536, 150_000))
            which = stream.randrange(len(handles))
            match kind[0]:
                case "next" | "near" | "jump":
                    if kind[0] == "next":
                        offset = positions[which]
                    elif kind[0] == "near":
                        offset = max(0, positions[which] + stream.randrange(-9000, 9000))
                    got, opened = await bench.read_around(handles[which], ino, offset, length)
                    assert got == model[offset : offset + length], (kind, offset, length)
                    for each in opened:
                        assert each.data == model[each.start : each.start + len(each.data)], "stale"
                    positions[which] = offset + len(got) if got else 0
                case "write":
                    length = min(length, SIZE_MAX - offset)
                    data = stream.randbytes(length)
                    await bench.contents.write(ino, offset, data)
                    model.extend(bytes(max(0, offset - len(model))))
                    model[offset : offset + length] = data
                case "cut":
                    offset = stream.choice((0, offset, len(model) // 2))
                    bench.namespace.change(ino, Change(size=offset))
                    model[offset:] = b""
                    model.extend(bytes(offset - len(model)))
                case "store":
                    await bench.parts.writer.stored(ino, bench.parts.log.number)
                case _:
                    await trio.sleep(stream.random())
        for handle in handles:
            bench.contents.close(ino, handle)

    on_a_bench(seed, work)


@pytest.mark.parametrize("seed", range(4))
def test_a_page_read_while_it_is_written_is_one_of_its_versions(seed: int) -> None:
    """Pages hold their version over and over; a read may see any one that was current while it ran."""
    page, pages = 4096, 40

    async def work(bench: Bench) -> None:
        ino = bench.make()
        version = [0] * pages

        async def write(index: int) -> None:
            await bench.contents.write(ino, index * page, bytes([version[index] + 1]) * page)
            version[index] += 1

        for index in range(pages):
            await write(index)
        await bench.parts.writer.stored(ino, bench.parts.log.number)

        async def read_on(number: int) -> None:
            handle = bench.contents.open(ino)
            stream = chance(seed, "reader", number)
            for _ in range(12):
                position = 0 if number % 2 else stream.randrange(pages)
                while position < pages:
                    before = list(version)
                    count = min(stream.choice((1, 3, 17)), pages - position)
                    got = await bench.read(handle, ino, position * page, count * page)
                    for index in range(position, position + count):
                        part = got[(index - position) * page :][:page]
                        assert part == part[:1] * page, f"page {index} is torn"
                        assert before[index] <= part[0] <= version[index], f"page {index} is stale"
                    position += count
            bench.contents.close(ino, handle)

        async with trio.open_nursery() as readers:
            for number in range(4):
                readers.start_soon(read_on, number)
            stream = chance(seed, "writer")
            for _ in range(120):
                await write(stream.randrange(pages))
                await trio.sleep(stream.choice((0.0, 0.002, 0.02)))

    on_a_bench(seed, work)


def test_windows_stay_within_the_budget_and_reads_go_on_without() -> None:
    config = ReadaheadConfig(window_bytes_min=40_000, window_bytes_max=160_000, budget_bytes=100_000)
    data = chance(1, "budget").randbytes(300_000)

    async def work(bench: Bench) -> None:
        ino = bench.make()
        await bench.contents.write(ino, 0, data)
        await bench.parts.writer.stored(ino, bench.parts.log.number)
        handles = [bench.contents.open(ino) for _ in range(5)]
        for position in range(0, len(data), 30_000):
            for handle in handles:
                assert await bench.read(handle, ino, position, 30_000) == data[position : position + 30_000]
                assert bench.prefetcher.bytes <= config.budget_bytes
        for handle in handles:
            bench.contents.close(ino, handle)

    on_a_bench(1, work, config)


def test_a_sequential_reader_gets_windows_that_double_and_one_that_jumps_gets_none() -> None:
    data = chance(2, "windows").randbytes(400_000)

    async def work(bench: Bench) -> None:
        ino = bench.make()
        await bench.contents.write(ino, 0, data)
        await bench.parts.writer.stored(ino, bench.parts.log.number)
        requests = bench.parts.downloader.statistics().requests
        handle = bench.contents.open(ino)
        for position in range(0, len(data), 4000):
            assert await bench.read(handle, ino, position, 4000) == data[position : position + 4000]
        assert max(requests.by_server.values()) <= 6, "a window is one request to each server"
        bench.contents.close(ino, handle)
        handle = bench.contents.open(ino)
        spans = requests.spans
        for position in (300_000, 100_000, 200_000):
            assert await bench.read(handle, ino, position, 10) == data[position : position + 10]
            assert bench.prefetcher.bytes == 0
        assert requests.spans - spans <= 3
        bench.contents.close(ino, handle)

    on_a_bench(2, work)
