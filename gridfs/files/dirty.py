"""Dirty data: what was written and lies in the spool, not yet in a pack. One overlay per inode.

Keeps the spool's accounting right: every byte an overlay gives up is retired there. Nothing here
awaits except `room`, where writers wait for the two budgets to free space; reads never do.
"""

from __future__ import annotations

from collections.abc import Iterable

import trio

from gridfs.files.log import OperationLog
from gridfs.files.overlay import Gone, Overlay, Piece, Source
from gridfs.meta.operations import (
    Clone,
    Commit,
    Drop,
    Operation,
    Rename,
    SetAttributes,
    Together,
    Write,
)
from storage.errors import Exhausted

FILE_END = 1 << 63
"""Behind every byte that a file can have."""


class DirtyData:
    """All overlays of a mount, by inode number."""

    def __init__(self, log: OperationLog) -> None:
        self._log = log
        self._spool = log.spool
        self._overlays: dict[int, Overlay] = {}
        self.touched: dict[int, float] = {}
        """Inode -> time of its last write, in the order of that time."""
        self.since: dict[int, float] = {}
        """Inode -> time since when it has been dirty, in the order of that time."""
        self.waiting = 0
        self.taken_at = 0
        """Number of the last operation that took bytes away: a Commit, a truncate, a Drop."""

    # ---- reading

    def overlay(self, ino: int) -> Overlay | None:
        return self._overlays.get(ino)

    def pieces(self, ino: int, start: int, end: int) -> list[Piece]:
        overlay = self._overlays.get(ino)
        return overlay.pieces(start, end) if overlay is not None else []

    def bytes_of(self, ino: int) -> int:
        overlay = self._overlays.get(ino)
        return overlay.dirty_bytes if overlay is not None else 0

    @property
    def bytes(self) -> int:
        return self._spool.live_bytes

    @property
    def inodes(self) -> int:
        return len(self._overlays)

    # ---- changing

    def has_room(self, size: int) -> bool:
        """Whether the spool takes `size` bytes more just now."""
        return self._spool.room(size)

    async def room(self, size: int, timeout_s: float) -> None:
        """Wait until the spool takes `size` bytes more. Raises Exhausted after `timeout_s` seconds."""
        if self._spool.room(size):
            return
        self.waiting += 1
        try:
            with trio.move_on_after(timeout_s):
                while not self._spool.room(size):
                    freed = self._log.room_freed
                    self._log.reclaim()
                    if not self._spool.room(size):
                        await freed.wait()
                return
        finally:
            self.waiting -= 1
        raise Exhausted(f"the spool stayed full for {timeout_s:g} s: the grid takes nothing")

    def written(self, ino: int, offset: int, size: int, number: int, source: Source) -> None:
        overlay = self._overlays.get(ino)
        if overlay is None:
            overlay = self._overlays[ino] = Overlay()
        self._retire(overlay.write(offset, offset + size, number, source))
        self._touch(ino)

    def _touch(self, ino: int) -> None:
        now = trio.current_time()
        self.touched.pop(ino, None)
        self.touched[ino] = now
        self.since.setdefault(ino, now)

    def cloned(self, ino: int, to: int) -> bool:
        """The new inode `to` is a copy of `ino`; returns whether it has dirty data, which they share."""
        overlay = self._overlays.get(ino)
        if overlay is None:
            return False
        for piece in overlay.pieces(0, FILE_END):
            self._spool.share(piece.source, piece.end - piece.start)
        self._overlays[to] = overlay.copy()
        self._touch(to)
        return True

    def truncated(self, ino: int, size: int) -> None:
        overlay = self._overlays.get(ino)
        if overlay is not None:
            self._take(ino, overlay, overlay.truncate(size))

    def committed(self, ino: int, start: int, end: int, frozen: int) -> None:
        """Data of this range up to the number `frozen` is in packs now."""
        overlay = self._overlays.get(ino)
        if overlay is not None:
            self._take(ino, overlay, overlay.retire(start, end, frozen))

    def renamed(self, number: int, inodes: Iterable[int]) -> None:
        """Operation `number` gave these inodes the names of others. It never stays without their data (see
        `require_order`): or else, when power is lost, neither the old nor the new would be left."""
        if any(ino in self._overlays for ino in inodes):
            self._log.order(number)

    async def require_order(self, inodes: Iterable[int]) -> None:
        """Wait until the spool keeps the data of these inodes wherever it keeps the next operation."""
        while not all(
            self._spool.is_kept_before(piece.source, piece.number)
            for ino in inodes
            for piece in self.pieces(ino, 0, FILE_END)
        ):
            await self._spool.sync()

    def dropped(self, ino: int) -> None:
        self.truncated(ino, 0)

    def forget(self) -> None:
        """Give up all dirty data: what became of it since is not known."""
        for ino in list(self._overlays):
            self.dropped(ino)

    def replay(self, number: int, operation: Operation, source: Source | None, data_length: int) -> None:
        """Redo what one record did to the overlays; records come in order from the oldest on disk."""
        match operation:
            case Write(ino=ino, offset=offset) if source is not None and data_length:
                self.written(ino, offset, data_length, number, source)
            case SetAttributes(ino=ino, size=int(size)):
                self.truncated(ino, size)
            case Commit(extents=extents):
                for extent in extents:
                    self.committed(extent.ino, extent.start, extent.start + extent.length, extent.frozen)
            case Drop(ino=ino):
                self.dropped(ino)
            case Clone(ino=ino, source=copied):
                if self.cloned(copied, ino):
                    self._log.order(number)
            case Rename(ino=ino, replaced=other, exchange=exchange) if other:
                self.renamed(number, [ino, other] if exchange else [ino])
            case Together(parts=parts):
                for part in parts:
                    self.replay(number, part, None, 0)
            case _:
                pass

    def forget_all(self) -> None:
        """Another history: nothing that is here belongs to it."""
        for ino in list(self._overlays):
            self.dropped(ino)

    def _retire(self, gone: Iterable[tuple[Source, int]]) -> None:
        for source, size in gone:
            self._spool.retire(source, size)

    def _take(self, ino: int, overlay: Overlay, gone: Iterable[Gone]) -> None:
        """The operation just made took these bytes away."""
        self.taken_at = self._log.number
        self._retire(gone)
        if overlay.empty:
            del self._overlays[ino]
            self.touched.pop(ino, None)
            self.since.pop(ino, None)
