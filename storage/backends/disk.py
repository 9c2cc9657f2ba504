"""Shares on a disk: small ones in volumes, larger ones in files of their own, an index over both.

Every change is an entry in the newest volume, and one sync of it makes a whole batch of calls durable; the
index follows. SPEC.md has the formats and what a crash leaves at each step.

Atomic between awaits: the index. It changes only after the bytes it speaks of are durable, and only in the
committing task (`GroupCommit`), which also runs upkeep: checkpoints of the index and compaction of volumes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import apsw
import trio

from storage.appendfile import disk_error
from storage.backends.compaction import Compactor, log_changes
from storage.backends.descriptors import Descriptor, Descriptors
from storage.backends.index import Logged
from storage.backends.plan import (
    SMALL_SHARE_MAX,
    Assert,
    Operation,
    Plan,
    Release,
    Store,
    Vanished,
    plan_batch,
)
from storage.backends.port import IncomingShare, Piece, ShareKey, SyncPolicy
from storage.backends.recovery import OpenDirectory, open_directory
from storage.backends.requests import KEYS_PER_OPERATION, check_keys, check_shares, share_length
from storage.backends.sharefiles import WrittenFile
from storage.errors import Exhausted, StorageError, Unavailable
from storage.groupcommit import GroupCommit, Ticket
from storage.leases import Holder, Lease
from storage.ports import Brief, Disk, Offload, Space

_LOGGER = logging.getLogger(__name__)

PUT_TRIES_MAX = 8
"""Times that a put starts over because a share it found was released before the commit."""
KEY_COST = 4096
"""Bytes that one key counts in a batch, so that no transaction in the loop touches many thousand rows."""


@dataclass(frozen=True)
class DiskConfig:
    """Tunables of one disk backend."""

    sync: SyncPolicy = SyncPolicy.GROUP
    capacity_bytes: int | None = None
    """Most bytes of shares to hold; None: what the disk has."""
    reserve_bytes: int = 64 * 1024 * 1024
    """Free bytes of the disk that shares leave alone, so that releases and compaction can still be logged."""
    volume_size_max: int = 256 * 1024 * 1024
    """Bytes after which a new volume begins."""
    descriptors_max: int = 256
    """Open files kept for readers."""
    wal_pages_max: int = 4096
    """Pages of the index's write-ahead log after which it is checkpointed."""
    removals_max: int = 256
    """Directories with removals after which these are synced, and the index checkpointed."""


