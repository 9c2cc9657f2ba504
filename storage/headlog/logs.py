"""All head logs of one server, in one append-only file, so that concurrent appends share one sync.

A log is created by the first claim with the two keys that its name is the hash of. A claim is a promise: once
(epoch, mount) is promised, lower epochs and other mounts of the same epoch are refused, and with them every
key of an older generation. Records are kept until their writer trims them, within bounds. Memory holds the
stamps and places of records, not their bytes.

Atomic between awaits: `_logs` and `_file` change only in `_apply` and `_upkeep`, after the bytes they speak
of are durable, so that `read` never shows what a crash could take back. SPEC.md has the crash analysis.
"""

from __future__ import annotations

import itertools
import logging
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import trio

from storage.appendfile import ROOM_BATCH_MAX, AppendBatch
from storage.errors import Conflict, Exhausted, Missing, Refused, StorageError
from storage.format.entry import Entry
from storage.format.head import (
    HeadClaim,
    HeadRecord,
    HeadStanding,
    drop_signed_bytes,
    fits,
    trim_signed_bytes,
)
from storage.groupcommit import GroupCommit, Ticket
from storage.headlog.journal import HeadJournal, add_operation, apply_entry
from storage.headlog.state import (
    Append,
    Appends,
    Claim,
    Drop,
    HeadLog,
    Operation,
    Slot,
    Staged,
    Submitted,
    Trim,
)
from storage.leases import STAMP_MAX, Stamp
from storage.ports import Brief, Disk, Offload

_LOGGER = logging.getLogger(__name__)

Claimed = tuple[int, bytes, HeadRecord | None]


@dataclass(frozen=True)
class HeadLogConfig:
    """Bounds of what strangers' records may take."""

    records_max: int = 16384
    """Records per log."""
    bytes_max: int = 64 * 1024 * 1024
    """Bytes of encoded records per log."""
    logs_max: int = 1024
    """Logs on this server."""
    garbage_bytes_min: int = 4 * 1024 * 1024
    """Garbage below which the file is not rewritten."""


@dataclass(slots=True)
class _Decided:
    """A batch of operations, before it is durable."""

    batch: AppendBatch
    changes: list[tuple[Entry, Operation]] = field(default_factory=list)
    answers: list[tuple[Ticket[Submitted, Claimed | None], Claimed | None]] = field(default_factory=list)

    @property
    def is_small(self) -> bool:
        return 0 < self.batch.end - self.batch.offset <= ROOM_BATCH_MAX


