"""How a slot of the spool lies on disk: its header, its records, the chunks of their data. See SPEC.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from storage.errors import Refused
from storage.ports import Buffer, File

VERSION = 1
CHUNK = 65536
TAG = 16
PAGE = 4096
ROOM = 65536
"""A small record that makes a slot's file longer brings zeros up to a multiple of this, so that the next ones
do not: then a sync waits for the disk once, not for the file system's own journal as well."""
SMALL_DATA_MAX = 16384
"""Bytes of a record that is small in that sense."""
SLOT_HEADER = struct.Struct("<8sHxxxxxxQ16sQQ8x")
RECORD = struct.Struct("<4sIIIQQ")
SLOT_MAGIC = b"GRIDSPL\0"
RECORD_MAGIC = b"OPRC"
ASIDE = ".spool.aside-"
"""In the name of a slot that was set aside, behind its index."""
OPERATION_MAX = 16 << 20
DATA_MAX = 16 << 20
assert SLOT_HEADER.size == 64
assert RECORD.size == 32


class SlotHeader(NamedTuple):
    generation: int
    salt: bytes
    previous: int
    """Number of the last record in the slot before it, 0 for none."""
    begin: int
    """Number of its own first record."""

    def pack(self) -> bytes:
        return SLOT_HEADER.pack(SLOT_MAGIC, VERSION, self.generation, self.salt, self.previous, self.begin)


def read_header(file: File, where: str) -> SlotHeader | None:
    """The header of a slot; None where there is none. Raises Refused for one of another version."""
    header = bytearray(SLOT_HEADER.size)
    if file.read_into(memoryview(header), 0) < len(header):
        return None
    magic, version, *rest = SLOT_HEADER.unpack(header)
    if magic != SLOT_MAGIC or not version:
        return None  # no version is 0: a header of which the rest did not get to the disk
    if version != VERSION:
        raise Refused(f"{where} has spool format {version}; this gridfs reads {VERSION}")
    return SlotHeader(*rest)


def is_blank(file: File) -> bool:
    """Whether nothing is written where the header of a slot lies."""
    header = bytearray(SLOT_HEADER.size)
    file.read_into(memoryview(header), 0)
    return not any(header)


@dataclass(slots=True)
class Slot:
    """A slot in use, as the spool knows it."""

    index: int
    generation: int
    file: File
    cipher: AESGCM
    previous: int
    """Number of the last record in the slot before it, 0 for none."""
    begin: int
    """Number of its own first record; not always the next one, as the grid may have been ahead of us."""
    end: int = SLOT_HEADER.size
    whole: int = 0
    """Pages up to here were written whole by this process, and so are in the kernel's memory."""
    file_bytes: int = 0
    """Size of the file."""
    live: int = 0
    pins: int = 0
    first: int = 0
    last: int = 0
    synced: int = 0
    """Number of the last record that is known to be durable here."""
    promised: bool = False
    """Whether some of its data was made durable, and may have been promised to be: by this process, or by
    one before it. Such a slot goes only when what took its data's place is durable, too."""
    taken_at: int = 0
    """Number of the last operation that took data of a promised slot away."""
    data: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Start of a record's data in the slot -> (bytes of plaintext, phase)."""

    def seal(self, out: memoryview, number: int, operation: bytes, data: Buffer, phase: int) -> int:
        """Fill `out` with the record that goes to the slot's end, and is just as long; returns where its
        data will begin in the slot. Nothing else may be sealed for that place."""
        length = len(data)
        at, encrypt = self.end, self.cipher.encrypt_into
        RECORD.pack_into(out, 0, RECORD_MAGIC, len(operation), length, phase, number, self.generation)
        position = RECORD.size + len(operation) + TAG
        data_at = at + position
        encrypt(nonce_at(at + RECORD.size), operation, out[: RECORD.size], out[RECORD.size : position])
        if length:
            view = memoryview(data)
            done = 0
            while done < length:
                step = min(length - done, CHUNK - (phase + done) % CHUNK)
                sealed_end = position + step + TAG
                encrypt(nonce_at(at + position), view[done : done + step], None, out[position:sealed_end])
                done += step
                position = sealed_end
        return data_at


def nonce_at(position: int) -> bytes:
    return position.to_bytes(12, "big")


def sealed_length(length: int, phase: int) -> int:
    """Bytes on disk of `length` bytes of data whose first byte lies `phase` bytes into a chunk."""
    return length + TAG * ((phase + length + CHUNK - 1) // CHUNK) if length else 0
