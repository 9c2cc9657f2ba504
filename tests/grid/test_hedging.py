"""Reading while servers are slow or hang: who is asked instead, what that may cost, and who counts it."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from gridfs.codec.cipher import SEGMENT_SIZE
from gridfs.grid.downloader import DownloaderConfig, SegmentRead
from gridfs.grid.health import HealthConfig
from gridfs.grid.hedging import HedgeConfig, Hedging, others, settled
from gridfs.grid.planner import Coming, Fetch, Held, PackRef, Piece, Sources, Want
from gridfs.grid.requests import Job
from storage.client import Span, Traffic
from storage.format.share import BLOCK_SIZE, Geometry
from storage.pages import lent_size
from tests.grid.servers import Grid, MemoryServer, Stored, flip, open_grid, plaintext, sealed_size, server_id

ROWS = 3 * 4 * SEGMENT_SIZE + 1000
"""Three full rows at k=4 and a short one."""
RICH = HedgeConfig(bucket_bytes_first=1 << 30, bucket_bytes_max=1 << 30)
HEALTH = HealthConfig(first_s=1.0, bytes_per_s_min=1e9, deadline_s_min=0.05)
ROW = 4 * SEGMENT_SIZE


def config(hedging: HedgeConfig = RICH, health: HealthConfig = HEALTH) -> DownloaderConfig:
    return DownloaderConfig(health=health, hedging=hedging)


# ---- the bucket


@given(st.lists(st.tuples(st.integers(0, 1 << 22), st.integers(1, 1 << 20)), max_size=200))
def test_hedges_never_take_more_than_their_part_of_what_was_read(story: list[tuple[int, int]]) -> None:
    bucket = HedgeConfig(part=0.05, bucket_bytes_first=1 << 20, bucket_bytes_max=4 << 20)
    hedging = Hedging(bucket)
    pack = PackRef(bytes(32), Geometry(1, 2, 1 << 22), (None, None))
    read = paid = unpaid = 0
    for read_bytes, price in story:
        hedging.earned(read_bytes)
        read += read_bytes
        if hedging.pay([Fetch(pack, 0, 0, price, server_id(0))]):
            paid += price
        else:
            unpaid += 1
        counters = hedging.statistics()
        assert (counters.bytes, counters.unpaid) == (paid, unpaid)
        assert paid <= bucket.bucket_bytes_first + bucket.part * read
        assert 0 <= counters.bucket_bytes <= bucket.bucket_bytes_max


# ---- the decision


def a_row() -> tuple[PackRef, list[tuple[int, Want]]]:
    """A pack 4-of-6 of one full row on six servers, and the wants of that row."""
    pack = PackRef(bytes(32), Geometry(4, 6, 4 * BLOCK_SIZE), tuple(server_id(i) for i in range(6)))
    return pack, [(number, Want(pack, number, 0, BLOCK_SIZE)) for number in range(4)]


def test_a_row_that_is_read_anyway_lacks_one_range() -> None:
    pack, wants = a_row()
    sources, coming = Sources(), Coming()
    sources.late(server_id(1))
    for number in (0, 2, 3):
        coming.add(pack.pack_id, number, 0, BLOCK_SIZE)
    (fetch,) = others(wants, sources, Held(), coming)
    assert (fetch.number, fetch.start, fetch.end) == (4, 0, BLOCK_SIZE)


def test_a_lone_range_lacks_k_and_nothing_is_asked_twice() -> None:
    pack, wants = a_row()
    sources, coming = Sources(), Coming()
    sources.late(server_id(1))
    fetches = others(wants[1:2], sources, Held(), coming)
    assert [fetch.number for fetch in fetches] == [0, 2, 3, 4]
    for fetch in fetches:
        coming.add(pack.pack_id, fetch.number, fetch.start, fetch.end)
    assert others(wants[1:2], sources, Held(), coming) == []
    sources.late(server_id(3))
    coming = Coming()
    for number in (0, 2, 4):
        coming.add(pack.pack_id, number, 0, BLOCK_SIZE)
    assert [fetch.number for fetch in others(wants[1:2], sources, Held(), coming)] == [5]


def test_where_too_few_others_are_well_nothing_is_asked() -> None:
    _, wants = a_row()
    sources = Sources()
    for index in (1, 2, 3):
        sources.late(server_id(index))
    assert others(wants[1:2], sources, Held(), Coming()) == []


def test_it_is_settled_with_the_range_itself_or_with_k_others() -> None:
    pack, wants = a_row()
    sources, held = Sources(), Held()
    sources.late(server_id(1))

    def came(number: int) -> None:
        piece = Piece(0, BLOCK_SIZE, memoryview(bytes(BLOCK_SIZE)), server_id(number))
        held.add(pack.pack_id, number, piece)

    for number in (0, 2, 3):
        assert settled(wants[1:2], sources, held) is None
        came(number)
    assert settled(wants[1:2], sources, held) is None
    came(5)
    assert settled(wants[1:2], sources, held) == [((1,), (0, 2, 3, 5))]
    came(1)
    assert settled(wants[1:2], sources, held) == [((1,), ())]


# ---- races


async def lone_range(grid: Grid) -> tuple[Stored, SegmentRead, MemoryServer]:
    """A stored pack, one segment of it, and the server that has that segment."""
    stored = await grid.store(plaintext(2 * ROW))
    segment = next(segment for segment in stored.segments() if segment.ordinal == 0)
    return stored, segment, grid.holder(stored, 0)


async def test_a_hung_server_costs_one_deadline_and_one_range_more_for_each_of_its_own(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_grid(4, 6, reading=config()) as grid:
        stored = await grid.store(plaintext(ROWS))
        server = grid.holder(stored, 2)
        server.hung = True
        assert await grid.read(stored) == stored.plain[0]
        assert trio.current_time() == pytest.approx(HEALTH.first_s, abs=0.01)
        await trio.testing.wait_all_tasks_blocked()
        assert server.cancelled == 1, "by a message of its own"
        statistics = grid.downloader.statistics()
        hedging = statistics.hedging
        assert (hedging.requests, hedging.won, hedging.around) == (1, 1, 0)
        assert hedging.bytes == stored.ref.geometry.data_length(2)
        assert (statistics.requests.late, statistics.requests.failed) == (1, 0)


async def test_a_lone_range_is_hedged_with_k(autojump_clock: trio.testing.MockClock) -> None:
    async with open_grid(4, 6, reading=config()) as grid:
        _, segment, server = await lone_range(grid)
        server.hung = True
        await grid.downloader.read([segment])
        assert bytes(segment.out) == plaintext(2 * ROW)[:SEGMENT_SIZE]
        hedging = grid.downloader.statistics().hedging
        assert (hedging.requests, hedging.bytes, hedging.won) == (4, 4 * BLOCK_SIZE, 1)


async def test_who_is_only_slow_wins_where_it_is_quicker_than_its_hedge(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_grid(4, 6, reading=config()) as grid:
        _, segment, server = await lone_range(grid)
        for other in grid.servers:
            other.delay_s = 9.0
        server.delay_s = 1.5
        await grid.downloader.read([segment])
        assert bytes(segment.out) == plaintext(2 * ROW)[:SEGMENT_SIZE]
        assert trio.current_time() == pytest.approx(1.5)
        await trio.testing.wait_all_tasks_blocked()
        assert [other.cancelled for other in grid.servers].count(1) == 4, "the hedges"
        assert server.cancelled == 0
        assert grid.downloader.statistics().hedging.won == 0


async def test_a_hedge_that_is_late_itself_is_hedged(autojump_clock: trio.testing.MockClock) -> None:
    async with open_grid(4, 6, reading=config()) as grid:
        stored, segment, server = await lone_range(grid)
        server.hung = grid.holder(stored, 4).hung = True
        await grid.downloader.read([segment])
        assert bytes(segment.out) == stored.plain[0][:SEGMENT_SIZE]
        assert trio.current_time() == pytest.approx(2 * HEALTH.first_s, abs=0.01)
        assert grid.downloader.statistics().hedging.requests == 5


async def test_a_late_answer_never_writes_into_memory_that_is_used_again(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is shared with another reader, so it goes on when the first one has left."""
    monkeypatch.setattr("storage.pages.HEAP_BYTES_MAX", 0)
    async with open_grid(4, 6, reading=config()) as grid:
        stored, segment, server = await lone_range(grid)
        await grid.downloader.read([segment])
        assert grid.pages.lent_bytes == 0, "undisturbed, nothing refers to the memory of a read"
        server.delay_s = 5.0
        stays = Job(server.server_id, Span(stored.ref.pack_id, 0, 0, 64), memoryview(bytearray(64)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(grid.downloader._tools.requests.ask, [stays], Traffic.DEMAND)
            nursery.start_soon(grid.downloader.read, [segment])
            await trio.sleep(HEALTH.first_s + 0.01)
            assert grid.downloader.statistics().hedging.won == 1
            assert grid.pages.lent_bytes == lent_size(BLOCK_SIZE), "the first one's, without the hedges'"
            assert grid.downloader.statistics().lent_bytes == 0
        assert trio.current_time() == pytest.approx(5.0, abs=0.01)
        assert (stays.got, server.cancelled) == (64, 0)
        assert grid.pages.lent_bytes == 0


async def test_a_server_that_hangs_is_demoted_and_reads_go_around_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_grid(4, 6, reading=config()) as grid:
        _, segment, server = await lone_range(grid)
        server.hung = True
        for _ in range(HEALTH.races_lost_max):
            await grid.downloader.read([segment])
        before = trio.current_time()
        assert grid.downloader.statistics().demoted == (server.server_id,)
        hedged = grid.downloader.statistics().hedging.bytes
        server.readvs.clear()
        await grid.downloader.read([segment])
        hedging = grid.downloader.statistics().hedging
        assert (trio.current_time(), server.readvs) == (before, [])
        assert (hedging.bytes, hedging.around, hedging.around_bytes) == (hedged, 1, 3 * BLOCK_SIZE)
        server.hung = False
        await trio.sleep(HEALTH.late_s)
        await grid.downloader.read([segment])
        await grid.downloader.read([segment])
        assert len(server.readvs) == 2
        assert grid.downloader.statistics().demoted == ()


async def test_with_an_empty_bucket_a_silent_server_is_waited_for_until_it_is_demoted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    poor = HedgeConfig(bucket_bytes_first=BLOCK_SIZE)
    async with open_grid(4, 6, reading=config(poor)) as grid:
        _, segment, server = await lone_range(grid)
        server.hung = True
        await grid.downloader.read([segment])
        assert HEALTH.overdue_s <= trio.current_time() <= 2 * HEALTH.overdue_s
        hedging = grid.downloader.statistics().hedging
        assert (hedging.requests, hedging.around, hedging.around_bytes) == (0, 4, 4 * BLOCK_SIZE)
        assert hedging.unpaid >= 1


async def test_what_nobody_else_can_give_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    async with open_grid(4, 6, reading=config()) as grid:
        stored, segment, server = await lone_range(grid)
        for number in (3, 4, 5):
            grid.holder(stored, number).hung = True
        server.delay_s = 100.0
        await grid.downloader.read([segment])
        assert bytes(segment.out) == stored.plain[0][:SEGMENT_SIZE]
        assert trio.current_time() == 100.0
        assert server.cancelled == 0


async def test_a_slow_server_is_late_by_what_is_usual_of_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One of six takes twenty times as long, and always did; a few reads later nobody waits for it."""
    async with open_grid(4, 6, reading=config()) as grid:
        stored = await grid.store(plaintext(ROW * 8))
        for server in grid.servers:
            server.delay_s = 0.01
        slow = grid.holder(stored, 1)
        slow.delay_s = 0.2
        segments = stored.segments()
        times = []
        for turn in range(400):
            begin = trio.current_time()
            await grid.downloader.read([segments[turn % len(segments)]])
            times.append(trio.current_time() - begin)
        assert sorted(times[100:])[-1 - len(times[100:]) // 100] <= 0.02
        hedging = grid.downloader.statistics().hedging
        assert hedging.won >= HEALTH.races_lost_max
        assert hedging.around > 50


async def test_a_deadline_grows_with_the_bytes_before_it(autojump_clock: trio.testing.MockClock) -> None:
    health = HealthConfig(first_s=1.0, bytes_per_s_min=1e5)
    async with open_grid(1, 2, happy=1, reading=config(health=health)) as grid:
        stored = await grid.store(plaintext(1_000_000))
        grid.holder(stored, 0).delay_s = 9.0
        assert await grid.read(stored) == stored.plain[0]
        assert grid.downloader.statistics().requests.late == 0


async def test_when_our_own_loop_was_busy_answers_get_a_moment_more(
    mock_clock: trio.testing.MockClock,
) -> None:
    """The clock jumps over the deadline while nothing runs, as in a long computation."""
    async with open_grid(4, 6, reading=config()) as grid:
        _, segment, server = await lone_range(grid)
        server.delay_s = HEALTH.first_s + 0.15
        async with trio.open_nursery() as nursery:
            nursery.start_soon(grid.downloader.read, [segment])
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(HEALTH.first_s + 0.1)
            await trio.testing.wait_all_tasks_blocked()
            assert grid.downloader.statistics().requests.late == 0
            mock_clock.jump(0.06)
        assert grid.downloader.statistics().requests.late == 0
        server.hung = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(grid.downloader.read, [segment])
            for _ in range(3):
                await trio.testing.wait_all_tasks_blocked()
                mock_clock.jump(HEALTH.first_s + 0.2)
        assert grid.downloader.statistics().hedging.won == 1


# ---- lookups and audits


async def test_a_lookup_does_without_a_hung_server(autojump_clock: trio.testing.MockClock) -> None:
    async with open_grid(4, 6, reading=config()) as grid:
        stored = await grid.store(plaintext(ROWS))
        places = (None,) * 6
        lost = PackRef(stored.ref.pack_id, stored.ref.geometry, places)
        grid.holder(stored, 1).hung = True
        stored.ref = lost
        assert await grid.read(stored) == stored.plain[0]
        assert trio.current_time() == pytest.approx(HEALTH.first_s, abs=0.01)
        assert grid.downloader.statistics().reads.lookups == 1


async def test_a_lookup_waits_for_whom_it_needs(autojump_clock: trio.testing.MockClock) -> None:
    async with open_grid(4, 6, reading=config()) as grid:
        stored = await grid.store(plaintext(ROWS))
        for number in (0, 1, 2):
            grid.holder(stored, number).delay_s = 7.0
        stored.ref = PackRef(stored.ref.pack_id, stored.ref.geometry, (None,) * 6)
        assert await grid.read(stored) == stored.plain[0]
        assert trio.current_time() >= 7.0


async def test_an_audit_does_without_a_hung_server(autojump_clock: trio.testing.MockClock) -> None:
    async with open_grid(4, 6, reading=config()) as grid:
        stored = await grid.store(plaintext(ROWS))
        (segment, *_) = stored.segments()
        liar, hung = grid.holder(stored, 0), grid.holder(stored, 1)
        liar.distort, hung.hung = flip, True
        await grid.downloader.read([segment])
        assert bytes(segment.out) == stored.plain[0][: segment.length]
        assert trio.current_time() == pytest.approx(HEALTH.first_s, abs=0.01)
        assert grid.downloader.statistics().reads.damaged == {liar.server_id: 1}


async def test_an_audit_waits_for_whom_it_needs(autojump_clock: trio.testing.MockClock) -> None:
    async with open_grid(4, 6, reading=config()) as grid:
        stored = await grid.store(plaintext(ROWS))
        (segment, *_) = stored.segments()
        grid.holder(stored, 0).distort = flip
        for number in (3, 4, 5):
            grid.holder(stored, number).delay_s = 7.0
        await grid.downloader.read([segment])
        assert bytes(segment.out) == stored.plain[0][: segment.length]


async def test_a_small_range_is_hedged_with_its_own_bytes_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The block around it would have come for its neighbours too."""
    async with open_grid(4, 6, reading=config()) as grid:
        stored = await grid.store(*(plaintext(1000, seed) for seed in range(300)))
        assert await grid.read(stored, 0) == stored.plain[0]
        grid.holder(stored, 0).hung = True
        assert await grid.read(stored, 1) == stored.plain[1]
        assert grid.downloader.statistics().hedging.bytes == 4 * sealed_size(1000)
