"""Everything of a file system is released, by its owner alone, whoever is away or dies meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest

from gridfs.assembly import Parts, connected, head_keys
from gridfs.destroying import Released, own, release
from gridfs.files.claiming import TakenOver
from gridfs.files.headstate import HeadState, load_head_state
from gridfs.grid.errors import NotEnoughServers
from gridfs.grid.roster import Roster
from storage.ports import Machine
from tests.simulation.filesystem import KEYS, OPTIONS, Client, Servers, Shell, start_servers
from tests.simulation.machine import World, run_world
from tests.simulation.test_filesystem_crash import look


async def work(parts: Parts) -> HeadState:
    shell = Shell(parts)
    for number in range(5):
        await shell.write(f"file {number}", bytes([number]) * 200_000)
    await shell.files.drain()
    return load_head_state(parts.log.metadata)


async def holdings(machine: Machine, servers: Servers) -> list[tuple[int, bool]]:
    """Shares on each server that is up, and whether the file system's head log is there."""
    log = head_keys(servers.config, KEYS).log
    up = zip(servers.roster, servers.nodes, strict=True)
    roster = Roster(tuple(server for server, node in up if node.is_up))
    async with connected(machine, roster) as clients:
        return [
            ((await client.info()).shares, await client.head_look(log) is not None)
            for client in clients.values()
        ]


async def destroy(
    machine: Machine, servers: Servers, state: HeadState, *, begun: bool = False
) -> dict[bytes, Released]:
    await own(machine, servers.config, KEYS, servers.roster, state, begun=begun)
    return await release(machine, servers.config, KEYS, servers.roster, state)


def test_nothing_is_left_and_others_keep_theirs() -> None:
    async def story(world: World) -> None:
        servers = await start_servers(world)
        other = dataclasses.replace(
            servers, config=dataclasses.replace(servers.config, file_system=b"g" * 16)
        )
        for name, grid in (("client", servers), ("neighbour", other)):
            client = Client(world, grid, name)
            client.create()
            state = await client.session(work)
            if name == "client":
                mine = state
        assert mine is not None
        machine = world.boot(world.add("destroyer"))
        before = await holdings(machine, servers)
        # Both have one key here, and so one head log: the neighbour's claim took it over.
        with pytest.raises(TakenOver, match="not destroyed from here"):
            await destroy(machine, servers, mine)
        assert await holdings(machine, servers) == before
        assert state is not None
        results = await destroy(machine, servers, state)
        assert all(result == Released(result.shares) for result in results.values())
        after = await holdings(machine, servers)
        assert [log for _, log in after] == [False] * 6
        released = [result.shares for result in results.values()]
        assert [shares for shares, _ in after] == [
            held - gone for (held, _), gone in zip(before, released, strict=True)
        ]
        assert min(released) > 0
        # What is left is the neighbour's.
        assert sum(shares for shares, _ in after) > 0

    run_world(1, story)


def test_servers_that_are_away_are_named_and_done_later() -> None:
    async def story(world: World) -> None:
        servers = await start_servers(world)
        client = Client(world, servers)
        client.create()
        state = await client.session(work)
        assert state is not None
        away = servers.nodes[:2]
        for node in away:
            world.kill(node)
        machine = world.boot(world.add("destroyer"))
        results = await destroy(machine, servers, state)
        troubled = [bool(result.trouble) for result in results.values()]
        assert troubled == [True, True, False, False, False, False]
        assert await holdings(machine, servers) == [(0, False)] * 4
        await servers.restart(*away)
        assert [shares > 0 and log for shares, log in await holdings(machine, servers)][:2] == [True, True]
        results = await destroy(machine, servers, state, begun=True)
        assert not any(result.trouble for result in results.values())
        assert await holdings(machine, servers) == [(0, False)] * 6

    run_world(2, story)


def test_with_too_few_head_servers_nobody_knows_whose_it_is() -> None:
    async def story(world: World) -> None:
        servers = await start_servers(world)
        client = Client(world, servers)
        client.create()
        state = await client.session(work)
        assert state is not None
        for node in servers.nodes[:5]:
            world.kill(node)
        machine = world.boot(world.add("destroyer"))
        with pytest.raises(NotEnoughServers):
            await destroy(machine, servers, state)
        await servers.restart(*servers.nodes[:5])
        assert min(shares for shares, _ in await holdings(machine, servers)) > 0

    run_world(3, story)


def test_a_file_system_that_another_machine_took_over_stays() -> None:
    async def story(world: World) -> None:
        servers = await start_servers(world)
        client = Client(world, servers)
        client.create()
        state = await client.session(work)
        assert state is not None
        other = Client(world, servers, "other")
        other.create()
        assert len(await other.session(look) or {}) == 5
        machine = world.boot(world.add("destroyer"))
        with pytest.raises(TakenOver):
            await destroy(machine, servers, state)
        assert len(await other.session(look, OPTIONS) or {}) == 5

    run_world(4, story)


@pytest.mark.parametrize("seed", range(6))
def test_a_destruction_that_dies_is_done_again(seed: int) -> None:
    async def story(world: World) -> None:
        servers = await start_servers(world)
        client = Client(world, servers)
        client.create()
        state = await client.session(work)
        assert state is not None
        machine = world.boot(world.add("destroyer"))
        world.cut_power_at(3 + 7 * seed, *servers.nodes[: 1 + seed])
        with contextlib.suppress(NotEnoughServers):
            await destroy(machine, servers, state)
        world.cut_power_at(0)
        await servers.restart(*[node for node in servers.nodes if not node.is_up])
        results = await destroy(machine, servers, state, begun=True)
        assert not any(result.trouble for result in results.values())
        assert await holdings(machine, servers) == [(0, False)] * 6

    run_world(seed, story)
