"""Requests: what is wanted in one turn goes out together, and nobody's leaving harms the others."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import trio
import trio.testing

from gridfs.grid.health import HealthBook
from gridfs.grid.requests import Asking, Job, Requests
from storage.client import SharePut, Span, Traffic
from storage.errors import StorageError, Unavailable
from tests.storage.servers import Memory

A, B = b"a" * 32, b"b" * 32


class Echo:
    """Answers every span with its number, or with counts to order."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.counts: list[int] | None = None

    async def readv(self, spans: list[Span], destinations: list[memoryview], traffic: Traffic) -> list[int]:
        self.asked.append([span.number for span in spans])
        await trio.lowlevel.checkpoint()
        for span, out in zip(spans, destinations, strict=True):
            out[:] = bytes([span.number]) * len(out)
        return [span.length for span in spans] if self.counts is None else self.counts

    def readv_nowait(self, *_: object) -> None:
        """It takes a task."""

    async def put(self, shares: list[SharePut], *_: object) -> list[bool]:
        raise Unavailable("only reads here")

    async def have(self, keys: list[tuple[bytes, int]], *_: object) -> list[bool]:
        raise Unavailable("only reads here")


def job(number: int, server: bytes = A) -> Job:
    return Job(server, Span(b"p" * 32, number, 0, 4), memoryview(bytearray(4)))


def requests_on(echo: Echo) -> Requests:
    return Requests({A: echo, B: echo}, HealthBook(), spans_max=100, bytes_max=1000)  # type: ignore[dict-item]


async def test_jobs_of_one_turn_are_one_request_per_server() -> None:
    echo = Echo()
    requests = requests_on(echo)
    jobs = [job(1), job(2), job(3, B), job(4)]
    async with trio.open_nursery() as nursery:
        await nursery.start(requests.run)
        async with trio.open_nursery() as asking:
            asking.start_soon(requests.ask, jobs[:3], Traffic.DEMAND)
            asking.start_soon(requests.ask, jobs[3:], Traffic.DEMAND)
        nursery.cancel_scope.cancel()
    assert sorted(map(sorted, echo.asked)) == [[1, 2, 4], [3]]
    assert [(j.got, j.failure, bytes(j.destination)) for j in jobs] == [
        (4, None, bytes([number]) * 4) for number in (1, 2, 3, 4)
    ]
    counters = requests.statistics
    assert (counters.requests, counters.spans, counters.bytes) == (2, 4, 16)
    assert counters.by_server == {A: 1, B: 1}


async def test_what_was_given_up_before_it_was_sent_is_not_sent() -> None:
    echo = Echo()
    requests = requests_on(echo)
    async with trio.open_nursery() as waiting:
        waiting.start_soon(requests.ask, [job(1), job(2, B)], Traffic.DEMAND)
        await trio.testing.wait_all_tasks_blocked()
        waiting.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        await nursery.start(requests.run)
        await requests.ask([job(3)], Traffic.DEMAND)
        nursery.cancel_scope.cancel()
    assert echo.asked == [[3]]


async def test_an_answer_to_another_question_is_a_failure() -> None:
    echo = Echo()
    requests = requests_on(echo)
    async with trio.open_nursery() as nursery:
        await nursery.start(requests.run)
        for counts in ([4, 4], [], [5], [-1]):
            echo.counts = counts
            wanted = job(1)
            await requests.ask([wanted], Traffic.DEMAND)
            assert wanted.failure == "it answered what was not asked"
        nursery.cancel_scope.cancel()
    assert requests.statistics.failed == 4


async def test_after_the_end_jobs_fail_at_once() -> None:
    requests = requests_on(Echo())
    async with trio.open_nursery() as nursery:
        await nursery.start(requests.run)
        nursery.cancel_scope.cancel()
    wanted = job(1)
    await requests.ask([wanted], Traffic.DEMAND)
    assert wanted.failure == "reading has ended"


