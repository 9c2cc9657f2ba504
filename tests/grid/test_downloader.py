"""Reading from a grid in which servers are dead, hung, slow, lying, and shares are lost or misplaced."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import combinations

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from gridfs.codec.cipher import SEGMENT_SIZE
from gridfs.codec.pack import max_plaintext, seal_pack
from gridfs.grid.downloader import Downloader, DownloaderConfig, PackRef, SegmentRead
from gridfs.grid.errors import DamagedData, NotEnoughShares
from storage.client import Span, Traffic
from storage.format.share import BLOCK_SIZE
from storage.pages import lent_size
from tests.grid.servers import SECRET, Grid, Stored, flip, invert, open_grid, plaintext, sealed_size

ROWS = 3 * 4 * SEGMENT_SIZE + 1000
"""Three full rows at k=4 and a short one."""


# ---- an undamaged grid


@pytest.mark.parametrize(("k", "n"), [(1, 1), (1, 3), (3, 10), (4, 6), (60, 100), (256, 256)])
async def test_what_was_stored_is_read_with_one_request_per_server(k: int, n: int) -> None:
    async with open_grid(k, n) as grid:
        stored = await grid.store(plaintext(1_000_000))
        assert await grid.read(stored) == stored.plain[0]
        assert all(len(server.readvs) <= 1 for server in grid.servers)
        assert grid.asked_bytes == stored.sealed.geometry.stream_length
        assert all(not grid.holder(stored, number).readvs for number in range(k, n))
        assert grid.downloader.statistics().reads.reconstructed == 0


async def test_neighbours_in_a_share_are_one_span() -> None:
    async with open_grid(4, 6) as grid:
        stored = await grid.store(plaintext(ROWS))
        await grid.read(stored)
        spans = [spans for server in grid.servers for spans in server.readvs]
        assert [len(span) for span in spans] == [1] * 4


async def test_a_small_file_costs_one_small_range_on_one_server() -> None:
    async with open_grid(4, 6) as grid:
        stored = await grid.store(plaintext(4096), plaintext(100))
        assert await grid.read(stored, 0) == stored.plain[0]
        assert grid.requests == 1
        assert grid.asked_bytes == sealed_size(4096)


async def test_the_second_small_file_of_a_pack_brings_its_neighbours() -> None:
    """200 files of 1 kB lie in four blocks, on four servers."""
    async with open_grid(4, 6) as grid:
        stored = await grid.store(*(plaintext(1000, seed) for seed in range(200)))
        for index in range(200):
            assert await grid.read(stored, index) == stored.plain[index]
        assert grid.requests == 1 + 4
        assert grid.asked_bytes == sealed_size(1000) + stored.sealed.geometry.stream_length
        other = await grid.store(plaintext(300_000))
        before = grid.asked_bytes
        assert await grid.read(other) == other.plain[0]
        assert grid.asked_bytes == before + other.sealed.geometry.stream_length, "alone in its blocks"


async def test_neighbours_take_bounded_memory() -> None:
    async with open_grid(4, 6, reading=DownloaderConfig(neighbour_bytes=2 * BLOCK_SIZE)) as grid:
        stored = await grid.store(*(plaintext(1000, seed) for seed in range(200)))
        for _ in range(2):
            for index in range(200):
                assert await grid.read(stored, index) == stored.plain[index]
        assert grid.requests == 1 + 4 + 4


async def test_a_block_of_lies_is_not_believed_and_not_kept() -> None:
    async with open_grid(4, 6) as grid:
        stored = await grid.store(*(plaintext(1000, seed) for seed in range(100)))
        liar = grid.holder(stored, 0)
        assert await grid.read(stored, 0) == stored.plain[0]
        liar.distort = invert
        for index in range(1, 100):
            assert await grid.read(stored, index) == stored.plain[index]
        assert grid.downloader.statistics().reads.damaged == {liar.server_id: 1}


async def test_all_readers_of_one_turn_share_one_request_per_server() -> None:
    async with open_grid(4, 6) as grid:
        stored = [await grid.store(plaintext(ROWS, seed)) for seed in range(5)]
        results: dict[int, bytes] = {}

        async def read(index: int) -> None:
            results[index] = await grid.read(stored[index])

        async with trio.open_nursery() as nursery:
            for index in range(5):
                nursery.start_soon(read, index)
        assert results == {index: stored[index].plain[0] for index in range(5)}
        assert [len(server.readvs) for server in grid.servers] == [1] * 6


async def test_classes_of_traffic_are_not_mixed() -> None:
    async with open_grid(1, 1) as grid:
        stored = await grid.store(plaintext(1000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(grid.downloader.read, stored.segments(), Traffic.DEMAND)
            nursery.start_soon(grid.downloader.read, stored.segments(), Traffic.PREFETCH)
        assert grid.requests == 2


@pytest.mark.parametrize(("k", "n"), [(3, 4), (60, 61)])
async def test_a_sequential_read_asks_each_server_once_per_window(k: int, n: int) -> None:
    """The issue's criterion: at most one request per server per 4 MiB of read-ahead window, whatever k."""
    window = 4 << 20
    async with open_grid(k, n) as grid:
        packs = [await grid.store(plaintext(max_plaintext(k), seed)) for seed in range(3)]
        segments = [s for pack in packs for s in pack.segments()]
        total = windows = 0
        while total < 100_000_000:
            batch: list[SegmentRead] = []
            while sum(segment.length for segment in batch) < window:
                batch.append(segments.pop(0))
                segments.append(batch[-1])
            await grid.downloader.read(batch, Traffic.PREFETCH)
            total += window
            windows += 1
        assert max(len(server.readvs) for server in grid.servers) <= windows
        assert b"".join(s.out for s in packs[0].segments()) != packs[0].plain[0]  # fresh ones hold nothing
        by_ordinal = sorted((s for s in segments if s.pack is packs[0].ref), key=lambda s: s.ordinal)
        assert b"".join(s.out for s in by_ordinal) == packs[0].plain[0]


