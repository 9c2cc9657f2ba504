"""Turns at the FUSE device: who reads the next request.

pyfuse3 serves with a pool of tasks that hand a lock from one to the next, a request each: that costs two
changes of task and two system calls more than the request itself, and is most of the CPU of a small one.
Nearly all handlers answer without waiting for anything, so here the task that has the turn keeps it from
request to request, and hands it over only when its handler waits for something.

A program that asks again as soon as it is answered does so within some 20 microseconds; to go to sleep
through trio, and to be woken, takes three times as long. So the device is watched for a moment before the
task lets go, as network drivers do (busy polling), for as long as that pays: a request then takes a third
less CPU than with the sleep, and half the time.

pyfuse3 looks trio up in a variable of its module, so that asyncio can take its place (`pyfuse3.asyncio`).
`Turns` stands there: it is trio but for the lock and for the wait for the device, and it runs pyfuse3's
tasks step by step, to see when one of them waits.

Atomic between awaits: at most one task has the turn, and it is either running, or waiting for the device.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pyfuse3
import trio

IN_A_ROW_MAX = 32
"""Requests that are served before other tasks of the daemon run."""
IN_A_ROW_S_MAX = 0.002
"""The same in time: requests may carry a megabyte."""
WATCH_S = 40e-6
"""How long the device is watched for a request that follows an answer."""
SOON_S = 120e-6
"""What came so soon although trio was asked to wait for it would have come while it was watched for."""
_MEMORY = 8
"""Of so many waits, about, it is remembered whether watching was worth it."""


class _Server:
    """One of pyfuse3's tasks."""

    __slots__ = ("_coroutine", "_turns")

    def __init__(self, coroutine: Coroutine[Any, Any, None], turns: Turns) -> None:
        self._coroutine = coroutine
        self._turns = turns

    def __await__(self) -> Generator[Any, Any, None]:
        """Run to the end, step by step; what it waits for goes up to trio, and its answer down."""
        turns, send, throw = self._turns, self._coroutine.send, self._coroutine.throw
        answer: Any = None
        error: BaseException | None = None
        try:
            while True:
                turns.running = self
                try:
                    trap = send(answer) if error is None else throw(error)
                except StopIteration:
                    return
                if turns.reader is self and not turns.is_waiting:
                    turns.pass_on()
                answer = error = None
                try:
                    answer = yield trap
                except BaseException as thrown:
                    error = thrown
        finally:
            if turns.reader is self:
                turns.pass_on()


class Turns:
    """The turn of one process, which has one FUSE session at most. Stands in for pyfuse3's trio."""

    ClosedResourceError = trio.ClosedResourceError
    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)
    notify_closing = staticmethod(trio.lowlevel.notify_closing)

    def __init__(self, in_a_row_s_max: float = IN_A_ROW_S_MAX, watch_s: float = WATCH_S) -> None:
        self._in_a_row_s_max = in_a_row_s_max
        self._watch_s = watch_s
        self.running: _Server | None = None
        """The task whose step is being run."""
        self.reader: _Server | None = None
        """The task that has the turn."""
        self.is_waiting = False
        """The task that has the turn waits for the device."""
        self._parked: deque[tuple[trio.lowlevel.Task, _Server]] = deque()
        self._poll = select.poll()
        self._polled: int | None = None
        self._in_a_row = 0
        self._since = 0.0
        self.pays = 0.0
        """The part of the last waits that were short, or would have been: 0 to 1."""
        self.waits = 0
        """How often the device was waited for through trio."""
        self.watched_in_vain = 0

    @property
    def lowlevel(self) -> Turns:
        return self

    def install(self) -> None:
        """Let pyfuse3 serve by turns, from its next session on. Idempotent."""
        pyfuse3.trio = self  # type: ignore[attr-defined]

    # ---- what pyfuse3 calls

    def Lock(self) -> Turns:  # noqa: N802 - trio's name
        return self

    async def __aenter__(self) -> None:
        """Wait for the turn."""
        server = self.running
        assert server is not None
        if self.reader is None:
            self.reader = server
        if self.reader is server:
            return
        waiting = (trio.lowlevel.current_task(), server)
        self._parked.append(waiting)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked.remove(waiting)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def __aexit__(self, *_: object) -> None:
        """Keep it."""

    async def wait_readable(self, device: int) -> None:
        """Wait for a request. Raises ClosedResourceError after `notify_closing`."""
        if self._polled != device:
            if self._polled is not None:
                self._poll.unregister(self._polled)
            self._poll.register(device, select.POLLIN)
            self._polled = device
        self._in_a_row += 1
        began = time.perf_counter()
        is_short = self._in_a_row < IN_A_ROW_MAX and began < self._since + self._in_a_row_s_max
        watches = is_short and self.pays > 0.5
        if is_short and (self._poll.poll(0) or (watches and self._watch(began + self._watch_s))):
            return
        self.waits += 1
        self.is_waiting = True
        try:
            await trio.lowlevel.wait_readable(device)
        finally:
            self.is_waiting = False
        self._in_a_row = 0
        self._since = time.perf_counter()
        if not watches:
            self._learn(self._since < began + SOON_S)

    def _watch(self, until: float) -> bool:
        """Whether a request comes before `until`. Other tasks of this process wait meanwhile."""
        poll, now = self._poll.poll, time.perf_counter
        while now() < until:
            if poll(0):
                self._learn(True)
                return True
        self._learn(False)
        self.watched_in_vain += 1
        return False

    def _learn(self, was_short: bool) -> None:
        self.pays += (was_short - self.pays) / _MEMORY

    def open_nursery(self) -> AbstractAsyncContextManager[_Nursery]:
        return _Nursery(self)

    # ---- handing over

    def pass_on(self) -> None:
        """The next task in line gets the turn; without one the next to ask."""
        self.reader = None
        if self._parked:
            task, self.reader = self._parked.popleft()
            trio.lowlevel.reschedule(task)

    async def serve(self, function: Callable[..., Coroutine[Any, Any, None]], arguments: Any) -> None:
        """One task of the pool, to its end."""
        await _Server(function(*arguments), self)

    def let_others_run(self) -> None:
        """Before the next request: a task that was begun has to get in line, or one more would be begun."""
        self._in_a_row = IN_A_ROW_MAX


class _Nursery(AbstractAsyncContextManager["_Nursery"]):
    """trio's, whose tasks take turns."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._manager = trio.open_nursery()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> _Nursery:
        self._nursery = await self._manager.__aenter__()
        return self

    def __aexit__(self, *exception: Any) -> Awaitable[bool | None]:  # type: ignore[override]
        return self._manager.__aexit__(*exception)

    def start_soon(
        self, function: Callable[..., Coroutine[Any, Any, None]], *arguments: Any, name: str | None = None
    ) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._turns.serve, function, arguments, name=name)
        self._turns.let_others_run()


TURNS = Turns()
"""pyfuse3 keeps its session in variables of its module, and so is one for the process."""
