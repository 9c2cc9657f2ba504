"""The simulator's own promise: a seed gives one run, and only one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import apsw
import trio

from tests.simulation.machine import World, run_world
from tests.simulation.runner import chance, run_seeded, seed_sqlite

CANARY = "from tests.simulation.test_runner import canary; print(canary(7))"


async def racing(world: World) -> None:
    """Tasks that all become ready in the same turns: their order is the scheduler's alone."""

    async def racer(name: str) -> None:
        for step in range(20):
            await trio.lowlevel.checkpoint()
            world.trace.record(name, "step", step)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(racer, f"racer {number}")


def canary(seed: int) -> str:
    return run_world(seed, racing).digest


def test_the_same_seed_gives_the_same_trace_twice() -> None:
    assert canary(7) == canary(7)


def test_other_seeds_give_other_orders() -> None:
    assert len({canary(seed) for seed in range(10)}) == 10


def test_the_trace_is_the_same_in_other_processes_whatever_their_hashes() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", CANARY],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }
    assert digests == {canary(7)}


def test_virtual_time_costs_nothing() -> None:
    async def sleeper() -> float:
        await trio.sleep(10**6)
        return trio.current_time()

    assert run_seeded(1, sleeper) == 10**6


def test_streams_of_chance_are_apart_from_each_other() -> None:
    first = chance(1, "a").random()
    other = chance(1, "b")
    other.random()
    assert chance(1, "a").random() == first
    assert chance(1, "b").random() != first
    assert chance(2, "a").random() != first


def test_what_sqlite_draws_comes_from_the_seed() -> None:
    seed_sqlite(5)
    first = apsw.randomness(16)
    seed_sqlite(5)
    assert apsw.randomness(16) == first
    seed_sqlite(6)
    assert apsw.randomness(16) != first


def test_sqlite_keeps_its_default_vfs() -> None:
    before = apsw.vfs_names()[0]
    seed_sqlite(5)
    assert apsw.vfs_names()[0] == before
