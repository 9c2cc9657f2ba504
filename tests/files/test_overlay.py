"""The overlay against an array of bytes, its accounting, and its cost."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gridfs.files.overlay import DirtyRange, Gone, Overlay, Piece, Source

SIZE = 48


def source(number: int) -> Source:
    return Source(number % 3, number * 1000)


class Model:
    """Each byte: (number of its write, byte of its source), or None where clean."""

    def __init__(self) -> None:
        self.overlay = Overlay()
        self.bytes: list[tuple[int, int] | None] = [None] * SIZE
        self.waiting = [0] * SIZE
        """Of a dirty byte: the lowest number of a write that was here and is in no pack."""
        self.live: Counter[Source] = Counter()

    def write(self, start: int, end: int, number: int) -> None:
        for byte in range(start, end):
            held = self.bytes[byte]
            if held is None or held[0] < number:
                self.bytes[byte] = (number, byte - start)
                self.waiting[byte] = number if held is None else min(number, self.waiting[byte])
        self.live[source(number)] += end - start
        self.returned(self.overlay.write(start, end, number, source(number)))

    def remove(self, start: int, end: int, up_to: int) -> None:
        for byte in range(start, end):
            held = self.bytes[byte]
            if held is not None and held[0] <= up_to:
                self.bytes[byte] = None
            self.waiting[byte] = max(self.waiting[byte], up_to + 1)

    def returned(self, gone: list[Gone]) -> None:
        for item in gone:
            assert item.size_bytes > 0
            self.live[item.source] -= item.size_bytes

    def check(self) -> None:
        pieces = self.overlay.pieces(0, SIZE)
        assert self.read(pieces) == self.bytes
        assert all(left.end <= right.start for left, right in pairwise(pieces))
        held: Counter[Source] = Counter()
        for piece in pieces:
            held[piece.source] += piece.end - piece.start
        assert +self.live == held
        assert min(self.live.values(), default=0) >= 0
        assert self.overlay.dirty_bytes == sum(byte is not None for byte in self.bytes)
        assert self.overlay.empty == (not pieces)
        dirty = [byte for item in self.overlay.ranges() for byte in range(item.start, item.end)]
        assert dirty == [byte for byte in range(SIZE) if self.bytes[byte] is not None]
        for item in self.overlay.ranges():
            assert item.oldest <= min(self.waiting[item.start : item.end])

    @staticmethod
    def read(pieces: list[Piece]) -> list[tuple[int, int] | None]:
        result: list[tuple[int, int] | None] = [None] * SIZE
        for piece in pieces:
            assert piece.start < piece.end
            assert piece.source == source(piece.number)
            for byte in range(piece.start, piece.end):
                result[byte] = (piece.number, piece.skip + byte - piece.start)
        return result


edges = st.integers(0, SIZE)
steps = st.one_of(
    st.tuples(st.just("write"), edges, edges, st.integers(1, 20)),
    st.tuples(st.just("retire"), edges, edges, st.integers(1, 20)),
    st.tuples(st.just("truncate"), edges, st.just(SIZE), st.just(99)),
    st.tuples(st.just("look"), edges, edges, st.integers(1, 20)),
)


@given(st.lists(steps, max_size=25))
def test_overlay_is_what_an_array_of_bytes_is(items: list[tuple[str, int, int, int]]) -> None:
    model = Model()
    placed: dict[int, tuple[int, int]] = {}
    for kind, start, end, number in items:
        if kind == "write":
            # A number belongs to one write: the same number again is a replay of it.
            start, end = placed.setdefault(number, (start, max(start, end)))
            model.write(start, end, number)
        elif kind == "retire":
            model.remove(start, end, number)
            model.returned(model.overlay.retire(start, end, number))
            # Who waits for these numbers waits no longer, whatever was written over them since.
            assert all(piece.oldest > number for piece in model.overlay.pieces(start, end))
        elif kind == "truncate":
            model.remove(start, SIZE, number)
            model.returned(model.overlay.truncate(start))
        else:
            inside = [
                held if start <= byte < end and held and held[0] <= number else None
                for byte, held in enumerate(model.bytes)
            ]
            assert model.read(model.overlay.freeze(start, end, number)) == inside
        model.check()


def test_replay_of_a_write_changes_nothing_and_gives_it_back() -> None:
    overlay = Overlay()
    assert overlay.write(10, 20, 5, source(5)) == []
    before = overlay.pieces(0, 100)
    assert overlay.write(10, 20, 5, source(5)) == [Gone(source(5), 10)]
    assert overlay.pieces(0, 100) == before
    assert overlay.dirty_bytes == 10


def test_a_late_write_fills_only_around_newer_ones() -> None:
    overlay = Overlay()
    overlay.write(10, 20, 7, source(7))
    assert overlay.write(0, 30, 3, source(3)) == [Gone(source(3), 10)]
    assert overlay.pieces(0, 100) == [
        Piece(0, 10, 3, source(3), 0, 3),
        Piece(10, 20, 7, source(7), 0, 7),
        Piece(20, 30, 3, source(3), 20, 3),
    ]
    assert list(overlay.ranges()) == [DirtyRange(0, 30, 3)]


def test_a_write_in_the_middle_splits_and_returns_what_it_covers() -> None:
    overlay = Overlay()
    overlay.write(0, 30, 1, source(1))
    assert overlay.write(10, 20, 2, source(2)) == [Gone(source(1), 10)]
    assert overlay.pieces(25, 28) == [Piece(25, 28, 1, source(1), 25, 1)]


def test_retire_keeps_what_was_written_after_the_freeze() -> None:
    overlay = Overlay()
    overlay.write(0, 10, 1, source(1))
    frozen = overlay.freeze(0, 10, 1)
    overlay.write(4, 6, 2, source(2))
    assert frozen == [Piece(0, 10, 1, source(1), 0, 1)]
    assert overlay.retire(0, 10, 1) == [Gone(source(1), 4), Gone(source(1), 4)]
    assert overlay.pieces(0, 10) == [Piece(4, 6, 2, source(2), 0, 2)]


def test_what_is_overwritten_is_still_waited_for_until_a_pack_has_it_or_what_took_its_place() -> None:
    overlay = Overlay()
    overlay.write(0, 10, 1, source(1))
    overlay.write(0, 10, 2, source(2))
    assert list(overlay.ranges()) == [DirtyRange(0, 10, 1)]
    overlay.write(4, 6, 3, source(3))  # while the rest is on its way, frozen at 2
    assert list(overlay.ranges()) == [DirtyRange(0, 10, 1)]
    overlay.retire(0, 5, 2)
    assert overlay.pieces(0, 10) == [
        Piece(4, 5, 3, source(3), 0, 3),
        Piece(5, 6, 3, source(3), 1, 1),
        Piece(6, 10, 2, source(2), 6, 1),
    ]
    overlay.retire(5, 10, 2)
    assert list(overlay.ranges()) == [DirtyRange(4, 6, 3)]


def test_empty_ranges_hold_nothing() -> None:
    overlay = Overlay()
    assert overlay.write(5, 5, 1, source(1)) == []
    assert overlay.empty
    overlay.write(0, 10, 1, source(1))
    assert overlay.pieces(5, 5) == []
    assert overlay.retire(5, 5, 9) == []
    assert overlay.truncate(10) == []
    assert overlay.truncate(1000) == []
    assert overlay.dirty_bytes == 10


def test_many_random_small_writes_leave_one_piece_each() -> None:
    overlay = Overlay()
    count = 8192
    order = [(number * 4093) % count for number in range(count)]
    for number, block in enumerate(order, start=1):
        assert overlay.write(block * 4096, block * 4096 + 4096, number, source(number)) == []
    assert len(overlay) == count
    assert list(overlay.ranges()) == [DirtyRange(0, count * 4096, 1)]
    assert len(overlay.retire(0, count * 4096, count)) == count
    assert overlay.empty
    assert overlay.dirty_bytes == 0