class HeadLogs:
    """The head logs under one directory. `run` must be running for everything but construction."""

    def __init__(
        self, disk: Disk, offload: Offload, directory: str, config: HeadLogConfig | None = None
    ) -> None:
        self._offload = offload
        self._config = config or HeadLogConfig()
        self._journal = HeadJournal(disk, directory)
        self._logs: dict[bytes, HeadLog] = {}
        self._rewrite_above = self._config.garbage_bytes_min
        self._commits: GroupCommit[Submitted, Claimed | None] = GroupCommit(
            self._commit,
            batch_bytes_max=4 * 1024 * 1024,
            upkeep=self._upkeep,
            commit_now=self._commit_now,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open, cut a torn tail, then commit until cancelled.

        Raises Refused for an unknown format version, Corrupt for a strange file, Unavailable.
        """
        try:
            self._logs = await self._offload.run(self._journal.open)
            await self._commits.run(task_status=task_status)
        finally:
            self._journal.close()

    async def claim(self, claim: HeadClaim) -> Claimed:
        """Promise an epoch to a mount; returns (epoch, mount id, newest record) as they then stand.

        Durable on return, idempotent, a checkpoint. Creates the log where there is none of that name, and
        gives it to a successor that the recovery key endorsed. Raises Conflict where a higher epoch, or this
        one to another mount, was promised, or the log belongs to a younger generation; Refused for a key
        that may not claim; Exhausted where the server keeps too many logs.
        """
        claim.check()
        operation = Claim(claim.log, claim.verifying_key, claim.epoch, claim.mount_id, claim.succession)
        claimed = await self._commits.submit(operation)
        assert claimed is not None
        return claimed

    async def append(self, log: bytes, *records: HeadRecord) -> None:
        """Keep records, of which each names the one before it: all, or none.

        Durable on return, idempotent for identical ones, a checkpoint. Raises Missing for an unknown log,
        Refused for a wrong signature, malformed records or such that do not follow each other, Conflict where
        their epoch is not the promised one or another record has a place, Exhausted beyond the bounds.
        """
        self._check_records(log, records)
        await self._commits.submit(Appends(log, records), _size_bytes(records))

    def append_nowait(
        self,
        log: bytes,
        records: Sequence[HeadRecord],
        settled: Callable[[StorageError | None], None],
        keys: Collection[bytes] = (),
    ) -> Callable[[], bool]:
        """The same without a task that waits: `settled` is told once how it ended. It must not raise.

        `keys`: verifying keys whose signing keys the sender has shown to have. What he signs with one of
        them is not checked once more: five servers that do so for each record cost more than its sync.

        Raises what can be told at once. Returns how to take the records back while they are not in flight;
        what that calls tells whether they were taken back, and then `settled` is not called.
        """
        self._check_records(log, records, keys)
        ticket = self._commits.submit_nowait(
            Appends(log, records), _size_bytes(records), lambda ticket: settled(ticket.error)
        )
        return lambda: self._commits.withdraw(ticket)

    def _check_records(self, log: bytes, records: Sequence[HeadRecord], keys: Collection[bytes] = ()) -> None:
        """The last one's signature speaks for all: it is over the hash of the one before, signature included,
        and so on."""
        for record in records:
            record.check()
        for before, record in itertools.pairwise(records):
            if record.previous != before.record_hash():
                raise Refused("head records that do not follow each other")
        held = self._logs.get(log)
        if held is not None and held.verifying_key in keys:
            return
        last = records[-1]
        self._check_signature(log, last.signature, last.signed_bytes(log))

    async def trim(self, log: bytes, before: Stamp, signature: bytes) -> None:
        """Drop records below `before`, never the newest; durable on return, idempotent, a checkpoint.

        `signature` is over `trim_signed_bytes`. Raises Missing for an unknown log, Refused.
        """
        if not all(0 <= part <= STAMP_MAX for part in before):
            raise Refused("malformed trim")
        self._check_signature(log, signature, trim_signed_bytes(log, before))
        await self._commits.submit(Trim(log, before))

    async def drop(self, log: bytes, epoch: int, signature: bytes) -> None:
        """End a log and forget its records; durable on return, idempotent, a checkpoint.

        `signature` is over `drop_signed_bytes`. Raises Refused for a wrong one, Conflict where another epoch
        than this one is promised. A log that is not there is ended already.
        """
        if log in self._logs:
            self._check_signature(log, signature, drop_signed_bytes(log, epoch))
            await self._commits.submit(Drop(log, epoch))

    def look(self, log: bytes) -> HeadStanding | None:
        """How a log stands; None where there is none. Raises Corrupt, Unavailable."""
        held = self._logs.get(log)
        if held is None:
            return None
        newest = self._journal.read(held.newest) if held.newest else None
        return HeadStanding(held.epoch, held.mount_id, held.succession, newest)

    def read(self, log: bytes, after: Stamp | None, limit_bytes: int) -> list[HeadRecord]:
        """Kept records above `after` (all for None) in order, until their payloads reach `limit_bytes`.

        At least one where there is one. An unknown log reads as empty. Raises Corrupt, Unavailable.
        """
        held = self._logs.get(log)
        if held is None:
            return []
        start = 0 if after is None else bisect_right(held.slots, after, key=lambda slot: slot.stamp)
        records: list[HeadRecord] = []
        size = 0
        for slot in held.slots[start:]:
            if records and size >= limit_bytes:
                break
            records.append(self._journal.read(slot))
            size += len(records[-1].payload)
        return records

    def statistics(self) -> tuple[int, int, int]:
        """(logs, records, bytes of records) kept."""
        held = self._logs.values()
        return len(held), sum(len(log.slots) for log in held), sum(log.record_bytes for log in held)

    def _check_signature(self, log: bytes, signature: bytes, message: bytes) -> None:
        held = self._logs.get(log)
        if held is None:
            raise Missing("no such head log on this server")
        if not fits(held.verifying_key, signature, message):
            raise Refused("the signature does not fit this head log")

    async def _commit(self, tickets: Sequence[Ticket[Submitted, Claimed | None]]) -> None:
        decided = self._decide(tickets)
        if decided.is_small:
            await self._offload.run_brief(Brief.SYNC, self._journal.write, decided.batch)
        elif decided.changes:
            await self._offload.run(self._journal.write, decided.batch)
        self._apply(decided)

    def _commit_now(self, ticket: Ticket[Submitted, Claimed | None]) -> bool:
        """The same in the loop, for one operation, while the disk is quick."""
        if not self._offload.is_brief(Brief.SYNC) or ticket.size_bytes > ROOM_BATCH_MAX:
            return False
        try:
            decided = self._decide([ticket])
            if decided.changes:
                self._offload.run_here(Brief.SYNC, self._journal.write, decided.batch)
        except StorageError as error:
            ticket.fail(error)
        else:
            self._apply(decided)
            if self._has_garbage:
                self._commits.nudge()
        return True

    def _decide(self, tickets: Sequence[Ticket[Submitted, Claimed | None]]) -> _Decided:
        """What these operations change, each seeing the ones before it. Those that may not are settled."""
        staged: dict[bytes, Staged] = {}
        decided = _Decided(self._journal.batch())
        for ticket in tickets:
            operation = ticket.operation
            log = staged.get(operation.log)
            if log is None:
                log = staged[operation.log] = Staged(self._logs.get(operation.log))
            try:
                answer, changes = self._stage(log, operation, staged)
            except StorageError as error:
                ticket.fail(error)
                continue
            decided.answers.append((ticket, answer))
            decided.changes += [(add_operation(decided.batch, change), change) for change in changes]
        return decided

    def _apply(self, decided: _Decided) -> None:
        """It is durable."""
        for entry, operation in decided.changes:
            apply_entry(self._logs, entry, operation)
        for ticket, answer in decided.answers:
            ticket.succeed(answer)

    def _stage(
        self, log: Staged, operation: Submitted, staged: dict[bytes, Staged]
    ) -> tuple[Claimed | None, Sequence[Operation]]:
        """Decide one operation: its answer, and what it changes that is durable."""
        match operation:
            case Claim():
                created = sum(other.created for other in staged.values())
                if log.log is None and not log.created and len(self._logs) + created >= self._config.logs_max:
                    raise Exhausted("this server keeps no more head logs")
                changes = [operation] if log.claim(operation) else []
                return (log.epoch, log.mount_id, self._newest(log)), changes
            case Appends(name, records):
                return None, [Append(name, record) for record in self._stage_records(log, records)]
            case Drop(_, epoch):
                return None, [operation] if log.drop(epoch) else []
            case Trim(_, before):
                oldest = log.log.slots[0].stamp if log.log and log.log.slots else None
                return None, [operation] if oldest is not None and oldest < before else []

    def _stage_records(self, log: Staged, records: Sequence[HeadRecord]) -> list[HeadRecord]:
        """Decide an append of records; returns those that are new. Raises Conflict, Exhausted."""
        new: list[HeadRecord] = []
        try:
            for record in records:
                kept = log.append(record)
                if isinstance(kept, Slot):
                    kept = self._journal.read(kept)
                if kept is None:
                    new.append(record)
                    self._check_bounds(log)
                elif kept != record:
                    raise Conflict(f"another record has the place {record.stamp}")
        except StorageError:
            for _ in new:
                log.take_back()
            raise
        return new

    def _newest(self, log: Staged) -> HeadRecord | None:
        if log.added:
            return log.added[-1]
        newest = log.log.newest if log.log else None
        return self._journal.read(newest) if newest else None

    def _check_bounds(self, log: Staged) -> None:
        if log.count > self._config.records_max or log.size_bytes > self._config.bytes_max:
            raise Exhausted("this head log is full: its writer must trim it")

    @property
    def _has_garbage(self) -> bool:
        """Whether more than half of the file is garbage, and that is worth a rewrite."""
        if self._journal.size_bytes <= self._rewrite_above:
            return False  # asked after every append, and seldom true: without a look at each log
        garbage = self._journal.garbage_bytes(self._logs.values())
        live = sum(log.record_bytes for log in self._logs.values())
        return garbage > max(live, self._rewrite_above)

    async def _upkeep(self) -> bool:
        if self._has_garbage:
            # A rewrite that fails (a full disk, a rotten record) is not tried again at every batch.
            self._rewrite_above = self._journal.garbage_bytes(self._logs.values()) * 2
            try:
                rewritten = await self._offload.run(self._journal.rewrite, list(self._logs.values()))
            except StorageError as error:
                _LOGGER.warning("head logs not rewritten: %s", error)
            else:
                self._journal.adopt(rewritten)
                self._logs = rewritten.logs
                self._rewrite_above = self._config.garbage_bytes_min
        return False


def _size_bytes(records: Sequence[HeadRecord]) -> int:
    return sum(len(record.payload) for record in records)
