"""Freezing: which dirty ranges go into the next pack. No awaits; all calls are made from the loop.

What fsync waits for comes first, then full aligned packs of growing files, then what has been idle or
dirty for long; under pressure or when draining, everything. A range that is frozen stays marked until
its flight has landed, so nothing is frozen twice, and what is written over it meanwhile waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import trio

from gridfs.codec.pack import LayoutPlan, max_plaintext
from gridfs.files.dirty import DirtyData
from gridfs.files.log import OperationLog
from gridfs.files.overlay import DirtyRange, Piece
from gridfs.meta.operations import PackRecord


@dataclass(frozen=True, slots=True)
class FreezeConfig:
    k: int
    idle_s: float = 1.0
    """A file that was not written for this long is frozen."""
    gather_s: float = 4.0
    """Idle files that do not fill a pack wait this long for others."""
    age_s_max: float = 10.0
    """A file that has been dirty for this long is frozen, idle or not."""
    pressure: float = 0.5
    """Part of the spool in use from which everything dirty is frozen."""
    own_pack_bytes: int = 1 << 20
    """A run of at least this length gets a pack of its own."""
    runs_max: int = 1024
    """Runs in one pack."""


@dataclass(slots=True, eq=False)
class Run:
    """Consecutive bytes of one inode on their way into a pack."""

    ino: int
    start: int
    end: int
    """Moves down when a later truncate clips the run."""
    oldest: int
    """Lowest operation number among its bytes."""
    pieces: list[Piece]

    @property
    def length(self) -> int:
        """Bytes that are sealed, clipped or not."""
        return sum(piece.end - piece.start for piece in self.pieces)


@dataclass(slots=True, eq=False)
class Flight:
    """One pack on its way into the grid."""

    frozen: int
    """Number of the last operation whose bytes may be in it."""
    runs: list[Run]
    key: bytes | None = None
    """Random pack key, or None for a convergent pack of one run."""
    cost: int = 0
    """Bytes of memory it is counted with."""
    places: list[tuple[int, int]] = field(default_factory=list)
    """(stream offset, bytes of plaintext) of each run in the pack."""
    pack: PackRecord | None = None
    """Set once the pack is in the grid."""

    @property
    def length(self) -> int:
        return sum(run.length for run in self.runs)


class Freezer:
    """Knows what is dirty, wanted and in flight, and picks the next flight."""

    def __init__(self, log: OperationLog, dirty: DirtyData, config: FreezeConfig) -> None:
        self._log = log
        self._dirty = dirty
        self._config = config
        self.pack_bytes = max_plaintext(config.k)
        self.draining = False
        self._wanted: dict[int, int] = {}
        self._full: dict[int, None] = {}
        self._examined: dict[int, int] = {}
        """Dirty bytes of an inode when no full pack was found in it: it is looked at after one more pack."""
        self._in_flight: dict[int, dict[Run, None]] = {}
        """By inode. Runs of one inode never overlap; one that was clipped may begin where another does."""

    # ---- what happened

    def written(self, ino: int) -> bool:
        """Dirty data of this inode grew; returns whether something may be due now."""
        if self._dirty.bytes_of(ino) >= self._examined.get(ino, 0) + self.pack_bytes:
            self._full[ino] = None
            return True
        return self._dirty.inodes == 1 or self._log.spool.used >= self._config.pressure

    def truncated(self, ino: int, size: int) -> None:
        """Clip what is in flight: those bytes are gone, whatever comes there later."""
        for run in self._in_flight.get(ino, ()):
            run.end = max(run.start, min(run.end, size))
        self._examined.pop(ino, None)

    def want(self, ino: int, number: int) -> None:
        """Somebody waits for this inode's bytes up to `number`."""
        self._wanted[ino] = max(number, self._wanted.get(ino, 0))

    def landed(self, flight: Flight) -> None:
        """The flight is committed."""
        self.let_go(flight.runs)

    def let_go(self, runs: Iterable[Run]) -> None:
        """Nothing carries these runs any more; what is still dirty of them may be picked again."""
        for run in runs:
            flying = self._in_flight[run.ino]
            del flying[run]
            if not flying:
                del self._in_flight[run.ino]
            self._examined.pop(run.ino, None)

    # ---- asking

    def has_own_pack(self, length: int) -> bool:
        """Whether a run of this many bytes is alone in its pack, which is convergent then."""
        return length >= self._config.own_pack_bytes

    def is_stored(self, ino: int, number: int) -> bool:
        """Whether every byte written by operations up to `number` is committed."""
        overlay = self._dirty.overlay(ino)
        if overlay is not None and any(item.oldest <= number for item in overlay.ranges()):
            return False
        flying = self._in_flight.get(ino, ())
        return not any(run.oldest <= number and run.end > run.start for run in flying)

    def unstored(self, number: int) -> list[int]:
        """Inodes with bytes up to `number` that are not committed."""
        inodes = dict.fromkeys((*self._dirty.touched, *self._in_flight))
        return [ino for ino in inodes if not self.is_stored(ino, number)]

    # ---- picking

    def select(self) -> Flight | None:
        """The next flight, its ranges marked and the spool's slots pinned; None if nothing is due."""
        for due, whole in ((self._wanted_now, False), (self._full_now, True), (self._idle_now, False)):
            flight = self._gather(due(), whole)
            if flight.runs:
                return flight
        return None

    def _gather(self, inodes: Iterable[int], whole: bool) -> Flight:
        flight = Flight(self._log.number, [])
        plan = LayoutPlan(self._config.k)
        for ino in inodes:
            for start, end, oldest in self._free_ranges(ino):
                for low, high in self._cuts(start, end, whole):
                    own = self.has_own_pack(high - low)
                    if own and flight.runs:
                        continue  # goes in a pack of its own, in a later turn
                    if plan.add(high - low) is None:
                        return flight
                    flight.runs.append(self._freeze(ino, low, high, flight.frozen, oldest))
                    if own or len(flight.runs) >= self._config.runs_max:
                        return flight
        return flight

    def _wanted_now(self) -> list[int]:
        self._wanted = {ino: n for ino, n in self._wanted.items() if self._dirty.overlay(ino) is not None}
        return list(self._wanted)

    def _full_now(self) -> Iterator[int]:
        for ino in list(self._full):
            yield ino
            # Reached when the inode had no full pack to give: it is asked again after one more.
            del self._full[ino]
            self._examined[ino] = self._dirty.bytes_of(ino)

    def _idle_now(self) -> list[int]:
        config, touched = self._config, self._dirty.touched
        if self.draining or self._log.spool.used >= config.pressure:
            return list(touched)
        now = trio.current_time()
        idle: list[int] = []
        size = 0
        for ino, last in touched.items():
            if last > now - config.idle_s:
                break  # in the order of their last write
            if ino not in self._in_flight:
                idle.append(ino)
                size += self._dirty.bytes_of(ino)
        # Few small files wait for company, so that a slow copy does not make a pack of every handful.
        if idle and size < self.pack_bytes and touched[idle[0]] > now - config.gather_s:
            idle = []
        for ino, since in self._dirty.since.items():
            if since > now - config.age_s_max:
                break
            idle.append(ino)
        return idle

    def _free_ranges(self, ino: int) -> Iterator[DirtyRange]:
        """Dirty ranges of an inode that no flight carried when the first was asked for, by start."""
        overlay = self._dirty.overlay(ino)
        if overlay is None:
            return
        flying = sorted(self._in_flight.get(ino, ()), key=lambda run: run.start)
        if not flying:
            yield from overlay.ranges()
            return
        index = 0
        for start, end, oldest in overlay.ranges():
            while index < len(flying) and flying[index].end <= start:
                index += 1
            low, ahead = start, index
            while ahead < len(flying) and flying[ahead].start < end:
                run = flying[ahead]
                if low < run.start:
                    yield DirtyRange(low, run.start, oldest)
                low = max(low, run.end)
                ahead += 1
            if low < end:
                yield DirtyRange(low, end, oldest)

    def _cuts(self, start: int, end: int, whole: bool) -> list[tuple[int, int]]:
        """A range cut at multiples of the pack size; with `whole` only the pieces that fill one."""
        size = self.pack_bytes
        cuts = []
        low = start
        while low < end:
            high = min(end, (low // size + 1) * size)
            if not whole or high - low == size:
                cuts.append((low, high))
            low = high
        return cuts

    def _freeze(self, ino: int, start: int, end: int, frozen: int, oldest: int) -> Run:
        overlay = self._dirty.overlay(ino)
        assert overlay is not None
        run = Run(ino, start, end, oldest, overlay.freeze(start, end, frozen))
        for piece in run.pieces:
            self._log.spool.pin(piece.source)
        self._in_flight.setdefault(ino, {})[run] = None
        return run
