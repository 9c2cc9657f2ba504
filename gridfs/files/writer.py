"""Write-behind: what the freezer picks is sealed into packs, uploaded and committed.

One flight is one pack on its way. Flights are sealed one at a time in a worker thread, uploaded side by
side within the budget, and committed strictly in the order of their freeze, so that extents of one inode
never overtake each other.

A frozen range stays in its overlay (reads come from the spool) until the commit. Bytes overwritten
meanwhile are committed all the same, under the newer data: an fsync that waits for them was promised
exactly those. Only a later truncate clips a flight.

A range that the spool does not give back (a bad disk) leaves its flight and is set aside: the others go on,
whoever waits for it is told, and it is tried again when somebody asks for it or writes to the file.

Atomic between awaits: selecting a flight (the overlay is read and the range marked in one step), and
committing one (operation recorded, overlay retired, waiters woken).
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import trio

from gridfs.codec.pack import SealedPack, column_bytes_max, convergent_key, seal_pack
from gridfs.files.dirty import DirtyData
from gridfs.files.freezing import Flight, Freezer, Run
from gridfs.files.log import OperationLog
from gridfs.grid.errors import GridError
from gridfs.grid.uploader import Receipt, Uploader
from gridfs.meta.operations import KIND_DATA, Commit, ExtentRecord, PackRecord
from gridfs.meta.packs import as_record
from gridfs.meta.store import key_hash
from storage.errors import Corrupt, Exhausted, StorageError, Unavailable
from storage.pages import PagePool
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
    unreadable_s: float = 30.0
    """Bytes that the spool did not give back are asked for again after this long."""
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
        pages: PagePool | None = None,
    ) -> None:
        """`pages`: the memory of all who move much data."""
        self._pages = pages or PagePool(config.sealed_bytes_max)
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
        self._halted: Exception | None = None
        self.sealed_bytes = 0
        self.trouble: str | None = None
        """Why nothing gets into the grid just now, in words; None while all is well."""
        self.packs_stored = 0
        self.packs_known = 0
        """Packs that did not go out because the grid had their content."""
        self.bytes_stored = 0
        self._unreadable: dict[int, tuple[str, list[Run]]] = {}
        """By inode: why its bytes could not be read back from the spool, and which."""
        self._again_at = 0.0
        """When these are tried again, though nobody asks for them."""

    # ---- what others tell the writer

    def written(self, ino: int) -> None:
        """Dirty data of this inode grew."""
        self._try_again(ino)
        if self._freezer.written(ino):
            self._wake.set()

    def truncated(self, ino: int, size: int) -> None:
        """Clip what is in flight of this inode; it has dirty data, or had."""
        self._freezer.truncated(ino, size)
        self._try_again(ino)
        self._tell_waiters()  # nothing is due by that: to wake the loop at each unlink would cost much

    def drain(self) -> None:
        """From now on freeze everything at once (unmounting)."""
        self._freezer.draining = True
        self._wake.set()

    def halt(self, reason: Exception) -> None:
        """Freeze and commit nothing any more, so that the spool keeps it: nobody would hear of the packs.

        Who waits for data to be stored gets `reason` raised.
        """
        self._halted = reason
        self._progress_made()

    def want(self, ino: int, number: int) -> None:
        """Freeze this inode's data soon (something else will wait for it)."""
        if not self.is_stored(ino, number):
            self._freezer.want(ino, number)
            self._wake.set()

    def is_stored(self, ino: int, number: int) -> bool:
        """Whether every byte of `ino` written by operations up to `number` is committed."""
        return self._freezer.is_stored(ino, number)

    async def stored(self, ino: int, number: int) -> None:
        """Wait until every byte of `ino` written by operations up to `number` is committed.

        Raises OSError where bytes cannot be read back from the spool, and what `halt` was given.
        """
        self._try_again(ino)
        while not self.is_stored(ino, number):
            self._check_halted()
            if ino in self._unreadable:
                raise OSError(errno.EIO, self._unreadable[ino][0])
            self._freezer.want(ino, number)
            self._wake.set()
            await self._progress.wait()

    async def all_stored(self, number: int) -> None:
        """Wait until every byte written by operations up to `number`, of any inode, is committed.

        Raises OSError at the end where bytes could not be read back from the spool, and what `halt` got.
        """
        for ino in list(self._unreadable):
            self._try_again(ino)
        while inodes := self._freezer.unstored(number):
            self._check_halted()
            if all(ino in self._unreadable for ino in inodes):
                raise OSError(errno.EIO, self.unreadable or "")
            for ino in inodes:
                self._freezer.want(ino, number)
            self._wake.set()
            await self._progress.wait()

    async def progressed(self) -> None:
        """Wait until something was committed or clipped."""
        await self._progress.wait()

    @property
    def idle(self) -> bool:
        """Nothing is left to be done, or that could be done."""
        return not self._flights and self._dirty.inodes <= len(self._unreadable)

    @property
    def unreadable(self) -> str | None:
        """Which files have bytes that cannot be read back from the spool, and why, in words; None: none."""
        if not self._unreadable:
            return None
        ino, (reason, _) = next(iter(self._unreadable.items()))
        others = len(self._unreadable) - 1
        more = f" (and {others} more files)" if others else ""
        return f"{self._log.metadata.path_of(ino)}{more}: {reason}"

    @property
    def flights(self) -> int:
        """Packs on their way."""
        return len(self._flights)

    def _check_halted(self) -> None:
        if self._halted is not None:
            raise self._halted

    # ---- the loop

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Freeze, seal, upload and commit until cancelled; failed uploads are retried for ever."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._wake = trio.Event()
                if trio.current_time() >= self._again_at:
                    for ino in list(self._unreadable):
                        self._try_again(ino)
                while self._halted is None and (flight := self._freezer.select()) is not None:
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
        self._flights.append(flight)

    async def _admit(self, cost: int) -> None:
        while self.sealed_bytes and self.sealed_bytes + cost > self._config.sealed_bytes_max:
            await self._progress.wait()

    async def _fly(
        self, flight: Flight, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with self._seal_turn:
            task_status.started()
            plaintext = self._pages.take(flight.length)
            try:
                key, unread = await self._machine.offload.run(self._load, flight, plaintext)
            finally:
                for run in flight.runs:
                    for piece in run.pieces:
                        self._log.spool.unpin(piece.source)
            self._set_aside(flight, unread)
            flight.pack = await self._looked_up(key)
            sealed = None
            if flight.pack is None and flight.runs:
                columns = self._memory(flight.length)
                sealed = await self._machine.offload.run(self._seal, flight, key, plaintext, columns)
            del plaintext
        if sealed is not None:
            flight.places = [(run.offset, run.length) for run in sealed.runs]
            flight.pack = pack_record(sealed, await self._upload(sealed), KIND_DATA)
            del columns, sealed  # a commit may have to wait
        await self._commit_ready()

    def _memory(self, length: int) -> list[memoryview] | None:
        """For the primary columns of a pack of so many bytes; None for those that lie on the heap."""
        if length < self._freezer.pack_bytes // 2:
            return None
        return [self._pages.take(column_bytes_max(self._config.k)) for _ in range(self._config.k)]

    # ---- what the spool does not give back

    def _set_aside(self, flight: Flight, unread: dict[Run, str]) -> None:
        """Take runs that cannot be read out of a flight; an empty one has nothing more to do."""
        for run, reason in unread.items():
            flight.runs.remove(run)
            if run.end > run.start:
                logger.error("%s: %s", self._log.metadata.path_of(run.ino), reason)
                self._unreadable.setdefault(run.ino, (reason, []))[1].append(run)
            else:
                self._freezer.let_go([run])  # truncated meanwhile
        if not flight.runs:
            self._flights.remove(flight)
            self.sealed_bytes -= flight.cost
        if unread:
            self._again_at = trio.current_time() + self._config.unreadable_s
            self._progress_made()

    def _try_again(self, ino: int) -> None:
        """What was set aside of this inode may be picked again."""
        if ino in self._unreadable:
            _, runs = self._unreadable.pop(ino)
            self._freezer.let_go(runs)
            self._wake.set()

    async def _looked_up(self, key: bytes | None) -> PackRecord | None:
        """`_known`, where a local disk that refuses is waited for."""
        while True:
            try:
                return self._known(key)
            except (OSError, Corrupt, Unavailable) as error:
                await self._disk_refused("the metadata cannot be read", error)

    def _known(self, key: bytes | None) -> PackRecord | None:
        """The pack that holds exactly this content already, if there is one (convergence)."""
        ref = self._log.metadata.find_convergent(key_hash(key)) if key is not None else None
        if key is None or ref is None:
            return None
        pack = self._log.metadata.pack(ref)
        if (pack.k, pack.n) != (self._config.k, self._config.n):
            return None
        self.packs_known += 1
        return as_record(pack)

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

    def _load(self, flight: Flight, view: memoryview) -> tuple[bytes | None, dict[Run, str]]:
        """In a worker thread: read the runs from the spool, side by side, into `view`.

        Returns the convergent key, if the pack has one, and why which runs cannot be read.
        """
        position = 0
        unread: dict[Run, str] = {}
        for run in flight.runs:
            try:
                self._read(run, view[position : position + run.length])
                position += run.length
            except (OSError, StorageError) as error:
                unread[run] = f"its bytes cannot be read back from the spool: {error}"
        flight.places = [(0, position)]
        if flight.key is not None or unread:
            return None, unread
        return convergent_key(self._config.convergence_secret, view[:position]), unread

    def _read(self, run: Run, view: memoryview) -> None:
        position = 0
        for piece in run.pieces:
            size = piece.end - piece.start
            self._log.spool.read_into(piece.source, piece.skip, view[position : position + size])
            position += size

    def _seal(
        self, flight: Flight, key: bytes | None, view: memoryview, columns: list[memoryview] | None
    ) -> SealedPack:
        """In a worker thread, behind `_load`: seal what was read into `view`."""
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
            memory=columns,
        )

    # ---- committing (no awaits)

    async def _commit_ready(self) -> None:
        """Commit what is in the grid, in order. A local disk that refuses is waited for."""
        while self._halted is None and self._flights and self._flights[0].pack is not None:
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
        self._tell_waiters()
        self._wake.set()

    def _tell_waiters(self) -> None:
        self._progress.set()
        self._progress = trio.Event()
