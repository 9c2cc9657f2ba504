"""Write-behind: what the freezer picks is sealed into packs, uploaded and committed.

One flight is one pack on its way. Flights are sealed one at a time in a worker thread, uploaded side by
side within the budget, and committed strictly in the order of their freeze, so that extents of one inode
never overtake each other.

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
from dataclasses import dataclass

import trio

from gridfs.codec.pack import (
    SealedPack,
    convergent_key,
    new_columns,
    seal_pack,
)
from gridfs.files.dirty import DirtyData
from gridfs.files.freezing import Flight, Freezer
from gridfs.files.log import OperationLog
from gridfs.grid.errors import GridError
from gridfs.grid.uploader import Receipt, Uploader
from gridfs.meta.operations import KIND_DATA, Commit, ExtentRecord, PackRecord
from gridfs.meta.store import key_hash
from storage.errors import Corrupt, Exhausted, StorageError, Unavailable
from storage.ports import Machine

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WriterConfig:
    k: int
    n: int
    convergence_secret: bytes
    sealed_bytes_max: int = 40 << 20
    """Sealed bytes in memory, all flights together."""
    retry_s: float = 0.5
    retry_s_max: float = 5.0
    poll_s: float = 1.0
    """While anything is dirty, the freezer is asked this often for what became idle."""


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
        freezer: Freezer,
        stamp: Callable[[], tuple[int, int]],
        config: WriterConfig,
    ) -> None:
        self._machine = machine
        self._log = log
        self._dirty = dirty
        self._uploader = uploader
        self._stamp = stamp
        self._config = config
        self._freezer = freezer
        self._flights: deque[Flight] = deque()
        self._wake = trio.Event()
        self._progress = trio.Event()
        self._seal_turn = trio.Lock()
        self._plaintext = bytearray()
        self._columns: list[list[bytearray]] = []
        self.sealed_bytes = 0
        self.trouble: str | None = None
        """Why nothing gets into the grid just now, in words; None while all is well."""
        self.packs_stored = 0
        self.packs_known = 0
        """Packs that did not go out because the grid had their content."""
        self.bytes_stored = 0

    # ---- what others tell the writer

    def written(self, ino: int) -> None:
        """Dirty data of this inode grew."""
        if self._freezer.written(ino):
            self._wake.set()

    def truncated(self, ino: int, size: int) -> None:
        """Clip what is in flight of this inode."""
        self._freezer.truncated(ino, size)
        self._progress_made()

    def drain(self) -> None:
        """From now on freeze everything at once (unmounting)."""
        self._freezer.draining = True
        self._wake.set()

    def want(self, ino: int, number: int) -> None:
        """Freeze this inode's data soon (something else will wait for it)."""
        if not self.is_stored(ino, number):
            self._freezer.want(ino, number)
            self._wake.set()

    def is_stored(self, ino: int, number: int) -> bool:
        """Whether every byte of `ino` written by operations up to `number` is committed."""
        return self._freezer.is_stored(ino, number)

    async def stored(self, ino: int, number: int) -> None:
        """Wait until every byte of `ino` written by operations up to `number` is committed."""
        while not self.is_stored(ino, number):
            self._freezer.want(ino, number)
            self._wake.set()
            await self._progress.wait()

    async def all_stored(self, number: int) -> None:
        """Wait until every byte written by operations up to `number`, of any inode, is committed."""
        while inodes := self._freezer.unstored(number):
            for ino in inodes:
                self._freezer.want(ino, number)
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
        """Packs on their way."""
        return len(self._flights)

    # ---- the loop

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Freeze, seal, upload and commit until cancelled; failed uploads are retried for ever."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._wake = trio.Event()
                while (flight := self._freezer.select()) is not None:
                    self._prepare(flight)
                    await self._admit(flight.cost)
                    self.sealed_bytes += flight.cost
                    await nursery.start(self._fly, flight)
                with trio.move_on_after(self._config.poll_s if self._dirty.inodes else float("inf")):
                    await self._wake.wait()

    def _prepare(self, flight: Flight) -> None:
        length = flight.length
        flight.cost = length * self._config.n // self._config.k + (1 << 16) * self._config.n
        if len(flight.runs) > 1 or not self._freezer.has_own_pack(length):
            flight.key = self._machine.entropy.token(32)
        if length >= self._freezer.pack_bytes // 2:
            flight.memory = self._columns.pop() if self._columns else new_columns(self._config.k)
        self._flights.append(flight)

    async def _admit(self, cost: int) -> None:
        while self.sealed_bytes and self.sealed_bytes + cost > self._config.sealed_bytes_max:
            await self._progress.wait()

    async def _fly(
        self, flight: Flight, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with self._seal_turn:
            task_status.started()
            try:
                key, flight.pack = await self._loaded(flight)
            finally:
                for run in flight.runs:
                    for piece in run.pieces:
                        self._log.spool.unpin(piece.source)
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

    async def _loaded(self, flight: Flight) -> tuple[bytes | None, PackRecord | None]:
        """Read a flight in a worker thread: its convergent key, and the pack that the grid has of it
        already. A local disk that refuses is waited for."""
        while True:
            try:
                key = await self._machine.offload.run(self._load, flight)
                return key, self._known(key)
            except (OSError, Corrupt, Unavailable) as error:
                await self._disk_refused("written data cannot be read from the local disk", error)

    def _load(self, flight: Flight) -> bytes | None:
        """In a worker thread: read the runs from the spool; the convergent key if the pack has one."""
        total = flight.length
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

    def _seal(self, flight: Flight, key: bytes | None) -> SealedPack:
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

    # ---- committing (no awaits)

    async def _commit_ready(self) -> None:
        """Commit what is in the grid, in order. A local disk that refuses is waited for."""
        while self._flights and self._flights[0].pack is not None:
            try:
                self._commit(self._flights[0])
            except (OSError, Exhausted, Unavailable) as error:
                await self._disk_refused("a commit waits for the local disk", error)
        self._progress_made()

    async def _disk_refused(self, what: str, error: Exception) -> None:
        logger.error("%s: %s", what, error)
        self.trouble = f"{what}: {error}"
        await trio.sleep(self._config.retry_s_max)
        self.trouble = None

    def _commit(self, flight: Flight) -> None:
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
        self._freezer.landed(flight)
        self.sealed_bytes -= flight.cost
        self.packs_stored += 1
        self.bytes_stored += flight.length
        self._log.reclaim()

    def _progress_made(self) -> None:
        self._progress.set()
        self._progress = trio.Event()
        self._wake.set()