async def test_requests_are_split_at_the_limits_of_the_wire() -> None:
    config = DownloaderConfig(spans_max=2, bytes_max=100_000)
    async with open_grid(1, 1, reading=config) as grid:
        stored = await grid.store(*[plaintext(1000, seed) for seed in range(5)])
        segments = [stored.segments(run)[0] for run in (0, 2, 4)]
        await grid.downloader.read(segments)
        assert [bytes(segment.out) for segment in segments] == [stored.plain[run] for run in (0, 2, 4)]
        assert sorted(len(spans) for spans in grid.servers[0].readvs) == [1, 2]


async def test_a_large_read_lets_others_have_their_turn() -> None:
    """One more turn of the loop for every MiB that is opened."""
    async with open_grid(4, 6) as grid:
        stored = await grid.store(plaintext(8 << 20))

        async def turns_during(segments: list[SegmentRead]) -> int:
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    await trio.lowlevel.checkpoint()
                    turns += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(count)
                await grid.downloader.read(segments)
                nursery.cancel_scope.cancel()
            return turns

        segments = stored.segments()
        assert await turns_during(segments) >= await turns_during(segments[:4]) + 6


async def test_nothing_to_read_asks_nobody() -> None:
    async with open_grid(1, 1) as grid:
        await grid.downloader.read([])
        assert grid.requests == 0


# ---- dead servers


@pytest.mark.parametrize("dead", list(combinations(range(6), 2)))
async def test_any_two_of_six_may_be_dead(dead: tuple[int, int]) -> None:
    async with open_grid(4, 6) as grid:
        stored = await grid.store(plaintext(ROWS))
        small = await grid.store(plaintext(1000), plaintext(50))
        for index in dead:
            grid.servers[index].dead = True
        for _ in range(2):
            assert await grid.read(stored) == stored.plain[0]
            assert await grid.read(small, 1) == small.plain[1]


async def test_a_lone_range_is_rebuilt_from_the_same_range_of_k_others() -> None:
    async with open_grid(4, 6) as grid:
        stored = await grid.store(plaintext(2 * 4 * SEGMENT_SIZE))
        (lost,) = [segment for segment in stored.segments() if segment.ordinal == 0]
        grid.holder(stored, 0).dead = True
        await grid.downloader.read([lost])
        assert bytes(lost.out) == stored.plain[0][:SEGMENT_SIZE]
        others = [server for server in grid.servers if not server.dead and server.readvs]
        assert len(others) == 4
        assert all(server.asked_bytes == BLOCK_SIZE for server in others)


