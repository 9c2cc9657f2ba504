"""BLAKE3 under one context per purpose, so that a hash made for one thing never stands for another.

Hashers are copied from a prepared one: the context string is then expanded once a process.
"""

from __future__ import annotations

from blake3 import blake3

from storage.ports import Buffer

HASH_SIZE = 32

_BLOCK = blake3(derive_key_context="gridfs 2026 block")
_TABLE = blake3(derive_key_context="gridfs 2026 table")
_NODE = blake3(derive_key_context="gridfs 2026 node")
_PACK = blake3(derive_key_context="gridfs 2026 pack")
_ENTRY = blake3(derive_key_context="gridfs 2026 entry")
_HEAD_LOG = blake3(derive_key_context="gridfs 2026 head log")
_HEAD_RECORD = blake3(derive_key_context="gridfs 2026 head record")


def _digest(prepared: blake3, parts: tuple[Buffer, ...], size: int = HASH_SIZE) -> bytes:
    hasher = prepared.copy()
    for part in parts:
        hasher.update(part)
    return hasher.digest(size)


def block_hasher() -> blake3:
    """An empty hasher for one block that arrives in pieces."""
    return _BLOCK.copy()


def hash_block(block: Buffer) -> bytes:
    """Hash of one block of a share."""
    return _digest(_BLOCK, (block,))


def hash_table(table: Buffer) -> bytes:
    """Share root: hash of the table of a share's block hashes, in order."""
    return _digest(_TABLE, (table,))


def hash_node(left: Buffer, right: Buffer) -> bytes:
    """Inner node of the Merkle tree over share roots."""
    return _digest(_NODE, (left, right))


def hash_pack(fields: Buffer, root: Buffer) -> bytes:
    """Pack id: hash of the geometry fields and the Merkle root."""
    return _digest(_PACK, (fields, root))


def hash_entry(*parts: Buffer) -> bytes:
    """Checksum (16 bytes) of an entry in an append-only file."""
    return _digest(_ENTRY, parts, 16)


def hash_log_keys(first_key: Buffer, recovery_public: Buffer) -> bytes:
    """Name of a head log: hash of its first verifying key and its recovery key's public half (Ed25519)."""
    return _digest(_HEAD_LOG, (first_key, recovery_public))


def hash_head_record(encoded: Buffer) -> bytes:
    """What the next head record names as its `previous`."""
    return _digest(_HEAD_RECORD, (encoded,))
