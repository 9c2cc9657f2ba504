"""Storing packs on servers that are dead, hung, slow, full, or too few."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from gridfs.codec.cipher import SEGMENT_SIZE
from gridfs.codec.pack import SealedPack, seal_pack
from gridfs.grid import placement
from gridfs.grid.errors import NotEnoughServers
from gridfs.grid.health import HealthConfig
from gridfs.grid.uploader import Uploader, UploaderConfig
from storage.backends.port import ShareKey
from storage.errors import Exhausted, Refused
from tests.grid.servers import SECRET, STAMP, Grid, make_roster, open_grid, plaintext

ROWS = 2 * 4 * SEGMENT_SIZE + 1000


def holders(grid: Grid, pack_id: bytes) -> dict[int, list[bytes]]:
    """Share number -> ids of the servers that really have it."""
    found: dict[int, list[bytes]] = {}
    for number in range(grid.n):
        ids = [s.server_id for s in grid.servers if s.backend.has([ShareKey(pack_id, number)])[0]]
        if ids:
            found[number] = ids
    return found


def seal(*runs: bytes) -> SealedPack:
    return seal_pack(4, 6, runs or (plaintext(ROWS),), pack_key=None, convergence_secret=SECRET)


@pytest.mark.parametrize(("k", "n"), [(1, 1), (4, 6), (60, 100), (256, 256)])
async def test_every_share_goes_to_a_server_of_its_own_in_placement_order(k: int, n: int) -> None:
    async with open_grid(k, n, count=n + 2, happy=n) as grid:
        stored = await grid.store(plaintext(1000 * k))
        geometry, pack_id = stored.ref.geometry, stored.ref.pack_id
        order = placement.order(pack_id, grid.roster)
        expected = dict(zip(geometry.stored_numbers(), order, strict=False))
        assert stored.receipt.places == tuple(expected.get(number) for number in range(n))
        assert stored.receipt.missing == ()
        assert holders(grid, pack_id) == {number: [server] for number, server in expected.items()}
        assert max(len(server.puts) for server in grid.servers) == 1


async def test_a_small_file_is_few_small_pieces() -> None:
    async with open_grid(4, 6, happy=5) as grid:
        stored = await grid.store(plaintext(1000))
        assert [len(server.puts) for server in grid.servers].count(1) == 3
        assert [place is None for place in stored.receipt.places] == [False, True, True, True, False, False]
        assert stored.receipt.missing == ()


async def test_of_a_small_file_happy_less_its_empty_primaries_must_be_stored() -> None:
    async with open_grid(4, 6, happy=5) as grid:
        grid.servers[0].dead = True
        stored = [await grid.store(plaintext(1000, seed)) for seed in range(20)]
        assert not any(pack.receipt.missing for pack in stored), "another server takes its place"
        for server in grid.servers[:4]:
            server.dead = True
        two_left = await grid.store(plaintext(1000, 99))
        assert len(two_left.receipt.missing) == 1
        grid.servers[4].dead = True
        with pytest.raises(NotEnoughServers) as caught:
            await grid.store(plaintext(1000, 100))
        assert (caught.value.got, caught.value.happy) == (4, 5)


async def test_a_failed_server_is_replaced_by_the_next_in_the_order() -> None:
    async with open_grid(4, 6, count=8, happy=6) as grid:
        pack = seal()
        order = placement.order(pack.pack_id, grid.roster)
        grid.server(order[1]).dead = True
        grid.server(order[4]).put_error = Exhausted("no room")
        receipt = await grid.uploader.store(pack, STAMP)
        assert {receipt.places[1], receipt.places[4]} == {order[6], order[7]}
        assert receipt.missing == ()
        assert grid.uploader.statistics().replaced == 2
        assert holders(grid, pack.pack_id) == {n: [place] for n, place in enumerate(receipt.places)}


async def test_a_replacement_that_fails_is_replaced_again() -> None:
    async with open_grid(4, 6, count=9, happy=6) as grid:
        pack = seal()
        order = placement.order(pack.pack_id, grid.roster)
        for index in (0, 6, 7):
            grid.server(order[index]).dead = True
        receipt = await grid.uploader.store(pack, STAMP)
        assert receipt.places[0] == order[8]


async def test_what_finds_no_server_is_a_debt() -> None:
    async with open_grid(4, 6, happy=5) as grid:
        grid.servers[3].dead = True
        stored = await grid.store(plaintext(ROWS))
        (missing,) = stored.receipt.missing
        assert stored.receipt.places[missing] is None
        assert missing not in holders(grid, stored.ref.pack_id)
        assert grid.uploader.statistics().missing == 1
        assert await grid.read(stored) == stored.plain[0]


async def test_below_happy_nothing_counts_as_stored_and_a_repetition_heals() -> None:
    async with open_grid(4, 6, happy=5) as grid:
        pack = seal()
        for server in grid.servers[:2]:
            server.dead = True
        with pytest.raises(NotEnoughServers) as caught:
            await grid.uploader.store(pack, STAMP)
        assert (caught.value.got, caught.value.happy) == (4, 5)
        message = str(caught.value)
        assert pack.pack_id.hex()[:10] in message
        assert grid.roster.name(grid.servers[0].server_id) in message
        assert "nobody answers" in message
        assert "\n" not in message
        grid.servers[0].dead = False
        receipt = await grid.uploader.store(pack, STAMP)
        assert len(receipt.missing) == 1
        assert grid.uploader.statistics().failed == 1


async def test_known_trouble_is_avoided_where_others_can_take_the_shares() -> None:
    async with open_grid(4, 6, count=8, happy=5) as grid:
        for server in grid.servers[:2]:
            server.dead = True
        for seed in range(4):
            await grid.store(plaintext(ROWS, seed))
        grid.forget_requests()
        stored = await grid.store(plaintext(ROWS, 5))
        assert not any(server.puts for server in grid.servers[:2])
        assert stored.receipt.missing == ()


async def test_the_tail_has_seconds_and_is_then_dropped(autojump_clock: trio.testing.MockClock) -> None:
    async with open_grid(4, 6, happy=5, writing=UploaderConfig(tail_s=2.0)) as grid:
        slow = grid.servers[2]
        slow.delay_s = 1.0
        start = trio.current_time()
        stored = await grid.store(plaintext(ROWS))
        assert stored.receipt.missing == ()
        assert trio.current_time() - start == 1.0
        slow.delay_s = 3.0
        stored = await grid.store(plaintext(ROWS, 1))
        assert trio.current_time() - start == 3.0
        assert [stored.receipt.places[number] for number in stored.receipt.missing] == [None]
        assert slow.server_id not in stored.receipt.places
        assert slow.cancelled == 1


async def test_happy_is_waited_for_however_slow(autojump_clock: trio.testing.MockClock) -> None:
    async with open_grid(4, 6, happy=6, writing=UploaderConfig(tail_s=0.1)) as grid:
        grid.servers[0].delay_s = 5.0
        stored = await grid.store(plaintext(ROWS))
        assert stored.receipt.missing == ()


HEALTH = HealthConfig(
    first_s=3.0, deadline_s_min=0.5, bytes_per_s_min=1e9, own=2.0, peers=4.0, late_s=50.0, failed_s=50.0
)


async def test_a_hung_server_is_replaced_after_its_deadline(autojump_clock: trio.testing.MockClock) -> None:
    async with open_grid(4, 6, count=7, happy=6, writing=UploaderConfig(health=HEALTH)) as grid:
        pack = seal()
        order = placement.order(pack.pack_id, grid.roster)
        grid.server(order[0]).hung = True
        receipt = await grid.uploader.store(pack, STAMP)
        assert receipt.places[0] == order[6]
        assert trio.current_time() == pytest.approx(3.0, abs=0.1)
        assert grid.uploader.statistics().replaced == 1


async def test_a_deadline_comes_from_the_answers_before_it(autojump_clock: trio.testing.MockClock) -> None:
    async with open_grid(4, 6, count=7, happy=6, writing=UploaderConfig(health=HEALTH)) as grid:
        for server in grid.servers:
            server.delay_s = 0.4
        for seed in range(12):
            await grid.store(plaintext(ROWS, seed))
        begin = trio.current_time()
        stored = None
        while (
            stored is None
            or grid.servers[0].server_id not in placement.order(stored.ref.pack_id, grid.roster)[:6]
        ):
            begin = trio.current_time()
            grid.servers[0].hung = True
            stored = await grid.store(plaintext(ROWS, int(begin * 1000)))
        assert stored.receipt.missing == ()
        # Twice what is usual of it, and the replacement's own time.
        assert trio.current_time() - begin == pytest.approx(0.8 + 0.4, abs=0.1)


async def test_a_late_server_and_its_replacement_race_and_the_first_has_the_share(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_grid(4, 6, count=7, happy=6, writing=UploaderConfig(health=HEALTH)) as grid:
        pack = seal()
        order = placement.order(pack.pack_id, grid.roster)
        slow, spare = grid.server(order[0]), grid.server(order[6])
        slow.delay_s, spare.delay_s = 3.5, 9.0
        receipt = await grid.uploader.store(pack, STAMP)
        assert receipt.places[0] == slow.server_id
        assert trio.current_time() == pytest.approx(3.5, abs=0.1)
        await trio.testing.wait_all_tasks_blocked()
        assert (slow.cancelled, spare.cancelled) == (0, 1)
        again = seal(plaintext(ROWS, 1))
        order = placement.order(again.pack_id, grid.roster)
        grid.server(order[1]).hung = True
        grid.server(order[6]).delay_s = 0.0
        receipt = await grid.uploader.store(again, STAMP)
        assert receipt.places[1] == order[6]


async def test_a_late_server_that_fails_is_replaced_once(autojump_clock: trio.testing.MockClock) -> None:
    async with open_grid(4, 6, count=9, happy=6, writing=UploaderConfig(health=HEALTH)) as grid:
        pack = seal()
        order = placement.order(pack.pack_id, grid.roster)
        grid.server(order[0]).delay_s = 4.0
        grid.server(order[0]).dead = True
        grid.server(order[6]).delay_s = 2.0
        receipt = await grid.uploader.store(pack, STAMP)
        assert receipt.places[0] == order[6]
        assert not grid.server(order[7]).puts
        assert grid.uploader.statistics().replaced == 1


async def test_a_hung_server_is_waited_for_where_there_is_no_other_and_not_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_grid(4, 6, happy=6, writing=UploaderConfig(health=HEALTH)) as grid:
        grid.servers[1].hung = True
        with pytest.raises(NotEnoughServers, match="did not answer in time"):
            await grid.store(plaintext(ROWS))
        assert trio.current_time() == pytest.approx(HEALTH.deadline_s_max, abs=0.1)


async def test_nobody_waits_for_a_server_known_to_hang(autojump_clock: trio.testing.MockClock) -> None:
    async with open_grid(4, 6, happy=5, writing=UploaderConfig(tail_s=9.0, health=HEALTH)) as grid:
        grid.servers[1].hung = True
        for seed in range(HEALTH.races_lost_max):
            begin = trio.current_time()
            stored = await grid.store(plaintext(ROWS, seed))
            assert len(stored.receipt.missing) == 1
            assert trio.current_time() - begin <= HEALTH.first_s + 0.1, "late, so nobody waits for the tail"
        begin = trio.current_time()
        stored = await grid.store(plaintext(ROWS, 9))
        assert trio.current_time() == begin
        assert len(stored.receipt.missing) == 1


# ---- what a pack lacks


async def test_what_is_owed_is_completed_where_it_can_be(autojump_clock: trio.testing.MockClock) -> None:
    async with open_grid(4, 6, count=7, happy=4, writing=UploaderConfig(health=HEALTH)) as grid:
        for index in range(3):
            grid.servers[index].dead = True
        stored = await grid.store(plaintext(ROWS))
        missing = stored.receipt.missing
        assert len(missing) == 2
        shares = {number: stored.sealed.shares[number] for number in missing}
        pack_id, geometry = stored.ref.pack_id, stored.ref.geometry
        grid.servers[0].dead = False
        there = [server.server_id for server in grid.servers if not server.dead]
        takers = grid.uploader.takers(pack_id, stored.receipt.places, there)
        assert takers == [grid.servers[0].server_id], "the others have a share already"
        found = await grid.uploader.complete(pack_id, geometry, shares, takers, STAMP)
        assert found == {missing[0]: takers[0]}
        grid.servers[1].dead = grid.servers[2].dead = False
        left = {missing[1]: shares[missing[1]]}
        places = [found.get(number, place) for number, place in enumerate(stored.receipt.places)]
        everybody = [server.server_id for server in grid.servers]
        takers = grid.uploader.takers(pack_id, places, everybody)
        assert len(takers) == 2
        grid.server(takers[0]).hung = True
        found = await grid.uploader.complete(pack_id, geometry, left, takers, STAMP)
        assert found == {missing[1]: takers[1]}
        assert grid.uploader.statistics().paid == 2
        # Idempotent: it is asked for before it is sent.
        puts = list(grid.server(takers[1]).puts)
        assert await grid.uploader.complete(pack_id, geometry, left, takers[1:], STAMP) == found
        assert grid.server(takers[1]).puts == puts


async def test_who_could_take_a_share_depends_on_how_many_a_server_may_have() -> None:
    async with open_grid(2, 4, count=3, shares_per_server=2) as grid:
        pack_id = bytes(32)
        order = placement.order(pack_id, grid.roster)
        a, b, c = order
        takers = grid.uploader.takers
        assert takers(pack_id, (a, b, None, a), order) == [c, b, c]
        assert takers(pack_id, (a, b, None, a), [a, b]) == [b]
        assert takers(pack_id, (None,) * 4, order) == [a, b, c, a, b, c]


async def test_several_shares_for_one_server_are_one_request() -> None:
    async with open_grid(4, 6, count=3, happy=5, shares_per_server=2) as grid:
        stored = await grid.store(plaintext(ROWS))
        assert sorted(len(numbers) for server in grid.servers for numbers in server.puts) == [2, 2, 2]
        assert await grid.read(stored) == stored.plain[0]
        grid.servers[0].dead = True
        assert await grid.read(stored) == stored.plain[0]


async def test_a_failed_server_is_not_asked_again_for_a_second_share() -> None:
    async with open_grid(2, 4, count=3, shares_per_server=2) as grid:
        pack = seal_pack(2, 4, [plaintext(ROWS)], pack_key=None, convergence_secret=SECRET)
        order = placement.order(pack.pack_id, grid.roster)
        grid.server(order[1]).dead = True
        receipt = await grid.uploader.store(pack, STAMP)
        assert receipt.places == (order[0], order[2], order[2], order[0])
        assert len(grid.server(order[1]).puts) == 1


async def test_a_server_that_is_back_is_trusted_again() -> None:
    async with open_grid(4, 6, count=7, happy=6) as grid:
        pack = seal()
        server = grid.server(placement.order(pack.pack_id, grid.roster)[0])
        server.dead = True
        await grid.uploader.store(pack, STAMP)
        server.dead = False
        grid.servers[grid.servers.index(server) - 1].dead = True
        await grid.uploader.store(pack, STAMP)  # it is the last resort, and works
        receipt = await grid.uploader.store(pack, STAMP)
        assert receipt.places[0] == server.server_id


async def test_happy_counts_what_survives_the_loss_of_whole_servers() -> None:
    async with open_grid(4, 6, count=3, happy=5, shares_per_server=2) as grid:
        grid.servers[0].dead = True
        with pytest.raises(NotEnoughServers) as caught:
            await grid.store(plaintext(ROWS))
        assert caught.value.got == 4, "four shares on two servers: readable, but no server may be lost"


async def test_requests_are_split_at_the_limit_of_the_wire() -> None:
    config = UploaderConfig(put_bytes_max=300_000)
    async with open_grid(4, 6, count=1, happy=4, shares_per_server=6, writing=config) as grid:
        stored = await grid.store(plaintext(ROWS))
        assert grid.servers[0].puts == [(0, 1), (2, 3), (4, 5)]
        assert await grid.read(stored) == stored.plain[0]


async def test_known_content_is_asked_for_and_not_sent_again() -> None:
    async with open_grid(4, 6, happy=6, writing=UploaderConfig(ask_have=True)) as grid:
        first = await grid.store(plaintext(ROWS))
        grid.forget_requests()
        again = await grid.store(plaintext(ROWS))
        assert again.receipt == first.receipt
        assert not any(server.puts for server in grid.servers)
        assert grid.uploader.statistics().known == 6
        asked = sum(server.haves for server in grid.servers)
        await grid.store(plaintext(ROWS), plaintext(10))
        assert sum(server.haves for server in grid.servers) == asked, "an ordinary pack is always new"


async def test_packs_of_another_shape_and_impossible_shapes_are_misuse() -> None:
    async with open_grid(2, 3) as grid:
        with pytest.raises(ValueError, match="4-of-6"):
            await grid.uploader.store(seal(), STAMP)
    for k, n, happy, per_server in ((3, 2, 3, 1), (2, 3, 1, 1), (2, 3, 4, 1), (1, 1, 1, 0)):
        with pytest.raises(ValueError, match="happy"):
            Uploader({}, make_roster(3), b"f" * 16, k, n, happy, per_server)


async def test_a_server_without_client_counts_as_failed() -> None:
    async with open_grid(1, 1) as grid:
        uploader = Uploader({}, grid.roster, b"f" * 16, 1, 1, 1)
        pack = seal_pack(1, 1, [b"x"], pack_key=None, convergence_secret=SECRET)
        with pytest.raises(NotEnoughServers, match="no connection"):
            await uploader.store(pack, STAMP)


async def test_a_cancelled_store_leaves_nothing_in_flight() -> None:
    async with open_grid(4, 6) as grid:
        for server in grid.servers:
            server.hung = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(grid.uploader.store, seal(), STAMP)
            await trio.testing.wait_all_tasks_blocked()
            assert grid.uploader.statistics().packs_in_flight == 1
            nursery.cancel_scope.cancel()
        assert all(server.cancelled == 1 for server in grid.servers)


async def test_a_refusal_is_a_failure_of_that_server_only() -> None:
    async with open_grid(4, 6, happy=5) as grid:
        grid.servers[5].put_error = Refused("read only")
        stored = await grid.store(plaintext(ROWS))
        assert len(stored.receipt.missing) == 1
