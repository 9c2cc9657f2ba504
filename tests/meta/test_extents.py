"""The algebra of extents against arrays of bytes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gridfs.meta.extents import are_apart, clip, continues, cut, difference, insert, insert_all
from gridfs.meta.rows import Extent

SIZE = 40


def extent(start: int, length: int, frozen: int, pack: int = 1, skip: int = 0, run: int = 0) -> Extent:
    return Extent(start, length, pack, run, run * 1000, 100, skip, frozen)


@st.composite
def extents(draw: st.DrawFn) -> Extent:
    start = draw(st.integers(0, SIZE - 1))
    frozen = draw(st.integers(1, 6))
    # As in life, a freeze maps a place of the file to one place of one run.
    return extent(start, draw(st.integers(1, SIZE - start)), frozen, pack=frozen, skip=start, run=frozen % 2)


Byte = tuple[int, int] | None


def bytes_of(items: list[Extent]) -> list[Byte]:
    """What each byte reads: (pack, byte of the run), and a check of the order."""
    result: list[Byte] = [None] * SIZE
    position = 0
    for item in items:
        assert item.length > 0
        assert item.start >= position
        position = item.end
        for byte in range(item.start, item.end):
            result[byte] = (item.pack_ref, item.skip + byte - item.start)
    return result


@given(st.lists(extents(), max_size=12))
def test_the_latest_frozen_byte_wins_in_any_order(items: list[Extent]) -> None:
    state: list[Extent] = []
    expected: list[Byte] = [None] * SIZE
    newest = [0] * SIZE
    for item in items:
        state = insert(state, item)
        for byte in range(item.start, item.end):
            if item.frozen >= newest[byte]:
                newest[byte] = item.frozen
                expected[byte] = (item.pack_ref, item.skip + byte - item.start)
        assert bytes_of(state) == expected
        assert insert(state, item) == state
    assert not any(continues(left, right) for left, right in pairwise(state))
    backwards: list[Extent] = []
    for item in sorted(items, key=lambda item: -item.frozen):
        backwards = insert(backwards, item)
    assert bytes_of(backwards) == expected


@given(st.lists(extents(), max_size=8), st.integers(0, SIZE), st.integers(0, SIZE))
def test_cut_takes_exactly_its_bytes(items: list[Extent], start: int, end: int) -> None:
    state: list[Extent] = []
    for item in items:
        state = insert(state, item)
    before, after = bytes_of(state), bytes_of(cut(state, start, end))
    for byte in range(SIZE):
        assert after[byte] == (None if start <= byte < end else before[byte])


@given(st.lists(extents(), max_size=8), extents())
def test_difference_leads_from_old_to_new(items: list[Extent], new: Extent) -> None:
    old: list[Extent] = []
    for item in items:
        old = insert(old, item)
    after = insert(old, new)
    gone, come = difference(old, after)
    assert sorted([item for item in old if item not in gone] + come) == after
    assert all(item in old for item in gone)
    assert not [item for item in come if item in old]


def test_neighbours_of_one_run_become_one() -> None:
    state = insert(insert([], extent(0, 10, 5, skip=0)), extent(10, 10, 5, skip=10))
    assert state == [extent(0, 20, 5)]
    other_run = insert(state, extent(20, 10, 5, skip=20, run=1))
    assert len(other_run) == 2


def test_what_was_frozen_at_one_time_gives_way_to_the_same_committed_again() -> None:
    assert insert([extent(0, 10, 5, pack=1)], extent(2, 4, 5, pack=2)) == [
        extent(0, 2, 5, pack=1),
        extent(2, 4, 5, pack=2),
        extent(6, 4, 5, pack=1, skip=6),
    ]


def test_parts_of_one_run_that_were_frozen_at_different_times_stay_apart() -> None:
    left, right = extent(0, 10, 5), extent(10, 10, 6, skip=10)
    assert not continues(left, right)
    assert insert([left], right) == [left, right]


def test_a_hole_in_the_middle_is_filled_and_the_run_is_whole_again() -> None:
    state = insert([extent(0, 5, 5, skip=0), extent(8, 4, 5, skip=8)], extent(5, 3, 5, skip=5))
    assert state == [extent(0, 12, 5)]


def test_clip_keeps_the_place_in_the_run() -> None:
    assert clip(extent(10, 10, 1, skip=3), 12, 15) == extent(12, 3, 1, skip=5)
    assert clip(extent(10, 10, 1), 0, 100) == extent(10, 10, 1)


@given(st.lists(extents(), max_size=8), st.lists(extents(), min_size=1, max_size=8))
def test_many_at_once_are_as_one_after_the_other(items: list[Extent], pieces: list[Extent]) -> None:
    old: list[Extent] = []
    for item in items:
        old = insert(old, item)
    new: list[Extent] = []
    for piece in sorted(pieces):
        if not new or new[-1].end <= piece.start:
            new.append(piece)
    assert are_apart(new)
    expected = old
    for piece in new:
        expected = insert(expected, piece)
    before, after = insert_all(old, new, list)
    assert sorted([item for item in old if item not in before] + after) == expected