async def test_a_row_that_is_read_anyway_costs_one_range_more() -> None:
    async with open_grid(4, 6) as grid:
        stored = await grid.store(plaintext(8 * 4 * SEGMENT_SIZE))
        grid.holder(stored, 1).dead = True
        await grid.read(stored)  # finds it out
        grid.forget_requests()
        assert await grid.read(stored) == stored.plain[0]
        assert not grid.holder(stored, 1).readvs
        assert grid.asked_bytes == stored.sealed.geometry.stream_length
        assert [len(server.readvs) for server in grid.servers if server.readvs] == [1] * 4


async def test_known_zeros_are_not_asked_for() -> None:
    """A pack of one block: of its four primaries three are empty, so one range anywhere will do."""
    async with open_grid(4, 6) as grid:
        stored = await grid.store(plaintext(1000))
        grid.holder(stored, 0).dead = True
        assert await grid.read(stored) == stored.plain[0]
        assert sum(server.asked_bytes for server in grid.servers if not server.dead) == sealed_size(1000)


async def test_a_dead_server_is_not_asked_first_and_comes_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_grid(4, 6) as grid:
        stored = await grid.store(plaintext(ROWS))
        server = grid.holder(stored, 0)
        server.dead = True
        await grid.read(stored)
        assert grid.downloader.statistics().demoted == (server.server_id,)
        server.readvs.clear()
        await grid.read(stored)
        assert not server.readvs
        server.dead = False
        await trio.sleep(100)
        await grid.read(stored)
        assert len(server.readvs) == 1
        assert grid.downloader.statistics().demoted == ()


async def test_fewer_than_k_say_so_and_name_pack_and_servers() -> None:
    async with open_grid(4, 6) as grid:
        stored = await grid.store(plaintext(ROWS))
        for number in (0, 1, 2):
            grid.holder(stored, number).dead = True
        with pytest.raises(NotEnoughShares) as caught:
            await grid.read(stored)
        assert (caught.value.got, caught.value.k) == (3, 4)
        message = str(caught.value)
        assert stored.ref.pack_id.hex()[:10] in message
        assert "nobody answers" in message
        assert grid.roster.name(grid.holder(stored, 0).server_id) in message
        assert "\n" not in message


async def test_demoted_servers_are_asked_before_a_read_is_given_up() -> None:
    async with open_grid(4, 6) as grid:
        stored = await grid.store(plaintext(ROWS))
        for number in (0, 1, 5):
            grid.holder(stored, number).dead = True
        with pytest.raises(NotEnoughShares):
            await grid.read(stored)
        for number in (0, 1, 5):
            grid.holder(stored, number).dead = False
        assert len(grid.downloader.statistics().demoted) == 3
        assert await grid.read(stored) == stored.plain[0]
        assert grid.downloader.statistics().demoted == (grid.holder(stored, 5).server_id,)


async def test_a_failing_pack_does_not_harm_the_read_of_another() -> None:
    async with open_grid(1, 2, happy=1) as grid:
        lost, good = await grid.store(plaintext(500)), await grid.store(plaintext(500, 1))
        for server in grid.servers:
            for number in (0, 1):
                if lost.ref.places[number] == server.server_id:
                    await server.drop(lost.ref.pack_id, number)
        failed: list[NotEnoughShares] = []

        async def read_lost() -> None:
            try:
                await grid.read(lost)
            except NotEnoughShares as error:
                failed.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_lost)
            assert await grid.read(good) == good.plain[0]
        assert [error.got for error in failed] == [0]
        assert "lacks its share" in str(failed[0])


# ---- lies


async def lies(grid: Grid, stored: Stored, number: int) -> None:
    """Read twice: the right bytes, the liar named, and gone around the second time."""
    liar = grid.holder(stored, number)
    assert await grid.read(stored) == stored.plain[0]
    reads = grid.downloader.statistics().reads
    assert list(reads.damaged) == [liar.server_id]
    assert grid.downloader.statistics().demoted == (liar.server_id,)
    liar.readvs.clear()
    assert await grid.read(stored) == stored.plain[0]
    assert not liar.readvs


