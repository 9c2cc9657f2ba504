"""Turns at the device, with a pool of tasks that does what pyfuse3's does, and a socket for the device."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gridfs.fuse.turns import IN_A_ROW_MAX, Turns

Handler = Callable[[bytes], Awaitable[None]]
TASKS_MIN, TASKS_MAX = 2, 16


class Pool:
    """pyfuse3's session loop, line by line."""

    def __init__(self, turns: Turns, device: socket.socket, handler: Handler) -> None:
        self.trio: Any = turns
        self.lock: Any = None
        self.device = device
        self.handler = handler
        self.active = 0
        self.tasks = 0
        self.tasks_most = 0
        self.is_over = False

    async def main(self) -> None:
        async with self.trio.open_nursery() as nursery:
            self.begin(nursery)

    def begin(self, nursery: Any) -> None:
        self.tasks += 1
        self.tasks_most = max(self.tasks, self.tasks_most)
        nursery.start_soon(self.loop, nursery, name=f"task {self.tasks}")

    async def wait_readable(self) -> bool:
        if self.lock is None:
            self.lock = self.trio.Lock()
        self.active += 1
        try:
            async with self.lock:
                if self.is_over:
                    return False
                await self.trio.lowlevel.wait_readable(self.device.fileno())
        except self.trio.ClosedResourceError:
            return False
        finally:
            self.active -= 1
        return True

    async def loop(self, nursery: Any) -> None:
        while not self.is_over and self.active <= TASKS_MIN and await self.wait_readable():
            request = self.device.recv(1)
            self.is_over = not request
            if not self.active and self.tasks < TASKS_MAX:
                self.begin(nursery)
            if not request:
                break
            await self.handler(request)
        self.tasks -= 1


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


async def test_a_task_that_never_waits_serves_all(pair: tuple[socket.socket, socket.socket]) -> None:
    device, kernel = pair
    turns = Turns(float("inf"))
    served: list[tuple[str, bytes]] = []

    async def handler(request: bytes) -> None:
        served.append((trio.lowlevel.current_task().name, request))

    kernel.send(bytes(range(1, 101)))
    kernel.shutdown(socket.SHUT_WR)
    pool = Pool(turns, device, handler)
    await pool.main()
    assert [request[0] for _, request in served] == list(range(1, 101))
    assert len({name for name, _ in served}) == 1
    assert turns.waits <= 3 + 100 // (IN_A_ROW_MAX - 1)
    assert turns.reader is None
    assert not pool.tasks


async def test_other_tasks_run_in_between(pair: tuple[socket.socket, socket.socket]) -> None:
    device, kernel = pair
    runs: list[int] = []
    count = 0

    async def handler(request: bytes) -> None:
        nonlocal count
        count += 1

    async def other() -> None:
        while True:
            runs.append(count)
            await trio.lowlevel.checkpoint()

    kernel.send(bytes(10 * IN_A_ROW_MAX))
    kernel.shutdown(socket.SHUT_WR)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await Pool(Turns(), device, handler).main()
        nursery.cancel_scope.cancel()
    steps = [after - before for before, after in pairwise(runs)]
    assert max(steps) <= 2 * IN_A_ROW_MAX  # trio draws who is first in a round
    assert sum(steps) > 9 * IN_A_ROW_MAX


async def test_a_handler_that_waits_holds_nobody_up(pair: tuple[socket.socket, socket.socket]) -> None:
    device, kernel = pair
    events = {b"a": trio.Event(), b"b": trio.Event()}
    log: list[bytes] = []

    async def handler(request: bytes) -> None:
        log.append(request)
        if request in events:
            await events[request].wait()
            await trio.lowlevel.checkpoint()
            log.append(request.upper())

    pool = Pool(Turns(), device, handler)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.main)
        kernel.send(b"1ab23")
        await wait_all_tasks_blocked()
        assert log == [b"1", b"a", b"b", b"2", b"3"]
        events[b"b"].set()
        await wait_all_tasks_blocked()
        kernel.send(b"4")
        await wait_all_tasks_blocked()
        events[b"a"].set()
        await wait_all_tasks_blocked()
        kernel.send(b"5")
        await wait_all_tasks_blocked()
        kernel.shutdown(socket.SHUT_WR)
        await wait_all_tasks_blocked()
    assert log[5:] == [b"B", b"4", b"A", b"5"]
    assert not pool.tasks
    assert pool.tasks_most <= 6


async def test_a_program_that_asks_again_at_once_is_watched_for(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    device, kernel = pair
    turns, count = Turns(float("inf"), watch_s=60.0), 200

    async def handler(request: bytes) -> None:
        device.send(request)

    def ask() -> None:
        for number in range(count):
            kernel.send(bytes([1 + number % 255]))
            kernel.recv(1)
        kernel.shutdown(socket.SHUT_WR)

    turns.pays = 1.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Pool(turns, device, handler).main)
        await trio.to_thread.run_sync(ask)
    assert turns.waits <= 3 + count // (IN_A_ROW_MAX - 1)
    assert not turns.watched_in_vain


async def test_a_program_that_takes_its_time_is_not_watched_for(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    device, kernel = pair
    turns = Turns(watch_s=0.0)

    async def handler(request: bytes) -> None:
        pass

    turns.pays = 1.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Pool(turns, device, handler).main)
        for _ in range(100):
            await wait_all_tasks_blocked(0.001)
            kernel.send(b"1")
        kernel.shutdown(socket.SHUT_WR)
    assert 0 < turns.watched_in_vain < 10
    assert turns.pays < 0.5


async def test_errors_and_the_end_pass_the_turn_on(pair: tuple[socket.socket, socket.socket]) -> None:
    device, kernel = pair
    turns = Turns()
    held = trio.Event()

    async def handler(request: bytes) -> None:
        if request == b"a":
            await held.wait()
        if request == b"!":
            raise ValueError

    kernel.send(b"a1")
    with trio.move_on_after(0) as scope:
        scope.deadline = float("inf")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Pool(turns, device, handler).main)
            await wait_all_tasks_blocked()
            assert turns.reader is not None
            nursery.cancel_scope.cancel()
    assert turns.reader is None

    pool = Pool(turns, device, handler)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.main)
        kernel.send(b"2a3")
        await wait_all_tasks_blocked()
        turns.notify_closing(device.fileno())
        kernel.shutdown(socket.SHUT_WR)
        held.set()
    assert not pool.tasks
    assert turns.reader is None


async def test_an_exception_ends_the_pool(pair: tuple[socket.socket, socket.socket]) -> None:
    device, kernel = pair
    turns = Turns()

    async def handler(request: bytes) -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError(request)

    kernel.send(b"!")
    with pytest.RaisesGroup(ValueError):
        await Pool(turns, device, handler).main()
    assert turns.reader is None
