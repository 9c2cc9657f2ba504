"""What the grid knows of a file system's operations: head log records and journal packs, read back.

A local state that is older than the grid (the machine lost power, or was restored from a copy) is
rolled forward with it before anything is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import trio

from gridfs.codec.headkeys import HeadKeys
from gridfs.files.headstate import Base, base_of
from gridfs.files.runs import batches, only_run, read_runs
from gridfs.grid.downloader import Downloader
from gridfs.grid.heads import HeadServers
from gridfs.meta.records import CarriedData, HeadBody, JournalBody, decode_journal, open_head
from storage.errors import Corrupt
from storage.format.head import GENESIS, HeadRecord, fits

JOURNAL_BYTES_AT_ONCE = 16 << 20
"""Bytes of journal packs that are read in one round trip."""
KNOWN_BYTES_MAX = 32 << 20
"""Head records in memory beyond this are forgotten when more come: far above what one may rest on."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The operations behind a number, and what the newest record rests on."""

    operations: list[tuple[int, bytes]]
    """(number, encoded operation), ascending; none missing."""
    base: Base
    gathered: int
    """Number of the last operation in journal packs."""


class BehindCheckpoint(Exception):
    """What is asked for was given up when a checkpoint took its place."""


@dataclass(slots=True)
class _Recalled:
    """What was read ahead."""

    newest: bytes
    """Hash of the record that it is for."""
    base: tuple[Base, JournalBody | None] | None = None
    journals: list[JournalBody] | None = None


