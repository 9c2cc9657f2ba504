"""The supply of one read: what it has got, who may be asked for more, and the asking itself.

Everything is asked at once and waited for. Where a server lets us wait past its deadline, the same bytes are
asked of others (`hedging`), and whichever way is complete first ends the round: the rest is left behind, the
late requests are cancelled, and buffers into which they could still write are not used again before.

Changed only between awaits. Sealed bytes lie in borrowed buffers, one for each asking, until `close`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from gridfs.grid.buffers import BufferPool
from gridfs.grid.errors import short
from gridfs.grid.health import HealthBook
from gridfs.grid.hedging import Hedging, others, settled
from gridfs.grid.neighbours import Neighbours
from gridfs.grid.planner import Coming, Fetch, Held, PackRef, Piece, Sources, Step, Want
from gridfs.grid.requests import Asking, Job, Late, Requests
from gridfs.grid.roster import Roster, ServerId
from storage.client import Span, Traffic

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class ReadStatistics:
    """Counters since the start."""

    segments: int = 0
    """Segments opened."""
    reconstructed: int = 0
    """Ranges rebuilt from others."""
    lookups: int = 0
    """Times that all servers were asked for a pack's shares."""
    audits: int = 0
    """Rows checked because a segment did not open."""
    damaged: dict[ServerId, int] = field(default_factory=dict)
    """Shares found lacking, cut short or false, by server."""
    lied: dict[ServerId, int] = field(default_factory=dict)
    """Those of them that were not just lacking."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What all reads of a downloader share."""

    requests: Requests
    pool: BufferPool
    health: HealthBook
    hedging: Hedging
    roster: Roster
    neighbours: Neighbours
    statistics: ReadStatistics


class _Pending(NamedTuple):
    """A fetch that has not been answered."""

    fetch: Fetch
    job: Job
    is_hedge: bool


