"""A local disk that does not give back what was written: who is told, and that everything else goes on."""

from __future__ import annotations

import errno
import logging

import pytest
import trio

from gridfs.assembly import Parts
from gridfs.files.carrying import Carrying, Picked
from gridfs.files.spool import Spool
from tests.simulation.filesystem import SPOOL, Client, Shell, gauges, start_servers
from tests.simulation.machine import World, run_world
from tests.simulation.platter import DiskFault
from tests.simulation.runner import chance

SMALL, LARGE, HUGE = 3000, 300_000, 3_000_000


def content(size: int, mark: object = 0) -> bytes:
    return chance(0, "content", mark).randbytes(size)


def bad_reads(client: Client, count: int = 1 << 30) -> DiskFault:
    fault = DiskFault("read", errno.EIO, path=SPOOL, count=count)
    client.node.platter.faults.append(fault)
    return fault


async def new_client(world: World) -> Client:
    client = Client(world, await start_servers(world))
    client.create()
    return client


async def fsync_fails(parts: Parts, path: str) -> None:
    with pytest.raises(OSError, match=f"/{path}: its bytes cannot be read back from the spool") as caught:
        await Shell(parts).fsync(path)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("size", [SMALL, LARGE, HUGE])
def test_the_fsync_of_that_file_fails_and_that_of_others_does_not(
    size: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        client = await new_client(world)

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            await shell.write("bad", content(size))
            fault = bad_reads(client)
            with trio.fail_after(10):
                await fsync_fails(parts, "bad")
            fault.count = 0
            await shell.write("good", content(size, 1))
            fault.count = 0
            with trio.fail_after(10):
                await shell.fsync("good")
            # The disk works again: so does the file, and the next fsync is true.
            with trio.fail_after(10):
                await shell.fsync("bad")
                await shell.files.drain()
            assert not shell.files.trouble()
            assert set(gauges(parts).values()) == {0}, gauges(parts)

        await client.session(work)

        async def look(parts: Parts) -> None:
            assert await Shell(parts).tree() == {"bad": content(size), "good": content(size, 1)}

        await client.session(look)

    with caplog.at_level(logging.ERROR):
        run_world(1, scenario)
    assert "/bad: " in caplog.text


@pytest.mark.parametrize("again", ["overwritten", "truncated", "removed"])
def test_a_file_that_is_written_anew_or_removed_is_well_again(again: str) -> None:
    async def scenario(world: World) -> None:
        client = await new_client(world)

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            await shell.write("bad", content(LARGE))
            await shell.write("other", content(LARGE, 1))
            fault = bad_reads(client)
            await fsync_fails(parts, "bad")
            assert "/bad: its bytes cannot be read back" in shell.files.trouble()
            fault.count = 0
            if again == "overwritten":
                await shell.write("bad", content(LARGE, 2))
            elif again == "truncated":
                shell.truncate("bad", 0)
            else:
                shell.unlink("bad")
            with trio.fail_after(60):
                await shell.files.sync()
                await shell.files.drain()
            assert not shell.files.trouble()
            assert set(gauges(parts).values()) == {0}, gauges(parts)

        await client.session(work)
        expected = {"overwritten": {"bad": content(LARGE, 2)}, "truncated": {"bad": b""}, "removed": {}}[
            again
        ]

        async def look(parts: Parts) -> None:
            assert await Shell(parts).tree() == {**expected, "other": content(LARGE, 1)}

        await client.session(look)

    run_world(1, scenario)


def test_sync_says_so_an_unmount_ends_and_the_next_mount_goes_on() -> None:
    async def scenario(world: World) -> None:
        client = await new_client(world)

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            await shell.write("bad", content(LARGE))
            await shell.write("worse", content(LARGE, 1))
            await shell.write("good", content(LARGE, 2))
            await shell.fsync("good")
            bad_reads(client)
            with pytest.raises(OSError, match=r"/(bad|worse) \(and 1 more files\): ") as caught:
                await shell.files.sync()
            assert caught.value.errno == errno.EIO
            with trio.fail_after(60):
                await shell.files.drain()
            assert parts.dirty.bytes == 2 * LARGE, "nothing acknowledged is dropped"

        await client.session(work)
        client.node.platter.faults.clear()

        async def again(parts: Parts) -> None:
            shell = Shell(parts)
            assert await shell.tree() == {
                "bad": content(LARGE),
                "worse": content(LARGE, 1),
                "good": content(LARGE, 2),
            }
            with trio.fail_after(60):
                await shell.files.drain()
            assert set(gauges(parts).values()) == {0}, gauges(parts)

        await client.session(again)

    run_world(1, scenario)


def test_small_files_of_one_pack_go_on_without_the_bad_one() -> None:
    async def scenario(world: World) -> None:
        client = await new_client(world)

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            for index in range(20):
                await shell.write(f"{index}", content(SMALL, index))
            bad_reads(client, count=1)
            with pytest.raises(OSError, match="cannot be read back"):
                await shell.files.sync()
            assert parts.dirty.bytes == SMALL
            with trio.fail_after(60):
                await shell.files.sync()
            assert parts.dirty.bytes == 0
            assert await shell.tree() == {f"{index}": content(SMALL, index) for index in range(20)}

        await client.session(work)

    run_world(1, scenario)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.2, 0.5, 0.7, 0.8, 0.99])
