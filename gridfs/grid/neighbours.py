"""Sealed blocks that hold several small segments, kept because their neighbours are likely wanted next.

Small files that were written together lie together in a pack, many in one block, and are mostly read
together: a tree that is copied, a repository that is searched. The first small segment read of a pack costs
just its own bytes. From the second on the whole block comes in the same request, and serves its neighbours
without any. Used from the loop only.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from gridfs.grid.planner import PackRef, Piece, Want
from gridfs.grid.roster import ServerId

PACKS_SEEN_MAX = 64


class _Block(NamedTuple):
    start: int
    data: bytes
    server: ServerId


class Neighbours:
    """Least recently used blocks first, bounded in bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._blocks: OrderedDict[tuple[bytes, int, int], _Block] = OrderedDict()
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self.bytes = 0

    def find(self, want: Want) -> Piece | None:
        """The block around a want, if it is here."""
        key = _key(want)
        block = self._blocks.get(key)
        if block is None:
            return None
        self._blocks.move_to_end(key)
        return Piece(block.start, block.start + len(block.data), memoryview(block.data), block.server)

    def widened(self, want: Want) -> Want:
        """What to fetch for a want: the whole of its block where its neighbours are likely wanted too."""
        geometry = want.pack.geometry
        start = want.start // geometry.block_size * geometry.block_size
        end = min(start + geometry.block_size, geometry.data_length(want.number))
        if (start, end) == (want.start, want.end) or not self._is_seen(want.pack):
            return want
        return want._replace(start=start, end=end)

    def keep(self, want: Want, data: memoryview, server: ServerId) -> None:
        """`data` is what `server` sent for a widened want."""
        if len(data) > self._bytes_max:
            return
        key = _key(want)
        self._forget(key)
        self._blocks[key] = _Block(want.start, bytes(data), server)
        self.bytes += len(data)
        while self.bytes > self._bytes_max:
            self._forget(next(iter(self._blocks)))

    def drop(self, pack_id: bytes, number: int) -> None:
        """A share is not what it should be."""
        for key in [key for key in self._blocks if key[:2] == (pack_id, number)]:
            self._forget(key)

    def _forget(self, key: tuple[bytes, int, int]) -> None:
        block = self._blocks.pop(key, None)
        if block is not None:
            self.bytes -= len(block.data)

    def _is_seen(self, pack: PackRef) -> bool:
        """Whether a small segment of this pack was wanted lately; from now on it was."""
        known = pack.pack_id in self._seen
        self._seen[pack.pack_id] = None
        self._seen.move_to_end(pack.pack_id)
        if len(self._seen) > PACKS_SEEN_MAX:
            self._seen.popitem(last=False)
        return known


def _key(want: Want) -> tuple[bytes, int, int]:
    return want.pack.pack_id, want.number, want.start // want.pack.geometry.block_size
