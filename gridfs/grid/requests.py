"""Requests: everything that all readers want in one turn of the loop goes out as one readv per server.

Readers hand in jobs and wait; the task in `run` wakes in the next turn, takes all jobs there are and
sends one request per server and class of traffic, split only at the wire's limits. So the number of
messages does not depend on k, on the number of segments or on the number of readers.

A request that passes its server's deadline (`health`) goes on; those who wait for it are told, and may get
the same bytes elsewhere and leave, unless all that was asked together is late (`is_behind`). One task watches
all deadlines with one alarm, which is moved only where something is due before it: an undisturbed request
costs no timer.

A destination belongs to its request until the job is done, and is not referred to from then on. A reader
that leaves, or is cancelled, leaves its open jobs behind: their destinations must not be used before that,
and a request that nobody waits for any more is cancelled, by a message of its own. Atomic between awaits: a
job is queued, in a batch, or done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import trio

from gridfs.grid.health import HealthBook
from gridfs.grid.ports import GridServer
from gridfs.grid.roster import ServerId
from storage.client import Span, Traffic
from storage.errors import StorageError

LAG_S = 0.01
"""The alarm may come this late. If it comes later, our own loop was busy and answers may lie unread."""
ENDED = "reading has ended"
BEHIND_FACTOR = 1.05
"""Who has waited this many times as long as the first answer took waits for a server and not for the line."""


@dataclass(slots=True, eq=False)
class Job:
    """One span wanted from one server."""

    server: ServerId
    span: Span
    destination: memoryview
    """Exactly as long as the span."""
    is_done: bool = False
    got: int = 0
    """Bytes received, once done."""
    failure: str | None = None
    """Why the server did not answer; then `got` means nothing."""


class Late(NamedTuple):
    """A request that let somebody wait."""

    server: ServerId
    size: int
    """Bytes that had to travel, those before it included."""
    asked_at: float


class Asking:
    """The jobs of one caller, and how far they are."""

    __slots__ = ("_woken", "batches", "is_abandoned", "open_jobs", "wants_each")

    def __init__(self) -> None:
        self.open_jobs = 0
        self.wants_each = False
        """Whether `changed` returns for each request that is answered, and not for the last one only."""
        self.is_abandoned = False
        self.batches: list[_Batch] = []
        """Requests that its jobs are in."""
        self._woken = trio.Event()

    async def changed(self) -> None:
        """Wait until all jobs are done, or a request is late (again), or with `wants_each` any is done."""
        await self._woken.wait()
        self._woken = trio.Event()

    def late(self) -> list[Late]:
        """The requests that are late and still open."""
        return [
            Late(batch.server, batch.ahead + batch.size, batch.sent_at)
            for batch in self.batches
            if batch.is_late and batch.is_open
        ]

    def wake(self) -> None:
        self._woken.set()


@dataclass(slots=True, eq=False)
class _Batch:
    """What becomes one request."""

    server: ServerId
    traffic: Traffic
    jobs: list[tuple[Job, Asking]] = field(default_factory=list)
    size: int = 0
    call_off: Callable[[], None] | None = None
    """Ends it without an answer; None before it was sent."""
    is_open: bool = True
    sent_at: float = 0.0
    took_s: float | None = None
    """Until the answer was here; None without one."""
    ahead: int = 0
    """Bytes that were asked of the server before, with as much urgency, and had not come."""
    deadline_s: float = 0.0
    due: float = 0.0
    """When to look at it."""
    is_late: bool = False
    had_grace: bool = False

    @property
    def is_abandoned(self) -> bool:
        return all(asking.is_abandoned for _, asking in self.jobs)

    def askings(self) -> list[Asking]:
        return list(dict.fromkeys(asking for _, asking in self.jobs))


@dataclass(slots=True)
class RequestStatistics:
    requests: int = 0
    spans: int = 0
    bytes: int = 0
    """Bytes received."""
    failed: int = 0
    """Requests that were not answered."""
    late: int = 0
    """Requests that passed their server's deadline."""
    by_server: dict[ServerId, int] = field(default_factory=dict)
    """Requests sent, by server."""


