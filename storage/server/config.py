"""Tunables, counters and the memory budget of a server."""

from __future__ import annotations

from dataclasses import dataclass, field

from storage.backends.port import SyncPolicy
from storage.readplan import COPIED_SIZE_MAX


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How one server runs."""

    sync_policy: SyncPolicy = SyncPolicy.GROUP
    capacity_bytes: int | None = None
    """Bytes that shares may take; None for what the disk has."""
    hello_s: float = 10.0
    """In which a new connection must have said hello."""
    stall_s: float = 60.0
    """The longest wait for more of a frame or a body that has begun, and for a frame of ours to be taken."""
    strangers_max: int = 64
    """Connections that have not said hello yet; more are closed at once."""
    put_memory_bytes: int = 128 * 1024 * 1024
    """Bodies of puts in memory, over all connections; what exceeds it is told to come back later."""
    kept_memory_bytes: int = 9 * 512 * 1024
    """Memory for bodies and for answers from the disk that is kept, with what is in use: two large shares, or
    four answers to parallel reads."""
    copied_size_max: int = COPIED_SIZE_MAX
    """Answers up to this size are copied and leave with their header in one system call."""


@dataclass(slots=True)
class ServerStatistics:
    """Counters since the server started."""

    requests: dict[str, int] = field(default_factory=dict)
    """Requests by kind."""
    failures: int = 0
    """Requests answered with an error."""
    bytes_in: int = 0
    """Bytes of shares received in whole puts."""
    bytes_out: int = 0
    """Bytes of shares in answers to readv."""
    bytes_copied: int = 0
    """Those of them that were copied into one buffer first."""
    cold_reads: int = 0
    """Readvs that had to wait for the disk."""
    connections: int = 0
    """Open now, hello done."""
    strangers: int = 0
    """Open now, hello not done."""
    turned_away: int = 0
    """Connections closed because their hello failed."""
    put_memory_bytes: int = 0
    """Bodies of puts in memory now."""
