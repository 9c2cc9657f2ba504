"""Synced data that travels in head records: found again whatever becomes of the machine that wrote it.

Random stories of small files with many fsyncs, with records gathered so often that data has to be carried
anew again and again. At each crash point the next mount of the same machine, or a new machine that has
nothing, must find what was synced.
"""

from __future__ import annotations

import dataclasses
import errno
import random

import pytest
import trio

from gridfs.assembly import Parts
from gridfs.files import journal, spool
from gridfs.files.barriers import Barriers
from gridfs.files.carrying import CARRIED_BYTES_MAX
from gridfs.files.namespace import RENAME_EXCHANGE
from tests.files.test_journal import bodies
from tests.simulation.filesystem import OPTIONS, SPOOL, Client, Shell, gauges, start_servers
from tests.simulation.machine import World, run_world
from tests.simulation.platter import DiskFault
from tests.simulation.runner import chance
from tests.simulation.test_filesystem_crash import Story, go_on, look

NAMES = ["a", "b", "c", "d"]


async def tell(story: Story, stream: random.Random, steps: int) -> None:
    """Random steps on a few small files."""
    for _ in range(steps):
        here = [name for name in NAMES if name in story.states[-1]]
        choice = stream.random()
        if not here or choice < 0.08:
            name = stream.choice(NAMES)
            if name not in here:
                await story.make(name)
            continue
        name = stream.choice(here)
        if choice < 0.45:
            size = stream.choice([1, 100, 4096, 9000, 30_000])
            await story.write(name, stream.randrange(8000), size)
        elif choice < 0.8:
            await story.fsync(name)
        elif choice < 0.88:
            await story.truncate(name, stream.choice([0, 50, 3000, 9000]))
        elif choice < 0.93:
            await story.rename(name, stream.choice([other for other in NAMES if other != name]))
        elif choice < 0.96:
            await story.unlink(name)
            story.synced.pop(name, None)
        else:
            await trio.sleep(stream.choice([0.1, 3, 15]))


async def scenario(world: World, how: str) -> int:
    """One machine after the other dies in the middle of a story. Returns the records that carried data."""
    stream = chance(world.seed, "carrying")
    servers = await start_servers(world)
    client = Client(world, servers)
    client.create()
    story = Story(stream=stream)
    carried = 0
    for _ in range(4):
        strike = {"kill": client.kill_at, "power": client.cut_power_at, "burn": client.cut_power_at}[how]
        strike(stream.randrange(20, 400))

        async def play(parts: Parts) -> None:
            story.begin(parts)
            await tell(story, stream, 60)

        await client.session(play)
        strike(0)
        if how == "burn":
            client = Client(world, servers, f"client{len(story.states)}")
            client.create()
        found = await client.session(look)
        assert found is not None
        if how == "kill":
            story.check_killed(found)
        else:
            story.check_power_lost(found)

        async def records(parts: Parts) -> int:
            return sum(bool(body.data) for _, body in await bodies(parts, servers))

        carried += await client.session(records) or 0
        # The story goes on from what is there; what was synced before stays so.
        story.states.append(found)
        story.acknowledged = len(story.states) - 1
        if how == "kill":
            story.states = story.states[-1:]
            story.acknowledged = 0
    await client.session(go_on)
    return carried


@pytest.mark.parametrize("how", ["kill", "power", "burn"])
@pytest.mark.parametrize("seed", range(4))
def test_synced_data_is_found_again(monkeypatch: pytest.MonkeyPatch, how: str, seed: int) -> None:
    monkeypatch.setattr(journal, "GATHER_BYTES", 30_000)
    assert run_world(seed, scenario, how).result


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "power", "burn"])
@pytest.mark.parametrize("seed", range(4, 40))
def test_synced_data_is_found_again_for_more_seeds(
    monkeypatch: pytest.MonkeyPatch, how: str, seed: int
) -> None:
    monkeypatch.setattr(journal, "GATHER_BYTES", 30_000)
    assert run_world(seed, scenario, how).result


