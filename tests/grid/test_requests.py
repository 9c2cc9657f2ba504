"""Requests: what is wanted in one turn goes out together, and nobody's leaving harms the others."""

from __future__ import annotations

import trio
import trio.testing

from gridfs.grid.health import HealthBook
from gridfs.grid.requests import Job, Requests
from storage.client import SharePut, Span, Traffic
from storage.errors import Unavailable

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
