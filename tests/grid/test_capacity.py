"""What the grid takes: the servers' space by the expansion, of those that answered last time."""

from __future__ import annotations

import dataclasses

import pytest
import trio
import trio.testing

from gridfs.grid.capacity import Capacity, CapacityConfig
from storage.client import ServerInfo
from storage.errors import StorageError, Unavailable
from storage.ports import Space

CONFIG = CapacityConfig(k=4, n=6, every_s=20.0, deadline_s=5.0)
INFO = ServerInfo(version="1", sync_policy="group", space=Space(6000, 3000), shares=1, share_bytes=1)


class FakeClient:
    def __init__(self) -> None:
        self.info_now = INFO
        self.failure: StorageError | None = None
        self.delay_s = 0.0
        self.asked = 0

    async def info(self) -> ServerInfo:
        self.asked += 1
        await trio.sleep(self.delay_s)
        if self.failure is not None:
            raise self.failure
        return self.info_now


def make(count: int = 6) -> tuple[list[FakeClient], Capacity]:
    clients = [FakeClient() for _ in range(count)]
    return clients, Capacity({bytes([i]) * 32: client for i, client in enumerate(clients)}, CONFIG)


def test_before_anybody_answered_there_is_no_space() -> None:
    assert make()[1].space == Space(0, 0)


async def test_the_sum_is_divided_by_the_expansion(autojump_clock: trio.testing.MockClock) -> None:
    clients, capacity = make()
    await capacity.ask()
    assert capacity.space == Space(6 * 6000 * 4 // 6, 6 * 3000 * 4 // 6)
    clients[0].info_now = dataclasses.replace(INFO, space=Space(1 << 60, 1 << 59))
    await capacity.ask()
    assert capacity.space.total == ((1 << 60) + 5 * 6000) * 4 // 6


async def test_who_fails_or_hangs_is_left_out_until_it_answers_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    clients, capacity = make()
    await capacity.ask()
    clients[0].failure = Unavailable("down")
    clients[1].delay_s = 1000.0
    await capacity.ask()
    assert trio.current_time() == pytest.approx(CONFIG.deadline_s)
    assert len(capacity.infos) == 4
    assert capacity.space == Space(4 * 6000 * 4 // 6, 4 * 3000 * 4 // 6)
    clients[0].failure, clients[1].delay_s = None, 0.0
    await capacity.ask()
    assert len(capacity.infos) == 6


async def test_it_asks_at_the_start_and_every_so_often(autojump_clock: trio.testing.MockClock) -> None:
    clients, capacity = make(2)
    async with trio.open_nursery() as nursery:
        await nursery.start(capacity.run)
        await trio.sleep(1)
        assert [client.asked for client in clients] == [1, 1]
        await trio.sleep(2 * CONFIG.every_s)
        assert [client.asked for client in clients] == [3, 3]
        nursery.cancel_scope.cancel()
