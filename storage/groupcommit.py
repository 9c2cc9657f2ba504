"""Group commit: operations that arrive while a sync is in flight share the next one. No timer.

`submit` queues an operation and waits for its result, `submit_nowait` calls back with it; `run` takes all
that is queued (up to a bound), calls `commit` once for it and hands the results out. Atomic between awaits:
the queue and a ticket's state. The queue is bounded by its callers: each waits for its own operation, and the
service gives them credit.

An operation whose caller is cancelled is taken back while it is queued; once in flight the caller waits for
its end, because the buffers in it belong to the disk until then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import trio

from storage.errors import StorageError, Unavailable

Operation = TypeVar("Operation")
Result = TypeVar("Result")


class Ticket(Generic[Operation, Result]):
    """One operation on its way. `commit` settles it with a result or an error."""

    __slots__ = ("_result", "_tell", "error", "operation", "settled", "size_bytes")

    def __init__(
        self, operation: Operation, size_bytes: int, tell: Callable[[Ticket[Operation, Result]], None]
    ) -> None:
        """`tell` is called once, with the ticket, when it is settled."""
        self.operation = operation
        self.size_bytes = size_bytes
        self.settled = False
        self._tell = tell
        self.error: StorageError | None = None
        self._result: list[Result] = []

    def succeed(self, result: Result) -> None:
        if not self.settled:
            self.settled = True
            self._result.append(result)
            self._tell(self)

    def fail(self, error: StorageError) -> None:
        if not self.settled:
            self.settled = True
            self.error = error
            self._tell(self)

    def outcome(self) -> Result:
        if self.error is not None:
            # One error object may settle many tickets; each caller raises its own.
            raise type(self.error)(*self.error.args)
        return self._result[0]


INSIDE = "the server failed inside; see its log"

Commit = Callable[[Sequence[Ticket[Operation, Result]]], Awaitable[None]]


async def _nothing_more() -> bool:
    return False


class GroupCommit(Generic[Operation, Result]):
    """A queue of operations and the loop that commits them in batches."""

    def __init__(
        self,
        commit: Commit[Operation, Result],
        *,
        batch_count_max: int = 1024,
        batch_bytes_max: int = 16 * 1024 * 1024,
        upkeep: Callable[[], Awaitable[bool]] = _nothing_more,
        commit_now: Callable[[Ticket[Operation, Result]], bool] | None = None,
    ) -> None:
        """`upkeep` runs between batches, a slice at a time; it tells whether more is to do at once.

        `commit_now` settles a ticket without awaiting, or says that it cannot and has done nothing.
        """
        self._commit = commit
        self._batch_count_max = batch_count_max
        self._batch_bytes_max = batch_bytes_max
        self._upkeep = upkeep
        self._commit_now = commit_now
        self._is_idle = False
        """Whether nothing is queued or in flight."""
        self._failure: Exception | None = None
        """What ended a commit of one that came alone, and ends `run`."""
        self._next_alone_at = 0.0
        """From then on somebody who comes alone is no sign of others who come at the same time."""
        self._queue: deque[Ticket[Operation, Result]] = deque()
        self._wake = trio.Event()
        self._more = False
        self._stopped: str | None = "not started"

    async def submit(self, operation: Operation, size_bytes: int = 0) -> Result:
        """Commit an operation together with what else is waiting. Raises what `commit` settles it with."""
        done = trio.Event()
        ticket = self.submit_nowait(operation, size_bytes, lambda _: done.set())
        try:
            await done.wait()
        except trio.Cancelled:
            if not self.withdraw(ticket):
                with trio.CancelScope(shield=True):
                    await done.wait()
            raise
        return ticket.outcome()

    def submit_nowait(
        self, operation: Operation, size_bytes: int, tell: Callable[[Ticket[Operation, Result]], None]
    ) -> Ticket[Operation, Result]:
        """The same without a task that waits: `tell` is called with the settled ticket.

        It must not raise. Raises Unavailable where nothing is committed any more.
        """
        if self._stopped is not None:
            raise Unavailable(self._stopped)
        ticket = Ticket(operation, size_bytes, tell)
        if not (self._is_idle and self._commit_alone(ticket)):
            self._is_idle = False
            self._queue.append(ticket)
            self._wake.set()
        return ticket

    def _commit_alone(self, ticket: Ticket[Operation, Result]) -> bool:
        """Commit at once what comes alone: waking the committing task costs more than a quick disk.

        What comes no later after a commit than that took, has waited for it, and may share the next one.
        """
        began = trio.current_time()
        if self._commit_now is None or began < self._next_alone_at:
            return False
        try:
            if not self._commit_now(ticket):
                return False
        except Exception as error:
            # As in a batch: what is in memory may no longer be what is on the disk.
            self._failure = error
            self._stopped = INSIDE
            self._wake.set()
            ticket.fail(Unavailable(INSIDE))
        ended = trio.current_time()
        self._next_alone_at = ended + (ended - began)
        return True

    def withdraw(self, ticket: Ticket[Operation, Result]) -> bool:
        """Take an operation back; False where it is in flight or settled."""
        if ticket.settled or ticket not in self._queue:
            return False
        self._queue.remove(ticket)
        return True

    def nudge(self) -> None:
        """Have upkeep run soon, even if nothing is submitted."""
        self._is_idle = False
        self._more = True
        self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit until cancelled. A batch in flight is finished; what is queued then fails Unavailable."""
        self._stopped = None
        task_status.started()
        try:
            self._more = True
            while True:
                if not self._queue and not self._more:
                    self._wake = trio.Event()
                    self._is_idle = True
                    await self._wake.wait()
                    self._is_idle = False
                    if self._failure is not None:
                        raise self._failure
                else:
                    # What came during the last batch, and callers that it let go on, get their turn.
                    await trio.lowlevel.checkpoint()
                with trio.CancelScope(shield=True):
                    if batch := self._take():
                        await self._settle(batch)
                    self._more = False
                    more = await self._upkeep()
                self._more = self._more or more
        finally:
            self._is_idle = False
            self._stopped = "the server is stopping"
            while self._queue:
                self._queue.popleft().fail(Unavailable(self._stopped))

    def _take(self) -> list[Ticket[Operation, Result]]:
        batch: list[Ticket[Operation, Result]] = []
        size = 0
        while self._queue and len(batch) < self._batch_count_max:
            size += self._queue[0].size_bytes
            if batch and size > self._batch_bytes_max:
                break
            batch.append(self._queue.popleft())
        return batch

    async def _settle(self, batch: list[Ticket[Operation, Result]]) -> None:
        """Shielded by the caller: a batch in flight is finished."""
        failure: StorageError = Unavailable(INSIDE)
        try:
            await self._commit(batch)
        except StorageError as error:
            failure = error
        finally:
            for ticket in batch:
                if not ticket.settled:
                    ticket.fail(failure)
