"""The file behind the head logs: claims, records, trims and drops as entries, replayed at the start.

Synchronous; everything that writes belongs in a worker thread. The file is rewritten as a whole when most of
it is garbage: a new one is written beside it, synced, and renamed over it.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from storage.appendfile import AppendBatch, AppendFile, disk_error, read_exactly
from storage.errors import Corrupt
from storage.format.entry import FILE_HEADER_SIZE, PREFIX_SIZE, Entry
from storage.format.head import RECORD_OVERHEAD, SIGNATURE_SIZE, WRAPPED_MAX, HeadRecord, Succession
from storage.headlog.state import Append, Claim, Drop, HeadLog, Operation, Slot, Trim
from storage.ports import Disk

_LOGGER = logging.getLogger(__name__)

MAGIC = b"gridfsHL"
FILE_NAME = "heads"

CLAIM, APPEND, TRIM, DROP = 1, 2, 3, 4
_CLAIM = struct.Struct(">32s32sQ16s")
_APPEND = struct.Struct(">32s")
_TRIM = struct.Struct(">32sQQ")
_DROP = struct.Struct(">32s")
_SUCCESSION = struct.Struct(">I64s")
assert (_CLAIM.size, _APPEND.size, _TRIM.size, _DROP.size) == (88, 32, 48, 32)
assert _SUCCESSION.size == 4 + SIGNATURE_SIZE

_STANDING_SIZE = PREFIX_SIZE + _CLAIM.size
_RECORD_ENTRY_SIZE = PREFIX_SIZE + _APPEND.size
_REWRITE_BATCH = 4 * 1024 * 1024


def add_operation(batch: AppendBatch, operation: Operation) -> Entry:
    """Put one operation into a batch."""
    match operation:
        case Claim(log, key, epoch, mount_id, succession):
            return batch.add(CLAIM, _CLAIM.pack(log, key, epoch, mount_id), _reason(succession))
        case Append(log, record):
            return batch.add(APPEND, _APPEND.pack(log), [record.encode()])
        case Trim(log, (epoch, sequence)):
            return batch.add(TRIM, _TRIM.pack(log, epoch, sequence))
        case Drop(log, _):
            return batch.add(DROP, _DROP.pack(log))


def _reason(succession: Succession | None) -> list[bytes]:
    """Payload of a claim: nothing for the first key, else why the claiming key may claim."""
    if succession is None:
        return []
    return [_SUCCESSION.pack(succession.generation, succession.signature), succession.wrapped]


def read_entry(entry: Entry, payload: bytes) -> Operation:
    """What a durable entry says. Raises Corrupt."""
    try:
        if entry.kind == CLAIM:
            name, key, epoch, mount_id = _CLAIM.unpack(entry.fields)
            succession = None
            if payload:
                generation, signature = _SUCCESSION.unpack_from(payload)
                succession = Succession(generation, key, payload[_SUCCESSION.size :], signature)
            return Claim(name, key, epoch, mount_id, succession)
        if entry.kind == TRIM:
            name, epoch, sequence = _TRIM.unpack(entry.fields)
            return Trim(name, (epoch, sequence))
        if entry.kind == APPEND:
            (name,) = _APPEND.unpack(entry.fields)
            return Append(name, HeadRecord.decode(payload))
        if entry.kind == DROP:
            (name,) = _DROP.unpack(entry.fields)
            return Drop(name, 0)
    except struct.error as error:
        raise Corrupt(f"head log file: an entry of kind {entry.kind} is malformed: {error}") from None
    raise Corrupt(f"head log file: entry of unknown kind {entry.kind}")


def apply_entry(logs: dict[bytes, HeadLog], entry: Entry, operation: Operation) -> None:
    """Change committed state as a durable entry says; the same for a live batch and for replay.

    What speaks of a log whose claim has rotted away is dropped.
    """
    log = logs.get(operation.log)
    match operation:
        case Claim(name, key, epoch, mount_id):
            if log is None:
                log = logs[name] = HeadLog(name, key, epoch, mount_id)
            log.claim(operation)
        case Append(_, record) if log is not None:
            log.keep(Slot(*record.stamp, entry.payload_offset, entry.payload_length))
        case Trim(_, before) if log is not None:
            log.trim(before)
        case Drop() if log is not None:
            del logs[operation.log]
        case _:
            pass


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A new file, already under the old one's name, and where everything lies in it."""

    file: AppendFile
    logs: dict[bytes, HeadLog]


