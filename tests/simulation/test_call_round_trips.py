"""How many round trips a call costs, in virtual time, and the same number at any distance: a hidden sleep or
a fixed timeout would not grow with it.

(The first connection and recovery: test_round_trips.py; hung servers: test_slow_servers.py.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from gridfs.assembly import Parts
from tests.simulation.filesystem import Client, Shell, start_servers
from tests.simulation.machine import World, run_world
from tests.simulation.pipe import Link
from tests.simulation.runner import chance

DISTANCES_S = (0.01, 0.1, 1.0)
FILE_BYTES = 4096
SLACK = 0.1
"""Part of a round trip for jitter and the bytes themselves."""

Measured = dict[str, float]


def content(mark: object = 0) -> bytes:
    return chance(0, "content", mark).randbytes(FILE_BYTES)


def measured(round_trip_s: float, work: Callable[[World, Parts, Stopwatch], Awaitable[None]]) -> Measured:
    """Run `work(world, parts, stopwatch)` on an open file system; what it measured, in round trips."""

    async def scenario(world: World) -> Measured:
        client = Client(world, await start_servers(world))
        client.create()
        stopwatch = Stopwatch(world)

        async def run(parts: Parts) -> bool:
            await work(world, parts, stopwatch)
            return True

        assert await client.session(run)
        return stopwatch.measured

    found: Measured = run_world(1, scenario, link=Link(round_trip_s=round_trip_s)).result
    return found


class Stopwatch:
    """Measures calls in round trips."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.measured: Measured = {}

    async def time(self, name: str, awaitable: Awaitable[Any]) -> Any:
        begin = trio.current_time()
        result = await awaitable
        self.measured[name] = (trio.current_time() - begin) / self._world.fabric.link.round_trip_s
        return result


async def warm_up(parts: Parts) -> None:
    """Until the epoch is claimed, everything is connected, and at rest."""
    shell = Shell(parts)
    await shell.write("warm", b"up")
    await shell.fsync("warm")
    await shell.files.sync()
    await trio.sleep(300)


async def writing(world: World, parts: Parts, stopwatch: Stopwatch) -> None:
    shell = Shell(parts)
    await warm_up(parts)

    async def save(name: str) -> None:
        await shell.write(f"{name}~", content(name))
        await shell.fsync(f"{name}~")

    async def replace(name: str) -> None:
        await save(name)
        shell.rename(f"{name}~", name)
        await shell.fsync(name)

    await stopwatch.time("create, write and fsync 4 KiB", save("a"))
    await trio.sleep(300)
    shell.rename("a~", "a")
    await stopwatch.time("fsync after a rename", shell.fsync("a"))
    await trio.sleep(300)
    await shell.write("b~", content("b"))
    shell.rename("b~", "b")
    await stopwatch.time("create, write, rename and fsync 4 KiB", shell.fsync("b"))
    await trio.sleep(300)
    await stopwatch.time("save over a file: fsync, rename, fsync", replace("a"))
    await trio.sleep(300)
    await shell.write("c~", content("c"))
    shell.rename("c~", "a")
    await stopwatch.time("rename over a file and fsync", shell.fsync("a"))
    await trio.sleep(300)

    async def many() -> None:
        for number in range(300):
            await shell.write(f"{number}", content(number)[:1000])
        await shell.files.sync()

    await stopwatch.time("300 files of 1 kB, synced together", many())


async def listing(world: World, parts: Parts, stopwatch: Stopwatch) -> None:
    shell = Shell(parts)
    await warm_up(parts)
    for number in range(1000):
        shell.create(f"{number}")
    await shell.files.sync()

    async def list_all() -> int:
        handle, count, last = shell.files.open_directory(1), 0, 0
        while entries := shell.files.list_directory(handle, last, 100):
            for entry in entries:
                assert shell.names.lookup(1, entry.name) is not None
                shell.names.xattrs(entry.inode.ino)
            count, last = count + len(entries), entries[-1].cookie
        shell.files.release_directory(handle)
        return count

    assert await stopwatch.time("ls -l of 1000 files", list_all()) == 1001


def reading(round_trip_s: float) -> Measured:
    """A cold read: another mount of the same machine, whose caches are empty."""

    async def scenario(world: World) -> Measured:
        client = Client(world, await start_servers(world))
        client.create()
        stopwatch = Stopwatch(world)

        async def write(parts: Parts) -> None:
            await Shell(parts).write("file", content())
            await parts.files.drain()

        async def read(parts: Parts) -> None:
            shell = Shell(parts)
            await warm_up(parts)
            assert await stopwatch.time("cold read of 4 KiB", shell.read("file")) == content()

        await client.session(write)
        await client.session(read)
        return stopwatch.measured

    found: Measured = run_world(1, scenario, link=Link(round_trip_s=round_trip_s)).result
    return found


WANTED = {
    "create, write and fsync 4 KiB": 1,
    "fsync after a rename": 1,
    "create, write, rename and fsync 4 KiB": 1,
    "save over a file: fsync, rename, fsync": 2,
    # What takes another file's place leaves after its bytes: in the record behind theirs.
    "rename over a file and fsync": 2,
    "300 files of 1 kB, synced together": 5,
    "ls -l of 1000 files": 0,
    "cold read of 4 KiB": 1,
}


@pytest.mark.parametrize("round_trip_s", DISTANCES_S)
def test_calls_take_the_same_number_of_round_trips_at_any_distance(round_trip_s: float) -> None:
    found = {
        **measured(round_trip_s, writing),
        **measured(round_trip_s, listing),
        **reading(round_trip_s),
    }
    assert found.keys() == WANTED.keys()
    wrong = {name: found[name] for name in WANTED if abs(found[name] - WANTED[name]) > SLACK}
    assert not wrong
