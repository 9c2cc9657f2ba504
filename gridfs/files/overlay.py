"""The dirty data of one inode: which bytes of it lie in the spool, and where. Pure.

A sorted list of pieces that never overlap. Each knows the number of the write that brought it and its
source in the spool. Every mutator returns what went out of the overlay, in bytes per source, so that
the spool can count down: the live bytes of a slot are the bytes written into it less all returned.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple


class Source(NamedTuple):
    """Where the first byte of a write's data lies."""

    slot: int
    """The part of the spool (its file or ring position); opaque here."""
    offset: int
    """Byte within the slot; opaque here."""


class Piece(NamedTuple):
    """Bytes [start, end) of the file are the source's bytes from `skip` on."""

    start: int
    end: int
    number: int
    """Number of the write."""
    source: Source
    skip: int
    oldest: int
    """Lowest number of a write that is not in a pack yet and whose bytes were here: an fsync that was
    promised those waits for these, which took their place."""


class Gone(NamedTuple):
    """So many bytes of a source are no longer needed."""

    source: Source
    size_bytes: int


class DirtyRange(NamedTuple):
    """Neighbouring dirty pieces as one range."""

    start: int
    end: int
    oldest: int
    """The lowest `oldest` of its pieces."""


class Overlay:
    """Dirty pieces of one inode, found in O(log n), changed in O(log n + pieces touched) plus a memmove."""

    __slots__ = ("_pieces", "_starts", "dirty_bytes")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._pieces: list[Piece] = []
        self.dirty_bytes = 0
        """Bytes in all pieces."""

    @property
    def empty(self) -> bool:
        return not self._pieces

    def __len__(self) -> int:
        return len(self._pieces)

    def write(self, start: int, end: int, number: int, source: Source) -> list[Gone]:
        """Put [start, end) in, where nothing with an equal or higher number lies.

        Idempotent: the same write again is returned whole, as gone.
        """
        starts = self._starts
        if start >= end:
            return []
        if not starts or start >= self._pieces[-1].end:
            starts.append(start)
            self._pieces.append(Piece(start, end, number, source, 0, number))
            self.dirty_bytes += end - start
            return []
        low, high = self._overlapping(start, end)
        oldest = min([number, *(piece.oldest for piece in self._pieces[low:high] if piece.number < number)])
        new: list[Piece] = []
        gone: list[Gone] = []
        position = start
        for piece in self._pieces[low:high]:
            if piece.number >= number:
                if position < piece.start:
                    new.append(Piece(position, piece.start, number, source, position - start, oldest))
                covered = min(piece.end, end) - max(piece.start, start)
                gone.append(Gone(source, covered))
                new.append(piece)
                position = piece.end
                continue
            if piece.start < start:
                new.append(piece._replace(end=start))
            if piece.end > end:
                # What is left on the right goes in after the new piece, which ends there.
                if position < end:
                    new.append(Piece(position, end, number, source, position - start, oldest))
                new.append(_from(piece, end))
                position = piece.end
            gone.append(Gone(piece.source, min(piece.end, end) - max(piece.start, start)))
        if position < end:
            new.append(Piece(position, end, number, source, position - start, oldest))
        self._put(low, high, new)
        self.dirty_bytes += end - start - sum(item.size_bytes for item in gone)
        return gone

    def copy(self) -> Overlay:
        """An overlay with the same pieces, of the same sources."""
        result = Overlay()
        result._starts = self._starts.copy()
        result._pieces = self._pieces.copy()
        result.dirty_bytes = self.dirty_bytes
        return result

    def truncate(self, size: int) -> list[Gone]:
        """Take out everything from byte `size` on."""
        return self._remove(size, None, None)

    def retire(self, start: int, end: int, frozen: int) -> list[Gone]:
        """Take pieces out of [start, end) that were written up to number `frozen`: a pack has them now."""
        return self._remove(start, end, frozen)

    def pieces(self, start: int, end: int) -> list[Piece]:
        """Pieces in [start, end), clipped to it, by start."""
        return self._clipped(start, end, None)

    def freeze(self, start: int, end: int, up_to: int) -> list[Piece]:
        """Pieces in [start, end) that were written up to number `up_to`, clipped. Changes nothing."""
        return self._clipped(start, end, up_to)

    def ranges(self) -> Iterator[DirtyRange]:
        """All dirty ranges, neighbours joined, by start. Nothing may change meanwhile."""
        pieces = iter(self._pieces)
        first = next(pieces, None)
        if first is None:
            return
        start, end, oldest = first.start, first.end, first.oldest
        for piece in pieces:
            if piece.start == end:
                oldest = min(oldest, piece.oldest)
            else:
                yield DirtyRange(start, end, oldest)
                start, oldest = piece.start, piece.oldest
            end = piece.end
        yield DirtyRange(start, end, oldest)

    def _overlapping(self, start: int, end: int) -> tuple[int, int]:
        """Indices [low, high) of the pieces that share a byte with [start, end)."""
        if start >= end:
            return 0, 0
        low = bisect_right(self._starts, start)
        if low and self._pieces[low - 1].end > start:
            low -= 1
        return low, bisect_left(self._starts, end, low)

    def _put(self, low: int, high: int, new: list[Piece]) -> None:
        self._pieces[low:high] = new
        self._starts[low:high] = [piece.start for piece in new]

    def _clipped(self, start: int, end: int, up_to: int | None) -> list[Piece]:
        low, high = self._overlapping(start, end)
        result = []
        for piece in self._pieces[low:high]:
            if up_to is not None and piece.number > up_to:
                continue
            if piece.start < start:
                piece = _from(piece, start)
            if piece.end > end:
                piece = piece._replace(end=end)
            result.append(piece)
        return result

    def _remove(self, start: int, end: int | None, up_to: int | None) -> list[Gone]:
        if not self._pieces:
            return []
        if end is None:
            end = max(start, self._pieces[-1].end)
        low, high = self._overlapping(start, end)
        kept: list[Piece] = []
        gone: list[Gone] = []
        for piece in self._pieces[low:high]:
            if up_to is not None and piece.number > up_to:
                kept += _raised(piece, start, end, up_to + 1)
                continue
            if piece.start < start:
                kept.append(piece._replace(end=start))
            if piece.end > end:
                kept.append(_from(piece, end))
            gone.append(Gone(piece.source, min(piece.end, end) - max(piece.start, start)))
        self._put(low, high, kept)
        self.dirty_bytes -= sum(item.size_bytes for item in gone)
        return gone


def _from(piece: Piece, start: int) -> Piece:
    """The part of a piece from byte `start` on."""
    return piece._replace(start=start, skip=piece.skip + start - piece.start)


def _raised(piece: Piece, start: int, end: int, oldest: int) -> list[Piece]:
    """A piece after everything older than `oldest` in [start, end) has gone into a pack."""
    if piece.oldest >= oldest:
        return [piece]
    parts = []
    if piece.start < start:
        parts.append(piece._replace(end=start))
        piece = _from(piece, start)
    if piece.end > end:
        parts.append(_from(piece, end))
        piece = piece._replace(end=end)
    return sorted([*parts, piece._replace(oldest=oldest)])
