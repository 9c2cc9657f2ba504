"""Write-behind: dirty ranges are frozen into runs, sealed into packs, uploaded and committed.

The writer picks what to freeze: what fsync waits for first, then full aligned packs of growing files,
then what has been idle or dirty for long; under pressure or when draining, everything. One flight is
one pack on its way. Flights are sealed one at a time in a worker thread, uploaded side by side within
the budget, and committed strictly in the order of their freeze, so that extents of one inode never
overtake each other.

A frozen range stays in its overlay (reads come from the spool) until the commit. Bytes overwritten
meanwhile are committed all the same, under the newer data: an fsync that waits for them was promised
exactly those. Only a later truncate clips a flight.

Atomic between awaits: selecting a flight (the overlay is read and the range marked in one step), and
committing one (operation recorded, overlay retired, waiters woken).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from gridfs.codec.pack import (
    LayoutPlan,
    SealedPack,
    convergent_key,
    max_plaintext,
    new_columns,
    seal_pack,
)
from gridfs.files.dirty import DirtyData
from gridfs.files.log import OperationLog
from gridfs.files.overlay import Piece
from gridfs.grid.errors import GridError
from gridfs.grid.uploader import Receipt, Uploader
from gridfs.meta.operations import KIND_DATA, Commit, ExtentRecord, PackRecord
from gridfs.meta.store import key_hash
from storage.errors import Exhausted, StorageError
from storage.ports import Machine

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WriterConfig:
    k: int
    n: int
    convergence_secret: bytes
    sealed_bytes_max: int = 72 << 20
    """Sealed bytes in memory, all flights together."""
    idle_s: float = 1.0
    """A file that was not written for this long is frozen."""
    gather_s: float = 4.0
    """Idle files that do not fill a pack wait this long for others."""
    age_s_max: float = 10.0
    """... and one that has been dirty for this long."""
    pressure: float = 0.5
    """Part of the spool in use from which everything dirty is frozen."""
    own_pack_bytes: int = 1 << 20
    """A run of at least this length gets a pack of its own."""
    runs_max: int = 1024
    """Runs in one pack."""
    retry_s: float = 0.5
    retry_s_max: float = 5.0


@dataclass(slots=True, eq=False)
class _Run:
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
        return sum(piece.end - piece.start for piece in self.pieces)


@dataclass(slots=True, eq=False)
class _Flight:
    frozen: int
    runs: list[_Run]
    cost: int
    key: bytes | None
    """Random pack key, or None for a convergent pack of one run."""
    memory: list[bytearray] | None = None
    """What the pack's primary columns lie in, from the writer's pool."""
    places: list[tuple[int, int]] = field(default_factory=list)
    """(stream offset, bytes of plaintext) of each run in the pack."""
    pack: PackRecord | None = None
    """Set once the pack is in the grid."""


def pack_record(sealed: SealedPack, receipt: Receipt, kind: int) -> PackRecord:
    """What metadata keeps of a pack that is stored."""
    return PackRecord(
        pack_id=sealed.pack_id,
        k=sealed.geometry.k,
        n=sealed.geometry.n,
        stream_length=sealed.geometry.stream_length,
        key=sealed.key,
        convergent=sealed.convergent,
        places=list(receipt.places),
        missing=list(receipt.missing),
        kind=kind,
    )


class Writer:
    """Moves dirty data into the grid. `stamp` tells the (epoch, sequence) that leases carry."""

    def __init__(
        self,
        machine: Machine,
        log: OperationLog,
        dirty: DirtyData,
        uploader: Uploader,
        stamp: Callable[[], tuple[int, int]],
        config: WriterConfig,
    ) -> None:
        self._machine = machine
        self._log = log
        self._dirty = dirty
        self._uploader = uploader
        self._stamp = stamp
        self._config = config
        self._pack_bytes = max_plaintext(config.k)
        self._full: dict[int, None] = {}
        self._wanted: dict[int, int] = {}
        self._in_flight: dict[int, list[_Run]] = {}
        self._flights: deque[_Flight] = deque()
        self._wake = trio.Event()
        self._progress = trio.Event()
        self._seal_turn = trio.Lock()
        self._plaintext = bytearray()
        self._columns: list[list[bytearray]] = []
        self.sealed_bytes = 0
        self.draining = False
        self.trouble: str | None = None
        """Why nothing gets into the grid just now, in words; None while all is well."""
        self.packs_stored = 0
        self.packs_known = 0
        """Packs that did not go out because the grid had their content."""
        self.bytes_stored = 0

    # ---- what others tell the writer

    def written(self, ino: int) -> None:
        """Dirty data of this inode grew."""
        if self._dirty.bytes_of(ino) >= self._pack_bytes:
            self._full[ino] = None
            self._wake.set()
        elif self._dirty.inodes == 1 or self._log.spool.used >= self._config.pressure:
            self._wake.set()

    def truncated(self, ino: int, size: int) -> None:
        """Clip what is in flight of this inode: those bytes are gone, whatever comes there later."""
        for run in self._in_flight.get(ino, ()):
            run.end = max(run.start, min(run.end, size))
        self._progress_made()

    def drain(self) -> None:
        """From now on freeze everything at once (unmounting)."""
        self.draining = True
        self._wake.set()

    async def stored(self, ino: int, number: int) -> None:
        """Wait until every byte of `ino` written by operations up to `number` is committed."""
        while not self.is_stored(ino, number):
            self._wanted[ino] = max(number, self._wanted.get(ino, 0))
            self._wake.set()
            await self._progress.wait()

    def want(self, ino: int, number: int) -> None:
        """Freeze this inode's data soon (something else will wait for it)."""
        if not self.is_stored(ino, number):
            self._wanted[ino] = max(number, self._wanted.get(ino, 0))
            self._wake.set()

    def is_stored(self, ino: int, number: int) -> bool:
        overlay = self._dirty.overlay(ino)
        if overlay is not None and any(oldest <= number for _, _, oldest in overlay.ranges()):
            return False
        return not any(run.oldest <= number and run.end > run.start for run in self._in_flight.get(ino, ()))

    async def all_stored(self, number: int) -> None:
        """Wait until every byte written by operations up to `number`, of any inode, is committed."""
        while True:
            inodes = [ino for ino in self._dirty.touched if not self.is_stored(ino, number)]
            inodes += [ino for ino in self._in_flight if not self.is_stored(ino, number)]
            if not inodes:
                return
            for ino in inodes:
                self._wanted[ino] = max(number, self._wanted.get(ino, 0))
            self._wake.set()
            await self._progress.wait()

    async def progressed(self) -> None:
        """Wait until something was committed or clipped."""
        await self._progress.wait()

    @property
    def idle(self) -> bool:
        return not self._flights and not self._dirty.inodes

    @property
    def flights(self) -> int:
        return len(self._flights)

    # ---- the loop

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Freeze, seal, upload and commit until cancelled; failed uploads are retried for ever."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._wake = trio.Event()
                while (flight := self._select()) is not None:
                    await self._admit(flight.cost)
                    self.sealed_bytes += flight.cost
                    await nursery.start(self._fly, flight)
                with trio.move_on_after(self._config.idle_s if self._dirty.inodes else float("inf")):
                    await self._wake.wait()

    async def _admit(self, cost: int) -> None:
        while self.sealed_bytes and self.sealed_bytes + cost > self._config.sealed_bytes_max:
            await self._progress.wait()

    async def _fly(
        self, flight: _Flight, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with self._seal_turn:
            task_status.started()
            try:
                key = await self._machine.offload.run(self._load, flight)
            finally:
                for run in flight.runs:
                    for piece in run.pieces:
                        self._log.spool.unpin(piece.source)
            flight.pack = self._known(key)
            sealed = None
            if flight.pack is None:
                sealed = await self._machine.offload.run(self._seal, flight, key)
        if sealed is not None:
            flight.places = [(run.offset, run.length) for run in sealed.runs]
            flight.pack = pack_record(sealed, await self._upload(sealed), KIND_DATA)
        if flight.memory is not None:
            self._columns.append(flight.memory)
        await self._commit_ready()

    def _known(self, key: bytes | None) -> PackRecord | None:
        """The pack that holds exactly this content already, if there is one (convergence)."""
        ref = self._log.metadata.find_convergent(key_hash(key)) if key is not None else None
        if key is None or ref is None:
            return None
        pack = self._log.metadata.pack(ref)
        if (pack.k, pack.n) != (self._config.k, self._config.n):
            return None
        self.packs_known += 1
        return PackRecord(
            pack_id=pack.pack_id,
            k=pack.k,
            n=pack.n,
            stream_length=pack.stream_length,
            key=key,
            convergent=True,
            places=list(pack.places),
            missing=list(pack.missing),
            kind=KIND_DATA,
        )

    async def _upload(self, sealed: SealedPack) -> Receipt:
        delay = self._config.retry_s
        while True:
            try:
                receipt = await self._uploader.store(sealed, self._stamp())
            except (GridError, StorageError) as error:
                if self.trouble is None:
                    logger.warning("upload waits: %s", error)
                self.trouble = str(error)
                await trio.sleep(delay)
                delay = min(2 * delay, self._config.retry_s_max)
            else:
                if self.trouble is not None:
                    logger.info("upload goes on")
                self.trouble = None
                return receipt

    def _load(self, flight: _Flight) -> bytes | None:
        """In a worker thread: read the runs from the spool; the convergent key if the pack has one."""
        total = sum(run.length for run in flight.runs)
        if len(self._plaintext) < total:
            self._plaintext = bytearray(total)
        view = memoryview(self._plaintext)
        position = 0
        for run in flight.runs:
            for piece in run.pieces:
                size = piece.end - piece.start
                self._log.spool.read_into(piece.source, piece.skip, view[position : position + size])
                position += size
        flight.places = [(0, total)]
        return convergent_key(self._config.convergence_secret, view[:total]) if flight.key is None else None

    def _seal(self, flight: _Flight, key: bytes | None) -> SealedPack:
        """In a worker thread, behind `_load`: seal what was read."""
        view = memoryview(self._plaintext)
        buffers = []
        position = 0
        for run in flight.runs:
            buffers.append(view[position : position + run.length])
            position += run.length
        return seal_pack(
            self._config.k,
            self._config.n,
            buffers,
            pack_key=flight.key,
            convergence_secret=self._config.convergence_secret,
            known_key=key,
            memory=flight.memory,
        )

    # ---- selecting (no awaits)

    def _select(self) -> _Flight | None:
        """The next flight, its ranges marked as frozen; None if nothing is due."""
        flight = _Flight(frozen=self._log.number, runs=[], cost=0, key=None)
        plan = LayoutPlan(self._config.k)
        for ino, whole in self._due():
            for start, end, oldest in self._free_ranges(ino):
                for low, high in self._cuts(start, end, whole):
                    own = high - low >= self._config.own_pack_bytes
                    if own and flight.runs:
                        continue  # goes in a pack of its own, in a later turn
                    if plan.add(high - low) is None:
                        return self._launch(flight)
                    flight.runs.append(self._freeze(ino, low, high, flight.frozen, oldest))
                    if own or len(flight.runs) >= self._config.runs_max:
                        return self._launch(flight)
        return self._launch(flight) if flight.runs else None

    def _due(self) -> list[tuple[int, bool]]:
        """Inodes to freeze, the most urgent first, each with whether only full packs are due."""
        wanted = [(ino, False) for ino in self._wanted if self._dirty.overlay(ino) is not None]
        self._wanted = {ino: self._wanted[ino] for ino, _ in wanted if self._free_ranges(ino)}
        if wanted:
            return wanted
        full = []
        for ino in list(self._full):
            if any(self._cuts(start, end, True) for start, end, _ in self._free_ranges(ino)):
                full.append((ino, True))
            else:
                del self._full[ino]
        if full:
            return full
        config = self._config
        everything = self.draining or self._log.spool.used >= config.pressure
        touched = self._dirty.touched
        if everything:
            return [(ino, False) for ino in touched]
        now = trio.current_time()
        due = []
        size = 0
        for ino, last in touched.items():
            if last > now - config.idle_s:
                break  # in the order of their last write
            if ino in self._in_flight:
                continue
            due.append((ino, False))
            size += self._dirty.bytes_of(ino)
        # Few small files wait for company, so that a slow copy does not make a pack of every handful.
        if due and size < self._pack_bytes and touched[due[0][0]] > now - config.gather_s:
            due = []
        for ino, since in self._dirty.since.items():
            if since > now - config.age_s_max:
                break
            due.append((ino, False))
        return due

    def _free_ranges(self, ino: int) -> list[tuple[int, int, int]]:
        """Dirty ranges of an inode that no flight carries: (start, end, oldest number)."""
        overlay = self._dirty.overlay(ino)
        if overlay is None:
            return []
        free: list[tuple[int, int, int]] = list(overlay.ranges())
        for run in self._in_flight.get(ino, ()):
            remaining = []
            for start, end, oldest in free:
                if run.start >= end or run.end <= start:
                    remaining.append((start, end, oldest))
                    continue
                if start < run.start:
                    remaining.append((start, run.start, oldest))
                if run.end < end:
                    remaining.append((run.end, end, oldest))
            free = remaining
        return free

    def _cuts(self, start: int, end: int, whole: bool) -> list[tuple[int, int]]:
        """A range cut at multiples of the pack size; with `whole` only the pieces that fill one."""
        size = self._pack_bytes
        cuts = []
        low = start
        while low < end:
            high = min(end, (low // size + 1) * size)
            if not whole or high - low == size:
                cuts.append((low, high))
            low = high
        return cuts

    def _freeze(self, ino: int, start: int, end: int, frozen: int, oldest: int) -> _Run:
        overlay = self._dirty.overlay(ino)
        assert overlay is not None
        run = _Run(ino, start, end, oldest, overlay.freeze(start, end, frozen))
        for piece in run.pieces:
            self._log.spool.pin(piece.source)
        self._in_flight.setdefault(ino, []).append(run)
        return run

    def _launch(self, flight: _Flight) -> _Flight:
        total = sum(run.end - run.start for run in flight.runs)
        flight.cost = total * self._config.n // self._config.k + (1 << 16) * self._config.n
        if len(flight.runs) > 1 or total < self._config.own_pack_bytes:
            flight.key = self._machine.entropy.token(32)
        if total >= self._pack_bytes // 2:
            flight.memory = self._columns.pop() if self._columns else new_columns(self._config.k)
        self._flights.append(flight)
        return flight

    # ---- committing (no awaits)

    async def _commit_ready(self) -> None:
        """Commit what is in the grid, in order. A local disk that refuses is waited for."""
        while self._flights and self._flights[0].pack is not None:
            try:
                self._commit(self._flights[0])
            except (OSError, Exhausted) as error:
                logger.error("a commit waits for the local disk: %s", error)
                self.trouble = str(error)
                await trio.sleep(self._config.retry_s_max)
        self._progress_made()

    def _commit(self, flight: _Flight) -> None:
        assert flight.pack is not None
        extents = [
            ExtentRecord(
                ino=run.ino,
                start=run.start,
                length=run.end - run.start,
                pack=0,
                run=index,
                run_offset=flight.places[index][0],
                run_length=flight.places[index][1],
                skip=0,
                frozen=flight.frozen,
            )
            for index, run in enumerate(flight.runs)
            if run.end > run.start
        ]
        self._log.record(Commit(packs=[flight.pack], extents=extents))
        self._flights.popleft()
        for run in flight.runs:
            self._dirty.committed(run.ino, run.start, run.end, flight.frozen)
            runs = self._in_flight[run.ino]
            runs.remove(run)
            if not runs:
                del self._in_flight[run.ino]
        self.sealed_bytes -= flight.cost
        self.packs_stored += 1
        self.bytes_stored += sum(run.length for run in flight.runs)
        self._log.reclaim()

    def _progress_made(self) -> None:
        self._progress.set()
        self._progress = trio.Event()
        self._wake.set()
