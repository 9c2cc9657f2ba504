"""Frames: the unit in which everything crosses a connection, so that classes of traffic can interleave.

A frame is a header of 16 bytes and a payload of at most 256 KiB. Pure: bytes in, records out. What the
payloads mean is in `messages`, who may send what and when is in SPEC.md.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from storage.errors import Refused

WIRE_VERSIONS = (1,)
"""Versions of the protocol spoken here, best first."""

HEADER_SIZE = 16
PAYLOAD_SIZE_MAX = 256 * 1024
REQUEST_NUMBER_MAX = 2**63 - 1

_HEADER = struct.Struct(">IBBHQ")
assert _HEADER.size == HEADER_SIZE


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    """Both ways, before anything else: the three messages of the hello, request number 0."""
    REQUEST = 2
    """Client to server: one request message; opens its request number."""
    REPLY = 3
    """Server to client: one reply message; the end of the request unless a body follows."""
    DATA = 4
    """Bytes of the body announced by the request or the reply of this number, in order."""
    CANCEL = 5
    """Client to server: the answer is no longer wanted and no more body comes. No payload."""
    FAIL = 6
    """Server to client: the request ends here, without what is left of its body."""


class Traffic(IntEnum):
    """Classes of traffic, most urgent first."""

    HEAD = 0
    """Head log and small durable requests."""
    DEMAND = 1
    """Reads that somebody waits for."""
    UPLOAD = 2
    PREFETCH = 3
    REPAIR = 4


_KINDS = {int(kind): kind for kind in Kind}
_CLASSES = tuple(Traffic)


class Frame(NamedTuple):
    """The header of a frame."""

    length: int
    """Payload bytes that follow."""
    kind: Kind
    traffic: Traffic
    request: int
    """Number of the request that it belongs to, given by the client, rising; 0 in the hello."""


def encode_frame(length: int, kind: Kind, traffic: Traffic, request: int) -> bytes:
    """The 16 bytes before a payload of `length` bytes."""
    assert 0 <= length <= PAYLOAD_SIZE_MAX
    return _HEADER.pack(length, kind, traffic, 0, request)


def decode_frame(header: bytes | bytearray | memoryview) -> Frame:
    """Read a header of exactly 16 bytes. Raises Refused where the peer breaks the protocol."""
    length, kind, traffic, reserved, request = _HEADER.unpack(header)
    if length > PAYLOAD_SIZE_MAX:
        raise Refused(f"malformed frame: {length} bytes of payload, at most {PAYLOAD_SIZE_MAX} are allowed")
    known = _KINDS.get(kind)
    if known is None:
        raise Refused(f"malformed frame: unknown kind {kind}")
    if traffic >= len(_CLASSES):
        raise Refused(f"malformed frame: unknown class {traffic}")
    if reserved:
        raise Refused("malformed frame: reserved bits are set")
    if request > REQUEST_NUMBER_MAX:
        raise Refused("malformed frame: request number out of range")
    return Frame(length, known, _CLASSES[traffic], request)
