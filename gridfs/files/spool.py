"""The spool: the local log of operations, in the order of their numbers, sealed under a local key.

A change is acknowledged when its record is here (one `pwrite`, no sync). The log is a ring of slots,
files of equal size that are written one after the other and used again once nothing in them is needed,
before the kernel has written them out: otherwise the disk would carry every byte two and a half times.

A slot is needed while it holds data that no pack has yet (`live` bytes), or an operation that the
metadata has not stored durably. Slots leave in order, oldest first, so what is on disk is always a
suffix of the log: replay of a commit or a truncate that follows a write still finds them.

A page of a slot is first written whole, with zeros behind the record: a part of one that is used again,
and has left the kernel's memory, could not be written before it was read.

Each slot's key is derived from its own salt, and a nonce is a position in that slot; a slot is only
ever appended to by the process that began it, so no key and nonce meet twice. SPEC.md has the fields.

Concurrency: everything but `read_into` is called from the loop, and nothing but `sync` awaits.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gridfs.files.aside import set_aside
from gridfs.files.overlay import Source
from gridfs.files.sharing import Sharing
from gridfs.files.spoolformat import (
    CHUNK,
    DATA_MAX,
    OPERATION_MAX,
    PAGE,
    RECORD,
    RECORD_MAGIC,
    ROOM,
    SLOT_HEADER,
    SMALL_DATA_MAX,
    TAG,
    Slot,
    SlotHeader,
    is_blank,
    nonce_at,
    read_header,
    sealed_length,
)
from storage.errors import Corrupt, Exhausted
from storage.ports import Buffer, File, Machine

logger = logging.getLogger(__name__)

_ZEROS = memoryview(bytes(ROOM))
SMALL_MAX = 4096
"""Bytes that a record without data may take that is called small: names, and not much else."""
SLOT_BYTES_MIN = 4 << 20
SLOT_BYTES_MAX = 32 << 20
SLOTS_MIN = 4
"""Slots that a spool may have however small its bound, or the room on its disk."""
SPARE_SLOTS_MAX = 4
RESERVED_SLOTS = 8
"""Slots beyond the limit for records that make room (commits) and for slots begun after a restart."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One record as it was found on disk."""

    number: int
    operation: bytes
    source: Source | None
    """Where its data begins, if it carries any."""
    data_length: int


