"""The operation log: one number for spool and metadata, commits by time and count, durability on demand."""

from __future__ import annotations

import errno

import pytest
import trio
import trio.testing

from gridfs.files.log import LogConfig
from gridfs.meta.operations import Make
from gridfs.meta.rows import ROOT
from storage.errors import Unavailable
from tests.files.support import DATABASE, FILE, Laptop, on_a_laptop
from tests.simulation.filesystem import HOME
from tests.simulation.platter import DiskFault, MachineDead


def test_numbers_follow_each_other_over_all_lives() -> None:
    async def work(laptop: Laptop) -> None:
        for life in range(3):
            local = laptop.open()
            assert local.log.number == local.metadata.applied == 2 * life
            for index in range(2):
                local.make(b"%d.%d" % (life, index))
            laptop.kill()

    on_a_laptop(work)


def test_a_disk_that_refuses_changes_nothing_and_the_number_comes_again() -> None:
    async def work(laptop: Laptop) -> None:
        local = laptop.open()
        local.make(b"one")
        laptop.node.platter.faults.append(DiskFault("write", errno.EIO, path="/home/fs/spool"))
        with pytest.raises(OSError, match="Input/output error"):
            local.make(b"two")
        assert local.log.number == local.metadata.applied == 1
        assert local.namespace.lookup(ROOT, b"two") is None
        local.make(b"three")
        assert local.log.number == 2
        laptop.kill()
        again = laptop.open()
        names = [entry.name for entry in again.namespace.entries(ROOT, 0, 10)]
        assert names == [b"one", b"three"]

    on_a_laptop(work)


def test_a_metadata_database_that_refuses_changes_nothing_either() -> None:
    """The spool must not have what the metadata could not take: its name may be another's by the replay."""

    async def work(laptop: Laptop) -> None:
        local = laptop.open()
        local.make(b"one")
        planted = DiskFault("read", errno.EIO, path="/home/fs/metadata", count=100)
        local.metadata.commit()
        local.metadata._database.execute("PRAGMA shrink_memory")
        laptop.node.platter.faults.append(planted)
        with pytest.raises(Unavailable):
            local.log.record(Make(50, ROOT, b"two", FILE, 1, 1, 0, b"", 1))
        planted.count = 0
        assert local.log.number == 1
        assert local.namespace.lookup(ROOT, b"two") is None
        local.make(b"two")
        laptop.kill()
        again = laptop.open()
        assert [entry.name for entry in again.namespace.entries(ROOT, 0, 10)] == [b"one", b"two"]

    on_a_laptop(work)


def test_nothing_is_committed_behind_an_ordered_operation_until_the_spool_is_durable() -> None:
    async def work(laptop: Laptop) -> None:
        local = laptop.open()
        ino = local.make(b"new")
        await local.write(ino, 0, b"new content")
        local.log.order(local.log.number)
        local.log.commit()
        assert local.metadata.in_transaction
        planted = DiskFault("sync", errno.EIO, path="/home/fs/spool")
        laptop.node.platter.faults.append(planted)
        with pytest.raises(OSError, match="Input/output error"):
            await local.log.commit_in_order()
        assert local.metadata.in_transaction
        await local.log.commit_in_order()
        assert not local.metadata.in_transaction
        for directory in ("/home/fs", "/home", "/"):
            local.machine.disk.sync_directory(directory)
        laptop.crash()
        assert laptop.open().dirty_content(ino, 11) == b"new content"

    for seed in range(4):
        on_a_laptop(work, seed)


def test_transactions_end_by_time_and_by_count() -> None:
    async def work(laptop: Laptop) -> None:
        local = laptop.open()
        config = LogConfig()
        async with trio.open_nursery() as nursery:
            await nursery.start(local.log.run)
            local.make(b"lonely")
            await trio.sleep(config.commit_every_s / 2)
            assert local.metadata.in_transaction
            await trio.sleep(config.commit_every_s)
            assert not local.metadata.in_transaction
            for index in range(config.operations_max + 1):
                local.log.record(Make(100 + index, ROOT, b"n%d" % index, FILE, 1, 1, 0, b"", 1))
            await trio.testing.wait_all_tasks_blocked()
            assert not local.metadata.in_transaction
            nursery.cancel_scope.cancel()

    on_a_laptop(work)


def test_what_is_settled_survives_the_loss_of_power() -> None:
    async def work(laptop: Laptop) -> None:
        local = laptop.open()
        for directory in ("/home/fs", "/home", "/"):
            local.machine.disk.sync_directory(directory)
        local.make(b"kept")
        local.metadata.set_value("state", b"kept")
        await local.log.settle()
        local.make(b"perhaps")
        laptop.crash()
        again = laptop.open()
        assert again.namespace.lookup(ROOT, b"kept") is not None
        assert again.metadata.get_value("state") == b"kept"

    for seed in range(6):
        on_a_laptop(work, seed)


def test_slots_are_freed_by_durability_without_waiting_for_the_timer() -> None:
    """Room is wanted: the metadata is made durable at once, not after durable_every_s."""

    async def work(laptop: Laptop) -> None:
        local = laptop.open(spool_bytes=16 << 20)
        ino = local.make(b"file")
        piece = bytes(1 << 20)
        async with trio.open_nursery() as nursery:
            await nursery.start(local.log.run)
            for turn in range(60):
                number = await local.write(ino, turn * len(piece), piece)
                local.commit(ino, turn * len(piece), len(piece), number, mark=turn + 1)
            assert trio.current_time() < LogConfig().durable_every_s
            assert local.spool.used < 1
            nursery.cancel_scope.cancel()

    on_a_laptop(work)


@pytest.mark.parametrize(("failures", "restarts"), [(1, False), (2, True)])
def test_power_lost_in_a_checkpoint_that_follows_failed_ones_leaves_good_metadata(
    failures: int, restarts: bool
) -> None:
    """A sync that failed is not made good by the next one: the kernel takes what it had for written."""

    async def work(laptop: Laptop, at: int) -> bool:
        local = laptop.open()
        for index in range(40):
            local.make(b"early %d" % index)
        await local.log.make_durable()
        await local.spool.sync()
        for directory in (HOME, "/home", "/"):
            local.machine.disk.sync_directory(directory)
        for index in range(300):
            local.make(b"%d" % index * 20)
        await local.log.commit_in_order()
        faults = [DiskFault("sync", errno.EIO, f"{DATABASE}-wal", count=failures, forgets=True)]
        laptop.node.platter.faults.extend(faults)
        for _ in range(failures):
            with pytest.raises(Unavailable):
                await local.log.make_durable()
        if restarts:
            laptop.kill()
            local = laptop.open()
        laptop.world.cut_power_at(at, laptop.node)
        try:
            await local.log.make_durable()
            laptop.world.cut_power_at(0, laptop.node)
            is_through = True
            laptop.crash()
        except (MachineDead, Unavailable):
            is_through = False
            laptop.bury()
        laptop.world.cut_power_at(0, laptop.node)
        again = laptop.open()
        assert again.metadata.check() == []
        assert again.namespace.lookup(ROOT, b"early 39") is not None
        if is_through:
            assert again.namespace.lookup(ROOT, b"299" * 20) is not None
        again.close()
        return is_through

    at = 1
    ended = False
    while not ended:
        through: list[bool] = []

        async def once(laptop: Laptop, at: int = at, through: list[bool] = through) -> None:
            through.append(await work(laptop, at))

        on_a_laptop(once, seed=at)
        ended = through[0]
        at += 5
    assert at > 10
