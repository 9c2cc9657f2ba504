"""The algebra of extents: how one goes in over others, and how a range is cut out. Pure.

Lists are sorted by start and never overlap. The rule of `insert`: bytes that were frozen later win,
so commits may be made in any order and made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from gridfs.meta.rows import Extent


def clip(extent: Extent, start: int, end: int) -> Extent:
    """The part of an extent in [start, end), with which it shares at least a byte."""
    low, high = max(extent.start, start), min(extent.start + extent.length, end)
    if low == extent.start and high == extent.end:
        return extent
    return extent._replace(start=low, length=high - low, skip=extent.skip + low - extent.start)


def continues(left: Extent, right: Extent) -> bool:
    """Whether `right` goes on where `left` ends, in the file and in one run frozen at one time."""
    return (
        left.start + left.length == right.start
        and left.skip + left.length == right.skip
        and left.pack_ref == right.pack_ref
        and left.run == right.run
        and left.frozen == right.frozen
        and left.run_offset == right.run_offset
        and left.run_length == right.run_length
    )


def insert(extents: Sequence[Extent], new: Extent) -> list[Extent]:
    """Put `new` into a list: it replaces what was frozen no later, and gives way to what was later.

    Neighbours that continue one run become one. Inserting the same extent again changes nothing.
    """
    result: list[Extent] = []
    position = new.start
    for extent in extents:
        if extent.end <= new.start:
            _append(result, extent)
            continue
        if extent.start >= new.end:
            position = _fill(result, new, position, new.end)
            _append(result, extent)
            continue
        if extent.frozen > new.frozen:
            _fill(result, new, position, extent.start)
            _append(result, extent)
            position = extent.end
            continue
        if extent.start < new.start:
            _append(result, clip(extent, extent.start, new.start))
        if extent.end > new.end:
            position = _fill(result, new, position, new.end)
            _append(result, clip(extent, new.end, extent.end))
    _fill(result, new, position, new.end)
    return result


def are_apart(extents: Sequence[Extent]) -> bool:
    """Whether each begins where the one before it ends, or behind that."""
    return all(left.end <= right.start for left, right in pairwise(extents))


def insert_all(
    extents: Sequence[Extent], new: Sequence[Extent], living: Callable[[list[Extent]], list[Extent]]
) -> tuple[list[Extent], list[Extent]]:
    """`insert` of each extent in `new`, which `are_apart`; of those that it touches only the `living` stay.

    Returns which extents of the list are touched, and what takes their place.
    """
    before: list[Extent] = []
    after: list[Extent] = []
    index, count = 0, len(extents)
    for piece in new:
        start, end = piece.start, piece.end
        while index < count and extents[index].end < start:
            index += 1
        touched: list[Extent] = []
        while after and after[-1].end >= start:  # what the piece before this one has left
            touched.insert(0, after.pop())
        while index < count and extents[index].start <= end:
            before.append(extents[index])
            touched.append(extents[index])
            index += 1
        if touched:
            after += insert(living(touched), piece)
        else:
            after.append(piece)
    return before, after


def cut(extents: Sequence[Extent], start: int, end: int) -> list[Extent]:
    """Take the bytes [start, end) out of a list; none if `end` is not above `start`."""
    if start >= end:
        return list(extents)
    result: list[Extent] = []
    for extent in extents:
        if extent.end <= start or extent.start >= end:
            result.append(extent)
            continue
        if extent.start < start:
            result.append(clip(extent, extent.start, start))
        if extent.end > end:
            result.append(clip(extent, end, extent.end))
    return result


def difference(old: Sequence[Extent], new: Sequence[Extent]) -> tuple[list[Extent], list[Extent]]:
    """What left and what came between two lists."""
    before = {extent.start: extent for extent in old}
    after = {extent.start: extent for extent in new}
    gone = [extent for extent in old if after.get(extent.start) != extent]
    come = [extent for extent in new if before.get(extent.start) != extent]
    return gone, come


def _append(result: list[Extent], extent: Extent) -> None:
    if result and continues(result[-1], extent):
        last = result[-1]
        result[-1] = last._replace(length=last.length + extent.length)
    else:
        result.append(extent)


def _fill(result: list[Extent], new: Extent, position: int, end: int) -> int:
    """Append the part of `new` in [position, end), if any; returns where its next part may begin."""
    end = min(end, new.end)
    if position >= end:
        return position
    _append(result, clip(new, position, end))
    return end