@pytest.mark.parametrize("number", range(4))
async def test_a_lying_primary_is_named(number: int, caplog: pytest.LogCaptureFixture) -> None:
    async with open_grid(4, 6) as grid:
        stored = await grid.store(plaintext(ROWS))
        grid.holder(stored, number).distort = invert
        with caplog.at_level(logging.WARNING):
            await lies(grid, stored, number)
        assert grid.roster.name(grid.holder(stored, number).server_id) in caplog.text
        assert grid.downloader.statistics().reads.audits == 1, "its other blocks are not believed any more"


async def test_a_lie_about_a_run_inside_a_block_is_found() -> None:
    async with open_grid(2, 3) as grid:
        stored = await grid.store(plaintext(1000), plaintext(2000, 1), plaintext(3000, 2))
        grid.holder(stored, 0).distort = invert
        assert await grid.read(stored, 1) == stored.plain[1]
        assert await grid.read(stored, 2) == stored.plain[2]


async def test_one_flipped_byte_in_the_data_is_found_by_its_hash(caplog: pytest.LogCaptureFixture) -> None:
    def rot(span: Span, data: bytes) -> bytes:
        start = 300_000 - span.offset  # one byte of the share, wherever it is read from
        return data[:start] + b"!" + data[start + 1 :] if 0 <= start < len(data) else data

    async with open_grid(1, 2, happy=1) as grid:
        stored = await grid.store(plaintext(10 * SEGMENT_SIZE))
        grid.holder(stored, 0).distort = rot
        assert await grid.read(stored) == stored.plain[0]
        assert "does not fit its hash" in caplog.text
        assert grid.downloader.statistics().reads.damaged == {stored.ref.places[0]: 1}


