"""Other servers come to keep the head log, and anything dies meanwhile.

Whatever dies at whatever moment of a change: what was synced is found by the next mount, by a machine that
knows only the old list, and by a recovery; and whoever was shut out by an epoch stays so on either list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import trio

from gridfs.assembly import Parts
from gridfs.codec.headlist import HeadList
from gridfs.files import journal
from gridfs.files.claiming import TakenOver
from gridfs.grid.errors import NotEnoughServers
from storage.errors import Refused
from tests.simulation.filesystem import OPTIONS, Client, Servers, Shell, start_servers
from tests.simulation.machine import Node, World, run_world
from tests.simulation.test_filesystem import content

TAKEOVER = dataclasses.replace(OPTIONS, takeover=True)
Work = Callable[[World, Servers, Client], object]


async def eight_servers(world: World) -> tuple[Servers, Client]:
    """Eight servers, of which the first six keep the head log; a quorum are five."""
    servers = await start_servers(world, n=8)
    config = dataclasses.replace(servers.config, n=6, head_servers=servers.config.head_servers[:6])
    servers = dataclasses.replace(servers, config=config)
    client = Client(world, servers)
    client.create()
    return servers, client


def last_six(servers: Servers, generation: int = 2) -> HeadList:
    return HeadList(tuple(server.server_id for server in servers.roster)[2:], 5, generation)


async def read(parts: Parts) -> dict[str, bytes | None]:
    return await Shell(parts).tree()


def test_after_a_change_the_old_servers_are_not_needed_any_more() -> None:
    async def scenario(world: World) -> None:
        servers, client = await eight_servers(world)

        async def change(parts: Parts) -> None:
            shell = Shell(parts)
            await shell.write("before", content(5000, 1))
            await shell.fsync("before")
            await parts.journal.change_heads(last_six(servers))
            assert (parts.heads.now, parts.heads.leaving) == (last_six(servers), None)
            for node in servers.nodes[:2]:
                world.kill(node)
            with trio.fail_after(5):
                await shell.write("after", content(5000, 2))
                await shell.fsync("after")

        await client.session(change, OPTIONS)

        async def again(parts: Parts) -> None:
            assert parts.heads.now == last_six(servers)
            assert await read(parts) == {"before": content(5000, 1), "after": content(5000, 2)}
            shell = Shell(parts)
            with trio.fail_after(5):
                await shell.write("later", b"3")
                await shell.fsync("later")

        await client.session(again, OPTIONS)

    run_world(1, scenario)


def test_who_knows_the_old_list_only_is_told_the_new_one() -> None:
    async def scenario(world: World) -> None:
        servers, client = await eight_servers(world)

        async def change(parts: Parts) -> None:
            await parts.journal.change_heads(last_six(servers))
            shell = Shell(parts)
            await shell.write("after", content(5000, 2))
            await shell.fsync("after")

        await client.session(change, OPTIONS)
        other = Client(world, servers, "other")
        other.create()

        async def look(parts: Parts) -> None:
            assert parts.heads.now == last_six(servers)
            assert await read(parts) == {"after": content(5000, 2)}
            shell = Shell(parts)
            await shell.write("other", b"4")
            await shell.fsync("other")

        await other.session(look, OPTIONS)
        with pytest.raises(TakenOver):
            await client.session(read, OPTIONS)
        assert await client.session(read, TAKEOVER) == {"after": content(5000, 2), "other": b"4"}

    run_world(2, scenario)


def test_a_writer_that_knows_the_old_list_only_is_shut_out_on_both() -> None:
    async def scenario(world: World) -> None:
        servers, client = await eight_servers(world)
        other = Client(world, servers, "other")
        other.create()
        async with client.mounted(OPTIONS) as old:
            shell = Shell(old)
            await shell.write("old", b"1")
            await shell.fsync("old")

            async def take(parts: Parts) -> None:
                await parts.journal.change_heads(last_six(servers))

            await other.session(take, TAKEOVER)
            await shell.write("late", b"2")
            with pytest.raises(TakenOver):
                await shell.fsync("late")
        assert await other.session(read, OPTIONS) == {"old": b"1"}

    run_world(3, scenario)


@pytest.mark.parametrize("down", [(0, 1), (6, 7)], ids=["old", "new"])
def test_a_change_waits_for_a_quorum_of_both_lists(down: tuple[int, int]) -> None:
    """Where it has none at once, nothing changes; where one is lost on the way, it is waited for."""

    async def scenario(world: World) -> None:
        servers, client = await eight_servers(world)
        nodes = [servers.nodes[index] for index in down]

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            await shell.write("file", b"1")
            await shell.fsync("file")
            for node in nodes:
                world.kill(node)
            with pytest.raises(NotEnoughServers, match="4 of the 5 servers"):
                await parts.journal.change_heads(last_six(servers))
            assert (parts.heads.now, parts.heads.leaving) == (servers.config.head_list, None)
            await servers.restart(*nodes)
            with trio.fail_after(30):
                await shell.write("file", b"2")
                await shell.fsync("file")
            await trio.sleep(20)  # by then all are connected again

            def die_after_the_promise(noted: Callable[[], object] = parts.journal._claimer.extend) -> object:
                async def extend() -> None:
                    await noted()  # type: ignore[misc]
                    for node in nodes:
                        world.kill(node)

                return extend

            parts.journal._claimer.extend = die_after_the_promise()  # type: ignore[assignment,method-assign]
            with trio.move_on_after(20) as waited:
                await parts.journal.change_heads(last_six(servers))
            assert waited.cancelled_caught
            assert parts.heads.leaving == servers.config.head_list
            with pytest.raises(Refused, match="changing already"):
                await parts.journal.change_heads(last_six(servers, 3))
            await servers.restart(*nodes)
            with trio.fail_after(30):
                await shell.write("file", b"3")
                await shell.fsync("file")
                await parts.journal.heads_changed()
                assert parts.heads.leaving is None

        await client.session(work, OPTIONS)
        assert await client.session(read, OPTIONS) == {"file": b"3"}

    run_world(4, scenario)


def test_there_and_back_again() -> None:
    async def scenario(world: World) -> None:
        servers, client = await eight_servers(world)

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            first = servers.config.head_list
            for generation in range(2, 6):
                to = last_six(servers, generation) if generation % 2 == 0 else first
                await parts.journal.change_heads(HeadList(to.servers, to.quorum, generation))
                await shell.write("file", bytes([generation]))
                await shell.fsync("file")

        await client.session(work, OPTIONS)
        other = Client(world, servers, "other")
        other.create()
        assert await other.session(read, TAKEOVER) == {"file": b"\x05"}

    run_world(5, scenario)


@dataclasses.dataclass(frozen=True)
class Blow:
    """The client's machine dies at its disk operation, or message, `at` of a change."""

    strike: Callable[[World, Node], None]
    is_message: bool
    at: int

    async def story(self, world: World) -> bool:
        """Returns whether it died."""
        servers, client = await eight_servers(world)
        synced: dict[str, bytes | None] = {}

        async def write(shell: Shell, name: str, mark: int) -> None:
            await shell.write(name, content(3000, mark))
            await shell.fsync(name)
            synced[name] = content(3000, mark)

        async def work(parts: Parts) -> bool:
            shell = Shell(parts)
            for index in range(4):
                await write(shell, f"f{index}", index)
            counted = {"message": self.at} if self.is_message else {"operation": self.at}
            client.strike_at(lambda node: self.strike(world, node), **counted)
            for to in (last_six(servers), servers.config.head_list):
                generation = parts.heads.now.generation + 1
                await parts.journal.change_heads(HeadList(to.servers, to.quorum, generation))
                await write(shell, f"g{generation}", generation)
            client.strike_at(world.kill)
            return True

        def check(found: dict[str, bytes | None] | None) -> None:
            assert found is not None
            for name, data in synced.items():
                assert found[name] == data, name

        lived = await client.session(work, OPTIONS)
        client.strike_at(world.kill)
        check(await client.session(read, OPTIONS))

        async def go_on(parts: Parts) -> None:
            with trio.fail_after(30):
                await write(Shell(parts), "on", 9)
                await parts.journal.heads_changed()

        await client.session(go_on, OPTIONS)
        other = Client(world, servers, "other")
        other.create()
        check(await other.session(read, TAKEOVER))
        return not lived


def strike_everywhere(
    strike: Callable[[World, Node], None], first: int, step: int, *, is_message: bool
) -> int:
    """Strike at the first, first + step ... moment until none is left; how often that was."""
    at = first
    while run_world(at, Blow(strike, is_message, at).story).result:
        at += step
    return (at - first) // step


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Journal packs often, so that the change falls between them as well."""
    monkeypatch.setattr(journal, "GATHER_BYTES", 2000)


def kill(world: World, node: Node) -> None:
    world.kill(node)


def cut(world: World, node: Node) -> None:
    world.crash(node)


@pytest.mark.parametrize("strike", [kill, cut])
def test_the_client_dies_during_a_change(strike: Callable[[World, Node], None]) -> None:
    assert strike_everywhere(strike, 1, 9, is_message=False) >= 2
    assert strike_everywhere(strike, 2, 17, is_message=True) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("strike", [kill, cut])
@pytest.mark.parametrize("is_message", [False, True])
def test_the_client_dies_at_every_moment_of_a_change(
    strike: Callable[[World, Node], None], is_message: bool
) -> None:
    assert strike_everywhere(strike, 1, 1, is_message=is_message) > 10