class Requests:
    """Collects jobs and sends them. `run` must be running while anything is asked."""

    def __init__(
        self, clients: Mapping[ServerId, GridServer], health: HealthBook, spans_max: int, bytes_max: int
    ) -> None:
        self._clients = clients
        self._health = health
        self._spans_max = spans_max
        self._bytes_max = bytes_max
        self._queued: dict[tuple[ServerId, Traffic], list[tuple[Job, Asking]]] = {}
        self._wake = trio.Event()
        self._outstanding: dict[ServerId, list[int]] = {}
        """Bytes asked for and not here, by class of traffic."""
        self._open: dict[_Batch, None] = {}
        self._alarm = trio.CancelScope()
        self._alarm_at = float("inf")
        self._closed = False
        self.statistics = RequestStatistics()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send until cancelled; jobs that are open then fail."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                task_status.started()
                while True:
                    await self._wake.wait()
                    self._wake = trio.Event()
                    self._send_queued(nursery)
        finally:
            self._closed = True
            for jobs in self._queued.values():
                _finish(jobs, ENDED)
            for batch in list(self._open):
                self._call_off(batch, ENDED)

    def begin(self, asking: Asking, jobs: Sequence[Job], traffic: Traffic) -> None:
        """Ask for (further) jobs. Whoever does not wait for all of them must call `leave`."""
        entries = [(job, asking) for job in jobs]
        asking.open_jobs += len(jobs)
        if self._closed:
            _finish(entries, ENDED)
            return
        for job, _ in entries:
            self._queued.setdefault((job.server, traffic), []).append((job, asking))
        self._wake.set()

    def leave(self, asking: Asking) -> None:
        """Nobody waits for these jobs any more; destinations of open ones must not be used again."""
        asking.is_abandoned = True
        for batch in asking.batches:
            if batch.is_open and batch.is_abandoned:
                self._call_off(batch, "nobody waits for it any more")

    def is_behind(self, asking: Asking) -> bool:
        """Whether its late requests are late beside those that were sent together with them; if that is not
        to be told yet, it is woken when it is.

        Where the others are still awaited, or took nearly as long, the line is slow, and asking for more on
        it makes all of them later.
        """
        still_open = [batch for batch in asking.batches if batch.is_open]
        answered = [batch.took_s for batch in asking.batches if batch.took_s is not None]
        if not answered:
            return all(batch.is_late for batch in still_open)
        first = min(still_open, key=lambda batch: batch.sent_at)
        due = first.sent_at + BEHIND_FACTOR * min(answered)
        if trio.current_time() >= due:
            return True
        first.due = due
        self._move_alarm(due)
        return False

    async def ask(self, jobs: Sequence[Job], traffic: Traffic) -> None:
        """Wait until every job is done, well or not: see its `got` and `failure`. A checkpoint."""
        asking = Asking()
        self.begin(asking, jobs, traffic)
        try:
            while asking.open_jobs:
                await asking.changed()
        finally:
            self.leave(asking)

    def _batches(
        self, server: ServerId, traffic: Traffic, jobs: Sequence[tuple[Job, Asking]]
    ) -> Iterator[_Batch]:
        batch = _Batch(server, traffic)
        for job, asking in jobs:
            if asking.is_abandoned:
                continue
            length = job.span.length
            if batch.jobs and (len(batch.jobs) == self._spans_max or batch.size + length > self._bytes_max):
                yield batch
                batch = _Batch(server, traffic)
            batch.jobs.append((job, asking))
            batch.size += length
            if not asking.batches or asking.batches[-1] is not batch:
                asking.batches.append(batch)
        if batch.jobs:
            yield batch

    def _send_queued(self, nursery: trio.Nursery) -> None:
        queued, self._queued = self._queued, {}
        for (server, traffic), jobs in queued.items():
            for batch in self._batches(server, traffic, jobs):
                self._send(batch, nursery)

    def _send(self, batch: _Batch, nursery: trio.Nursery) -> None:
        """Send one request; `_settled` is told how it ends. A task only where it cannot leave at once."""
        client = self._clients.get(batch.server)
        if client is None:
            self._close(batch, "there is no connection to it")
            return
        self._count(batch)
        self._opened(batch)
        spans = [job.span for job, _ in batch.jobs]
        destinations = [job.destination for job, _ in batch.jobs]
        settled = partial(self._settled, batch)
        try:
            batch.call_off = client.readv_nowait(spans, destinations, batch.traffic, settled)
        except StorageError as error:
            self._failed(batch, str(error))
            return
        if batch.call_off is None:
            scope = trio.CancelScope()
            batch.call_off = scope.cancel
            nursery.start_soon(self._wait, client, batch, spans, destinations, scope)

    async def _wait(
        self,
        client: GridServer,
        batch: _Batch,
        spans: Sequence[Span],
        destinations: Sequence[memoryview],
        scope: trio.CancelScope,
    ) -> None:
        try:
            with scope:
                self._settled(batch, await client.readv(spans, destinations, batch.traffic))
        except StorageError as error:
            self._settled(batch, error)

    def _settled(self, batch: _Batch, outcome: list[int] | StorageError) -> None:
        """Note what came, and tell those who wait for it."""
        if not batch.is_open:
            return
        if isinstance(outcome, StorageError):
            self._failed(batch, str(outcome))
            return
        spans = [job.span for job, _ in batch.jobs]
        if len(outcome) != len(spans) or not all(
            0 <= got <= span.length for got, span in zip(outcome, spans, strict=True)
        ):
            self._failed(batch, "it answered what was not asked")
            return
        batch.took_s = waited_s = trio.current_time() - batch.sent_at
        in_time = not batch.is_late
        self._health.answered(batch.server, batch.ahead + batch.size, waited_s, in_time=in_time)
        for (job, _), count in zip(batch.jobs, outcome, strict=True):
            job.got = count
        self.statistics.bytes += sum(outcome)
        self._close(batch, None)

    def _failed(self, batch: _Batch, reason: str) -> None:
        self.statistics.failed += 1
        self._health.failed(batch.server, trio.current_time())
        self._close(batch, reason)

    def _call_off(self, batch: _Batch, reason: str) -> None:
        if batch.call_off is not None:
            batch.call_off()
        self._close(batch, reason)

    def _close(self, batch: _Batch, failure: str | None) -> None:
        """The request is over, one way or another."""
        batch.is_open = False
        if batch in self._open:
            self._outstanding[batch.server][batch.traffic] -= batch.size
            del self._open[batch]
        jobs, batch.jobs = batch.jobs, []  # the destinations are their readers' alone
        batch.call_off = None
        _finish(jobs, failure)

    def _count(self, batch: _Batch) -> None:
        counters = self.statistics
        counters.requests += 1
        counters.spans += len(batch.jobs)
        counters.by_server[batch.server] = counters.by_server.get(batch.server, 0) + 1

    # ---- deadlines

    def _opened(self, batch: _Batch) -> None:
        """The request goes out: from now on it has a deadline."""
        outstanding = self._outstanding.get(batch.server)
        if outstanding is None:
            outstanding = self._outstanding[batch.server] = [0] * len(Traffic)
        batch.ahead = sum(outstanding[: batch.traffic + 1])
        outstanding[batch.traffic] += batch.size
        batch.sent_at = trio.current_time()
        batch.deadline_s = self._health.deadline_s(batch.server, batch.ahead + batch.size)
        batch.due = batch.sent_at + batch.deadline_s
        self._open[batch] = None
        self._move_alarm(batch.due)

    def _move_alarm(self, due: float) -> None:
        if due < self._alarm_at:
            self._alarm_at = self._alarm.deadline = due

    async def _watch(self) -> None:
        """Look at each request when it is due."""
        while True:
            with self._alarm:
                await trio.sleep_forever()
            now = trio.current_time()
            lag_s = now - self._alarm_at
            for batch in list(self._open):
                if batch.due > now:
                    continue
                if lag_s > LAG_S and not batch.had_grace:
                    batch.had_grace = True
                    batch.due = now + lag_s
                else:
                    self._is_due(batch, now)
            self._alarm_at = min((batch.due for batch in self._open), default=float("inf"))
            self._alarm = trio.CancelScope(deadline=self._alarm_at)

    def _is_due(self, batch: _Batch, now: float) -> None:
        if not batch.is_late:
            batch.is_late = True
            self.statistics.late += 1
        waited_s = now - batch.sent_at
        if self._health.is_overdue(batch.deadline_s, waited_s):
            self._health.overdue(batch.server, now)
        # A hedge that could not be paid, or was not possible, may be so later.
        batch.due = now + max(waited_s, batch.deadline_s)
        for asking in batch.askings():
            asking.wake()


def _finish(jobs: Sequence[tuple[Job, Asking]], failure: str | None) -> None:
    for job, asking in jobs:
        job.failure = failure
        job.is_done = True
        asking.open_jobs -= 1
        if asking.wants_each or not asking.open_jobs:
            asking.wake()