async def test_a_share_that_is_cut_short_is_named() -> None:
    async with open_grid(4, 6) as grid:
        stored = await grid.store(plaintext(ROWS))
        grid.holder(stored, 1).distort = lambda span, data: data[: len(data) // 2]
        await lies(grid, stored, 1)
        assert grid.downloader.statistics().reads.audits == 0


async def test_swapped_shares_are_named() -> None:
    async with open_grid(4, 6) as grid:
        stored = await grid.store(plaintext(8 * 4 * SEGMENT_SIZE))
        other = b"".join(bytes(part) for part in stored.sealed.shares[3])
        grid.holder(stored, 2).distort = lambda span, data: other[span.offset : span.offset + span.length]
        await lies(grid, stored, 2)


async def test_a_consistent_share_of_another_pack_is_no_evidence(caplog: pytest.LogCaptureFixture) -> None:
    """Header, table and blocks fit each other, number and geometry are right: only the pack id is not."""
    async with open_grid(4, 6) as grid:
        stored = await grid.store(plaintext(ROWS))
        other = seal_pack(4, 6, [plaintext(ROWS, 1)], pack_key=None, convergence_secret=SECRET)
        forged = b"".join(bytes(part) for part in other.shares[2])
        grid.holder(stored, 2).distort = lambda span, data: forged[span.offset : span.offset + span.length]
        await lies(grid, stored, 2)
        assert "does not belong to pack" in caplog.text


async def test_liars_among_those_that_help_are_named_too() -> None:
    async with open_grid(4, 8) as grid:
        stored = await grid.store(plaintext(ROWS))
        grid.holder(stored, 0).dead = True
        for number in (1, 4, 5):
            grid.holder(stored, number).distort = flip
        assert await grid.read(stored) == stored.plain[0]
        grid.forget_requests()
        assert await grid.read(stored) == stored.plain[0]
        assert grid.downloader.statistics().reads.damaged[grid.holder(stored, 1).server_id] == 1
        assert not grid.holder(stored, 1).readvs


async def test_more_liars_than_the_code_bears_are_an_error_never_wrong_bytes() -> None:
    async with open_grid(4, 6) as grid:
        stored = await grid.store(plaintext(ROWS))
        for number in (0, 2, 5):
            grid.holder(stored, number).distort = flip
        with pytest.raises(NotEnoughShares) as caught:
            await grid.read(stored)
        assert caught.value.got == 3


async def test_a_server_that_lies_once_is_forgiven_in_that_read() -> None:
    async with open_grid(1, 1) as grid:
        stored = await grid.store(plaintext(1000))
        answers = iter([flip])
        grid.servers[0].distort = lambda span, data: next(answers, lambda _, d: d)(span, data)
        assert await grid.read(stored) == stored.plain[0]
        assert grid.downloader.statistics().reads.audits == 1


async def test_certified_bytes_under_a_wrong_key_are_damage_and_blame_no_server() -> None:
    async with open_grid(4, 6) as grid:
        stored = await grid.store(plaintext(ROWS))
        segment = replace(stored.segments()[1], key=b"x" * 32)
        with pytest.raises(DamagedData, match=stored.ref.pack_id.hex()[:10]):
            await grid.downloader.read([segment])
        assert grid.downloader.statistics().reads.damaged == {}


# ---- shares that are elsewhere


@pytest.mark.parametrize("hint", ["none", "wrong"])
async def test_all_servers_are_asked_where_the_hints_do_not_help(hint: str) -> None:
    async with open_grid(4, 6, count=9) as grid:
        stored = await grid.store(plaintext(ROWS))
        strangers = [s.server_id for s in grid.servers if s.server_id not in stored.ref.places]
        places = (None,) * 6 if hint == "none" else (strangers[0],) * 6
        lost = replace(stored, ref=PackRef(stored.ref.pack_id, stored.ref.geometry, places))
        assert await grid.read(lost) == stored.plain[0]
        assert grid.downloader.statistics().reads.lookups == 1


async def test_a_share_found_elsewhere_helps_where_its_hint_failed() -> None:
    async with open_grid(2, 2) as grid:
        stored = await grid.store(plaintext(200_000))
        moved = replace(stored.ref, places=(stored.ref.places[0], stored.ref.places[0]))
        assert await grid.read(replace(stored, ref=moved)) == stored.plain[0]


async def test_servers_outside_the_roster_or_without_client_are_as_good_as_dead() -> None:
    async with open_grid(1, 2, happy=1) as grid:
        stored = await grid.store(plaintext(1000))
        ref = replace(stored.ref, places=(b"?" * 32, stored.ref.places[1]))
        assert await grid.read(replace(stored, ref=ref)) == stored.plain[0]


# ---- misuse, cancellation, the end


async def test_segments_outside_their_pack_are_refused() -> None:
    async with open_grid(4, 6) as grid:
        stored = await grid.store(plaintext(1000))
        (segment,) = stored.segments()
        for wrong in (
            replace(segment, offset=1),
            replace(segment, offset=-1),
            replace(segment, length=999),
            replace(segment, length=0, out=memoryview(b"")),
        ):
            with pytest.raises(ValueError, match="does not lie in one block"):
                await grid.downloader.read([wrong])


async def test_a_cancelled_read_cancels_its_request_and_lets_go_of_its_buffer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("storage.pages.HEAP_BYTES_MAX", 0)
    async with open_grid(1, 1) as grid:
        stored = await grid.store(plaintext(1000))
        await grid.read(stored)
        kept = grid.pages.kept_bytes
        assert grid.pages.lent_bytes == 0 < kept
        grid.servers[0].hung = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(grid.downloader.read, stored.segments())
            await trio.testing.wait_all_tasks_blocked()
            lent = lent_size(1000 + 16)
            assert (grid.pages.lent_bytes, grid.pages.kept_bytes) == (lent, kept - lent)
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert grid.servers[0].cancelled == 1
        assert (grid.pages.lent_bytes, grid.pages.kept_bytes) == (0, kept)
        grid.servers[0].hung = False
        assert await grid.read(stored) == stored.plain[0]


async def test_a_cancelled_read_leaves_those_that_share_its_request_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_grid(1, 1) as grid:
        stored = await grid.store(plaintext(1000))
        grid.servers[0].delay_s = 1.0
        gone = trio.CancelScope()

        async def leave() -> None:
            with gone:
                await grid.read(stored)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            nursery.start_soon(trio.sleep, 2.0)

            async def stay() -> None:
                assert await grid.read(stored) == stored.plain[0]

            nursery.start_soon(stay)
            await trio.sleep(0.5)
            gone.cancel()
        assert grid.requests == 1
        assert grid.servers[0].cancelled == 0


async def test_reads_wait_for_memory_and_all_come_through(autojump_clock: trio.testing.MockClock) -> None:
    config = DownloaderConfig(lent_bytes=2 * BLOCK_SIZE)
    async with open_grid(1, 1, reading=config) as grid:
        stored = await grid.store(plaintext(6 * SEGMENT_SIZE))
        grid.servers[0].delay_s = 1.0
        segments = stored.segments()
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, grid.downloader.statistics().lent_bytes)
                await trio.sleep(0.25)

        async with trio.open_nursery() as watching:
            watching.start_soon(watch)
            async with trio.open_nursery() as nursery:
                for segment in segments:
                    nursery.start_soon(grid.downloader.read, [segment])
            watching.cancel_scope.cancel()
        assert b"".join(segment.out for segment in segments) == stored.plain[0]
        assert most == 2 * BLOCK_SIZE