class History:
    """Reads one file system's past from the grid."""

    def __init__(self, heads: HeadServers, downloader: Downloader, keys: HeadKeys) -> None:
        self._heads = heads
        self._downloader = downloader
        self._log = keys.log
        self._readable = [(tree.verifying_key, tree.journal_key) for tree in (keys.tree, *keys.former)]
        self._recalled: _Recalled | None = None
        self._known: dict[bytes, HeadRecord] = {}
        """Records by their hash, which is how others name them: one is never asked for again."""
        self._known_bytes = 0
        self._opened: dict[bytes, HeadBody] = {}
        """Of records that are known."""

    def body(self, record: HeadRecord) -> HeadBody:
        """Check a record's signature and open it. Raises Corrupt."""
        name = record.record_hash()
        opened = self._opened.get(name)
        if opened is not None:
            return opened
        journal_key = self._journal_key(record)
        if journal_key is None:
            raise Corrupt(f"head record {record.epoch}.{record.sequence} is forged")
        body = open_head(record.payload, journal_key, record.epoch, record.sequence)
        if name in self._known:
            self._opened[name] = body
        return body

    def learn(self, records: Iterable[HeadRecord]) -> None:
        """Keep records that somebody has read: what is asked about newer ones may rest on them."""
        if self._known_bytes > KNOWN_BYTES_MAX:
            self.forget()
        for record in records:
            if self._known.setdefault(record.record_hash(), record) is record:
                self._known_bytes += len(record.payload)

    def forget(self) -> None:
        """Keep nothing in memory any longer."""
        self._recalled = None
        self._known.clear()
        self._opened.clear()
        self._known_bytes = 0

    def _journal_key(self, record: HeadRecord) -> bytes | None:
        """Journal key of the generation that signed a record."""
        signed = record.signed_bytes(self._log)
        return next((key for signer, key in self._readable if fits(signer, record.signature, signed)), None)

    async def recall(self, newest: HeadRecord) -> None:
        """Read ahead, all at once, what `behind` and `carried` will want of a record for metadata that are at
        its checkpoint. Raises what those do, but BehindCheckpoint."""
        body = self.body(newest)
        recalled = _Recalled(newest.record_hash())

        reaches_back = body.after not in (body.checkpointed, body.gathered)
        async with trio.open_nursery() as nursery:
            if reaches_back or (body.carries and not body.begins):
                nursery.start_soon(self._read_records)
            recalled.base = base, journal = await self._base(newest, body)
            recalled.journals = await self._journals(base, journal, body.checkpointed)
        self._recalled = recalled

    def _recall_of(self, newest: HeadRecord) -> _Recalled | None:
        recalled = self._recalled
        return recalled if recalled is not None and recalled.newest == newest.record_hash() else None

    async def behind(self, newest: HeadRecord, number: int) -> Tail:
        """All operations behind `number`, up to those of the record `newest`.

        Walks from the newest record back along the hashes, then into journal packs. Raises Corrupt
        where a record is missing or damaged, and the grid's errors where a journal pack cannot be read;
        BehindCheckpoint where the journal does not reach back so far.
        """
        body = self.body(newest)
        pieces = [body.operations]
        reached = body.after
        previous = newest.previous
        while reached > number and reached != body.gathered:
            record = await self._record(previous)
            if record is None:
                raise Corrupt(f"the head log lacks the operations before {reached}")
            earlier = self.body(record)
            pieces.append(earlier.operations)
            reached, previous = earlier.after, record.previous
        base, journal = await self._base(newest, body)
        if not number and base.checkpoint is not None:
            raise BehindCheckpoint("there is a checkpoint to begin with")
        if reached > number:
            recalled = self._recall_of(newest)
            if recalled is not None and recalled.journals is not None and number >= base.checkpointed:
                contents = recalled.journals
            else:
                contents = await self._journals(base, journal, number)
            for content in reversed(contents):
                pieces.append(content.operations)
                reached = content.after
        if reached > number and base.checkpoint is not None:
            raise BehindCheckpoint(f"operations up to {reached} are in the checkpoint only")
        if reached > number:
            raise Corrupt(f"the journal lacks the operations before {reached}")
        operations: list[tuple[int, bytes]] = []
        for piece in reversed(pieces):
            # Pieces may overlap where a record or journal pack was begun before a checkpoint was finished.
            last = operations[-1][0] if operations else number
            operations += [row for row in piece if row[0] > last]
        return Tail(operations, base, body.gathered)

    async def carried(self, newest: HeadRecord) -> list[tuple[int, CarriedData]]:
        """Data in the records up to `newest` that may be in no pack, each with its record's last operation.

        In the order of the records. Raises Corrupt where a record is missing or damaged.
        """
        body = self.body(newest)
        if not body.carries:
            return []
        bodies = [body]
        previous = newest.previous
        while not bodies[-1].begins:
            record = await self._record(previous)
            if record is None:
                raise Corrupt("the head log lacks records with synced data")
            bodies.append(self.body(record))
            previous = record.previous
        return [(body.last, data) for body in reversed(bodies) for data in body.data]

    async def descends(self, newest: HeadRecord, ancestor: bytes) -> bool:
        """Whether the record with the hash `ancestor` (or none: GENESIS) is one of those before `newest`, as
        far as the head servers keep them."""
        if ancestor == GENESIS:
            return True
        record: HeadRecord | None = newest
        while record is not None and ancestor not in (record.record_hash(), record.previous):
            record = await self._record(record.previous)
        return record is not None

    async def _record(self, name: bytes) -> HeadRecord | None:
        """The record with this hash; None where the head servers do not keep it."""
        if name not in self._known and name != GENESIS:
            await self._read_records()
        return self._known.get(name)

    async def _read_records(self) -> None:
        """All that the head servers keep; enough of them, that none which a quorum has can be missing."""
        self.learn(await self._heads.records(surely=True))

    async def _base(self, newest: HeadRecord, body: HeadBody) -> tuple[Base, JournalBody | None]:
        """What a record rests on, and its newest journal pack where that had to be read to know."""
        recalled = self._recall_of(newest)
        if recalled is not None and recalled.base is not None:
            return recalled.base
        if body.journal is None or body.earlier is not None:
            return base_of(body, body.earlier or ()), None
        (found,) = await read_runs(self._downloader, [only_run(body.journal)])
        journal = decode_journal(found)
        return base_of(body, journal.earlier), journal

    async def _journals(self, base: Base, newest: JournalBody | None, number: int) -> list[JournalBody]:
        """The journal packs with operations behind `number`, oldest first. `newest`: if it was read."""
        journals = base.journals if newest is None else base.journals[:-1]
        needed = [only_run(journal.pack) for journal in journals if journal.last > number]
        bodies: list[JournalBody] = []
        for runs in batches(needed, JOURNAL_BYTES_AT_ONCE):
            bodies += map(decode_journal, await read_runs(self._downloader, runs))
        return bodies if newest is None or newest.last <= number else [*bodies, newest]
