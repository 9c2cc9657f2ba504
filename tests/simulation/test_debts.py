"""Debts are paid by themselves when servers are back, and a crash leaves them or pays them."""

from __future__ import annotations

import pytest
import trio

from gridfs.assembly import Parts
from tests.simulation.filesystem import DATABASE, Client, Servers, Shell, start_servers
from tests.simulation.machine import World, run_world
from tests.simulation.platter import DiskFault
from tests.simulation.runner import chance

FILES = {"big": 700_000, "small": 3000, "other": 400_000}
"""The small one has fewer shares than there are servers left."""


def content(name: str) -> bytes:
    return chance(0, name).randbytes(FILES[name])


def owed(parts: Parts) -> int:
    return parts.log.metadata.totals().missing_shares


async def write_all(parts: Parts) -> None:
    for name in FILES:
        await Shell(parts).write(name, content(name))
        await Shell(parts).files.sync()
    await Shell(parts).files.drain()


async def until_paid(parts: Parts, seconds: float = 60) -> None:
    with trio.fail_after(seconds):
        while owed(parts):  # noqa: ASYNC110 - there is nothing else to wait for
            await trio.sleep(0.1)


async def with_debts(world: World, *down: int) -> tuple[Client, Servers]:
    """A client whose files were stored while a server was down."""
    servers = await start_servers(world)
    client = Client(world, servers)
    client.create()
    for index in down:
        world.crash(servers.nodes[index])
    await client.session(write_all)
    return client, servers


async def reads_from(world: World, client: Client, servers: Servers, *left: int) -> None:
    """With these servers alone, on a client without caches, every file reads back."""
    for index, node in enumerate(servers.nodes):
        if index not in left:
            world.crash(node)

    async def look(parts: Parts) -> None:
        for name in FILES:
            assert await Shell(parts).read(name) == content(name)

    await client.session(look)


@pytest.mark.parametrize("down", range(6))
def test_what_was_owed_is_placed_without_being_asked_for(down: int) -> None:
    async def scenario(world: World) -> int:
        client, servers = await with_debts(world, down)

        async def back(parts: Parts) -> int:
            debts = owed(parts)
            assert debts
            await trio.sleep(120)
            assert owed(parts) == debts, "nobody could take them"
            assert parts.debts.statistics.failed == 0, "so nothing was read in vain"
            await servers.restart(servers.nodes[down])
            await until_paid(parts)
            statistics = parts.debts.statistics
            assert (statistics.paid, statistics.failed) == (debts, 0)
            assert parts.log.metadata.check() == []
            await Shell(parts).files.drain()
            for name in FILES:
                assert await Shell(parts).read(name) == content(name)
            return debts

        debts = await client.session(back)
        assert debts
        # Any two may be lost now: the one that was away counts fully.
        others = [index for index in range(6) if index != down]
        await reads_from(world, client, servers, down, *others[:3])
        return debts

    assert run_world(1, scenario).result == 2


def test_debts_survive_the_mount_and_its_machine() -> None:
    """Another machine, which has nothing but the keys, learns of them and pays."""

    async def scenario(world: World) -> None:
        _, servers = await with_debts(world, 2)
        spare = Client(world, servers, "spare")
        spare.create()
        await servers.restart(servers.nodes[2])

        async def pay(parts: Parts) -> None:
            assert owed(parts)
            await until_paid(parts)
            await Shell(parts).files.drain()

        await spare.session(pay)
        await reads_from(world, spare, servers, 0, 1, 2, 3)

    run_world(1, scenario)


def test_a_kill_at_any_step_leaves_a_debt_or_pays_it() -> None:
    async def scenario(world: World, strike: int, *, power: bool) -> bool:
        client, servers = await with_debts(world, 1)
        await servers.restart(servers.nodes[1])

        async def pay(parts: Parts) -> bool:
            (client.cut_power_at if power else client.kill_at)(strike)
            await until_paid(parts)
            await Shell(parts).files.drain()
            return True

        untouched = await client.session(pay)
        client.kill_at(0)

        async def again(parts: Parts) -> None:
            await until_paid(parts)
            assert parts.log.metadata.check() == []
            await Shell(parts).files.drain()

        if not untouched:
            await client.session(again)
        await reads_from(world, client, servers, 1, 3, 4, 5)
        return bool(untouched)

    for power in (False, True):
        strike = 1
        while not run_world(strike, lambda w, s=strike, p=power: scenario(w, s, power=p)).result:
            strike += 1 + strike // 4
        assert strike > 8


def test_debts_that_arise_while_others_are_paid_follow_at_once() -> None:
    """A server hangs for so short a time that nobody but the uploads notices."""

    async def scenario(world: World) -> None:
        servers = await start_servers(world)
        client = Client(world, servers)
        client.create()

        async def work(parts: Parts) -> None:
            await trio.sleep(1)
            hung = servers.nodes[3].name
            world.fabric.partition(hung, "client")
            world.fabric.partition("client", hung)
            await Shell(parts).write("big", content("big"))
            await Shell(parts).files.sync()
            first = owed(parts)
            await trio.sleep(1.5)
            await Shell(parts).write("other", content("other"))
            await Shell(parts).files.sync()
            assert owed(parts) > first > 0
            world.fabric.heal()
            await until_paid(parts, 10)

        await client.session(work)

    run_world(1, scenario)


def test_servers_that_die_while_debts_are_paid_cost_nothing() -> None:
    async def scenario(world: World) -> None:
        client, servers = await with_debts(world, 1)

        async def back(parts: Parts) -> None:
            await servers.restart(servers.nodes[1])
            for index in (1, 4, 1, 0):
                await trio.sleep(0.3)
                world.crash(servers.nodes[index])
                await trio.sleep(1.1)
                await servers.restart(servers.nodes[index])
            await until_paid(parts, 120)
            assert parts.log.metadata.check() == []
            await Shell(parts).files.drain()

        await client.session(back)
        await reads_from(world, client, servers, 1, 2, 3, 4)

    for seed in range(3):
        run_world(seed, scenario)


def test_a_client_disk_that_fails_for_a_while_lets_debts_wait() -> None:
    async def scenario(world: World) -> None:
        client, servers = await with_debts(world, 0)

        async def back(parts: Parts) -> None:
            await servers.restart(servers.nodes[0])
            fault = DiskFault("read", path=DATABASE, count=1000)
            client.node.platter.faults.append(fault)
            parts.log.metadata._database.execute("PRAGMA shrink_memory")  # what is in memory needs no disk
            await trio.sleep(60)
            assert fault.count < 1000
            client.node.platter.faults.clear()
            await until_paid(parts)

        await client.session(back)

    run_world(2, scenario)