async def test_reads_fail_when_the_downloader_has_ended() -> None:
    async with open_grid(1, 1) as grid:
        stored = await grid.store(plaintext(1000))
        grid.servers[0].hung = True
        failed: list[str] = []

        async def read() -> None:
            try:
                with trio.CancelScope(shield=True):
                    await grid.read(stored)
            except NotEnoughShares as error:
                failed.append(str(error))

        async with trio.open_nursery() as nursery:
            ending = await nursery.start(run_another, grid)
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            ending.cancel()
        await read()
        assert len(failed) == 2
        assert all("reading has ended" in text for text in failed)


async def run_another(
    grid: Grid, *, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
) -> None:
    """Put a downloader with a scope of its own in the place of the grid's."""
    clients = {server.server_id: server for server in grid.servers}
    grid.downloader = Downloader(clients, grid.roster)
    async with trio.open_nursery() as nursery:
        await nursery.start(grid.downloader.run)
        task_status.started(nursery.cancel_scope)


# ---- anything at once


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_n_minus_k_faults_are_borne(data: st.DataObject) -> None:
    """Random packs, random faults of at most n-k servers, random segments: always the right bytes."""
    k, n = data.draw(st.sampled_from([(1, 2), (2, 3), (3, 10), (4, 6), (5, 8)]), "shape")
    sizes = st.one_of(st.integers(1, 3000), st.integers(SEGMENT_SIZE - 20, 5 * SEGMENT_SIZE))
    lengths = data.draw(st.lists(sizes, min_size=1, max_size=5), "lengths")
    faulty = data.draw(st.permutations(range(n)), "order")[: data.draw(st.integers(0, n - k), "faulty")]
    faults = {index: data.draw(st.sampled_from(["dead", "lies", "short", "lost"])) for index in faulty}
    seed = data.draw(st.randoms(use_true_random=False))

    async def main() -> None:
        async with open_grid(k, n) as grid:
            stored = await grid.store(*[plaintext(length, at) for at, length in enumerate(lengths)])
            for index, fault in faults.items():
                server = grid.servers[index]
                server.dead = fault == "dead"
                if fault == "lies":
                    server.distort = flip
                elif fault == "short":
                    server.distort = lambda span, data: data[:-1]
                elif fault == "lost" and server.server_id in stored.ref.places:
                    await server.drop(stored.ref.pack_id, stored.ref.places.index(server.server_id))
            for _ in range(2):
                expected = []
                for run, plain in enumerate(stored.plain):
                    for segment in stored.segments(run):
                        if seed.random() < 0.7:
                            start = segment.ordinal * SEGMENT_SIZE
                            expected.append((segment, plain[start : start + segment.length]))
                seed.shuffle(expected)
                await grid.downloader.read([segment for segment, _ in expected])
                assert all(bytes(segment.out) == right for segment, right in expected)

    trio.run(main)