async def test_nothing_asked_is_done_at_once() -> None:
    requests = requests_on(Echo())
    await requests.ask([], Traffic.DEMAND)
    assert requests.statistics.requests == 0


class Prompt(Echo):
    """Takes requests without a task, and answers them when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Callable[[list[int] | StorageError], None]] = []
        self.called_off = 0

    def readv_nowait(  # type: ignore[override]
        self,
        spans: list[Span],
        destinations: list[memoryview],
        traffic: Traffic,
        settled: Callable[[list[int] | StorageError], None],
    ) -> Callable[[], None]:
        self.asked.append([span.number for span in spans])
        self.waiting.append(settled)

        def call_off() -> None:
            """Refers to what it ends, as the client's does."""
            assert settled
            assert destinations
            self.called_off += 1

        return call_off


async def test_a_request_that_can_leave_at_once_takes_no_task() -> None:
    prompt = Prompt()
    requests = requests_on(prompt)
    jobs = [job(1), job(2, B), job(3)]
    async with trio.open_nursery() as nursery:
        await nursery.start(requests.run)
        tasks = len(nursery.child_tasks)
        async with trio.open_nursery() as asking:
            asking.start_soon(requests.ask, jobs, Traffic.DEMAND)
            await trio.testing.wait_all_tasks_blocked()
            assert prompt.asked == [[1, 3], [2]]
            (reading,) = nursery.child_tasks
            (watching,) = reading.child_nurseries
            assert len(watching.child_tasks) == 1, "the one that looks at deadlines"
            prompt.waiting[0]([4, 4])
            prompt.waiting[1](Unavailable("gone"))
        assert len(nursery.child_tasks) == tasks
        nursery.cancel_scope.cancel()
    assert [(each.got, each.failure) for each in jobs] == [(4, None), (0, "gone"), (4, None)]
    assert (requests.statistics.bytes, requests.statistics.failed) == (8, 1)


@pytest.mark.parametrize("server", [Echo, Prompt])
async def test_what_was_read_is_free_once_its_reader_lets_go(server: type[Echo]) -> None:
    echo = server()
    requests = requests_on(echo)
    memory = Memory(4)
    gone = weakref.ref(memory)
    wanted = Job(A, Span(b"p" * 32, 1, 0, 4), memoryview(memory))
    gc.disable()
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(requests.run)
            async with trio.open_nursery() as asking:
                asking.start_soon(requests.ask, [wanted], Traffic.DEMAND)
                await trio.testing.wait_all_tasks_blocked()
                if isinstance(echo, Prompt):
                    echo.waiting.pop()([4])
            await trio.testing.wait_all_tasks_blocked()
            assert wanted.got == 4
            del wanted, memory
            assert gone() is None
            nursery.cancel_scope.cancel()
    finally:
        gc.enable()


async def test_a_request_that_nobody_waits_for_is_called_off() -> None:
    prompt = Prompt()
    requests = requests_on(prompt)
    shared, alone, last = job(1), job(2, B), job(4)
    async with trio.open_nursery() as nursery:
        await nursery.start(requests.run)
        async with trio.open_nursery() as staying:
            staying.start_soon(requests.ask, [job(3)], Traffic.DEMAND)
            async with trio.open_nursery() as leaving:
                leaving.start_soon(requests.ask, [shared, alone], Traffic.DEMAND)
                await trio.testing.wait_all_tasks_blocked()
                leaving.cancel_scope.cancel()
            assert prompt.called_off == 1, "one of the two is somebody else's too"
            assert (alone.is_done, alone.failure) == (True, "nobody waits for it any more")
            (both,) = (at for at, numbers in enumerate(prompt.asked) if 3 in numbers)
            prompt.waiting[both]([4, 4])
        asking = Asking()
        requests.begin(asking, [last], Traffic.DEMAND)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert prompt.called_off == 2
    assert (last.is_done, last.failure, asking.open_jobs) == (True, "reading has ended", 0)
