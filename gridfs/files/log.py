"""The operation log: every change takes its number here, goes into the metadata, then to the spool.

One call of `record` is atomic between awaits: number, spool record and metadata change go together, so
whoever looks afterwards sees all of it or none. Metadata transactions hold many operations; a killed
daemon finds the last committed `applied` and replays the rest from the spool.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from gridfs.files.overlay import Source
from gridfs.files.spool import Replayed, Spool
from gridfs.meta.checkpoints import Snapshot
from gridfs.meta.operations import Operation, Together, decode, encode
from gridfs.meta.store import Metadata, checkpoint_on_own_connection
from storage.appendfile import write_again
from storage.errors import Exhausted, StorageError, Unavailable
from storage.ports import Buffer, Machine

logger = logging.getLogger(__name__)

_NOTHING = encode(Together([]))


@dataclass(frozen=True, slots=True)
class LogConfig:
    commit_every_s: float = 0.25
    """Metadata transactions end this often while operations come."""
    operations_max: int = 2000
    """... and after this many operations."""
    retry_s: float = 1.0
    """Pause after the disk refused a commit."""
    durable_every_s: float = 15.0
    """Committed metadata is made durable this often; sooner when the spool needs the room."""


class OperationLog:
    """Numbers operations and keeps spool and metadata in step."""

    def __init__(
        self, machine: Machine, metadata: Metadata, database: str, spool: Spool, config: LogConfig
    ) -> None:
        self._machine = machine
        self._database = database
        self._config = config
        self.metadata = metadata
        self.spool = spool
        self.number = metadata.applied
        self._committed = metadata.applied
        self._pending = 0
        self._save: Callable[[], None] | None = None
        """What is to be done before the transaction ends."""
        self._ordered = 0
        self._in_order = 0
        """Everything up to here is in the metadata or durable in the spool."""
        self._is_doubtful = True
        """The last checkpoint failed, or was that of another process: something of SQLite's log may lie in
        the kernel's memory alone, and be taken for synced."""
        self._wake = trio.Event()
        self._durable_wanted = trio.Event()
        self.room_freed = trio.Event()
        """Set and replaced whenever slots of the spool became free."""

    def replayed(self, record: Replayed) -> Operation:
        """Take over one record found in the spool at start; returns its operation."""
        operation = decode(record.operation)
        self.metadata.apply(record.number, operation, record.operation)  # does nothing up to `applied`
        self.number = max(self.number, record.number)
        return operation

    def start(self) -> None:
        """Replay is over: commit it."""
        self.commit()

    def record(self, operation: Operation, data: Buffer = b"", phase: int = 0) -> tuple[int, Source]:
        """Apply and append one operation; acknowledged when this returns.

        Raises OSError or Unavailable (disk) or Exhausted (spool) with nothing changed.
        """
        number = self.number + 1
        encoded = encode(operation)
        # What the spool has is done, whatever happens then; what the metadata has can be taken back.
        self.metadata.apply(number, operation, encoded)
        try:
            source = self.spool.append(number, encoded, data, phase)
        except BaseException:
            self._revoke(number)
            raise
        self.number = number
        self._pending += 1
        if self._pending == 1 or self._pending >= self._config.operations_max:
            self._wake.set()
        return number, source

    def _revoke(self, number: int) -> None:
        try:
            self.metadata.revoke(number)
        except StorageError as error:
            logger.error("the metadata cannot be read, and is brought back as soon as it can: %s", error)

    def adopt(self, number: int, encoded: bytes) -> Operation:
        """Apply an operation of this file system that the grid has and this machine lacks."""
        operation = decode(encoded)
        self.metadata.apply(number, operation, encoded)
        self.number = number
        return operation

    @property
    def keeps_adopted(self) -> bool:
        """Whether operations that the metadata have must be in the spool, too: there is data in it."""
        return self.spool.live_bytes > 0

    def keep(self, number: int, encoded: bytes) -> bool:
        """Put an operation into the spool that the metadata have: so that a later replay knows it. Durable
        before anything else is. False where there is no room."""
        try:
            for lost in range(self.spool.last + 1, number):  # writes, of which only the spool had something
                self.spool.append(lost, _NOTHING)
            self.spool.append(number, encoded)
        except Exhausted as error:
            logger.error("operation %d is not kept: %s", number, error)
            return False
        self.order(number)
        return True

    def begin_checkpoint(self) -> Snapshot:
        """A snapshot of the metadata after the last operation; the caller closes it."""
        has_second = self._machine.disk.sqlite_vfs is None
        snapshot = self.metadata.begin_checkpoint(self._database if has_second else None)
        self.commit()
        return snapshot

    def order(self, number: int) -> None:
        """Operation `number`, and what comes after it, stays only where everything before it does.

        The loss of power may leave the metadata, which has no data, without what lay in the spool. So from
        here on nothing is committed until the spool is durable.
        """
        self._ordered = number

    def commit(self) -> None:
        """End the metadata transaction now, unless the spool must be durable first."""
        if self._ordered > self._in_order:
            return
        self._commit()

    async def commit_in_order(self) -> None:
        """End the metadata transaction, once the spool is durable where it must be. Raises OSError too."""
        while self._ordered > self._in_order:
            number = self.number
            await self.spool.sync()
            self._in_order = number
        self._commit()

    def before_commit(self, save: Callable[[], None]) -> None:
        """Have this called, once, before the next metadata transaction ends; it may change metadata."""
        self._save = save

    def _commit(self) -> None:
        if self._save is not None:
            self._save()
            self._save = None
        if self.metadata.in_transaction:
            self.metadata.commit()
        self._committed = self.number
        self._pending = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit in the background until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_durable)
            task_status.started()
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                with trio.move_on_after(self._config.commit_every_s):
                    while self._pending < self._config.operations_max:
                        await self._wake.wait()
                        self._wake = trio.Event()
                await self._guarded(self.turn)

    async def turn(self) -> None:
        """End the metadata transaction, and clear away what waits for that. Raises like `commit_in_order`."""
        await self.commit_in_order()
        self.reclaim()
        while self.metadata.work(2000):
            await trio.lowlevel.checkpoint()

    async def _guarded(self, step: Callable[[], Awaitable[None]]) -> None:
        """Run one step; a disk that is full or fails is waited for: the spool holds everything meanwhile."""
        try:
            await step()
        except (Exhausted, Unavailable, OSError) as error:
            logger.error("the metadata cannot be written: %s", error)
            await trio.sleep(self._config.retry_s)
            self._wake.set()

    def begin_anew(self) -> None:
        """The metadata are others now, up to some other operation."""
        self.number = self._committed = self._ordered = self._in_order = self.metadata.applied

    def reclaim(self) -> None:
        """Give back slots of the spool that nothing needs; ask for durability where that frees more."""
        if self.spool.reclaim(self.spool.durable):
            self.room_freed.set()
            self.room_freed = trio.Event()
        if self.spool.is_oldest_wanted:
            self._durable_wanted.set()

    async def _keep_durable(self) -> None:
        while True:
            with trio.move_on_after(self._config.durable_every_s):
                await self._durable_wanted.wait()
            self._durable_wanted = trio.Event()
            await self._guarded(self.make_durable)

    async def make_durable(self) -> None:
        """Everything recorded so far is durable in the metadata when this returns."""
        await self.commit_in_order()
        upto = self._committed
        if upto > self.spool.durable and not await self._checkpoint():
            return  # somebody reads an old snapshot: the next turn tries again
        if self.spool.wants_sync:
            await self.spool.sync()
        if self.spool.reclaim(upto):
            self.room_freed.set()
            self.room_freed = trio.Event()

    async def settle(self) -> None:
        """Everything so far, small values too, is durable in the metadata when this returns.

        Raises Unavailable where somebody else reads the database just then; nobody does while mounting.
        """
        await self.commit_in_order()
        if not await self._checkpoint():
            raise Unavailable("the metadata database is in use by somebody else")

    async def _checkpoint(self) -> bool:
        if self._is_doubtful:
            self._write_again()
        self._is_doubtful = True
        done = await self._checkpoint_once()
        self._is_doubtful = not done
        return done

    def _write_again(self) -> None:
        """A checkpoint first syncs SQLite's log, then overwrites the database. Where the power is lost in
        between, only the log makes the database whole: it must not lack what an earlier sync gave up. In
        the loop, where nobody else writes."""
        try:
            file = self._machine.disk.open(f"{self._database}-wal")
        except FileNotFoundError:
            return
        try:
            write_again(file, 0, file.size())
        finally:
            file.close()
        # Who made it may have ended before its name was durable: an older one in its place would be believed.
        self._machine.disk.sync_directory(os.path.dirname(self._database))

    def close(self) -> None:
        """Close metadata and spool; what was not committed is in the spool. Raises what closing raises."""
        try:
            self.metadata.close(checkpoint=not self._is_doubtful)
        finally:
            self.spool.close()

    async def _checkpoint_once(self) -> bool:
        if self._machine.disk.sqlite_vfs is None:
            return await self._machine.offload.run(checkpoint_on_own_connection, self._database)
        # Such a disk has no shared memory for a second connection.
        return self.metadata.make_durable()
