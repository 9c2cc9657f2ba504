"""The head log as a server sees it: records with an opaque sealed payload in a chain of stamps, who may claim
the log, and which key follows which.

A log is named by its first verifying key and by the recovery key's public half, so both are fixed for ever.
The recovery key alone makes successors: from then on the log belongs to another key, of the next generation.
The upper bits of an epoch are the generation, so every epoch of a successor is above all those before it.

Pure. What is signed and what is hashed are defined here, for the writer that signs and for the server that
checks. Bytes are laid down in SPEC.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from storage.errors import Corrupt, Refused
from storage.format.hashes import HASH_SIZE, hash_head_record, hash_log_keys
from storage.leases import STAMP_MAX, Stamp
from storage.ports import Buffer

MOUNT_ID_SIZE = 16
SIGNATURE_SIZE = 64
PAYLOAD_MAX = 64 * 1024
NO_MOUNT = bytes(MOUNT_ID_SIZE)
GENESIS = bytes(HASH_SIZE)
"""`previous` of a file system's first record."""

KEY_SIZE = 32
WRAPPED_MAX = 4096
"""Bytes of sealed keys in a succession."""
EPOCH_BITS = 40
"""Of an epoch, below those of its generation."""
GENERATION_MAX = (STAMP_MAX >> EPOCH_BITS) - 1

_RECORD = struct.Struct(">QQ16s32s64sI")
_SIGNED = struct.Struct(">22s32sQQ16s32sI")
_TRIM = struct.Struct(">20s32sQQ")
_CLAIM = struct.Struct(">23s32sQ16s")
_DROP = struct.Struct(">21s32sQ")
_SUCCESSION = struct.Struct(">27s32sI32sI")
RECORD_OVERHEAD = _RECORD.size
assert RECORD_OVERHEAD == 132
assert _SIGNED.size == 122
assert _TRIM.size == 68
assert (_CLAIM.size, _DROP.size, _SUCCESSION.size) == (79, 61, 99)


def log_name(first_key: Buffer, recovery_public: Buffer) -> bytes:
    """Name (32 bytes) of the head log of a first verifying key and a recovery key's public half.

    Both are Ed25519 public keys of 32 bytes.
    """
    return hash_log_keys(first_key, recovery_public)


def generation_of(epoch: int) -> int:
    """Which key an epoch belongs to: 0 for the first, one more for each successor."""
    return epoch >> EPOCH_BITS


def fits(verifying_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether this Ed25519 key (32 bytes) made this signature (64 bytes)."""
    try:
        _public_key(verifying_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@lru_cache(maxsize=64)
def _public_key(verifying_key: bytes) -> Ed25519PublicKey:
    """Making the key object takes half as long as using it."""
    return Ed25519PublicKey.from_public_bytes(verifying_key)


@dataclass(frozen=True, slots=True)
class Succession:
    """The recovery key's word that a log belongs to another key from now on."""

    generation: int
    """1 for the first successor; only rises."""
    verifying_key: bytes
    """Ed25519 public key (32 bytes) that signs from now on."""
    wrapped: bytes
    """The new master key, sealed for the recovery key; at most WRAPPED_MAX bytes."""
    signature: bytes
    """Ed25519 of the recovery key over `signed_bytes(log)`, 64 bytes."""

    def check(self) -> None:
        """Raise Refused unless every field has its size and range."""
        if not 1 <= self.generation <= GENERATION_MAX or len(self.wrapped) > WRAPPED_MAX:
            raise Refused("a succession's generation or keys are out of range")
        if (len(self.verifying_key), len(self.signature)) != (KEY_SIZE, SIGNATURE_SIZE):
            raise Refused("a succession's key or signature has a wrong size")

    def signed_bytes(self, log: bytes) -> bytes:
        """What the recovery key signs."""
        fixed = _SUCCESSION.pack(
            b"gridfs 2026 head succession", log, self.generation, self.verifying_key, len(self.wrapped)
        )
        return fixed + self.wrapped

    def is_endorsed(self, log: bytes, recovery_public: bytes) -> bool:
        return fits(recovery_public, self.signature, self.signed_bytes(log))


@dataclass(frozen=True, slots=True)
class HeadClaim:
    """A mount asks to be a log's writer, with the key that the log belongs to."""

    first_key: bytes
    """First verifying key of the log, 32 bytes."""
    recovery_public: bytes
    """Public half of the recovery key, 32 bytes; the two name the log."""
    epoch: int
    mount_id: bytes
    signature: bytes
    """Ed25519 of the claiming key over `signed_bytes()`, 64 bytes."""
    succession: Succession | None = None
    """Why the claiming key is not the first one."""

    @property
    def log(self) -> bytes:
        return log_name(self.first_key, self.recovery_public)

    @property
    def generation(self) -> int:
        return self.succession.generation if self.succession else 0

    @property
    def verifying_key(self) -> bytes:
        """The key that claims."""
        return self.succession.verifying_key if self.succession else self.first_key

    def signed_bytes(self) -> bytes:
        return _CLAIM.pack(b"gridfs 2026 head claim\0", self.log, self.epoch, self.mount_id)

    def check(self) -> None:
        """Raise Refused unless the claim is whole and rightly signed, by a key that may claim this log."""
        sizes = (len(self.first_key), len(self.recovery_public), len(self.mount_id), len(self.signature))
        if sizes != (KEY_SIZE, KEY_SIZE, MOUNT_ID_SIZE, SIGNATURE_SIZE) or not 0 <= self.epoch <= STAMP_MAX:
            raise Refused("malformed claim")
        if self.succession is not None:
            self.succession.check()
            if not self.succession.is_endorsed(self.log, self.recovery_public):
                raise Refused("the recovery key of this head log did not endorse that key")
        if generation_of(self.epoch) != self.generation:
            raise Refused(f"epoch {self.epoch} is not one of generation {self.generation}")
        if not fits(self.verifying_key, self.signature, self.signed_bytes()):
            raise Refused("the signature does not fit the claiming key")


@dataclass(frozen=True, slots=True)
class HeadStanding:
    """How a log stands on one server."""

    epoch: int
    """The promised one."""
    mount_id: bytes
    succession: Succession | None
    """The newest one; None while the log belongs to its first key."""
    newest: HeadRecord | None


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


def held_signed_bytes(connection: bytes) -> bytes:
    """What a head signing key signs to show, on a connection of this name, that it is there."""
    return b"gridfs 2026 head key\0" + connection


def trim_signed_bytes(log: bytes, before: Stamp) -> bytes:
    """What the signature of a trim is made over."""
    return _TRIM.pack(b"gridfs 2026 head cut", log, *before)


def drop_signed_bytes(log: bytes, epoch: int) -> bytes:
    """What the signature is made over that ends a log."""
    return _DROP.pack(b"gridfs 2026 head drop", log, epoch)
