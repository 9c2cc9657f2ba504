"""Checkpoints in the life of a file system: made again and again, with deaths in between, and gone on from.

Journal packs and checkpoints are made far more often than by default, so that short stories have many.
"""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Iterator

import pytest
import trio

from gridfs.assembly import Parts
from gridfs.files import checkpointing, journal
from gridfs.files.headstate import Base
from gridfs.files.history import BehindCheckpoint
from gridfs.meta.operations import KIND_CHECKPOINT, KIND_JOURNAL
from tests.files.test_journal import bodies, reader
from tests.simulation.filesystem import HOME, SPOOL, Client, Servers, Shell, start_servers
from tests.simulation.machine import World, run_world
from tests.simulation.test_carrying import scenario
from tests.simulation.test_filesystem import assert_all_is_stored, content
from tests.simulation.test_filesystem_crash import Plan, sweep


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "GATHER_BYTES", 4000)
    monkeypatch.setattr(checkpointing, "JOURNAL_PACKS_MAX", 2)


async def new_client(world: World) -> tuple[Client, Servers]:
    servers = await start_servers(world)
    client = Client(world, servers)
    client.create()
    return client, servers


async def until_checkpoints(parts: Parts, count: int) -> None:
    """Make files, each synced, until so many checkpoints were made since the mount."""
    shell = Shell(parts)
    for number in range(2000):
        name = f"{parts.log.number}.{number}-{'x' * 100}"
        await shell.write(name, content(100, number))
        await shell.fsync(name)
        if parts.checkpointer.count >= count:
            await parts.files.drain()
            return
    raise AssertionError(f"{parts.checkpointer.count} checkpoints after 2000 files")


# ---- what is in the grid


def test_a_checkpoint_takes_the_place_of_journal_packs_and_older_ones() -> None:
    async def story(world: World) -> None:
        client, servers = await new_client(world)

        async def work(parts: Parts) -> Base:
            await until_checkpoints(parts, 3)
            newest = (await bodies(parts, servers))[-1][1]
            assert newest.checkpoint is not None
            assert 0 < newest.checkpointed <= newest.gathered <= newest.last
            assert parts.journal.base.checkpoint == newest.checkpoint
            assert all(item.last > newest.checkpointed for item in parts.journal.base.journals)
            metadata = parts.log.metadata
            kinds = [metadata.pack(item.pack_ref).kind for item in metadata.garbage()]
            assert kinds.count(KIND_JOURNAL) >= 4
            assert kinds.count(KIND_CHECKPOINT) >= 2
            assert metadata.superseded(parts.journal.base.packs) == []
            assert metadata.check() == []
            return parts.journal.base

        base = await client.session(work)
        assert base == await client.session(lambda parts: returned(parts.journal.base))

    run_world(1, story)


async def returned(value: Base) -> Base:
    return value


def test_operations_before_the_checkpoint_are_asked_for_in_vain() -> None:
    async def story(world: World) -> None:
        client, servers = await new_client(world)

        async def work(parts: Parts) -> None:
            await until_checkpoints(parts, 1)
            heads, history = reader(parts, servers)
            newest = (await heads.records())[-1]
            base = parts.journal.base
            with pytest.raises(BehindCheckpoint):
                await history.behind(newest, 0)
            tail = await history.behind(newest, base.checkpointed)
            assert [number for number, _ in tail.operations] == list(
                range(base.checkpointed + 1, history.body(newest).last + 1)
            )

        await client.session(work)

    run_world(2, story)


def test_a_new_machine_begins_at_the_checkpoint() -> None:
    async def story(world: World) -> None:
        client, servers = await new_client(world)

        async def work(parts: Parts) -> tuple[dict[str, bytes | None], Base]:
            await until_checkpoints(parts, 2)
            await Shell(parts).write("last", b"l")
            await Shell(parts).fsync("last")
            return await Shell(parts).tree(), parts.journal.base

        wrote = await client.session(work)
        assert wrote is not None
        other = Client(world, servers, "other")
        other.create()

        async def look(parts: Parts) -> dict[str, bytes | None]:
            assert parts.journal.base == wrote[1]
            assert parts.log.metadata.check() == []
            found = await Shell(parts).tree()
            await until_checkpoints(parts, 2)
            assert_all_is_stored(parts)
            kept = parts.log.metadata.superseded(parts.journal.base.packs)
            assert kept == []
            return found

        assert await other.session(look) == wrote[0]

    run_world(3, story)


def test_a_checkpoint_holds_nothing_that_waits_for_data() -> None:
    """A rename over a name leaves this machine after its data, in a checkpoint as well."""

    async def story(world: World) -> None:
        client, servers = await new_client(world)

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            begun = []
            begin = parts.checkpointer.begin

            def note() -> None:
                waiting = [name for name in ("file", "other") if not parts.writer.is_stored(*data[name])]
                begun.append(waiting)
                begin()

            data = {}
            parts.checkpointer.begin = note  # type: ignore[method-assign]
            for turn in range(60):
                for name in ("file", "other"):
                    ino = await shell.write("new", content(30_000, turn))
                    number = parts.log.number
                    shell.rename("new", name)
                    data[name] = ino, number
                for step in range(3):
                    shell.mkdir(f"{turn}.{step}-{'x' * 200}")
                    await trio.sleep(0.5)
            await parts.files.drain()
            assert len(begun) >= 3, begun
            assert not any(begun), begun

        await client.session(work)
        other = Client(world, servers, "other")
        other.create()
        for name in ("file", "other"):
            assert await other.session(lambda parts, name=name: Shell(parts).read(name)) == content(
                30_000, 59
            )

    run_world(4, story)


