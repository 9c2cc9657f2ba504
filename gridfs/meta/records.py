"""What head log records and journal packs say, sealed and opened. Pure.

A record carries the operations since the newest journal pack (or the checkpoint, where that is newer) or
since the record before it in the same epoch; the first record of an epoch carries everything since the
newest journal pack, so it stands for itself and for whatever the epoch before left on too few servers.
SPEC.md has the fields.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Annotated

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gridfs.codec.headlist import HeadList
from gridfs.meta.operations import Count, Hash, Inode, PackRecord
from storage.errors import Corrupt, Refused

RECORD_VERSION = 1
SALT_SIZE = 16
RECORD_BODY_MAX = 60 << 10
"""Bytes of a record's body, so that the sealed record stays below the head log's 64 KiB."""
_SERVER_SIZE = 40
"""Bytes that naming a server takes at most, and the number of a missing share beside it."""
_EARLIER_BYTES_MAX = 6 << 10
_ADDRESS = struct.Struct("<HQQ")


class CarriedData(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Synced bytes of a file as they are after the last operation of the record."""

    ino: Inode
    start: Count
    number: Count
    """Of the Write that brought them."""
    data: bytes


class Journaled(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A journal pack that is needed: it has operations that the checkpoint does not know."""

    last: Count
    """Number of its last operation."""
    pack: PackRecord


class Settings(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a file system is, for a machine that has nothing of it."""

    file_system: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    k: Annotated[int, msgspec.Meta(ge=1, le=256)]
    n: Annotated[int, msgspec.Meta(ge=1, le=256)]
    happy: Annotated[int, msgspec.Meta(ge=1, le=256)]
    shares_per_server: Annotated[int, msgspec.Meta(ge=1, le=256)]
    recovery_public: Hash
    """Public half of the recovery key."""


class HeadBody(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The body of one head log record."""

    heads: HeadList
    """Who keeps the head log."""
    after: Count
    """Operations begin behind this number: the last of the record before, or of the journal."""
    last: Count
    """Number of the last operation here; equal to `after` if there are none."""
    journal: PackRecord | None
    """The newest journal pack, if there is any."""
    gathered: Count
    """Number of the last operation in journal packs."""
    operations: list[tuple[int, bytes]]
    """(number, encoded operation), ascending."""
    begins: bool
    """Whether the record stands for itself: besides journal packs, nothing before it is needed."""
    carries: bool
    """Whether data in records, from the last that begins to this one, may be in no pack yet."""
    data: list[CarriedData]
    settings: Settings
    checkpoint: PackRecord | None = None
    """Root pack of the newest checkpoint, if there is any."""
    checkpointed: Count = 0
    """Number of the last operation that it knows; journal packs up to there are needed no more."""
    earlier: list[Journaled] | None = None
    """What the newest journal pack names as earlier ones, for readers far away; None where it is too much."""
    leaving: HeadList | None = None
    """While the list of head servers changes: the one before, of which a quorum has this record as well."""


class JournalBody(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The plaintext of a journal pack."""

    earlier: list[Journaled]
    """All earlier journal packs since the checkpoint, oldest first."""
    after: Count
    last: Count
    operations: list[tuple[int, bytes]]


_encoder = msgspec.msgpack.Encoder()
_head = msgspec.msgpack.Decoder(HeadBody)
_journal = msgspec.msgpack.Decoder(JournalBody)


def operations_max(head_servers: int, n: int) -> int:
    """Bytes of operations and data, 16 an operation and 40 a piece counted besides, that fit into a body.

    `head_servers`: how many it names, in all lists.
    """
    return RECORD_BODY_MAX - _EARLIER_BYTES_MAX - _SERVER_SIZE * (head_servers + 2 * n)


def brief(earlier: Sequence[Journaled]) -> list[Journaled] | None:
    """Journal packs as a record names them; None for more than its room for them takes."""
    size = sum(_SERVER_SIZE * (len(journal.pack.places) + 4) for journal in earlier)
    return list(earlier) if size <= _EARLIER_BYTES_MAX else None


def seal_head(body: HeadBody, journal_key: bytes, salt: bytes, epoch: int, sequence: int) -> bytes:
    """A record's payload. `salt`: 16 fresh random bytes, from which its own key follows."""
    address = _ADDRESS.pack(RECORD_VERSION, epoch, sequence)
    sealed = AESGCM(_record_key(journal_key, salt)).encrypt(bytes(12), _encoder.encode(body), address)
    return address[:2] + salt + sealed


def open_head(payload: bytes, journal_key: bytes, epoch: int, sequence: int) -> HeadBody:
    """The body of a record. Raises Corrupt, or Refused for a version this program does not know."""
    if len(payload) < 2 + SALT_SIZE + 16:
        raise Corrupt("head record is cut short")
    version = int.from_bytes(payload[:2], "little")
    if version != RECORD_VERSION:
        raise Refused(f"head record has format version {version}; this gridfs reads {RECORD_VERSION}")
    salt, sealed = payload[2 : 2 + SALT_SIZE], payload[2 + SALT_SIZE :]
    try:
        address = _ADDRESS.pack(version, epoch, sequence)
        plain = AESGCM(_record_key(journal_key, salt)).decrypt(bytes(12), sealed, address)
        return _head.decode(plain)
    except (InvalidTag, msgspec.MsgspecError):
        raise Corrupt(f"head record {epoch}.{sequence} does not open with this file system's key") from None


def encode_journal(body: JournalBody) -> bytes:
    """The plaintext of a journal pack (the pack seals it)."""
    return _encoder.encode(body)


def decode_journal(data: bytes | bytearray | memoryview) -> JournalBody:
    """Raises Corrupt."""
    try:
        return _journal.decode(data)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"journal pack cannot be read: {error}") from None


def _record_key(journal_key: bytes, salt: bytes) -> bytes:
    return blake3(salt, key=journal_key).digest()
