"""The whole client while servers are slow, silent or gone: how long it takes, and what callers are told.

In virtual time: every figure here is exact, and none depends on the machine that runs it.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Awaitable

import pytest
import trio

from gridfs.assembly import Parts
from storage.errors import Unavailable
from tests.simulation.filesystem import OPTIONS, Client, Servers, Shell, start_servers
from tests.simulation.machine import World, run_world
from tests.simulation.pipe import Link
from tests.simulation.runner import chance

KIB = 1 << 10
BACK_S = 2.0
"""A read is right again so soon after servers are back."""


def content(size: int, mark: object = 0) -> bytes:
    return chance(0, "content", mark).randbytes(size)


async def new_client(world: World, happy: int = 5) -> tuple[Client, Servers]:
    servers = await start_servers(world, happy=happy)
    client = Client(world, servers)
    client.create()
    return client, servers


def silence(world: World, servers: Servers, *which: int) -> None:
    """These servers hang: their connections stay, and nothing comes."""
    for index in which:
        world.fabric.partition(servers.nodes[index].name, "client")
        world.fabric.partition("client", servers.nodes[index].name)


async def stored(parts: Parts, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        await Shell(parts).write(name, data)
    await Shell(parts).files.drain()


async def read_some(parts: Parts, path: str, offset: int, length: int) -> bytes:
    """One read through a handle of its own, so without read-ahead."""
    shell = Shell(parts)
    ino = shell.find(path)
    assert ino is not None
    handle = shell.files.open(ino)
    try:
        return bytes(await shell.files.read(handle, offset, length))
    finally:
        shell.files.release(handle)


# ---- one hung server


async def reads_with_one_hung(world: World, size: int) -> list[tuple[float, float]]:
    """(round trips healthy, with the server hung that is asked) for cold reads of some files."""
    client, servers = await new_client(world)
    files = {f"{index}": content(size, index) for index in range(60)}
    round_trip = world.fabric.link.round_trip_s

    async def write(parts: Parts) -> None:
        for name, data in files.items():
            await stored(parts, {name: data})  # each in a pack of its own, wherever that lies

    async def work(parts: Parts) -> list[tuple[float, float]]:
        async def timed(name: str) -> float:
            begin = trio.current_time()
            assert await read_some(parts, name, 0, size) == files[name]
            return (trio.current_time() - begin) / round_trip

        for index in 8 * [*range(50)]:  # connections begin slowly, which counts until more is known
            await timed(f"{index}")
        each = [await timed(f"{index}") for index in range(50)]
        # One may take a round trip more: where two answers share the first window of a connection.
        assert sum(took <= 1.1 for took in each) >= 49, each
        healthy = statistics.median(each)
        won = parts.downloader.statistics().hedging.won
        result: dict[int, tuple[float, float]] = {}
        for index in range(50, 60):
            pack = parts.log.metadata.pack(index + 1)
            where = [server.server_id for server in parts.roster].index(pack.places[0] or b"")
            if where in result:
                continue
            silence(world, servers, where)
            result[where] = healthy, await timed(f"{index}")
            world.fabric.heal()
            await trio.sleep(100 * round_trip + 100)
        assert parts.downloader.statistics().hedging.won - won == len(result) >= 4
        return list(result.values())

    options = dataclasses.replace(OPTIONS, grid_timeout_s=1000.0)
    await client.session(write)
    result = await client.session(work, options)
    assert result is not None
    return result


@pytest.mark.parametrize("size", [8 * KIB, 128 * KIB])
@pytest.mark.parametrize("round_trip_s", [0.01, 0.1, 1.0])
def test_a_read_with_one_hung_server_takes_one_round_trip_more(round_trip_s: float, size: int) -> None:
    def scenario(world: World) -> Awaitable[list[tuple[float, float]]]:
        return reads_with_one_hung(world, size)

    for healthy, hung in run_world(1, scenario, link=Link(round_trip_s=round_trip_s)).result:
        assert healthy <= 1.1
        assert hung <= healthy + 1.15


# ---- too few servers


@pytest.mark.parametrize("silently", [True, False])
def test_with_too_few_servers_a_read_fails_in_time_with_the_path_and_is_right_when_they_are_back(
    silently: bool,
) -> None:
    """Silently: they hang, with their connections. Else they are gone and come back without memory."""

    async def scenario(world: World) -> None:
        client, servers = await new_client(world)
        data = content(500 * KIB)
        await client.session(lambda parts: stored(parts, {"file": data}))
        options = dataclasses.replace(OPTIONS, grid_timeout_s=8.0)

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            shell.mkdir("folder")
            shell.rename("file", "folder/file")
            assert await read_some(parts, "folder/file", 0, 1000) == data[:1000]
            if silently:
                silence(world, servers, 1, 3, 4)
            else:
                for index in (1, 3, 4):
                    world.crash(servers.nodes[index])
            # Some of its segments lie on servers that answer; these are read, and no others.
            for seconds in (8.0, 0.5, 8.0):
                begin = trio.current_time()
                with pytest.raises(Unavailable, match=r"^/folder/file, at byte 65536: ") as caught:
                    await read_some(parts, "folder/file", 64 * KIB, 400 * KIB)
                assert trio.current_time() - begin == pytest.approx(seconds, abs=0.1)
                assert f"no answer from the grid for {seconds:g} s" in str(caught.value)
                await trio.sleep(0.1 if seconds == 8.0 else 2.0)  # the kernel asks again at once
            await trio.sleep(200)
            if silently:
                world.fabric.heal()
            else:
                await servers.restart(*(servers.nodes[index] for index in (1, 3, 4)))
            with trio.fail_after(BACK_S):
                assert (
                    await read_some(parts, "folder/file", 64 * KIB, 400 * KIB) == data[64 * KIB : 464 * KIB]
                )

        await client.session(work, options)

    run_world(1, scenario)


def test_a_read_waits_for_servers_that_are_away_for_a_moment() -> None:
    async def scenario(world: World) -> None:
        client, servers = await new_client(world)
        data = content(300 * KIB)
        await client.session(lambda parts: stored(parts, {"file": data}))

        async def work(parts: Parts) -> None:
            for index in range(6):
                world.crash(servers.nodes[index])
            begin = trio.current_time()
            async with trio.open_nursery() as nursery:

                async def read() -> None:
                    assert await read_some(parts, "file", 0, 300 * KIB) == data
                    assert trio.current_time() - begin <= 5.0 + BACK_S

                nursery.start_soon(read)
                await trio.sleep(5.0)
                await servers.restart(*servers.nodes)

        await client.session(work)

    run_world(1, scenario)


def test_shares_that_are_lost_for_good_are_not_waited_for() -> None:
    async def scenario(world: World) -> None:
        client, servers = await new_client(world)
        await client.session(lambda parts: stored(parts, {"file": content(300 * KIB)}))

        async def work(parts: Parts) -> None:
            pack = parts.log.metadata.pack(1)
            for number in (0, 2, 4):
                place = pack.places[number]
                assert place is not None
                file_system, stamp = servers.config.file_system, (1 << 40, 1)
                assert await parts.clients[place].release([(pack.pack_id, number)], file_system, stamp) == [
                    True
                ]
            begin = trio.current_time()
            with pytest.raises(Unavailable, match=r"^/file, at byte 0: pack .* 3 of the 4 shares"):
                await read_some(parts, "file", 0, 300 * KIB)
            assert trio.current_time() - begin < 1

        await client.session(work)

    run_world(1, scenario)


def test_servers_that_were_put_back_to_an_old_copy_are_named_and_gone_around(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two of six do not know any more what they stored since: shares and head records."""

    async def scenario(world: World) -> None:
        client, servers = await new_client(world)
        old = [copy.deepcopy(node.platter.root) for node in servers.nodes[:2]]
        data = content(700 * KIB)
        await client.session(lambda parts: stored(parts, {"file": data}))
        for node, root in zip(servers.nodes, old, strict=False):
            world.crash(node)
            node.platter.root = root
        await servers.restart(*servers.nodes[:2])

        async def work(parts: Parts) -> None:
            assert await Shell(parts).read("file") == data
            reads = parts.downloader.statistics().reads
            names = {servers.roster.servers[index].server_id for index in (0, 1)}
            assert set(reads.damaged) <= names
            assert reads.damaged
            assert not reads.lied
            await Shell(parts).write("more", data)
            await Shell(parts).files.drain()

        await client.session(work)

    run_world(1, scenario)
    assert "it lacks its share" in caplog.text


# ---- writing


def test_a_drain_does_without_hung_servers_that_are_not_needed() -> None:
    async def scenario(world: World) -> None:
        client, servers = await new_client(world, happy=4)

        async def work(parts: Parts) -> float:
            shell = Shell(parts)
            await shell.write("before", content(300 * KIB))
            await shell.fsync("before")
            silence(world, servers, 0, 5)
            await shell.write("during", content(700 * KIB, 1))
            begin = trio.current_time()
            await shell.fsync("during")
            await shell.write("more", content(900 * KIB, 2))
            await shell.files.drain()
            return trio.current_time() - begin

        drained_s = await client.session(work)
        assert drained_s is not None
        assert drained_s < 10

        # A mount does without them, too.
        begin = trio.current_time()

        async def look(parts: Parts) -> None:
            assert trio.current_time() - begin < 4
            assert await Shell(parts).read("during") == content(700 * KIB, 1)
            await Shell(parts).write("after", content(1000, 3))
            begin_drain = trio.current_time()
            await Shell(parts).files.drain()
            assert trio.current_time() - begin_drain < 10

        await client.session(look)

    run_world(1, scenario)