@pytest.mark.parametrize("how", ["kill", "crash"])
def test_a_slot_whose_header_was_half_written_hides_nothing_that_was_acknowledged(
    kept: float, how: str
) -> None:
    """The slot before it is freed meanwhile, and used for what comes next."""

    async def scenario(world: World) -> None:
        node = world.add("client")
        machine = world.boot(node)
        spool = Spool(machine, "/spool", bytes(32), 32 << 20)
        machine.disk.make_directory("/spool")
        for index in range(2):  # slots that were used before
            machine.disk.open(f"/spool/000{index}.spool", create=True).write_at([bytes(4096)], 0)
        machine.disk.sync_directory("/")
        assert list(spool.open(0)) == []
        source = spool.append(1, b"one", b"x" * 100)
        node.platter.faults.append(DiskFault("write", path="/spool", count=2, kept=kept))
        for _ in range(2):  # the record; then the header of the slot that is begun instead
            with pytest.raises(OSError, match="Input/output error"):
                spool.append(2, b"lost", b"y" * 100)
        spool.retire(source, 100)
        assert spool.reclaim(1) == 1
        spool.append(2, b"two", b"z" * 100)
        await spool.sync()
        getattr(world, how)(node)
        again = Spool(world.boot(node), "/spool", bytes(32), 32 << 20)
        assert [record.operation for record in again.open(1)] == [b"two"]
        again.close()
        world.kill(node)

    run_world(1, scenario)


def test_an_unmount_ends_though_a_rename_waits_for_bytes_that_cannot_be_read() -> None:
    async def scenario(world: World) -> None:
        client = await new_client(world)

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            await shell.write("old", b"old")
            await shell.fsync("old")
            await shell.write("new", content(LARGE))
            bad_reads(client)
            shell.rename("new", "old")
            with trio.fail_after(60):
                await shell.files.drain()

        await client.session(work)
        client.node.platter.faults.clear()

        async def again(parts: Parts) -> None:
            with trio.fail_after(60):
                await Shell(parts).files.drain()
            assert await Shell(parts).tree() == {"old": content(LARGE)}
            assert set(gauges(parts).values()) == {0}, gauges(parts)

        await client.session(again)

    run_world(1, scenario)


def test_bytes_that_could_not_be_read_for_a_while_leave_without_being_asked_for() -> None:
    async def scenario(world: World) -> None:
        client = await new_client(world)

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            await shell.write("file", content(LARGE))
            fault = bad_reads(client)
            await trio.sleep(10)
            assert "/file: its bytes cannot be read back" in shell.files.trouble()
            fault.count = 0
            await trio.sleep(60)
            assert not shell.files.trouble()
            assert set(gauges(parts).values()) == {0}, gauges(parts)

        await client.session(work)

    run_world(1, scenario)


def test_a_clone_that_waits_for_bytes_that_cannot_be_read_costs_no_more_than_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Few bytes, which a record would have carried: they are not asked for again and again."""
    pick, picks = Carrying.pick, 0

    def counted(self: Carrying, limit: int, room: int, *, begins: bool) -> Picked | None:
        nonlocal picks
        picks += 1
        assert picks < 200
        return pick(self, limit, room, begins=begins)

    monkeypatch.setattr(Carrying, "pick", counted)

    async def scenario(world: World) -> None:
        client = await new_client(world)

        async def work(parts: Parts) -> None:
            shell = Shell(parts)
            await shell.write("new", content(SMALL))
            fault = bad_reads(client)
            await shell.clone("new", "twin")
            with trio.move_on_after(30):
                await parts.journal.shipped(parts.log.number)
            assert "its bytes cannot be read back" in shell.files.trouble()
            fault.count = 0
            with trio.fail_after(60):
                await shell.files.sync()
                await shell.files.drain()
            assert set(gauges(parts).values()) == {0}, gauges(parts)

        await client.session(work)

    run_world(1, scenario)


@pytest.mark.parametrize("forgets", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_a_sync_that_returns_after_one_that_failed_tells_the_truth(seed: int, forgets: bool) -> None:
    """The system may take pages for clean that it could not write."""

    async def scenario(world: World) -> None:
        node = world.add("client")
        machine = world.boot(node)
        spool = Spool(machine, "/spool", bytes(32), 32 << 20)
        assert list(spool.open(0)) == []
        machine.disk.sync_directory("/")
        spool.append(1, b"one", b"x" * 100_000)
        node.platter.faults.append(DiskFault("sync", path="/spool", forgets=forgets))
        with pytest.raises(OSError, match="Input/output error"):
            await spool.sync()
        spool.append(2, b"two", b"y" * 100)
        await spool.sync()
        world.crash(node)
        again = Spool(world.boot(node), "/spool", bytes(32), 32 << 20)
        assert [record.operation for record in again.open(0)] == [b"one", b"two"]
        again.close()
        world.kill(node)

    run_world(seed, scenario)