class Supply:
    """What one read has and may still get."""

    def __init__(self, tools: Tools, traffic: Traffic) -> None:
        self._tools = tools
        self._traffic = traffic
        self.sources = Sources(tools.health.demoted(trio.current_time()))
        self.held = Held()
        self.wide: set[tuple[bytes, int, int]] = set()
        """Blocks that are fetched for their neighbours too: (pack id, share number, start)."""
        self._buffers: list[memoryview] = []

    def close(self) -> None:
        """Give the buffers back; what is held is gone."""
        for buffer in self._buffers:
            self._tools.pool.give(buffer)
        self._buffers.clear()
        self.held.clear()

    # ---- asking

    async def fetch(self, fetches: Sequence[Fetch], wants: Sequence[tuple[int, Want]]) -> list[Step] | None:
        """Fetch byte ranges, all at once, and hold what comes.

        None when every server has answered. Where late ones were not needed in the end: how to come by the
        `wants`, all of which are here.
        """
        if not fetches:
            return None
        memory = await self._memory(fetches)
        asking = Asking()
        try:
            pending = self._begin(asking, fetches, memory, is_hedge=False)
            while True:
                await asking.changed()
                pending = self._take(pending)
                if not pending:
                    return None
                late = asking.late()
                for each in late:
                    self.sources.late(each.server)
                steps = settled(wants, self.sources, self.held)
                if steps is not None:
                    self._overtook(late)
                    return steps
                asking.wants_each = True
                pending += await self._hedge(asking, late, pending, wants)
        finally:
            self._tools.requests.leave(asking)

    async def ask(
        self, asked: Sequence[tuple[ServerId, Span]], enough: Callable[[Sequence[Job]], bool]
    ) -> list[Job]:
        """Ask servers for spans, all at once; a server that fails is asked nothing more.

        Returns all jobs. Some are not done where their servers are late and `enough`, given all jobs, says
        that one can do without.
        """
        jobs = _jobs(asked, await self._buffer(sum(span.length for _, span in asked)))
        asking = Asking()
        try:
            self._tools.requests.begin(asking, jobs, self._traffic)
            while asking.open_jobs:
                await asking.changed()
                late = [each.server for each in asking.late()]
                for server in late:
                    self.sources.late(server)
                asking.wants_each = True
                if all(job.is_done or job.server in late for job in jobs) and enough(jobs):
                    break
        finally:
            self._tools.requests.leave(asking)
        for job in jobs:
            if job.failure is not None:
                self.sources.fail_server(job.server, job.failure)
        return jobs

    async def _memory(self, fetches: Sequence[Fetch]) -> memoryview:
        return await self._buffer(sum(fetch.end - fetch.start for fetch in fetches))

    async def _buffer(self, size: int) -> memoryview:
        pool = self._tools.pool
        # One who holds a buffer must not wait for others who do.
        buffer = pool.take_nowait(size) if self._buffers else await pool.take(size)
        self._buffers.append(buffer)
        return buffer

    def _begin(
        self, asking: Asking, fetches: Sequence[Fetch], memory: memoryview, *, is_hedge: bool
    ) -> list[_Pending]:
        jobs = _jobs([(fetch.server, _span(fetch)) for fetch in fetches], memory)
        self._tools.requests.begin(asking, jobs, self._traffic)
        return [_Pending(fetch, job, is_hedge) for fetch, job in zip(fetches, jobs, strict=True)]

    # ---- late servers

    async def _hedge(
        self,
        asking: Asking,
        late: Sequence[Late],
        pending: Sequence[_Pending],
        wants: Sequence[tuple[int, Want]],
    ) -> list[_Pending]:
        """Ask others for what late servers owe, if that is possible, of use and allowed."""
        if not self._tools.requests.is_behind(asking):
            return []
        coming = Coming()
        for fetch, _, _ in pending:
            if self.sources.healthy(fetch.server):
                coming.add(fetch.pack.pack_id, fetch.number, fetch.start, fetch.end)
        fetches = others(wants, self.sources, self.held, coming)
        if not fetches:
            return []
        tools, now = self._tools, trio.current_time()
        if all(tools.health.is_demoted(server, now) for server, _, _ in late):
            tools.hedging.went_around(len(fetches), sum(fetch.end - fetch.start for fetch in fetches))
        elif not tools.hedging.pay(fetches):
            return []
        return self._begin(asking, fetches, await self._memory(fetches), is_hedge=True)

    def _overtook(self, late: Sequence[Late]) -> None:
        """Everything is here, and these requests are still open."""
        now = trio.current_time()
        for server, size, asked_at in late:
            self._tools.health.overtaken(server, size, asked_at, now)
        if late:
            self._tools.hedging.won()

    # ---- what came

    def _take(self, pending: Sequence[_Pending]) -> list[_Pending]:
        """Hold what was answered since; returns what was not."""
        left = []
        for each in pending:
            fetch, job, is_hedge = each
            if not job.is_done:
                left.append(each)
            elif job.failure is not None:
                self.sources.fail_server(job.server, job.failure)
            elif job.got == job.span.length:
                self._hold(fetch, job.destination)
                if not is_hedge:
                    self._tools.hedging.earned(job.got)
            else:
                reason = "its share is cut short" if job.got else "it lacks its share"
                self.blame(fetch.pack, fetch.number, fetch.server, reason, lied=bool(job.got))
        return left

    def _hold(self, fetch: Fetch, data: memoryview) -> None:
        pack_id = fetch.pack.pack_id
        self.held.add(pack_id, fetch.number, Piece(fetch.start, fetch.end, data, fetch.server))
        if self.wide and (pack_id, fetch.number, fetch.start) in self.wide:
            self._tools.neighbours.keep(Want(*fetch[:4]), data, fetch.server)

    def blame(self, pack: PackRef, number: int, server: ServerId, reason: str, *, lied: bool) -> None:
        """A share is not what it should be: go around it and say so; later reads ask a liar last."""
        self.sources.fail_share(pack.pack_id, number, server, reason)
        self.held.drop(pack.pack_id, number, server)
        self._tools.neighbours.drop(pack.pack_id, number)
        statistics = self._tools.statistics
        for counted in (statistics.damaged, statistics.lied) if lied else (statistics.damaged,):
            counted[server] = counted.get(server, 0) + 1
        name = self._tools.roster.name(server)
        logger.warning("%s, pack %s share %d: %s", name, short(pack.pack_id), number, reason)
        if lied:
            self._tools.health.lied(server, trio.current_time())


def _span(fetch: Fetch) -> Span:
    geometry = fetch.pack.geometry
    return Span(fetch.pack.pack_id, fetch.number, geometry.data_offset + fetch.start, fetch.end - fetch.start)


def _jobs(asked: Sequence[tuple[ServerId, Span]], memory: memoryview) -> list[Job]:
    """One job for each span, side by side in `memory`."""
    jobs, at = [], 0
    for server, span in asked:
        jobs.append(Job(server, span, memory[at : at + span.length]))
        at += span.length
    return jobs