def test_little_data_is_in_the_record_alone_until_the_file_is_idle() -> None:
    async def story(world: World) -> None:
        servers = await start_servers(world)
        client = Client(world, servers)
        client.create()

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            for index in range(5):
                await shell.write("file", b"x" * 1000, 1000 * index)
                await shell.fsync("file")
            assert parts.writer.packs_stored == 0
            records = await bodies(parts, servers)
            assert [[(item.start, len(item.data)) for item in body.data] for _, body in records] == [
                [(1000 * index, 1000)] for index in range(5)
            ]
            assert all(body.carries for _, body in records)
            await trio.sleep(20)
            assert parts.writer.packs_stored == 1, "all of it in one pack"
            await parts.files.drain()
            assert not (await bodies(parts, servers))[-1][1].carries
            await shell.write("large", b"x" * (CARRIED_BYTES_MAX + 1))
            await shell.fsync("large")
            assert parts.writer.packs_stored == 2
            assert not (await bodies(parts, servers))[-1][1].data
            assert gauges(parts)["dirty bytes"] == 0

        await client.session(work)

    run_world(3, story)


def test_a_name_and_its_little_data_leave_in_two_records() -> None:
    """Written beside and renamed over, as editors do, without an fsync of the new file."""

    async def story(world: World) -> None:
        servers = await start_servers(world)
        client = Client(world, servers)
        client.create()

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            await shell.write("file", b"old")
            await shell.files.sync()
            before = len(await bodies(parts, servers))
            await shell.write("new", b"new content")
            shell.rename("new", "file")
            shell.mkdir("folder")
            await shell.fsync("folder")
            behind = await bodies(parts, servers)
            assert len(behind) == before + 2
            assert [item.data for item in behind[before][1].data] == [b"new content"]
            assert parts.writer.packs_stored == 1
            world.crash(client.node)

        await client.session(work)
        other = Client(world, servers, "other")
        other.create()
        assert await other.session(look) == {"file": b"new content", "folder": None}

    run_world(4, story)


async def flying(parts: Parts, count: int) -> None:
    for _ in range(100):
        if parts.writer.flights == count:
            return
        await trio.lowlevel.checkpoint()
    raise AssertionError(f"{parts.writer.flights} packs are on their way, not {count}")


def test_what_is_written_where_a_clipped_flight_began_flies_by_itself() -> None:
    """A truncate leaves a flight with nothing; another begins at the same byte before it has landed."""

    async def story(world: World) -> None:
        client = Client(world, await start_servers(world))
        client.create()

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            ino = await shell.write("file", b"x" * 5000, 3000)
            parts.writer.want(ino, parts.log.number)
            await flying(parts, 1)
            shell.truncate("file", 100)
            await shell.write("file", b"y" * 2000, 3000)
            parts.writer.want(ino, parts.log.number)
            await flying(parts, 2)
            await parts.files.drain()
            await trio.sleep(10)
            assert parts.writer.packs_stored == 2
            assert await shell.read("file") == bytes(3000) + b"y" * 2000
            assert gauges(parts)["dirty bytes"] == 0

        await client.session(work)

    run_world(5, story)


def test_a_drain_waits_for_a_pack_that_nobody_needs_any_more() -> None:
    """The file was removed while it was on its way."""

    async def story(world: World) -> None:
        client = Client(world, await start_servers(world))
        client.create()

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            ino = await shell.write("file", b"x" * 5000)
            parts.writer.want(ino, parts.log.number)
            await flying(parts, 1)
            shell.unlink("file")
            with trio.fail_after(10):
                await parts.files.drain()
            assert set(gauges(parts).values()) == {0}, gauges(parts)

        await client.session(work)

    run_world(6, story)


@pytest.mark.parametrize("exchange", [False, True])
def test_a_name_leaves_after_its_data_also_if_the_process_was_killed_in_between(exchange: bool) -> None:
    """The next process ships the rename; what it names must be in the grid by then, on any other machine."""

    async def story(world: World) -> None:
        servers = await start_servers(world)
        client = Client(world, servers)
        client.create()

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            await shell.write("file", b"old" * 10_000)
            await shell.files.sync()
            await shell.write("new", b"new" * 10_000)
            if exchange:
                shell.files.rename(*shell.parent("file"), *shell.parent("new"), RENAME_EXCHANGE)
            else:
                shell.rename("new", "file")
            world.kill(client.node)

        async def again(parts: Parts) -> None:
            shell = Shell(parts)
            folder = shell.mkdir("folder")
            await shell.files.fsync(folder)
            world.crash(client.node)

        await client.session(work)
        await client.session(again)
        other = Client(world, servers, "other")
        other.create()
        found = await other.session(look)
        assert found is not None
        assert found["file"] == b"new" * 10_000
        assert not exchange or found["new"] == b"old" * 10_000

    run_world(7, story)


