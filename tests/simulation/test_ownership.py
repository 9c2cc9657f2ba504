"""Who owns a file system, told in stories: records that only few head servers took, servers that come back at
a bad moment, and what must not follow from it."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import trio

from gridfs.assembly import Parts, head_keys
from gridfs.files import checkpointing, journal
from gridfs.files.claiming import TakenOver
from gridfs.grid.errors import NotEnoughServers
from gridfs.meta.store import Metadata
from storage.errors import StorageError
from tests.simulation.filesystem import KEYS, OPTIONS, Client, Servers, Shell, start_servers
from tests.simulation.machine import World, run_world
from tests.simulation.test_following import start
from tests.simulation.test_head_list import eight_servers, last_six

TAKEOVER = dataclasses.replace(OPTIONS, takeover=True)


async def fsync(shell: Shell, name: str, data: bytes) -> None:
    await shell.write(name, data)
    await shell.fsync(name)


async def two_clients(world: World) -> tuple[Servers, Client, Client]:
    """The first one's `file` is on all six servers, and a record of `minor` on the first server alone, which
    it has seen again since, together with the second."""
    servers = await start_servers(world)
    one, two = Client(world, servers, "one"), Client(world, servers, "two")
    one.create()
    two.create()

    async def first(parts: Parts) -> None:
        shell = Shell(parts)
        await fsync(shell, "file", b"1")
        await trio.sleep(1)
        for node in servers.nodes[1:]:
            world.kill(node)
        with trio.move_on_after(3):
            await fsync(shell, "minor", b"2")

    await one.session(first)
    await servers.restart(servers.nodes[1])
    await one.session(pause)
    return servers, one, two


async def pause(parts: Parts) -> None:
    del parts
    await trio.sleep(0.1)


async def tree(parts: Parts) -> dict[str, bytes | None]:
    return await Shell(parts).tree()


def test_synced_data_is_carried_again_where_the_newest_record_is_away() -> None:
    async def scenario(world: World) -> None:
        servers, one, two = await two_clients(world)
        world.kill(servers.nodes[0])
        await servers.restart(*servers.nodes[2:])

        async def go_on(parts: Parts) -> None:
            await fsync(Shell(parts), "new", b"3")
            world.crash(one.node)
            await trio.sleep(1)

        await one.session(go_on)
        found = await two.session(tree, TAKEOVER)
        assert found is not None
        assert (found["file"], found["new"]) == (b"1", b"3")

    run_world(1, scenario)


def test_the_first_record_tells_no_less_than_the_newest_that_was_found() -> None:
    """That one is on too few servers, so it does not count as shipped, but all before it does. What waits for
    data in the new mount must not hold back what has long been there."""

    async def scenario(world: World) -> None:
        servers = await start_servers(world)
        one, two, three = (Client(world, servers, name) for name in ("one", "two", "three"))
        for client in (one, two, three):
            client.create()

        async def lose(parts: Parts) -> None:
            shell = Shell(parts)
            for name in ("file", "replaced"):  # more than records carry
                await fsync(shell, name, b"old" * 10_000)
            await shell.write("new", b"new" * 10_000)
            shell.rename("new", "replaced")
            await parts.files.sync()
            await trio.sleep(1)
            for node in servers.nodes[1:]:
                world.kill(node)
            with trio.move_on_after(3):
                await shell.files.fsync(shell.mkdir("minor"))
            world.crash(one.node)

        async def take_over(parts: Parts) -> None:
            shell = Shell(parts)
            await shell.write("other", b"other")
            await shell.write("large", b"large" * 100_000)
            shell.rename("large", "other")
            shell.truncate("file", 1)
            await parts.journal.begun()
            world.crash(two.node)

        await one.session(lose)
        await servers.restart(*servers.nodes[1:])
        await two.session(take_over, TAKEOVER)
        found = await three.session(tree, TAKEOVER)
        assert found is not None
        assert (found["file"][:1], found["replaced"]) == (b"o", b"new" * 10_000)

    run_world(4, scenario)


@pytest.mark.parametrize("attempts", [0, 6])
def test_mounts_that_fail_make_nobody_elses_record_older(attempts: int) -> None:
    async def scenario(world: World) -> None:
        servers, one, two = await two_clients(world)
        for node in servers.nodes[:2]:
            world.kill(node)
        for _ in range(attempts):
            with pytest.raises(NotEnoughServers):
                await one.session(pause)
        await servers.restart(*servers.nodes[1:])
        await two.session(lambda parts: fsync(Shell(parts), "two", b"3"), TAKEOVER)
        await servers.restart(servers.nodes[0])
        with pytest.raises(TakenOver):
            await one.session(lambda parts: fsync(Shell(parts), "one", b"4"))
        found = await two.session(tree, TAKEOVER)
        assert found is not None
        assert found["two"] == b"3"

    run_world(2, scenario)


@pytest.mark.parametrize("count", [2, 14])
def test_a_mount_that_serves_takes_over_no_record_of_its_lost_past(count: int) -> None:
    async def scenario(world: World) -> None:
        servers = await start_servers(world)
        client = Client(world, servers)
        client.create()

        async def lose(parts: Parts) -> None:
            shell = Shell(parts)
            await fsync(shell, "first", b"1")
            await parts.log.settle()
            await trio.sleep(1)
            for node in servers.nodes[2:]:
                world.kill(node)
            for turn in range(10):
                shell.create(f"lost{turn}")
                await shell.write("lost", b"L" * 3000)
            with trio.move_on_after(3):
                await shell.fsync("lost")
            world.crash(client.node)
            await trio.sleep(1)

        await client.session(lose)
        for node in servers.nodes[:2]:
            world.kill(node)
        await servers.restart(*servers.nodes[2:])

        async def go_on(parts: Parts) -> bool:
            shell = Shell(parts)
            for index in range(count):
                await shell.write(f"new{index}", b"N" * 3000)
            before = await shell.tree()
            await servers.restart(*servers.nodes[:2])
            await trio.sleep(20)
            assert await shell.tree() == before
            await shell.fsync("new0")
            return True

        assert await client.session(go_on)

    run_world(3, scenario)


def test_a_change_of_head_servers_without_a_quorum_is_refused_and_does_not_come_later() -> None:
    async def scenario(world: World) -> None:
        servers, client = await eight_servers(world)

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            await fsync(shell, "file", b"1")
            for node in servers.nodes[:2]:
                world.kill(node)
            with trio.move_on_after(3):
                await fsync(shell, "file", b"2")  # a record that too few take
            with trio.fail_after(60), pytest.raises(NotEnoughServers):
                await parts.journal.change_heads(last_six(servers))
            await servers.restart(*servers.nodes[:2])
            await trio.sleep(60)
            assert parts.heads.now == servers.config.head_list

        await client.session(work)

    run_world(4, scenario)


def test_a_new_head_server_with_a_promise_of_another_life_ends_no_mount() -> None:
    async def scenario(world: World) -> None:
        servers, client = await eight_servers(world)

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            await fsync(shell, "file", b"1")
            keys = head_keys(client.config, KEYS)
            former = parts.clients[servers.roster.servers[7].server_id]
            await former.head_claim(keys.claim(50, b"x" * 16))
            await parts.journal.change_heads(last_six(servers))
            world.kill(servers.nodes[3])
            await fsync(shell, "file", b"2")
            assert parts.journal.taken_over is None

        await client.session(work)

    run_world(5, scenario)


def test_changes_go_on_though_a_lull_ends_in_waiting_for_servers() -> None:
    async def scenario(world: World) -> None:
        servers = await start_servers(world)
        client = Client(world, servers)
        client.create()
        async with client.mounted() as parts:
            shell = Shell(parts)
            await fsync(shell, "file", b"1")
            for node in servers.nodes[:3]:
                world.crash(node, silently=True)
            await shell.write("file", b"2")
            parts.journal._lull.want(-1.0)  # as a turn may
            assert parts.contents.pause.is_on
            async with trio.open_nursery() as nursery:

                async def sync() -> None:
                    with contextlib.suppress(StorageError):
                        await shell.fsync("file")

                nursery.start_soon(sync)
                with trio.fail_after(6):
                    await parts.contents.pause.over()
                nursery.cancel_scope.cancel()

    run_world(6, scenario)


def test_a_file_that_is_open_is_read_anew_where_metadata_were_made_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a follower that was cut off while a file was rewritten that it had read ahead."""
    monkeypatch.setattr(journal, "GATHER_BYTES", 60_000)
    monkeypatch.setattr(checkpointing, "JOURNAL_PACKS_MAX", 3)
    size, step = 3 << 20, 128 << 10

    async def scenario(world: World) -> None:
        servers, writer, reader = await start(world)
        async with writer.mounted() as parts:
            shell = Shell(parts)
            await fsync(shell, "big", b"A" * size)
            async with reader.mounted() as following:
                assert following.following is not None
                await trio.sleep(5)
                ino = Shell(following).find("big")
                assert ino is not None
                handle = following.files.open(ino)
                assert bytes(await following.files.read(handle, 0, step)) == b"A" * step
                await trio.sleep(2)
                switched = []
                monkeypatch.setattr(Metadata, "switch", noted(Metadata.switch, switched))
                for node in servers.nodes:
                    world.fabric.partition("reader", node.name)
                await fsync(shell, "big", b"B" * size)
                for index in range(120):
                    await fsync(shell, f"f{index % 9}", bytes([index]) * 3000)
                await parts.files.drain()
                world.fabric.heal()
                await trio.sleep(60)
                assert switched
                assert following.log.number == parts.log.number
                assert bytes(await following.files.read(handle, step, step)) == b"B" * step

    run_world(7, scenario)


def noted(method: object, calls: list[str]) -> object:
    def call(self: Metadata, path: str, **options: str | None) -> None:
        calls.append(path)
        method(self, path, **options)  # type: ignore[operator]

    return call
