"""The power fails before a disk operation, any of them: what was acknowledged is there, and right."""

from __future__ import annotations

import errno

import pytest
import trio

from storage.backends.disk import DiskBackend, DiskConfig
from storage.backends.port import ShareKey
from storage.errors import StorageError
from storage.ports import Machine
from tests.simulation.machine import Node, World, run_world
from tests.simulation.platter import DiskFault, MachineDead
from tests.storage.test_backend_contract import body, contents, key, lease, share

CONFIG = DiskConfig(reserve_bytes=0, volume_size_max=8000, removals_max=2)
BIG = 66_000
KEYS = [key(seed) for seed in range(1, 9)]
LATE = key(9)
SIZES = [1000, BIG, 3000, BIG, 1000, BIG, 2000, BIG]


class Held:
    """What the backend owes: True must be there, False must not, None may."""

    def __init__(self) -> None:
        self.shares: dict[ShareKey, bool | None] = dict.fromkeys(KEYS, False)


async def serve(machine: Machine, *, task_status: trio.TaskStatus[DiskBackend]) -> None:
    backend = DiskBackend(machine.disk, machine.offload, "/d", bytes(32), CONFIG)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: backend.run(task_status=task_status))
        task_status.started(backend)


async def exercise(backend: DiskBackend, held: Held) -> None:
    for stamp in (1, 3):
        for which, size in zip(KEYS, SIZES, strict=True):
            held.shares[which] = None
            await backend.store([share(which, size, lease(stamp))])
            held.shares[which] = True
        for which in KEYS[:4] if stamp == 1 else KEYS[1::2]:
            held.shares[which] = None
            await backend.release([which], lease(stamp + 1))
            held.shares[which] = False


def check(backend: DiskBackend, held: Held) -> None:
    for which, size in zip(KEYS, SIZES, strict=True):
        found = contents(backend, which)
        assert found in (None, body(which, size)[:size])
        assert backend.has([which]) == [found is not None]
        if held.shares[which] is not None:
            assert (found is not None) == held.shares[which], (which, held.shares[which])


async def run_and_cut(world: World, operation: int) -> bool:
    """True if the power failed."""
    node: Node = world.add("s")
    held = Held()

    world.cut_power_at(operation, node)
    failed = False
    try:
        backend = await world.start(node, serve)
        await exercise(backend, held)
    except (MachineDead, StorageError, ExceptionGroup):
        failed = True
        assert not node.is_up
    world.cut_power_at(0, node)
    if node.is_up:
        world.crash(node)
    backend = await world.start(node, serve)
    check(backend, held)
    for which, size in zip(KEYS, SIZES, strict=True):
        await backend.store([share(which, size, lease(9))])
        held.shares[which] = True
    world.crash(node)
    backend = await world.start(node, serve)
    check(backend, held)
    return failed


def test_power_failure_before_every_disk_operation() -> None:
    # Every seventh point, shifted by the seed of the run, so that the quick suite stays quick.
    operation = 1
    while run_world(operation, run_and_cut, operation).result:
        operation += 7
    assert operation > 300, "the sweep reached the end of the exercise"


async def run_and_fail(world: World, operation: str, skip: int, count: int, gives_up: bool) -> bool:
    """The disk fails `count` times; what is put again is there or not, and is whole where it is told to be.

    `gives_up`: after the first failure nothing is put until the next start. True if it failed.
    """
    node = world.add("s")
    backend = await world.start(node, serve)
    await backend.store([share(KEYS[0], SIZES[0], lease(1))])
    faults = [DiskFault(operation, errno.EIO, "/d", skip=skip, count=count, kept=0.99, forgets=True)]
    if operation == "sync":  # nor can what was not synced be cut off again
        faults.append(DiskFault("resize", errno.EIO, "/d", count=1))
    node.platter.faults.extend(faults)
    puts = [*zip(KEYS, SIZES, strict=True), *((key(seed), 2500) for seed in range(10, 20))]
    for which, size in (*puts, *puts):
        try:
            await backend.store([share(which, size, lease(1))])
        except StorageError:
            if gives_up:
                break
    failed = faults[0].count < count
    node.platter.faults.clear()
    world.kill(node)
    backend = await world.start(node, serve)
    await backend.store([share(LATE, 500, lease(1))])
    assert contents(backend, LATE) == body(LATE, 500)[:500]
    there = [(which, size) for which, size in puts if backend.has([which]) == [True]]
    # What is told to be there is durable: a put is answered with it.
    world.crash(node)
    backend = await world.start(node, serve)
    for which, size in there:
        assert contents(backend, which) == body(which, size)[:size], which
    assert contents(backend, LATE) == body(LATE, 500)[:500]
    return failed


@pytest.mark.parametrize(("count", "gives_up"), [(1, False), (1, True), (3, False)])
@pytest.mark.parametrize("operation", ["write", "sync", "sync_directory"])
def test_a_disk_that_fails_leaves_nothing_that_is_told_to_be_there_and_is_not(
    operation: str, count: int, gives_up: bool
) -> None:
    skip = 0
    while run_world(skip, run_and_fail, operation, skip, count, gives_up).result:
        skip += 1
    assert skip > 1
