"""The real client and servers on simulated machines: virtual time, exact, the same in every run.

    seconds = on_a_grid(link, work)       # await work(world, parts): an open file system, warm and at rest

A round trip here costs what the link says and nothing else: CPU and disks take no virtual time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from gridfs.assembly import MountOptions, Parts
from tests.simulation.filesystem import OPTIONS, Client, Servers, Shell, start_servers
from tests.simulation.machine import World, run_world
from tests.simulation.pipe import Link

T = TypeVar("T")
REST_S = 300.0


async def warm_up(parts: Parts) -> None:
    """Until the epoch is claimed, everything is connected, and at rest."""
    shell = Shell(parts)
    await shell.write("warm", b"up")
    await shell.fsync("warm")
    await shell.files.sync()
    await trio.sleep(REST_S)


def on_a_grid(
    link: Link,
    *works: Callable[[World, Parts], Awaitable[T]],
    k: int = 4,
    n: int = 6,
    happy: int = 5,
    options: MountOptions = OPTIONS,
    prepared: Callable[[World, Servers], None] | None = None,
) -> list[T]:
    """Run each work on a new mount of one file system; what they returned.

    `prepared` is called before the first, and may change the links between the machines.
    """

    async def scenario(world: World) -> list[T]:
        servers = await start_servers(world, k, n, happy)
        client = Client(world, servers)
        client.create()
        if prepared is not None:
            prepared(world, servers)
        found: list[T] = []
        for work in works:

            async def session(parts: Parts, work: Callable[[World, Parts], Awaitable[T]] = work) -> T:
                await warm_up(parts)
                return await work(world, parts)

            result = await client.session(session, options)
            assert result is not None
            found.append(result)
        return found

    result: list[T] = run_world(1, scenario, link=link).result
    return result
