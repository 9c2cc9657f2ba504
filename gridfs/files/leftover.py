"""What a file system that is not mounted still holds on this machine alone, told without its keys.

A mount notes at its end what was left, with the number of its last operation. As long as nothing with a
higher number lies in the spool that is exact; after a kill, the headers of the spool's records give a bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import msgspec

from gridfs.files.aside import asides_of
from gridfs.files.headstate import load_head_state
from gridfs.files.spoolformat import (
    ASIDE,
    CHUNK,
    RECORD,
    RECORD_MAGIC,
    SLOT_HEADER,
    TAG,
    read_header,
    sealed_length,
)
from gridfs.meta.store import Metadata
from storage.errors import StorageError
from storage.ports import Disk, File

LEFTOVER_VALUE = "leftover"


class _Note(msgspec.Struct, frozen=True, array_like=True):
    number: int
    bytes: int
    operations: int


class _NoKeys:
    """In the place of a sealer: nothing is opened here."""

    def seal(self, data: bytes) -> bytes:
        raise AssertionError("nothing is sealed while looking")

    def open(self, data: bytes) -> bytes:
        raise AssertionError("nothing is opened while looking")


@dataclass(frozen=True, slots=True)
class Leftover:
    """What is not known to be in the grid."""

    bytes: int
    operations: int
    is_exact: bool
    """False: at most so much, as the last mount was killed."""
    aside: int
    """Slots of the spool that were set aside: they belong to another history."""
    databases: int = 0
    """Metadata that were set aside with operations in them that the grid has not."""

    def __bool__(self) -> bool:
        return bool(self.bytes or self.operations or self.aside or self.databases)

    def __str__(self) -> str:
        words = "" if self.is_exact else "at most "
        words += f"{self.bytes} bytes and {self.operations} operations"
        return f"{words}, and {self.set_aside}" if self.set_aside else words

    @property
    def set_aside(self) -> str:
        """In words; empty without any."""
        words = []
        if self.aside:
            words.append(f"{self.aside} slots of the spool")
        if self.databases:
            words.append(f"{self.databases} databases")
        return f"{' and '.join(words)} set aside" if words else ""


@dataclass(frozen=True, slots=True)
class Survey:
    """What the unsealed parts of a spool tell."""

    last: int
    """The highest number of a record; 0 without any."""
    data_bytes: int
    """Plaintext bytes of data in all records."""
    aside: int
    """Slots that were set aside."""


def survey(disk: Disk, directory: str) -> Survey:
    """Look at the headers of all records. Opens no seals and changes nothing; the numbers may be damaged."""
    try:
        names = disk.names(directory)
    except FileNotFoundError:
        names = []
    last = data_bytes = 0
    for name in names:
        stem, _, suffix = name.partition(".")
        if suffix != "spool" or not stem.isdigit():
            continue
        file = disk.open(f"{directory}/{name}", writable=False)
        try:
            for number, data_length in _headers(file):
                last = max(last, number)
                data_bytes += data_length
        finally:
            file.close()
    return Survey(last, data_bytes, sum(ASIDE in name for name in names))


def _headers(file: File) -> Iterator[tuple[int, int]]:
    """(number, bytes of data) of the records in one slot, up to the first that cannot be."""
    size = file.size()
    slot = read_header(file, "a slot")
    if slot is None:
        return
    end, expected = SLOT_HEADER.size, slot.begin
    head = bytearray(RECORD.size)
    while end + RECORD.size + TAG <= size:
        file.read_into(memoryview(head), end)
        magic, op_length, data_length, phase, number, generation = RECORD.unpack(head)
        if magic != RECORD_MAGIC or (generation, number) != (slot.generation, expected) or phase >= CHUNK:
            return
        end += RECORD.size + op_length + TAG + sealed_length(data_length, phase)
        if end > size:
            return
        expected += 1
        yield number, data_length


def note_leftover(metadata: Metadata, number: int, dirty_bytes: int, shipped: int) -> None:
    """Note what is left, at the end of a mount whose last operation is `number`."""
    note = _Note(number, dirty_bytes, max(0, number - shipped))
    metadata.set_value(LEFTOVER_VALUE, msgspec.msgpack.encode(note))


def leftover(disk: Disk, database: str, spool_directory: str) -> Leftover:
    """Look. The file system must not be open anywhere. Raises what a damaged database raises."""
    found = survey(disk, spool_directory)
    databases = sum(_has_more(disk, path) for path in asides_of(disk, database))
    with closing(Metadata.open(database, _NoKeys(), vfs=disk.sqlite_vfs)) as metadata:
        stored = metadata.get_value(LEFTOVER_VALUE)
        last = max(metadata.applied, found.last)
    note = _Note(0, 0, 0) if stored is None else msgspec.msgpack.decode(stored, type=_Note)
    if note.number == last:
        return Leftover(note.bytes, note.operations, True, found.aside, databases)
    # What the note counted is in the spool still; the rest came after it.
    operations = note.operations + last - note.number
    return Leftover(found.data_bytes, operations, False, found.aside, databases)


def _has_more(disk: Disk, database: str) -> bool:
    """Whether metadata that were set aside have operations that were not in the grid."""
    try:
        with closing(Metadata.open(database, _NoKeys(), vfs=disk.sqlite_vfs)) as metadata:
            return metadata.applied > load_head_state(metadata).shipped
    except StorageError:
        return True  # set aside because it is damaged: nobody knows
