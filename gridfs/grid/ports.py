"""What the grid needs of a storage server: three requests. `storage.client.StorageClient` offers them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from storage.client import SharePut, Span, Traffic
from storage.errors import StorageError

Stamp = tuple[int, int]
"""(epoch, sequence) of the record under which a lease is asserted."""


class GridServer(Protocol):
    """One storage server. Every method raises `storage.errors.StorageError`; all may be cancelled."""

    async def readv(
        self, spans: Sequence[Span], destinations: Sequence[memoryview], traffic: Traffic
    ) -> list[int]:
        """One request for all spans, received straight into the destinations.

        Returns the bytes got per span, 0 where the server lacks the share. Cancelled, it never writes
        into a destination afterwards.
        """

    def readv_nowait(
        self,
        spans: Sequence[Span],
        destinations: Sequence[memoryview],
        traffic: Traffic,
        settled: Callable[[list[int] | StorageError], None],
    ) -> Callable[[], None] | None:
        """The same without a task: `settled` is told the end, and returned is what calls it off before that;
        `settled` is told nothing then. None, and nothing is done, where it would have to wait."""

    async def put(
        self, shares: Sequence[SharePut], file_system: bytes, stamp: Stamp, traffic: Traffic
    ) -> list[bool]:
        """One request that stores and leases all shares; durable on return. False: it was there already."""

    async def have(self, keys: Sequence[tuple[bytes, int]], file_system: bytes, stamp: Stamp) -> list[bool]:
        """Which of (pack id, number) the server has; it leases those."""
