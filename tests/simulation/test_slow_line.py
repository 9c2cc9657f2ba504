"""A client whose own line is slow: nothing is sent for ever, soon nothing twice, and no read waits long."""

from __future__ import annotations

import pytest
import trio

from gridfs.assembly import Parts
from tests.simulation.filesystem import Client, Shell, start_servers
from tests.simulation.machine import World, run_world
from tests.simulation.pipe import Link, Wire
from tests.simulation.runner import chance

FILE_BYTES = 8 << 20
EXPANSION = 6 / 4
PIECE = 128 << 10
WAIT_S_MAX = 12.0
"""The first window is 1 MiB, whatever the line is, and another one as large is under way beside it."""


def line_of(mbit_s: int) -> Link:
    """Of the client to all its servers together, one way."""
    return Link(round_trip_s=0.05, bytes_per_s=mbit_s * 1e6 / 8, window=4 << 20, wire=Wire())


@pytest.mark.parametrize("mbit_s", [2, 8])
def test_packs_are_stored_over_a_line_on_which_they_take_longer_than_servers_are_waited_for(
    mbit_s: int,
) -> None:
    line = line_of(mbit_s)
    needed_s = FILE_BYTES * EXPANSION / line.bytes_per_s

    async def story(world: World) -> list[float]:
        servers = await start_servers(world)
        client = Client(world, servers)
        client.create()
        for node in servers.nodes:
            world.fabric.links[client.node.name, node.name] = line

        async def work(parts: Parts) -> list[float]:
            shell = Shell(parts)
            times = []
            for number in range(2):
                began = trio.current_time()
                await shell.write(f"{number}", chance(number, "slow line").randbytes(FILE_BYTES))
                await parts.files.drain()
                times.append(trio.current_time() - began)
            return times

        times = await client.session(work)
        assert times is not None
        return times

    first, second = run_world(1, story).result
    assert first < 1.05 * needed_s
    assert second < 1.05 * needed_s


@pytest.mark.parametrize("mbit_s", [1, 2, 10])
def test_a_sequential_reader_never_waits_for_more_than_the_line_brings_in_some_seconds(mbit_s: int) -> None:
    line = line_of(mbit_s)
    needed_s = FILE_BYTES / line.bytes_per_s
    content = chance(0, "slow line").randbytes(FILE_BYTES)

    async def story(world: World) -> tuple[float, float]:
        servers = await start_servers(world)
        client = Client(world, servers)
        client.create()

        async def write(parts: Parts) -> bool:
            await Shell(parts).write("file", content)
            await parts.files.drain()
            for node in servers.nodes:
                world.fabric.links[node.name, client.node.name] = line
            return True

        async def read(parts: Parts) -> tuple[float, float]:
            shell = Shell(parts)
            ino = shell.find("file")
            assert ino is not None
            handle = shell.files.open(ino)
            began, longest = trio.current_time(), 0.0
            for at in range(0, FILE_BYTES, PIECE):
                asked = trio.current_time()
                assert await shell.files.read(handle, at, PIECE) == content[at : at + PIECE]
                longest = max(longest, trio.current_time() - asked)
            shell.files.release(handle)
            return trio.current_time() - began, longest

        assert await client.session(write)
        found = await client.session(read)
        assert found is not None
        return found

    took, longest = run_world(1, story).result
    assert took < 1.2 * needed_s  # some answers are late and hedged, which this line pays for
    assert longest < WAIT_S_MAX