# ---- local state that is older, or went another way


def test_an_old_copy_of_the_disk_is_made_anew_from_the_checkpoint() -> None:
    async def story(world: World) -> None:
        client, _ = await new_client(world)

        async def begin(parts: Parts) -> None:
            await Shell(parts).write("early", content(9000, 1))
            await parts.files.drain()

        async def later(parts: Parts) -> dict[str, bytes | None]:
            await Shell(parts).write("early", content(5000, 2), 2000)
            await until_checkpoints(parts, 2)
            return await Shell(parts).tree()

        await client.session(begin)
        old_disk = copy.deepcopy(client.node.platter.root)
        expected = await client.session(later)
        client.node.platter.root = old_disk

        async def look(parts: Parts) -> None:
            assert await Shell(parts).tree() == expected
            await until_checkpoints(parts, 1)
            assert_all_is_stored(parts)

        await client.session(look)
        disk = world.boot(client.node).disk
        assert "metadata.sqlite.aside-1" in disk.names(HOME)
        world.kill(client.node)

    run_world(5, story)


def test_operations_of_another_history_are_set_aside_and_never_written() -> None:
    """A copy of the folder went on, and was forgotten; the original goes another way meanwhile."""

    async def story(world: World) -> None:
        client, _ = await new_client(world)

        async def begin(parts: Parts) -> None:
            await Shell(parts).write("shared", content(9000, 1))
            await parts.files.drain()
            await Shell(parts).write("only here", b"not synced")  # stays in the spool

        async def other_way(parts: Parts) -> None:
            shell = Shell(parts)
            await shell.write("other way", content(100_000, 2))
            shell.unlink("shared")
            await shell.files.drain()

        await client.session(begin)
        copied = copy.deepcopy(client.node.platter.root)
        await client.session(other_way)
        client.node.platter.root = copied
        found = await client.session(lambda parts: Shell(parts).tree())
        assert found == {"other way": content(100_000, 2), "only here": b"not synced"}
        disk = world.boot(client.node).disk
        assert [name for name in disk.names(SPOOL) if ".aside-" in name]
        world.kill(client.node)

    run_world(6, story)


def test_a_copy_and_its_original_never_both_write() -> None:
    """Two machines with the same folder: head servers tell them apart by the id of the run."""

    async def story(world: World) -> None:
        client, servers = await new_client(world)
        await client.session(lambda parts: Shell(parts).files.sync())
        twin = Client(world, servers, "twin")
        twin.create()
        twin.node.platter.root = copy.deepcopy(client.node.platter.root)
        async with client.mounted() as first, twin.mounted() as second:
            await Shell(second).write("of the twin", b"t")
            await Shell(second).fsync("of the twin")
            await Shell(first).write("late", b"l")
            with pytest.raises(Exception, match="another client"):
                await Shell(first).fsync("late")
            assert first.journal.taken_over is not None

    run_world(7, story)


# ---- deaths


@pytest.mark.parametrize("how", ["kill", "power", "burn"])
@pytest.mark.parametrize("seed", range(3))
def test_synced_data_is_found_again(how: str, seed: int) -> None:
    run_world(seed, scenario, how)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "power", "burn"])
@pytest.mark.parametrize("seed", range(3, 40))
def test_synced_data_is_found_again_for_more_seeds(how: str, seed: int) -> None:
    run_world(seed, scenario, how)


@pytest.mark.parametrize("how", ["kill", "power"])
def test_a_client_dies_around_checkpoints(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(journal, "GATHER_BYTES", 500)
    assert sweep(1, Plan(how, pause_s=1.0), 11, 97) > 5


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "power"])
@pytest.mark.parametrize("first", range(1, 8))
def test_a_client_dies_at_each_operation_around_checkpoints(
    monkeypatch: pytest.MonkeyPatch, how: str, first: int
) -> None:
    monkeypatch.setattr(journal, "GATHER_BYTES", 500)
    assert sweep(first, Plan(how, pause_s=1.0), first, 7) > 20


async def rebuilding(world: World, at: int) -> bool:
    """A machine whose metadata are made anew dies at its disk operation `at`; whether there was one."""
    client, _ = await new_client(world)
    await client.session(lambda parts: Shell(parts).write("early", b"e"))
    old_disk = copy.deepcopy(client.node.platter.root)

    async def work(parts: Parts) -> dict[str, bytes | None]:
        await until_checkpoints(parts, 1)
        return await Shell(parts).tree()

    expected = await client.session(work)
    client.node.platter.root = old_disk
    client.cut_power_at(at)
    finished = await client.session(lambda parts: Shell(parts).tree())
    client.cut_power_at(0)
    assert await client.session(lambda parts: Shell(parts).tree()) == expected
    return finished is None


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SQLite meets the dead machine's disk also while a connection is given up, when none is left to tell."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    yield
    gc.collect()


@pytest.mark.usefixtures("dying")
@pytest.mark.parametrize("at", [*range(5, 120, 9), 284, 308, 332])
def test_a_machine_dies_while_its_metadata_are_made_anew(at: int) -> None:
    run_world(at, rebuilding, at)


@pytest.mark.slow
@pytest.mark.usefixtures("dying")
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_machine_dies_at_each_operation_while_its_metadata_are_made_anew(at: int) -> None:
    while run_world(at, rebuilding, at).result:
        at += 9
    assert at > 50
