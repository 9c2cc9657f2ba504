"""A disk that fails under a head log: what was acknowledged is there after the next start, and after the one
behind a loss of power."""

from __future__ import annotations

import contextlib
import errno

import pytest
import trio

from storage.errors import StorageError
from storage.headlog import HeadLogConfig, HeadLogs
from storage.ports import Machine
from tests.simulation.machine import World, run_world
from tests.simulation.platter import DiskFault
from tests.storage.test_headlog import Writer

CONFIG = HeadLogConfig(garbage_bytes_min=5000)
WRITER = Writer()


async def serve(machine: Machine, *, task_status: trio.TaskStatus[HeadLogs]) -> None:
    logs = HeadLogs(machine.disk, machine.offload, "/heads", CONFIG)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: logs.run(task_status=task_status))
        task_status.started(logs)


async def append(logs: HeadLogs, numbers: range) -> list[int]:
    """Records and trims, so that the file is rewritten now and then; returns what was acknowledged."""
    done = []
    for number in numbers:
        with contextlib.suppress(StorageError):
            await logs.append(WRITER.log, WRITER.record(1, number, bytes(500)))
            done.append(number)
            await logs.trim(*WRITER.cut(1, number - 3))
    return done


def kept(logs: HeadLogs) -> set[int]:
    return {record.sequence for record in logs.read(WRITER.log, None, 10**6)}


async def run_and_fail(world: World, operation: str, skip: int) -> bool:
    """True if the disk failed."""
    node = world.add("s")
    logs = await world.start(node, serve)
    await logs.claim(WRITER.claim(1))
    fault = DiskFault(operation, errno.EIO, "/heads", skip=skip, forgets=True)
    node.platter.faults.append(fault)
    done = await append(logs, range(10, 60))
    failed = fault.count == 0
    node.platter.faults.clear()
    world.kill(node)
    logs = await world.start(node, serve)
    assert set(done[-3:]) <= kept(logs)
    done += await append(logs, range(100, 103))
    assert len(done) > 3
    world.crash(node)
    assert set(done[-3:]) <= kept(await world.start(node, serve))
    return failed


@pytest.mark.parametrize("operation", ["write", "sync", "sync_directory", "replace", "open", "resize"])
def test_a_disk_that_fails_once_loses_nothing_that_was_acknowledged(operation: str) -> None:
    skip = 0
    while run_world(skip, run_and_fail, operation, skip).result:
        skip += 1
    assert skip > 1
