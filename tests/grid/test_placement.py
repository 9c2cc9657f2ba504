"""Placement: stable, even, minimal movement, domains first; and what counts as happy."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridfs.grid.placement import assign, happiness, order, preferred
from gridfs.grid.roster import Roster
from storage.format.share import BLOCK_SIZE, Geometry
from tests.grid.servers import make_roster, server_id


def pack(number: int) -> bytes:
    return number.to_bytes(32, "big")


def with_weights(roster: Roster, *weights: float) -> Roster:
    return Roster(tuple(replace(s, weight=w) for s, w in zip(roster, weights, strict=True)))


def with_domains(roster: Roster, *domains: str) -> Roster:
    return Roster(tuple(replace(s, domain=d) for s, d in zip(roster, domains, strict=True)))


def test_the_order_has_every_server_once_and_depends_on_nothing_else() -> None:
    roster = make_roster(10)
    found = order(pack(1), roster)
    assert sorted(found) == sorted(server.server_id for server in roster)
    turned = Roster(tuple(reversed(roster.servers)))
    assert order(pack(1), turned) == found
    assert order(pack(2), roster) != found


def test_the_order_is_fixed_for_ever() -> None:
    """Placement is where packs are looked for: a change of the hash would lose sight of them."""
    found = [server_id(index) for index in (4, 3, 0, 2, 1)]
    assert order(pack(1), make_roster(5)) == found


def test_servers_get_even_parts_and_by_their_weight() -> None:
    roster = with_weights(make_roster(4), 1, 1, 1, 3)
    firsts = Counter(order(pack(number), roster)[0] for number in range(3000))
    assert firsts[server_id(3)] == pytest.approx(1500, rel=0.1)
    for index in range(3):
        assert firsts[server_id(index)] == pytest.approx(500, rel=0.15)


def test_a_server_that_goes_moves_only_its_own_place() -> None:
    whole = make_roster(8)
    less = Roster(tuple(server for server in whole if server.index != 5))
    for number in range(50):
        left = [server for server in order(pack(number), whole) if server != server_id(5)]
        assert order(pack(number), less) == left


def test_failure_domains_come_first() -> None:
    roster = with_domains(make_roster(8), "a", "a", "a", "a", "b", "b", "", "")
    named = {server.server_id: server.domain or str(server.index) for server in roster}
    for number in range(50):
        found = [named[server] for server in order(pack(number), roster)]
        assert sorted(found[:4]) == ["6", "7", "a", "b"]
        assert sorted(found[4:6]) == ["a", "b"]


def test_empty_primaries_need_no_server() -> None:
    servers = [server_id(index) for index in range(6)]
    one_block = Geometry(4, 6, 100)
    assert assign(one_block, servers) == {0: servers[0], 4: servers[1], 5: servers[2]}


def test_shares_without_room_are_left_out_and_servers_are_filled_in_turn() -> None:
    full = Geometry(4, 6, 4 * BLOCK_SIZE)
    servers = [server_id(index) for index in range(2)]
    assert assign(full, servers) == {0: servers[0], 1: servers[1]}
    assert [assign(full, servers, 2)[number] for number in range(4)] == servers * 2


@given(st.data())
def test_happiness_is_k_and_the_servers_that_may_be_lost(data: st.DataObject) -> None:
    """Against the definition: try every loss of servers."""
    n = data.draw(st.integers(1, 8))
    k = data.draw(st.integers(1, n))
    geometry = Geometry(k, n, data.draw(st.integers(1, k * BLOCK_SIZE)))
    servers = st.sampled_from([server_id(index) for index in range(4)])
    holders = data.draw(st.dictionaries(st.sampled_from(geometry.stored_numbers()), servers))
    empty = n - len(geometry.stored_numbers())
    names = sorted(set(holders.values()))

    def readable(lost: tuple[bytes, ...]) -> bool:
        return empty + sum(server not in lost for server in holders.values()) >= k

    if not readable(()):
        assert happiness(geometry, holders) == empty + len(holders) < k
        return
    bearable = max(t for t in range(len(names) + 1) if all(map(readable, combinations(names, t))))
    assert happiness(geometry, holders) == k + bearable


def test_with_one_share_a_server_happiness_is_the_number_of_servers() -> None:
    full, small = Geometry(4, 6, 4 * BLOCK_SIZE), Geometry(4, 6, 100)
    servers = [server_id(index) for index in range(6)]
    assert happiness(full, dict(enumerate(servers[:5]))) == 5
    assert happiness(small, {0: servers[0], 4: servers[1]}) == 5


def test_preferred_keeps_the_order_and_puts_the_demoted_last() -> None:
    assert preferred([b"a", b"b", b"c", b"d"], [b"c", b"a"]) == [b"b", b"d", b"a", b"c"]