class HeadJournal:
    """The open file. Not to be used by two threads at once."""

    def __init__(self, disk: Disk, directory: str) -> None:
        self._disk = disk
        self._directory = directory
        self._path = f"{directory}/{FILE_NAME}"
        self._file: AppendFile | None = None

    @property
    def _open_file(self) -> AppendFile:
        assert self._file is not None, "opened before use"
        return self._file

    def open(self) -> dict[bytes, HeadLog]:
        """Open or create the file, cut a torn tail and return what the logs hold.

        Raises Refused for an unknown version, Corrupt for a file that is none of ours, Unavailable.
        """
        try:
            self._disk.make_directory(self._directory)
            self._disk.sync_directory(self._directory.rpartition("/")[0] or "/")
            names = self._disk.names(self._directory)
            if f"{FILE_NAME}.new" in names:
                self._disk.remove(f"{self._path}.new")
            if FILE_NAME not in names:
                self._create_empty()
                return {}
            # Who put the file in its place may have ended before that was durable.
            self._disk.sync_directory(self._directory)
            self._file = AppendFile.open(self._disk, self._path, MAGIC, is_read=False)
            self._file.settle(0)
            return self._replay(self._file)
        except OSError as error:
            raise disk_error(error, f"open {self._path}") from error

    def _create_empty(self) -> None:
        self._file = AppendFile.create(self._disk, f"{self._path}.new", MAGIC, 1, is_read=False)
        self._disk.replace(f"{self._path}.new", self._path)
        self._disk.sync_directory(self._directory)

    def _replay(self, file: AppendFile) -> dict[bytes, HeadLog]:
        logs: dict[bytes, HeadLog] = {}
        end = FILE_HEADER_SIZE
        for entry, payload in file.scan():
            if payload is not None:
                apply_entry(logs, entry, read_entry(entry, bytes(payload)))
                end = entry.end
        if end < file.file.size():
            file.cut(end)
        return logs

    def batch(self) -> AppendBatch:
        return self._open_file.batch()

    def write(self, batch: AppendBatch) -> None:
        """Append durably. Raises Exhausted or Unavailable; then nothing of it stays."""
        self._open_file.write(batch, sync=True)

    def read(self, slot: Slot) -> HeadRecord:
        """One record. Raises Corrupt where the disk no longer gives it back, Unavailable."""
        try:
            return HeadRecord.decode(read_exactly(self._open_file.file, slot.offset, slot.length))
        except OSError as error:
            raise disk_error(error, "read head log") from error

    @property
    def size_bytes(self) -> int:
        """Of the file's entries."""
        return self._open_file.end - FILE_HEADER_SIZE

    def garbage_bytes(self, logs: Iterable[HeadLog]) -> int:
        """Bytes of the file that a rewrite would save."""
        live = sum(
            log.record_bytes
            + len(log.slots) * _RECORD_ENTRY_SIZE
            + _STANDING_SIZE
            + sum(map(len, _reason(log.succession)))
            for log in logs
        )
        return self.size_bytes - live

    def rewrite(self, logs: Iterable[HeadLog]) -> Rewritten:
        """Write everything that is kept to a new file; `adopt` then makes it the one in use.

        Raises Exhausted or Unavailable; then the old file goes on, or takes nothing more where the new one
        may have its name.
        """
        path = f"{self._path}.new"
        try:
            new = AppendFile.create(self._disk, path, MAGIC, self._open_file.number + 1, is_read=False)
        except OSError as error:
            raise disk_error(error, "rewrite head logs") from error
        try:
            fresh = self._copy(logs, new)
            new.file.sync()
            self._disk.replace(path, self._path)
        except OSError as error:
            new.close()
            raise disk_error(error, "rewrite head logs") from error
        except BaseException:
            new.close()
            raise
        try:
            self._disk.sync_directory(self._directory)
        except OSError as error:
            # Whoever starts anew finds the one or the other: what only one has must not be acknowledged.
            new.close()
            self._open_file.refuse(f"disk failed ({error.strerror})")
            raise disk_error(error, "rewrite head logs") from error
        return Rewritten(new, fresh)

    def adopt(self, rewritten: Rewritten) -> None:
        """Go on with the new file; in one step with the new places, so no read mixes them."""
        self._open_file.close()
        self._file = rewritten.file

    def _copy(self, logs: Iterable[HeadLog], new: AppendFile) -> dict[bytes, HeadLog]:
        fresh: dict[bytes, HeadLog] = {}
        batch = new.batch()
        for log in logs:
            claim = Claim(log.name, log.verifying_key, log.epoch, log.mount_id, log.succession)
            apply_entry(fresh, add_operation(batch, claim), claim)
            for slot in log.slots:
                try:
                    record = self.read(slot)
                except Corrupt as error:
                    _LOGGER.error("head record %s has rotted away: %s", slot.stamp, error)
                    continue
                append = Append(log.name, record)
                apply_entry(fresh, add_operation(batch, append), append)
                if batch.end - batch.offset > _REWRITE_BATCH:
                    new.write(batch, sync=False)
                    batch = new.batch()
        new.write(batch, sync=False)
        return fresh

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


assert RECORD_OVERHEAD + 64 * 1024 < 128 * 1024, "a record fits an entry's payload"
assert _SUCCESSION.size + WRAPPED_MAX < 128 * 1024, "and so does a succession"
