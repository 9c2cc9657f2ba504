"""The read planner as a pure function: what is asked of whom, and never more than is needed."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gridfs.grid.planner import Fetch, Held, PackRef, Piece, Plan, Sources, Step, Want, coalesce, plan_reads
from storage.format.share import BLOCK_SIZE, Geometry
from tests.grid.servers import server_id

S = [server_id(index) for index in range(8)]
FULL = PackRef(b"f" * 32, Geometry(4, 6, 8 * BLOCK_SIZE), tuple(S[:6]))
SHORT = PackRef(b"s" * 32, Geometry(4, 6, 5 * BLOCK_SIZE + 100), tuple(S[:6]))
"""Row 1 has a whole block in share 0, 100 bytes in share 1, nothing in shares 2 and 3."""


def block(pack: PackRef, number: int, row: int) -> Want:
    return Want(pack, number, row * BLOCK_SIZE, (row + 1) * BLOCK_SIZE)


def plan(*wants: Want, sources: Sources | None = None, held: Held | None = None) -> Plan:
    return plan_reads(list(enumerate(wants)), sources or Sources(), held or Held())


def test_a_healthy_pack_is_read_as_it_lies_and_neighbours_are_one() -> None:
    found = plan(block(FULL, 0, 0), block(FULL, 1, 0), block(FULL, 0, 1))
    assert found.steps == [Step((0,), ()), Step((1,), ()), Step((2,), ())]
    assert found.fetches == [Fetch(FULL, 0, 0, 2 * BLOCK_SIZE, S[0]), Fetch(FULL, 1, 0, BLOCK_SIZE, S[1])]


def test_a_lost_range_is_rebuilt_from_the_same_range() -> None:
    found = plan(Want(FULL, 2, 50, 90), sources=Sources([S[2]]))
    assert found.steps == [Step((0,), (0, 1, 3, 4))]
    assert found.fetches == [Fetch(FULL, number, 50, 90, S[number]) for number in (0, 1, 3, 4)]


def test_two_lost_ranges_of_one_row_are_rebuilt_together() -> None:
    found = plan(*[block(FULL, number, 1) for number in range(4)], sources=Sources([S[0], S[3]]))
    assert found.steps == [Step((1,), ()), Step((2,), ()), Step((0, 3), (1, 2, 4, 5))]
    assert sorted(fetch.number for fetch in found.fetches) == [1, 2, 4, 5]


def test_shares_whose_row_is_read_anyway_help_first() -> None:
    wants = [Want(FULL, 3, 0, BLOCK_SIZE), Want(FULL, 0, 0, BLOCK_SIZE)]
    sources = Sources([S[0], S[1]])
    found = plan(*wants, sources=sources)
    assert found.steps[-1] == Step((1,), (3, 2, 4, 5))


def test_known_zeros_cost_nothing_and_nothing_is_asked_past_the_end() -> None:
    lost = Want(SHORT, 0, BLOCK_SIZE, 2 * BLOCK_SIZE)
    found = plan(lost, sources=Sources([S[0]]))
    assert found.steps == [Step((0,), (2, 3, 1, 4))]
    assert found.fetches == [
        Fetch(SHORT, 1, BLOCK_SIZE, BLOCK_SIZE + 100, S[1]),
        Fetch(SHORT, 4, BLOCK_SIZE, 2 * BLOCK_SIZE, S[4]),
    ]


def test_what_is_held_is_not_fetched_again() -> None:
    held = Held()
    for number in (1, 2):
        view = memoryview(bytes(2 * BLOCK_SIZE))
        held.add(FULL.pack_id, number, Piece(0, 2 * BLOCK_SIZE, view, S[number]))
    found = plan(block(FULL, 1, 1), block(FULL, 0, 1), sources=Sources([S[0]]), held=held)
    assert found.steps == [Step((0,), ()), Step((1,), (1, 2, 3, 4))]
    assert [fetch.number for fetch in found.fetches] == [3, 4]


def test_a_piece_is_found_by_range_and_dropped_by_sender() -> None:
    held = Held()
    held.add(b"p", 0, Piece(10, 20, memoryview(b"0123456789"), S[0]))
    assert bytes(held.view(b"p", 0, 12, 15) or b"") == b"234"
    assert held.view(b"p", 0, 9, 15) is None
    assert held.view(b"p", 0, 15, 21) is None
    assert held.view(b"p", 1, 12, 15) is None
    held.drop(b"p", 0, S[1])
    assert held.view(b"p", 0, 10, 20) is not None
    held.drop(b"p", 0, S[0])
    assert held.view(b"p", 0, 10, 20) is None


def test_demoted_servers_are_the_last_resort() -> None:
    two_left = Sources([S[0], S[1], S[2]])
    found = plan(block(FULL, 0, 0), block(FULL, 3, 0), sources=two_left)
    assert found.steps == [Step((1,), ()), Step((0,), ())]
    assert [(fetch.number, fetch.server) for fetch in found.fetches] == [(3, S[3]), (0, S[0])]


def test_a_dead_server_is_rebuilt_even_with_demoted_help() -> None:
    sources = Sources([S[1], S[2]])
    sources.fail_server(S[0], "gone")
    found = plan(block(FULL, 0, 0), sources=sources)
    assert found.steps == [Step((0,), (3, 4, 5, 1))]


def test_too_few_shares_are_counted_and_nothing_else_is_planned() -> None:
    sources = Sources()
    for number in (0, 1, 2):
        sources.fail_share(FULL.pack_id, number, S[number], "lost")
    found = plan(block(FULL, 0, 0), block(SHORT, 0, 0), sources=sources)
    assert found == Plan(lacking={FULL.pack_id: (FULL, 3)})
    sources.found(FULL.pack_id, 1, S[7])
    found = plan(block(FULL, 0, 0), sources=sources)
    assert found.steps == [Step((0,), (1, 3, 4, 5))]
    assert found.fetches[0].server == S[7]


def test_reasons_name_servers_and_shares_of_that_pack() -> None:
    sources = Sources()
    sources.fail_server(S[0], "gone")
    sources.fail_share(FULL.pack_id, 1, S[1], "lost")
    sources.fail_share(SHORT.pack_id, 1, S[2], "short")
    assert sources.reasons(FULL.pack_id) == [(S[0], "gone"), (S[1], "lost")]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 10))))
def test_coalesced_ranges_cover_the_same_bytes_and_do_not_touch(pairs: list[tuple[int, int]]) -> None:
    ranges = [(start, start + length) for start, length in pairs]
    merged = coalesce(ranges)
    assert {i for a, b in merged for i in range(a, b)} == {i for a, b in ranges for i in range(a, b)}
    assert all(before[1] < after[0] for before, after in pairwise(merged))
