"""Requests: everything that all readers want in one turn of the loop goes out as one readv per server.

Readers hand in jobs and wait; the task in `run` wakes in the next turn, takes all jobs there are and
sends one request per server and class of traffic, split only at the wire's limits. So the number of
messages does not depend on k, on the number of segments or on the number of readers.

A destination belongs to its request until the job is done. A reader that is cancelled leaves its jobs
behind: its destinations must not be used again, and a request that nobody waits for any more is cancelled.
Atomic between awaits: a job is queued, in a batch, or done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from gridfs.grid.health import HealthBook
from gridfs.grid.ports import GridServer
from gridfs.grid.roster import ServerId
from storage.client import Span, Traffic
from storage.errors import StorageError


@dataclass(slots=True, eq=False)
class Job:
    """One span wanted from one server."""

    server: ServerId
    span: Span
    destination: memoryview
    """Exactly as long as the span."""
    got: int = 0
    """Bytes received, once done."""
    failure: str | None = None
    """Why the server did not answer; then `got` means nothing."""


@dataclass(slots=True, eq=False)
class _Ticket:
    """One caller and the jobs it waits for."""

    open_jobs: int
    done: trio.Event = field(default_factory=trio.Event)
    abandoned: bool = False
    batches: list[_Batch] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Batch:
    """What becomes one request."""

    server: ServerId
    traffic: Traffic
    jobs: list[tuple[Job, _Ticket]] = field(default_factory=list)
    size: int = 0
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def abandoned(self) -> bool:
        return all(ticket.abandoned for _, ticket in self.jobs)


@dataclass(slots=True)
class RequestStatistics:
    requests: int = 0
    spans: int = 0
    bytes: int = 0
    """Bytes received."""
    failed: int = 0
    """Requests that were not answered, or too late."""
    by_server: dict[ServerId, int] = field(default_factory=dict)
    """Requests sent, by server."""


class Requests:
    """Collects jobs and sends them. `run` must be running while `ask` is called."""

    def __init__(
        self, clients: Mapping[ServerId, GridServer], health: HealthBook, spans_max: int, bytes_max: int
    ) -> None:
        self._clients = clients
        self._health = health
        self._spans_max = spans_max
        self._bytes_max = bytes_max
        self._queued: dict[tuple[ServerId, Traffic], list[tuple[Job, _Ticket]]] = {}
        self._wake = trio.Event()
        self._outstanding: dict[ServerId, int] = {}
        self._closed = False
        self.statistics = RequestStatistics()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send until cancelled; jobs that are open then fail."""
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    await self._wake.wait()
                    self._wake = trio.Event()
                    queued, self._queued = self._queued, {}
                    for (server, traffic), jobs in queued.items():
                        for batch in self._batches(server, traffic, jobs):
                            nursery.start_soon(self._send, batch)
        finally:
            self._closed = True
            for jobs in self._queued.values():
                _finish(jobs, "reading has ended")

    async def ask(self, jobs: Sequence[Job], traffic: Traffic) -> None:
        """Wait until every job is done, well or not: see its `got` and `failure`. A checkpoint."""
        ticket = _Ticket(len(jobs))
        entries = [(job, ticket) for job in jobs]
        if self._closed:
            _finish(entries, "reading has ended")
        for job, _ in () if self._closed else entries:
            self._queued.setdefault((job.server, traffic), []).append((job, ticket))
        self._wake.set()
        if not jobs:
            ticket.done.set()
        try:
            await ticket.done.wait()
        except trio.Cancelled:
            self._abandon(ticket)
            raise

    def _batches(
        self, server: ServerId, traffic: Traffic, jobs: Sequence[tuple[Job, _Ticket]]
    ) -> Iterator[_Batch]:
        batch = _Batch(server, traffic)
        for job, ticket in jobs:
            if ticket.abandoned:
                continue
            length = job.span.length
            if batch.jobs and (len(batch.jobs) == self._spans_max or batch.size + length > self._bytes_max):
                yield batch
                batch = _Batch(server, traffic)
            batch.jobs.append((job, ticket))
            batch.size += length
            if not ticket.batches or ticket.batches[-1] is not batch:
                ticket.batches.append(batch)
        if batch.jobs:
            yield batch

    def _abandon(self, ticket: _Ticket) -> None:
        ticket.abandoned = True
        for batch in ticket.batches:
            if batch.abandoned:
                batch.scope.cancel()

    async def _send(self, batch: _Batch) -> None:
        failure: str | None = "reading has ended"
        try:
            failure = await self._readv(batch)
        finally:
            _finish(batch.jobs, failure)

    async def _readv(self, batch: _Batch) -> str | None:
        """Send one request and note what came; returns why it failed, None if it did not."""
        client = self._clients.get(batch.server)
        if client is None:
            return "there is no connection to it"
        self._count(batch)
        spans = [job.span for job, _ in batch.jobs]
        destinations = [job.destination for job, _ in batch.jobs]
        ahead = self._outstanding.get(batch.server, 0)
        self._outstanding[batch.server] = ahead + batch.size
        deadline_s = self._health.deadline_s(ahead + batch.size)
        got: list[int] = []
        try:
            with batch.scope, trio.move_on_after(deadline_s) as deadline:
                got = await client.readv(spans, destinations, batch.traffic)
        except StorageError as error:
            self._failed(batch.server, hung=False)
            return str(error)
        finally:
            self._outstanding[batch.server] -= batch.size
        if deadline.cancelled_caught:
            self._failed(batch.server, hung=True)
            return "it did not answer in time"
        if batch.scope.cancelled_caught:
            return "nobody waits for it any more"
        if len(got) != len(spans) or not all(0 <= g <= s.length for g, s in zip(got, spans, strict=True)):
            self._failed(batch.server, hung=False)
            return "it answered what was not asked"
        self._health.worked(batch.server)
        for (job, _), count in zip(batch.jobs, got, strict=True):
            job.got = count
        self.statistics.bytes += sum(got)
        return None

    def _count(self, batch: _Batch) -> None:
        counters = self.statistics
        counters.requests += 1
        counters.spans += len(batch.jobs)
        counters.by_server[batch.server] = counters.by_server.get(batch.server, 0) + 1

    def _failed(self, server: ServerId, *, hung: bool) -> None:
        self.statistics.failed += 1
        self._health.failed(server, trio.current_time(), hung=hung)


def _finish(jobs: Sequence[tuple[Job, _Ticket]], failure: str | None) -> None:
    for job, ticket in jobs:
        job.failure = failure
        ticket.open_jobs -= 1
        if not ticket.open_jobs:
            ticket.done.set()