class Spool:
    """The log on disk. `limit_bytes` bounds the slots; `slot_bytes` is derived from it."""

    def __init__(self, machine: Machine, directory: str, key: bytes, limit_bytes: int) -> None:
        self._machine = machine
        self._disk = machine.disk
        self._directory = directory
        self._key = key
        self.slot_bytes = max(SLOT_BYTES_MIN, min(SLOT_BYTES_MAX, limit_bytes // 8))
        self.slots_max = max(SLOTS_MIN, limit_bytes // self.slot_bytes)
        self._slots: deque[Slot] = deque()
        self._by_index: dict[int, Slot] = {}
        self._spare: list[tuple[int, File]] = []
        self._torn: list[tuple[int, File]] = []
        """Slots that did not come to begin, though they may have a header: freed before the next append."""
        self._freed: list[File] = []  # what was torn; free for certain with the next sync
        self._doubtful: dict[int, None] = {}
        """Slots, by index, whose sync failed: the system may take pages for clean that it never wrote."""
        self._generation = 0
        self._next_index = 0
        self._scratch = bytearray()
        self._began = -1
        self._has_new_names = True
        self.live_bytes = 0
        self.durable = 0
        self.last = 0
        self._synced = 0
        """Every record up to this number is known to be durable here."""
        self._syncing = Sharing(self._sync_slots)

    # ---- opening

    def open(self, applied: int) -> Iterator[Replayed]:
        """Open the directory and yield every record found, oldest first; then the spool is ready.

        `applied`: number up to which the metadata has all operations; up to there numbers may be
        missing here. Any other gap ends the log: a record that is torn was appended last, by a process
        that was killed in the middle of it. Slots behind are set aside under another name. Must be
        run to its end before the first `append`.
        """
        self._disk.make_directory(self._directory)
        found = []
        for name in self._disk.names(self._directory):
            stem, _, suffix = name.partition(".")
            if suffix != "spool" or not stem.isdigit():
                continue
            index = int(stem)
            self._next_index = max(self._next_index, index + 1)
            file = self._disk.open(self._path(index))
            header = read_header(file, self._path(index))
            if header is None:
                self._spare.append((index, file))
            else:
                found.append(self._slot(index, file, header))
        found.sort(key=lambda slot: slot.generation)
        broken = False
        for place, slot in enumerate(found):
            follows = slot.previous == self.last and slot.begin == self.last + 1
            broken = broken or not (follows or self.last < slot.begin <= applied + 1)
            if broken:
                logger.error("spool slot %d does not follow the one before it and is set aside", slot.index)
                slot.file.close()
                set_aside(self._disk, self._path(slot.index))
                continue
            self._generation = slot.generation
            self._slots.append(slot)
            self._by_index[slot.index] = slot
            slot.promised = True
            for record in self._replay_slot(slot, found[place + 1 : place + 2]):
                self.last = record.number
                yield record
            if not slot.first:  # nothing readable: just begun, or the first gap of a torn log
                self._slots.pop()
                del self._by_index[slot.index]
                self._spare.append((slot.index, slot.file))

    def _replay_slot(self, slot: Slot, behind: list[Slot]) -> Iterator[Replayed]:
        # A record whose write failed may be whole all the same: then the next slot began with its number.
        failed = next((each.begin for each in behind if each.begin == each.previous + 1), 0)
        size, header = slot.file.size(), bytearray(RECORD.size)
        while slot.end + RECORD.size + TAG <= size:
            slot.file.read_into(memoryview(header), slot.end)
            magic, op_length, data_length, phase, number, generation = RECORD.unpack(header)
            follows = number == (slot.last + 1 if slot.first else slot.begin) and number != failed
            is_next = magic == RECORD_MAGIC and generation == slot.generation and follows
            if not is_next or op_length > OPERATION_MAX or data_length > DATA_MAX or phase >= CHUNK:
                return
            at = slot.end + RECORD.size
            data_at = at + op_length + TAG
            end = data_at + sealed_length(data_length, phase)
            if end > size:
                return
            sealed = bytearray(op_length + TAG)
            slot.file.read_into(memoryview(sealed), at)
            try:
                operation = slot.cipher.decrypt(nonce_at(at), sealed, header)
                slot.data[data_at] = (data_length, phase)
                self._open_data(slot, data_at, 0, memoryview(bytearray(data_length)))
            except (InvalidTag, Corrupt):
                slot.data.pop(data_at, None)
                return
            if not data_length:
                del slot.data[data_at]
            slot.first = slot.first or number
            slot.last = number
            slot.end = end
            slot.live += data_length
            self.live_bytes += data_length
            source = Source(slot.index, data_at) if data_length else None
            yield Replayed(number, operation, source, data_length)

    def set_aside(self) -> None:
        """Rename every slot, so that nothing in them is replayed; the spool is closed then."""
        self.close()
        for name in self._disk.names(self._directory):
            if name.endswith(".spool"):
                set_aside(self._disk, f"{self._directory}/{name}")
        self._disk.sync_directory(self._directory)

    # ---- appending

    def append(self, number: int, operation: bytes, data: Buffer = b"", phase: int = 0) -> Source:
        """Append one record with one write; it is kept when this returns.

        `phase` is the data's file offset modulo 64 KiB, so that chunks line up with segments. The
        data counts as live until `retire`. Raises Exhausted when every slot is needed (callers wait
        with `room` first), OSError when the disk fails; the log is unchanged then.
        """
        assert number > self.last, (number, self.last)
        length = len(data)
        total = RECORD.size + len(operation) + TAG + sealed_length(length, phase)
        slot = self._slot_for(total, number)
        end = slot.end + total
        if len(self._scratch) < total:
            self._scratch = bytearray(total)
        out = memoryview(self._scratch)[:total]
        data_at = slot.seal(out, number, operation, data, phase)
        parts, whole = [out], slot.whole
        if end > whole:
            is_growing = end > slot.file_bytes and total <= SMALL_DATA_MAX and self._disk_has_room()
            whole = end + -end % (ROOM if is_growing else PAGE)
            parts.append(_ZEROS[: whole - end])
        try:
            slot.file.write_at(parts, slot.end)
        except OSError:
            self._give_up(slot)
            raise
        slot.end, slot.whole = end, whole
        slot.file_bytes = max(slot.file_bytes, whole)
        slot.first = slot.first or number
        slot.last = self.last = number
        if length:
            slot.data[data_at] = (length, phase)
            slot.live += length
            self.live_bytes += length
        return Source(slot.index, data_at)

    def _give_up(self, slot: Slot) -> None:
        """A write failed, and the disk may have a part of it: nothing else is sealed for that place."""
        self._began = -1
        if not slot.first:
            self._slots.pop()
            del self._by_index[slot.index]
            self._spare.append((slot.index, slot.file))

    def room(self, size: int, reserve: int = 1) -> bool:
        """Whether `size` bytes of data fit while `reserve` slots stay free for other operations."""
        need = size + size // 2048 + 4096  # sealing adds a little, and a record never spans slots
        if self._slots and self._slots[-1].end + need <= self.slot_bytes:
            return True
        if len(self._slots) + reserve >= self.slots_max:
            return False
        return len(self._slots) < SLOTS_MIN or bool(self._spare) or self._disk_has_room()

    def _disk_has_room(self) -> bool:
        """Whether another slot leaves the last twentieth of the disk to others."""
        space = self._disk.space(self._directory)
        return space.free - self.slot_bytes >= space.total // 20

    def _slot(self, index: int, file: File, header: SlotHeader) -> Slot:
        return Slot(index, header.generation, file, self._cipher(header.salt), header.previous, header.begin)

    def _slot_for(self, total: int, number: int) -> Slot:
        self._free_torn()  # or the next replay would end with the number with which it says it began
        if self._slots and number == self.last + 1 and self._slots[-1].end + total <= self.slot_bytes:
            current = self._slots[-1]
            if current.generation == self._began:  # never a slot that an earlier process began
                return current
        if len(self._slots) >= self.slots_max + RESERVED_SLOTS:
            raise Exhausted("the spool is full: every slot holds data that is not in the grid yet")
        return self._begin_slot(number)

    def _free_torn(self) -> None:
        while self._torn:
            _, file = self._torn[-1]
            if not is_blank(file):  # a full disk takes no zeros either
                file.write_at([bytes(SLOT_HEADER.size)], 0)
            self._freed.append(file)
            self._spare.append(self._torn.pop())

    def _begin_slot(self, number: int) -> Slot:
        if self._spare:
            index, file = self._spare.pop()
        else:
            index = self._next_index
            file = self._disk.open(self._path(index), create=True)
            self._next_index += 1
            self._has_new_names = True
        previous = self.last if self._slots else 0
        header = SlotHeader(self._generation + 1, self._machine.entropy.token(16), previous, number)
        try:
            file.write_at([header.pack(), _ZEROS[SLOT_HEADER.size : PAGE]], 0)
            file_bytes = file.size()
        except OSError:
            self._torn.append((index, file))
            raise
        self._generation = self._began = header.generation
        slot = self._slot(index, file, header)
        slot.whole, slot.file_bytes = PAGE, file_bytes
        self._slots.append(slot)
        self._by_index[index] = slot
        return slot

    # ---- reading

    def read_into(self, source: Source, skip: int, out: memoryview) -> None:
        """Fill `out` with data from `skip` bytes behind `source`. May run in a worker thread.

        Raises Corrupt if the bytes on disk are not what was appended, OSError if it cannot be read.
        """
        self._open_data(self._by_index[source.slot], source.offset, skip, out)

    def _open_data(self, slot: Slot, data_at: int, skip: int, out: memoryview) -> None:
        length, phase = slot.data[data_at]
        if skip + len(out) > length:
            raise Corrupt(f"spool slot {slot.index} holds fewer bytes at {data_at} than its index says")
        if not len(out):
            return
        first, last = (phase + skip) // CHUNK, (phase + skip + len(out) - 1) // CHUNK

        def begin(chunk: int) -> int:  # plaintext position of a chunk's first byte in the record
            return max(0, chunk * CHUNK - phase)

        low = data_at + begin(first) + TAG * first
        sealed = bytearray(min(begin(last + 1), length) - begin(first) + TAG * (last - first + 1))
        if slot.file.read_into(memoryview(sealed), low) < len(sealed):
            raise Corrupt(f"spool slot {slot.index} is shorter than its records")
        view = memoryview(sealed)
        position, filled = 0, 0
        try:
            for chunk in range(first, last + 1):
                start, stop = begin(chunk), min(begin(chunk + 1), length)
                piece = view[position : position + stop - start + TAG]
                nonce = nonce_at(low + position)
                a, b = max(start, skip), min(stop, skip + len(out))
                if a == start and b == stop:
                    slot.cipher.decrypt_into(nonce, piece, None, out[filled : filled + b - a])
                else:
                    plain = slot.cipher.decrypt(nonce, piece, None)
                    out[filled : filled + b - a] = plain[a - start : b - start]
                filled += b - a
                position += len(piece)
        except InvalidTag:
            raise Corrupt(f"spool slot {slot.index}: a record does not open at {data_at}") from None

    def records_in(self, name: str) -> Iterator[tuple[Replayed, bytes]]:
        """What can be read of one slot by itself, with its data, whether it belongs to the log or not.

        `name`: of a file in the spool's directory. Changes nothing.
        """
        file = self._disk.open(f"{self._directory}/{name}", writable=False)
        live_bytes = self.live_bytes
        try:
            header = read_header(file, name)
            if header is None:
                return
            slot = self._slot(-1, file, header)
            for record in self._replay_slot(slot, []):
                data = bytearray(record.data_length)
                if record.source is not None:
                    self._open_data(slot, record.source.offset, 0, memoryview(data))
                yield record, bytes(data)
        finally:
            self.live_bytes = live_bytes
            file.close()

    # ---- retiring

    def pin(self, source: Source) -> None:
        """Keep the slot of `source` for a reader in a worker thread until `unpin`."""
        self._by_index[source.slot].pins += 1

    def unpin(self, source: Source) -> None:
        self._by_index[source.slot].pins -= 1

    def share(self, source: Source, size: int) -> None:
        """`size` bytes of the data at `source`, which is needed, are needed once more."""
        self._by_index[source.slot].live += size
        self.live_bytes += size

    def retire(self, source: Source, size: int) -> None:
        """`size` bytes of the data at `source` are no longer needed."""
        slot = self._by_index[source.slot]
        slot.live -= size
        self.live_bytes -= size
        if slot.promised:
            slot.taken_at = self.last
        assert slot.live >= 0, (slot.index, slot.live)

    def reclaim(self, durable: int) -> int:
        """Free the oldest slots that hold nothing needed; returns how many.

        `durable`: every operation up to this number is stored durably in the metadata.
        """
        self.durable = max(self.durable, durable)
        freed = 0
        while self._slots:
            slot = self._slots[0]
            if slot.live or slot.pins or self._is_wanted(slot) or slot.generation == self._began:
                break
            # Oldest first, and before its number is forgotten: a slot that is no longer needed must not
            # be replayed, and what is left on disk must always be one suffix of the log.
            slot.file.write_at([bytes(SLOT_HEADER.size)], 0)
            self._slots.popleft()
            del self._by_index[slot.index]
            freed += 1
            if len(self._spare) < SPARE_SLOTS_MAX:
                self._spare.append((slot.index, slot.file))
            else:
                slot.file.close()
                self._disk.remove(self._path(slot.index))
        return freed

    def _is_wanted(self, slot: Slot) -> bool:
        """Whether a slot without data must stay until more is durable: metadata, or the spool itself."""
        return max(slot.last, slot.taken_at) > self.durable or slot.taken_at > self._synced

    @property
    def is_oldest_wanted(self) -> bool:
        """Whether the oldest slot would go if metadata and, where `wants_sync`, the spool were durable."""
        if not self._slots:
            return False
        slot = self._slots[0]
        return not (slot.live or slot.pins or slot.generation == self._began) and self._is_wanted(slot)

    @property
    def wants_sync(self) -> bool:
        return self.is_oldest_wanted and self._slots[0].taken_at > self._synced

    def is_kept_before(self, source: Source, number: int) -> bool:
        """Whether the data at `source`, of operation `number`, is on the disk for certain where the next
        (small) record is: it is durable, or that record will be behind it in the same slot."""
        slot, last = self._by_index[source.slot], self._slots[-1]
        if number <= slot.synced:
            return True
        return slot is last and last.generation == self._began and last.end + SMALL_MAX <= self.slot_bytes

    @property
    def used(self) -> float:
        """Part of the slots in use, 0 to 1."""
        return len(self._slots) / self.slots_max

    @property
    def disk_bytes(self) -> int:
        return sum(slot.end for slot in self._slots)

    async def sync(self) -> None:
        """Every record appended before the call is durable when this returns. Raises OSError."""
        await self._syncing.done()

    async def _sync_slots(self) -> None:
        number = self.last
        slots = [(slot, slot.last) for slot in self._slots if slot.last > slot.synced]
        new_names, self._has_new_names = self._has_new_names, False
        freed, self._freed = self._freed, []
        again = [slot for slot, _ in slots if slot.index in self._doubtful]
        for slot, _ in slots:
            slot.pins += 1  # its file stays open, whatever is reclaimed meanwhile
        try:
            files = freed + [slot.file for slot, _ in slots]
            await self._machine.offload.run(self._sync_files, files, new_names, again)
        except BaseException:
            self._doubtful.update(dict.fromkeys(slot.index for slot, _ in slots))
            self._has_new_names = self._has_new_names or new_names
            self._freed += freed
            raise
        finally:
            for slot, _ in slots:
                slot.pins -= 1
        for slot, last in slots:
            self._doubtful.pop(slot.index, None)
            slot.synced = max(slot.synced, last)
            slot.promised = True
        self._synced = max(self._synced, number)

    def _sync_files(self, files: list[File], new_names: bool, again: list[Slot]) -> None:
        for slot in again:
            # Written once more what is there, up to where nothing is written meanwhile.
            for at in range(0, slot.end, CHUNK):
                data = bytearray(min(CHUNK, slot.end - at))
                slot.file.read_into(memoryview(data), at)
                slot.file.write_at([data], at)
        for file in files:
            file.sync()
        if new_names:
            self._disk.sync_directory(self._directory)

    def close(self) -> None:
        """Close the files; what is needed stays on disk for the next `open`."""
        for slot in self._slots:
            slot.file.close()
        for _, file in (*self._spare, *self._torn):
            file.close()
        self._slots.clear()
        self._spare, self._torn = [], []

    def _path(self, index: int) -> str:
        return f"{self._directory}/{index:04d}.spool"

    def _cipher(self, salt: bytes) -> AESGCM:
        return AESGCM(blake3(salt, key=self._key).digest())