def test_what_a_record_carries_is_not_given_up_for_a_commit_that_the_grid_has_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Operations wait behind data (held up here by hand); among them the Commit of what was carried. The next
    mount's first record stands for itself and must not forget the bytes."""
    limit = Barriers.limit
    held: list[int] = []
    monkeypatch.setattr(Barriers, "limit", lambda self: min([limit(self), *held]))

    async def story(world: World) -> None:
        client = Client(world, await start_servers(world))
        client.create()

        async def work(parts: Parts) -> None:
            await Shell(parts).write("file", b"f" * 3000)
            await Shell(parts).fsync("file")
            held.append(parts.log.number)
            await trio.sleep(10)
            assert parts.dirty.bytes == 0, "in a pack by now"
            assert parts.log.number > parts.journal.up_to

        await client.session(work)

        async def begin(parts: Parts) -> None:
            with trio.move_on_after(20):
                await parts.journal.begun()

        await client.session(begin)
        held.clear()
        other = Client(world, client.servers, "other")
        other.create()
        assert await other.session(look) == {"file": b"f" * 3000}

    run_world(1, story)


def test_an_fsync_that_waits_behind_data_sends_no_record_until_they_are_there() -> None:
    """The operation it waits for is behind a rename, whose data does not get anywhere for a while."""

    async def story(world: World) -> int:
        servers = await start_servers(world)
        client = Client(world, servers)
        client.create()

        async def work(parts: Parts) -> int:
            shell = Shell(parts)
            for name in ("file", "old"):
                await shell.write(name, b"f" * 3000)
                await shell.fsync(name)
            await trio.sleep(10)
            await shell.write("new", b"n" * 100_000)
            fault = DiskFault("read", errno.EIO, path=SPOOL, count=1 << 30)
            client.node.platter.faults.append(fault)
            shell.rename("new", "old")
            sequence = parts.journal.state.sequence
            with trio.move_on_after(25):
                await shell.fsync("file")
            fault.count = 0
            count = parts.journal.state.sequence - sequence
            await shell.files.drain()
            return count

        return await client.session(work) or 0

    assert run_world(1, story).result < 5


def test_records_are_gathered_before_the_head_log_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "RECORDS_MAX", 50)

    async def story(world: World) -> None:
        client = Client(world, await start_servers(world))
        client.create()

        async def work(parts: Parts) -> None:
            for number in range(120):
                Shell(parts).create(f"{number}")
                await parts.files.fsync(1)
            assert len(parts.journal.base.journals) == 2

        await client.session(work)

    run_world(1, story)


def test_the_first_record_of_an_empty_file_system_leaves_the_journal_at_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turn, turns = journal.Journal._turn, 0

    async def counted(self: journal.Journal) -> None:
        nonlocal turns
        turns += 1
        assert turns < 100
        await turn(self)

    monkeypatch.setattr(journal.Journal, "_turn", counted)

    async def story(world: World) -> None:
        client = Client(world, await start_servers(world))
        client.create()

        async def work(parts: Parts) -> None:
            await parts.journal.begun()
            await trio.sleep(20)

        await client.session(work)

    run_world(1, story)


def test_a_rename_waits_for_bytes_whose_spool_slot_is_gone_since_they_were_overwritten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The grid is away meanwhile, and the process ends before it is back."""
    monkeypatch.setattr(spool, "SLOT_BYTES_MIN", 64 << 10)
    options = dataclasses.replace(OPTIONS, spool_bytes=512 << 10)
    size = 40_000

    async def story(world: World) -> None:
        servers = await start_servers(world)
        client = Client(world, servers)
        client.create()

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            await shell.write("old", b"o" * size)
            await shell.files.sync()
            for node in servers.nodes:
                world.crash(node)
            await shell.write("new", b"n" * size)
            shell.rename("new", "old")
            for letter in (b"a", b"b", b"c"):
                await shell.write("old", letter * size)
            await trio.sleep(60)
            world.kill(client.node)

        await client.session(work, options)
        await servers.restart(*servers.nodes)

        async def begin(parts: Parts) -> None:
            await parts.journal.begun()
            world.crash(client.node)

        await client.session(begin, options)
        other = Client(world, servers, "other")
        other.create()
        found = await other.session(look)
        assert found is not None
        assert found["old"] in (b"c" * size, b"o" * size)

    run_world(1, story)
