"""Hedging: what to ask of others while a server lets a read wait, and whether that may be paid. Pure.

A read that waits for a late server asks others for what its rows lack to k: one range where the row is read
anyway, up to k for a lone range. Such requests are paid from a bucket, into which a twentieth of all bytes
read is put; when it is empty none is started. To go around a server that is demoted costs nothing from it:
that is no race but another way, and is counted apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gridfs.grid.planner import Coming, Fetch, Held, Sources, Step, Want, plan_reads


@dataclass(frozen=True, slots=True)
class HedgeConfig:
    part: float = 0.05
    """Of the bytes read, what may go into hedges."""
    bucket_bytes_first: int = 1 << 20
    """In the bucket at the start: a server may hang before anything was read."""
    bucket_bytes_max: int = 8 << 20


@dataclass(slots=True)
class HedgeStatistics:
    """Counters since the start, and what is in the bucket."""

    requests: int = 0
    """Ranges asked of others because a server was late."""
    bytes: int = 0
    """... and their bytes."""
    won: int = 0
    """Reads that others answered before the late server did."""
    unpaid: int = 0
    """Hedges not started because the bucket was too empty."""
    around: int = 0
    """Ranges asked of others because a server was demoted."""
    around_bytes: int = 0
    """... and how many bytes more that was than asking the server itself."""
    bucket_bytes: int = 0


class Hedging:
    """The bucket of one downloader, and what was done with it."""

    def __init__(self, config: HedgeConfig | None = None) -> None:
        self._config = config or HedgeConfig()
        self._bucket = float(self._config.bucket_bytes_first)
        self._counters = HedgeStatistics()

    def statistics(self) -> HedgeStatistics:
        """The live counters."""
        self._counters.bucket_bytes = int(self._bucket)
        return self._counters

    def earned(self, read_bytes: int) -> None:
        """So many bytes were read without a race."""
        config = self._config
        self._bucket = min(config.bucket_bytes_max, self._bucket + read_bytes * config.part)

    def pay(self, fetches: Sequence[Fetch]) -> bool:
        """Take the price of these fetches out of the bucket; False, and nothing taken, if it is too empty."""
        price = sum(fetch.end - fetch.start for fetch in fetches)
        if price > self._bucket:
            self._counters.unpaid += 1
            return False
        self._bucket -= price
        self._counters.requests += len(fetches)
        self._counters.bytes += price
        return True

    def went_around(self, ranges: int, more_bytes: int) -> None:
        """So many ranges were asked of others because servers are demoted, for so many bytes more."""
        self._counters.around += ranges
        self._counters.around_bytes += more_bytes

    def won(self) -> None:
        """Others were quicker than a late server."""
        self._counters.won += 1


def others(wants: Sequence[tuple[int, Want]], sources: Sources, held: Held, coming: Coming) -> list[Fetch]:
    """What to ask of servers in good health so that these wants need no late one; empty if that is nothing.

    coming: what is on its way from servers that are not late.
    """
    plan = plan_reads(wants, sources, held, coming)
    return [fetch for fetch in plan.fetches if sources.healthy(fetch.server)]


def settled(wants: Sequence[tuple[int, Want]], sources: Sources, held: Held) -> list[Step] | None:
    """How to come by all these wants from what is here; None if more is needed."""
    plan = plan_reads(wants, sources, held)
    return None if plan.lacking or plan.fetches else plan.steps