class DiskBackend:
    """`ShareBackend` on a directory of a Disk."""

    def __init__(
        self,
        disk: Disk,
        offload: Offload,
        directory: str,
        server_id: bytes,
        config: DiskConfig | None = None,
    ) -> None:
        self._disk = disk
        self._offload = offload
        self._directory = directory
        self._server_id = server_id
        self._config = config or DiskConfig()
        self._opened: OpenDirectory | None = None
        self._compactor: Compactor | None = None
        self._compact_due = True
        self._lost: dict[ShareKey, None] = {}
        self._broken: str | None = None
        # Files that one task writes or removes; others that want the same name wait.
        self._writing: dict[ShareKey, trio.Event] = {}
        self._removing: dict[ShareKey, trio.Event] = {}
        self._descriptors = Descriptors(disk, self._config.descriptors_max)
        self._commits: GroupCommit[Operation, list[bool]] = GroupCommit(
            self._commit,
            batch_count_max=1 if self._config.sync == SyncPolicy.EACH else 1024,
            upkeep=self._upkeep,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `ShareBackend.run`."""
        try:
            await self._run(task_status)
        except apsw.Error as error:
            raise Unavailable(f"index of {self._directory}: {error}") from error

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        opened = await self._offload.run(
            open_directory, self._disk, self._directory, self._server_id, self._config.volume_size_max
        )
        try:
            self._compactor = Compactor(opened.index, opened.volumes, self._offload)
            await self._checkpoint(opened)
            self._opened = opened
            await self._commits.run(task_status=task_status)
        finally:
            try:
                if self._opened and not self._broken:
                    with trio.CancelScope(shield=True):
                        await self._checkpoint(opened)
            finally:
                self._opened = None
                self._descriptors.close()
                opened.close()

    # Questions, answered from what is committed

    @property
    def _directory_open(self) -> OpenDirectory:
        if self._opened is None:
            raise Unavailable("the share directory is not open")
        return self._opened

    def has(self, keys: Sequence[ShareKey]) -> list[bool]:
        index = self._directory_open.index
        try:
            return [key not in self._lost and index.place(key) is not None for key in keys]
        except apsw.Error as error:
            raise Unavailable(f"index: {error}") from error

    def pin(self, key: ShareKey) -> Piece | None:
        opened = self._directory_open
        try:
            place = opened.index.place(key)
        except apsw.Error as error:
            raise Unavailable(f"index: {error}") from error
        if place is None:
            return None
        try:
            descriptor = self._descriptors.pin(
                opened.volumes.path(place.volume) if place.volume else opened.files.path(key)
            )
        except FileNotFoundError:
            _LOGGER.error("share %s.%d is lost: its file is missing", key.pack_id.hex(), key.number)
            self._lost[key] = None
            self._commits.nudge()
            return None
        except OSError as error:
            raise disk_error(error, "open share") from error
        return Piece(descriptor.file, place.offset, place.length, descriptor)

    def unpin(self, piece: Piece) -> None:
        assert isinstance(piece.token, Descriptor)
        self._descriptors.unpin(piece.token)

    def leased(self, holder: Holder, after: ShareKey | None, limit: int) -> list[ShareKey]:
        index = self._directory_open.index
        try:
            return index.leased(holder, after, limit)
        except apsw.Error as error:
            raise Unavailable(f"index: {error}") from error

    def space(self) -> Space:
        disk = self._disk.space(self._directory)
        free = disk.free - self._config.reserve_bytes
        total = disk.total
        if self._config.capacity_bytes is not None:
            total = min(total, self._config.capacity_bytes)
            free = min(free, self._config.capacity_bytes - self.counts()[1])
        return Space(total, max(0, free))

    def counts(self) -> tuple[int, int]:
        return self._directory_open.index.counts()

    def statistics(self) -> tuple[int, int]:
        """(open files kept for readers, pins held)."""
        return self._descriptors.statistics()

    # Changes

    async def store(self, shares: Sequence[IncomingShare]) -> list[bool]:
        check_shares(shares)
        here = self.has([share.key for share in shares])
        size = sum(share_length(share) for share, known in zip(shares, here, strict=True) if not known)
        if size and size > self.space().free:
            raise Exhausted(f"no room for {size} bytes of shares")
        for _ in range(PUT_TRIES_MAX):
            operation = Store(shares)
            try:
                await self._write_files(operation)
                cost = sum(KEY_COST + share_length(share) for share in shares)
                return await self._commits.submit(operation, cost)
            except Vanished:
                continue
            finally:
                for written in operation.written.values():
                    self._discard(written)
        raise Unavailable("the share was released again and again meanwhile")

    async def assert_leases(self, keys: Sequence[ShareKey], lease: Lease) -> list[bool]:
        check_keys(keys, lease)
        answers: list[bool] = []
        for start in range(0, len(keys), KEYS_PER_OPERATION):
            part = keys[start : start + KEYS_PER_OPERATION]
            answers += await self._commits.submit(Assert(part, lease), KEY_COST * len(part))
        return answers

    async def release(self, keys: Sequence[ShareKey], lease: Lease) -> list[bool]:
        check_keys(keys, lease)
        answers: list[bool] = []
        for start in range(0, len(keys), KEYS_PER_OPERATION):
            part = keys[start : start + KEYS_PER_OPERATION]
            answers += await self._commits.submit(Release(part, lease), KEY_COST * len(part))
        return answers

    async def _write_files(self, operation: Store) -> None:
        """Write the larger shares that are not here, one writer for each key at a time.

        Keys are taken in one order everywhere, so that two calls never wait for each other.
        """
        large = [i for i, share in enumerate(operation.shares) if share_length(share) > SMALL_SHARE_MAX]
        mine: dict[ShareKey, None] = {}
        for position in sorted(large, key=lambda i: operation.shares[i].key):
            share = operation.shares[position]
            while share.key not in mine and (busy := self._busy(share.key)) is not None:
                await busy.wait()
            if share.key in mine or self.has([share.key])[0]:
                continue
            # An entry may speak of the file that is there, though the index does not know of it.
            self._require_whole()
            mine[share.key] = None
            self._writing[share.key] = trio.Event()
            try:
                operation.written[position] = await self._offload.run(
                    self._directory_open.files.write, share.key, share.parts
                )
            except BaseException as error:
                self._writing.pop(share.key).set()
                if isinstance(error, OSError):
                    raise disk_error(error, "write share") from error
                raise

    def _busy(self, key: ShareKey) -> trio.Event | None:
        return self._writing.get(key, self._removing.get(key))

    def _discard(self, written: WrittenFile) -> None:
        if self._opened is not None:
            self._opened.files.discard(written)
        else:
            written.file.close()
        self._writing.pop(written.key).set()

    # The committing task

    def _require_whole(self) -> None:
        """Raises Unavailable where log and index went different ways until the next start."""
        broken = self._broken or self._directory_open.volumes.broken
        if broken:
            raise Unavailable(broken)

    async def _commit(self, tickets: Sequence[Ticket[Operation, list[bool]]]) -> None:
        self._require_whole()
        opened = self._directory_open
        try:
            self._forget_lost(opened)
            plan = plan_batch(opened.index.state, tickets)
            if plan.changes:
                if plan.is_small:
                    logged = await self._offload.run_brief(Brief.SYNC, self._write, plan)
                else:
                    logged = await self._offload.run(self._write, plan)
                gone = opened.index.apply(logged, opened.volumes.position)
                own = [key for key, place in gone if place.volume == 0]
                for key in own:
                    self._descriptors.forget(opened.files.path(key))
                await self._remove_files(own)
        except apsw.Error as error:
            # The log is ahead of the index now; the next start follows it.
            self._broken = f"index failed ({error}); the server must be started anew"
            raise Unavailable(self._broken) from error
        except OSError as error:
            raise disk_error(error, "store") from error
        self._compact_due = self._compact_due or any(not change.length for change, _ in plan.changes)
        for ticket, answer in plan.answers:
            ticket.succeed(answer)

    def _forget_lost(self, opened: OpenDirectory) -> None:
        """Drop shares whose files are missing, so that a repairer, told so, may put them again."""
        for key in self._lost:
            opened.index.forget(key)
        self._lost.clear()

    def _write(self, plan: Plan) -> list[Logged]:
        """In a worker: make the plan durable."""
        opened = self._directory_open
        sync = self._config.sync != SyncPolicy.NONE
        if sync:
            opened.files.sync(plan.written)
        try:
            logged = log_changes(opened.volumes, plan.changes, sync)
        except StorageError:
            # Where the log cannot be cut again, the next start may find the entries: the files stay.
            for written in plan.written:
                written.committed = opened.volumes.broken is not None
            raise
        for written in plan.written:
            written.committed = True
        return logged

    async def _remove_files(self, keys: Sequence[ShareKey]) -> None:
        if not keys:
            return
        gate = trio.Event()
        self._removing.update(dict.fromkeys(keys, gate))
        try:
            await self._offload.run(self._remove, keys)
        finally:
            self._removing.clear()
            gate.set()

    def _remove(self, keys: Sequence[ShareKey]) -> None:
        for key in keys:
            try:
                self._directory_open.files.remove(key)
            except OSError as error:
                _LOGGER.error("share %s.%d not removed: %s", key.pack_id.hex(), key.number, error)

    async def _checkpoint(self, opened: OpenDirectory) -> None:
        await self._offload.run(opened.files.sync_removals)
        await opened.index.checkpoint(self._offload)

    async def _upkeep(self) -> bool:
        opened = self._directory_open
        if self._broken:
            return False
        try:
            self._forget_lost(opened)
            many = opened.files.unsynced_removals > self._config.removals_max
            if many or opened.index.wal_pages > self._config.wal_pages_max:
                await self._checkpoint(opened)
            return await self._compact(opened)
        except (OSError, StorageError, apsw.Error) as error:
            # Tried again after the next change; shares are served and stored meanwhile.
            _LOGGER.warning("upkeep of %s: %s", self._directory, error)
            self._compact_due = False
            return False

    async def _compact(self, opened: OpenDirectory) -> bool:
        compactor = self._compactor
        if compactor is None or not self._compact_due or compactor.choose() is None:
            self._compact_due = False
            return False
        if await compactor.slice():
            await self._checkpoint(opened)
            number = await compactor.finish()
            self._descriptors.forget(opened.volumes.path(number))
        return True
