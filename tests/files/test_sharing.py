"""Sharing: who comes while an act is under way waits for the next one, and all who do share that."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gridfs.files.sharing import Sharing


class Act:
    """Waits for `go`; fails where told."""

    def __init__(self) -> None:
        self.begun = 0
        self.fails: list[int] = []
        self.go = trio.Event()

    async def __call__(self) -> None:
        self.begun += 1
        number = self.begun
        await self.go.wait()
        if number in self.fails:
            raise OSError(number)

    async def next(self) -> None:
        go, self.go = self.go, trio.Event()
        go.set()
        await wait_all_tasks_blocked()


async def test_all_who_come_meanwhile_share_one() -> None:
    act = Act()
    sharing = Sharing(act)
    done: list[int] = []

    async def caller(number: int) -> None:
        await sharing.done()
        done.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(caller, 0)
        await wait_all_tasks_blocked()
        for number in range(1, 17):
            nursery.start_soon(caller, number)
        await wait_all_tasks_blocked()
        assert act.begun == 1
        await act.next()
        assert done == [0]
        assert act.begun == 2
        nursery.start_soon(caller, 17)
        await wait_all_tasks_blocked()
        await act.next()
        assert sorted(done) == list(range(17))
        await act.next()
    assert act.begun == 3
    assert len(done) == 18


async def test_a_failure_is_told_to_one_and_tried_again_by_the_others() -> None:
    act = Act()
    act.fails = [2]
    sharing = Sharing(act)
    told: list[str] = []

    async def caller() -> None:
        try:
            await sharing.done()
        except OSError as error:
            told.append(str(error))
        else:
            told.append("done")

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(caller)
        await wait_all_tasks_blocked()
        for _ in range(3):
            await act.next()
    assert sorted(told) == ["2", "done", "done", "done"]
    assert act.begun == 3


@pytest.mark.parametrize("who", ["leader", "follower"])
async def test_who_gives_up_leaves_the_others_going(who: str) -> None:
    act = Act()
    sharing = Sharing(act)
    done = 0

    async def caller(scope: trio.CancelScope) -> None:
        nonlocal done
        with scope:
            await sharing.done()
            done += 1

    scopes = [trio.CancelScope() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for scope in scopes:
            nursery.start_soon(caller, scope)
            await wait_all_tasks_blocked()
        scopes[0 if who == "leader" else 2].cancel()
        await wait_all_tasks_blocked()
        for _ in range(3):
            await act.next()
    assert done == 2
