"""Wall clocks that are a day wrong, or jump: times are what the clock said, everything else is as ever."""

from __future__ import annotations

import pytest
import trio

from gridfs.assembly import Parts
from tests.simulation.entropy import EPOCH_NS
from tests.simulation.filesystem import Client, Servers, Shell, gauges, start_servers
from tests.simulation.machine import Node, World, run_world
from tests.simulation.runner import chance

DAY_NS = 86_400 * 10**9
JUMPS = (DAY_NS, -2 * DAY_NS, DAY_NS + 1, -DAY_NS, 2 * DAY_NS)


def content(mark: object) -> bytes:
    return chance(0, "clocks", mark).randbytes(200_000)


def mtime(parts: Parts, path: str) -> int:
    shell = Shell(parts)
    ino = shell.find(path)
    assert ino is not None
    return shell.names.inode(ino).mtime


async def recovered(world: World, servers: Servers) -> dict[str, bytes | None]:
    """What another machine, which has nothing but the keys, finds in the grid."""
    spare = Client(world, servers, "spare")
    spare.create()

    async def look(parts: Parts) -> dict[str, bytes | None]:
        return await Shell(parts).tree()

    result = await spare.session(look)
    assert result is not None
    return result


@pytest.mark.parametrize("whose", ["client", "servers", "half the servers"])
@pytest.mark.parametrize("offset_ns", [DAY_NS, -DAY_NS])
def test_a_clock_that_is_a_day_wrong(whose: str, offset_ns: int) -> None:
    async def scenario(world: World) -> None:
        servers = await start_servers(world)
        client = Client(world, servers)
        wrong: list[Node] = {
            "client": [client.node],
            "servers": servers.nodes,
            "half the servers": servers.nodes[::2],
        }[whose]
        for node in wrong:
            node.clock.offset_ns = offset_ns
        client.create()
        kept: dict[str, bytes | None] = {}
        for session in range(3):

            async def work(parts: Parts, session: int = session) -> None:
                shell = Shell(parts)
                assert await shell.tree() == kept
                for index in range(4):
                    name = f"{session}{index}"
                    kept[name] = content(name)
                    await shell.write(name, content(name))
                    now = EPOCH_NS + round(trio.current_time() * 1e9) + client.node.clock.offset_ns
                    assert now - 10**9 < mtime(parts, name) <= now
                await shell.fsync(f"{session}0")
                shell.rename(f"{session}1", f"{session}0")
                kept[f"{session}0"] = kept.pop(f"{session}1")
                if session == 1:
                    client.kill_at(1)  # the last session finds its clock as wrong as it was
                    await shell.files.drain()
                    raise AssertionError("the client was to be killed")
                await shell.files.drain()
                assert not any(gauges(parts).values())

            await client.session(work)
            client.kill_at(0)
        assert await recovered(world, servers) == kept

    run_world(1, scenario)


def test_clocks_that_jump_while_files_are_written_and_read() -> None:
    async def scenario(world: World) -> None:
        servers = await start_servers(world)
        client = Client(world, servers)
        client.create()
        kept: dict[str, bytes | None] = {}

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            begin = trio.current_time()
            for turn, jump in enumerate(JUMPS):
                for index in range(3):
                    name = f"{turn}{index}"
                    kept[name] = content(name)
                    await shell.write(name, content(name))
                    for node in (client.node, servers.nodes[turn]):
                        node.clock.offset_ns += jump if index == 1 else 0
                    await shell.fsync(name)
            assert await shell.tree() == kept
            await shell.files.drain()
            assert not any(gauges(parts).values())
            assert trio.current_time() - begin < 60, "nothing waits for a wall clock"

        await client.session(work)
        assert await recovered(world, servers) == kept

    run_world(1, scenario)
