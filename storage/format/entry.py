"""Entries of append-only files (volumes, head logs): self-describing, checksummed, bound to their place.

Pure. An entry is a head (prefix, sums, fields) and a payload, each under a sum of its own: a rotten payload
is stepped over, a rotten or torn head
only costs its own entry. The head's sum covers the file's number and the
entry's offset, so that bytes left over from another place or file never pass for an entry.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence
from typing import NamedTuple

from storage.errors import Corrupt, Refused
from storage.format.hashes import hash_entry
from storage.ports import Buffer

FILE_VERSION = 1
ENTRY_MAGIC = b"gfe1"
SUM_SIZE = 16
FIELDS_MAX = 256
PAYLOAD_MAX = 128 * 1024

_FILE_HEADER = struct.Struct(">8sH6xQ16s")
_PREFIX = struct.Struct(">4sBxHIQ16s16s")
_SUMMED = struct.Struct(">4sBxHIQ16sQ")
FILE_HEADER_SIZE = _FILE_HEADER.size
PREFIX_SIZE = _PREFIX.size
HEAD_MAX = PREFIX_SIZE + FIELDS_MAX
assert FILE_HEADER_SIZE == 40
assert PREFIX_SIZE == 52


def encode_file_header(magic: bytes, number: int) -> bytes:
    """First FILE_HEADER_SIZE bytes of an append-only file; `magic` (8 bytes) says what kind."""
    fixed = _FILE_HEADER.pack(magic, FILE_VERSION, number, bytes(SUM_SIZE))
    return fixed[:-SUM_SIZE] + hash_entry(fixed[:-SUM_SIZE])


def decode_file_header(magic: bytes, data: Buffer) -> int:
    """The file's number. Raises Corrupt, or Refused where the version is unknown."""
    if len(data) < FILE_HEADER_SIZE:
        raise Corrupt("file header is cut short")
    found, version, number, checksum = _FILE_HEADER.unpack_from(data)
    expected = hash_entry(memoryview(data)[: FILE_HEADER_SIZE - SUM_SIZE])
    if found != magic or not hmac.compare_digest(checksum, expected):
        raise Corrupt("file header does not fit its checksum")
    if version != FILE_VERSION:
        raise Refused(f"file format version {version} is unknown; this program reads {FILE_VERSION}")
    return int(number)


class Entry(NamedTuple):
    """One entry, as its head describes it."""

    offset: int
    """Where it starts in its file."""
    kind: int
    """0..255; what it means is the file's own affair."""
    fields: bytes
    """Small fixed fields, at most FIELDS_MAX bytes."""
    payload_length: int
    payload_sum: bytes

    @property
    def payload_offset(self) -> int:
        return self.offset + PREFIX_SIZE + len(self.fields)

    @property
    def size(self) -> int:
        """Bytes from head to the end of the payload."""
        return PREFIX_SIZE + len(self.fields) + self.payload_length

    @property
    def end(self) -> int:
        return self.payload_offset + self.payload_length

    def payload_ok(self, payload: Buffer) -> bool:
        return hmac.compare_digest(hash_entry(payload), self.payload_sum)


def encode_entry(
    file_number: int, offset: int, kind: int, fields: bytes, payload: Sequence[Buffer]
) -> tuple[Entry, bytes]:
    """An entry for that place, and the bytes of its head; the payload's parts follow as they are.

    Raises ValueError where fields or payload are too long.
    """
    length = sum(map(len, payload))
    if len(fields) > FIELDS_MAX or length > PAYLOAD_MAX:
        raise ValueError(f"entry with {len(fields)} bytes of fields and {length} of payload")
    entry = Entry(offset, kind, fields, length, hash_entry(*payload))
    prefix = (ENTRY_MAGIC, kind, len(fields), length, offset, entry.payload_sum)
    head_sum = hash_entry(_SUMMED.pack(*prefix, file_number), fields)
    return entry, _PREFIX.pack(*prefix, head_sum) + fields


def decode_head(file_number: int, offset: int, data: Buffer) -> Entry:
    """The entry whose head starts `data`, read from `offset` of that file. Raises Corrupt."""
    if len(data) < PREFIX_SIZE:
        raise Corrupt("entry is cut short")
    magic, kind, fields_length, length, place, payload_sum, head_sum = _PREFIX.unpack_from(data)
    if magic != ENTRY_MAGIC or place != offset or fields_length > FIELDS_MAX or length > PAYLOAD_MAX:
        raise Corrupt("no entry here")
    fields = bytes(memoryview(data)[PREFIX_SIZE : PREFIX_SIZE + fields_length])
    summed = _SUMMED.pack(magic, kind, fields_length, length, place, payload_sum, file_number)
    if len(fields) != fields_length or not hmac.compare_digest(head_sum, hash_entry(summed, fields)):
        raise Corrupt("entry head does not fit its checksum")
    return Entry(offset, kind, fields, length, payload_sum)
