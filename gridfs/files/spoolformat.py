"""How a slot of the spool lies on disk: its header, its records, the chunks of their data. See SPEC.md."""

from __future__ import annotations

import struct

VERSION = 1
CHUNK = 65536
TAG = 16
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


def nonce_at(position: int) -> bytes:
    return position.to_bytes(12, "big")


def sealed_length(length: int, phase: int) -> int:
    """Bytes on disk of `length` bytes of data whose first byte lies `phase` bytes into a chunk."""
    return length + TAG * ((phase + length + CHUNK - 1) // CHUNK) if length else 0
