"""The head record as a server sees it: an opaque sealed payload under a signature, in a chain of stamps.

Pure. What is signed and what is hashed are defined here, for the writer that signs and for the server that
checks. Bytes are laid down in SPEC.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from storage.errors import Corrupt, Refused
from storage.format.hashes import HASH_SIZE, hash_head_record, hash_verifying_key
from storage.leases import STAMP_MAX, Stamp
from storage.ports import Buffer

MOUNT_ID_SIZE = 16
SIGNATURE_SIZE = 64
PAYLOAD_MAX = 64 * 1024
NO_MOUNT = bytes(MOUNT_ID_SIZE)
GENESIS = bytes(HASH_SIZE)
"""`previous` of a file system's first record."""

_RECORD = struct.Struct(">QQ16s32s64sI")
_SIGNED = struct.Struct(">22s32sQQ16s32sI")
_TRIM = struct.Struct(">20s32sQQ")
RECORD_OVERHEAD = _RECORD.size
assert RECORD_OVERHEAD == 132
assert _SIGNED.size == 122
assert _TRIM.size == 68


def log_name(verifying_key: Buffer) -> bytes:
    """Name (32 bytes) of the head log whose first verifying key (Ed25519, 32 bytes) this is."""
    return hash_verifying_key(verifying_key)


@dataclass(frozen=True, slots=True)
class HeadRecord:
    """One record of a head log."""

    epoch: int
    sequence: int
    previous: bytes
    """`record_hash()` of the record before it (32 bytes), GENESIS for the first."""
    payload: bytes
    """Sealed by the writer; at most PAYLOAD_MAX bytes."""
    signature: bytes
    """Ed25519 over `signed_bytes(log)`, 64 bytes."""
    mount_id: bytes = NO_MOUNT
    """The mount (16 bytes) that claimed the epoch; all zeros does not say."""

    @property
    def stamp(self) -> Stamp:
        return self.epoch, self.sequence

    def check(self) -> None:
        """Raise Refused unless every field has its size and range."""
        if not (0 <= self.epoch <= STAMP_MAX and 0 <= self.sequence <= STAMP_MAX):
            raise Refused("a head record's epoch and sequence lie in 0..2**63-1")
        if len(self.payload) > PAYLOAD_MAX:
            raise Refused(f"head record of {len(self.payload)} bytes; at most {PAYLOAD_MAX}")
        sizes = (len(self.previous), len(self.signature), len(self.mount_id))
        if sizes != (HASH_SIZE, SIGNATURE_SIZE, MOUNT_ID_SIZE):
            raise Refused(f"head record with fields of {sizes} bytes")

    def signed_bytes(self, log: bytes) -> bytes:
        """What the signature is made over: every field, and the log it is meant for."""
        fixed = _SIGNED.pack(
            b"gridfs 2026 head sign\0",
            log,
            self.epoch,
            self.sequence,
            self.mount_id,
            self.previous,
            len(self.payload),
        )
        return fixed + self.payload

    def encode(self) -> bytes:
        """The record as it is kept: RECORD_OVERHEAD bytes and the payload."""
        fixed = _RECORD.pack(
            self.epoch, self.sequence, self.mount_id, self.previous, self.signature, len(self.payload)
        )
        return fixed + self.payload

    @classmethod
    def decode(cls, data: Buffer) -> HeadRecord:
        """Read one whole encoded record. Raises Corrupt."""
        if len(data) < RECORD_OVERHEAD:
            raise Corrupt("head record is cut short")
        epoch, sequence, mount_id, previous, signature, length = _RECORD.unpack_from(data)
        if length > PAYLOAD_MAX or len(data) != RECORD_OVERHEAD + length:
            raise Corrupt("head record does not have its length")
        return cls(epoch, sequence, previous, bytes(memoryview(data)[RECORD_OVERHEAD:]), signature, mount_id)

    def record_hash(self) -> bytes:
        """What the next record names as `previous`."""
        return hash_head_record(self.encode())


def trim_signed_bytes(log: bytes, before: Stamp) -> bytes:
    """What the signature of a trim is made over."""
    return _TRIM.pack(b"gridfs 2026 head cut", log, *before)
