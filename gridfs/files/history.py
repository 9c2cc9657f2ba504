"""What the grid knows of a file system's operations: head log records and journal packs, read back.

A local state that is older than the grid (the machine lost power, or was restored from a copy) is
rolled forward with it before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass

from gridfs.codec.cipher import SEGMENT_SIZE, TAG_SIZE
from gridfs.codec.headkeys import HeadKeys
from gridfs.codec.pack import run_key
from gridfs.grid.downloader import Downloader, PackRef, SegmentRead
from gridfs.grid.heads import HeadServers
from gridfs.meta.operations import PackRecord
from gridfs.meta.records import CarriedData, HeadBody, JournalBody, decode_journal, open_head
from storage.client import Traffic
from storage.errors import Corrupt
from storage.format.head import HeadRecord, fits
from storage.format.share import BLOCK_SIZE, Geometry


@dataclass(frozen=True, slots=True)
class Tail:
    """The operations behind a number, and the journal packs they rest on."""

    operations: list[tuple[int, bytes]]
    """(number, encoded operation), ascending; none missing."""
    journals: list[PackRecord]
    """All journal packs, oldest first."""
    gathered: int
    """Number of the last operation in journal packs."""


class History:
    """Reads one file system's past from the grid."""

    def __init__(self, heads: HeadServers, downloader: Downloader, keys: HeadKeys) -> None:
        self._heads = heads
        self._downloader = downloader
        self._log = keys.log
        self._readable = [(tree.verifying_key, tree.journal_key) for tree in (keys.tree, *keys.former)]

    def is_valid(self, record: HeadRecord) -> bool:
        """Whether one of the file system's keys signed this record."""
        return self._journal_key(record) is not None

    def body(self, record: HeadRecord) -> HeadBody:
        """Check a record's signature and open it. Raises Corrupt."""
        journal_key = self._journal_key(record)
        if journal_key is None:
            raise Corrupt(f"head record {record.epoch}.{record.sequence} is forged")
        return open_head(record.payload, journal_key, record.epoch, record.sequence)

    def _journal_key(self, record: HeadRecord) -> bytes | None:
        """Journal key of the generation that signed a record."""
        signed = record.signed_bytes(self._log)
        return next((key for signer, key in self._readable if fits(signer, record.signature, signed)), None)

    async def behind(self, newest: HeadRecord, number: int) -> Tail:
        """All operations behind `number`, up to those of the record `newest`.

        Walks from the newest record back along the hashes, then into journal packs. Raises Corrupt
        where a record is missing or damaged, and the grid's errors where a journal pack cannot be read.
        """
        body = self.body(newest)
        pieces = [body.operations]
        reached = body.after
        previous = newest.previous
        if reached > number and reached != body.gathered:
            known = {record.record_hash(): record for record in await self._records(body)}
            while reached > number and reached != body.gathered:
                record = known.get(previous)
                if record is None:
                    raise Corrupt(f"the head log lacks the operations before {reached}")
                earlier = self.body(record)
                pieces.append(earlier.operations)
                reached, previous = earlier.after, record.previous
        journals = await self._journals(body.journal)
        for journal in reversed(journals):
            if reached <= number:
                break
            content = await self._read(journal)
            pieces.append(content.operations)
            reached = content.after
        if reached > number:
            raise Corrupt(f"the journal lacks the operations before {reached}")
        operations = [row for piece in reversed(pieces) for row in piece if row[0] > number]
        return Tail(operations, journals, body.gathered)

    async def carried(self, newest: HeadRecord) -> list[tuple[int, CarriedData]]:
        """Data in the records up to `newest` that may be in no pack, each with its record's last operation.

        In the order of the records. Raises Corrupt where a record is missing or damaged.
        """
        body = self.body(newest)
        if not body.carries:
            return []
        bodies = [body]
        previous = newest.previous
        known: dict[bytes, HeadRecord] | None = None
        while not bodies[-1].begins:
            if known is None:
                known = {record.record_hash(): record for record in await self._records(body)}
            record = known.get(previous)
            if record is None:
                raise Corrupt("the head log lacks records with synced data")
            bodies.append(self.body(record))
            previous = record.previous
        return [(body.last, data) for body in reversed(bodies) for data in body.data]

    async def _records(self, body: HeadBody) -> list[HeadRecord]:
        """All that the head servers keep; enough of them, that none which a quorum has can be missing."""
        enough = len(body.head_servers) - body.quorum + 1
        return await self._heads.records(min(enough, len(self._heads.servers)))

    async def _journals(self, newest: PackRecord | None) -> list[PackRecord]:
        if newest is None:
            return []
        content = await self._read(newest)
        return [*content.earlier, newest]

    async def _read(self, pack: PackRecord) -> JournalBody:
        """The content of a journal pack, which is one run."""
        segments = -(-pack.stream_length // BLOCK_SIZE)
        length = pack.stream_length - TAG_SIZE * segments
        plain = memoryview(bytearray(length))
        ref = PackRef(pack.pack_id, Geometry(pack.k, pack.n, pack.stream_length), tuple(pack.places))
        key = run_key(pack.key, pack.convergent, 0)
        reads = [
            SegmentRead(
                ref,
                key,
                ordinal,
                ordinal * BLOCK_SIZE,
                min(SEGMENT_SIZE, length - ordinal * SEGMENT_SIZE),
                plain[ordinal * SEGMENT_SIZE : (ordinal + 1) * SEGMENT_SIZE],
            )
            for ordinal in range(segments)
        ]
        await self._downloader.read(reads, Traffic.DEMAND)
        return decode_journal(plain)
