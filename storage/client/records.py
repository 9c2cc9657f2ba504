"""What goes into a `StorageClient` and comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from storage.ports import Buffer, Space
from storage.wire.frames import Traffic


@dataclass(frozen=True, slots=True)
class Span:
    """A range of one share."""

    pack_id: bytes
    """32 bytes."""
    number: int
    """The share's number in its pack, 0..255."""
    offset: int
    """Bytes from the start of the share (its header included)."""
    length: int
    """Bytes, at least 1."""


@dataclass(frozen=True, slots=True)
class SharePut:
    """A share to be stored."""

    pack_id: bytes
    number: int
    parts: Sequence[Buffer]
    """The whole share, in parts that are sent as they are; they must not change until `put` returns."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says of itself."""

    version: str
    sync_policy: str
    """"none", "group" or "each"; only the last two count as stored after a power loss."""
    space: Space
    shares: int
    share_bytes: int


QUEUE_FACTOR = 6
"""How many times its class's silence a request may wait while answers to others come."""


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """Deadlines and pauses, in seconds of trio's clock."""

    connect_s: float = 5.0
    """For connecting and for the hello, each."""
    progress_s: tuple[float, float, float, float, float] = (10.0, 10.0, 60.0, 30.0, 60.0)
    """By class: the longest silence after a request was sent. Whatever arrives on the connection starts it
    again, because answers queue behind each other, but only `QUEUE_FACTOR` times for frames of others."""
    stall_s: float = 30.0
    """The longest time that one frame of at most 256 KiB may take to leave or to arrive."""
    settled_s: float = 1.0
    """A connection that lasted this long and is lost is made again at once, without a pause."""
    retry_s_min: float = 0.1
    """Longest pause after the first failed attempt to connect; it doubles from one to the next."""
    retry_s_max: float = 10.0
    hurry_s_max: float = 1.0
    """Longest pause while somebody asks for data."""


@dataclass(slots=True)
class ClientStatistics:
    """Counters since the client was made."""

    requests: dict[str, int] = field(default_factory=dict)
    """Requests sent, by kind: readv, put, have, release, head_claim, head_append, ..."""
    traffic: dict[Traffic, int] = field(default_factory=dict)
    """Requests sent, by class."""
    bytes_in: int = 0
    """Bytes of shares received."""
    bytes_out: int = 0
    """Bytes of shares sent."""
    connects: int = 0
    """Connections made."""
    failures: int = 0
    """Requests that ended in an error."""
    cancelled: int = 0
    """Requests given up by the caller."""
    pending: int = 0
    """Requests under way now."""
