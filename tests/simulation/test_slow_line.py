"""A client whose own line is slow: nothing is sent for ever, and soon nothing twice."""

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


@pytest.mark.parametrize("mbit_s", [2, 4, 8])
def test_packs_are_stored_over_a_line_on_which_they_take_longer_than_servers_are_waited_for(
    mbit_s: int,
) -> None:
    bytes_per_s = mbit_s * 1e6 / 8
    needed_s = FILE_BYTES * EXPANSION / bytes_per_s
    line = Link(round_trip_s=0.05, bytes_per_s=bytes_per_s, window=4 << 20, wire=Wire())

    async def story(world: World) -> list[float]:
        servers = await start_servers(world)
        client = Client(world, servers)
        client.create()
        for node in servers.nodes:
            world.fabric.links[client.node.name, node.name] = line

        async def work(parts: Parts) -> list[float]:
            shell = Shell(parts)
            times = []
            for number in range(3):
                began = trio.current_time()
                await shell.write(f"{number}", chance(number, "slow line").randbytes(FILE_BYTES))
                await parts.files.drain()
                times.append(trio.current_time() - began)
            return times

        times = await client.session(work)
        assert times is not None
        return times

    first, *others = run_world(1, story).result
    assert first < 4 * needed_s
    assert max(others) < 1.5 * needed_s
