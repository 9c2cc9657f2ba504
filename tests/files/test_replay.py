"""Replay at the start: what the next process finds of overlays and metadata, gaps in the spool included."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from gridfs.files.namespace import Change
from tests.files.support import Laptop, on_a_laptop


def test_what_was_not_committed_comes_from_the_spool() -> None:
    async def work(laptop: Laptop) -> None:
        local = laptop.open()
        ino = local.make(b"file")
        await local.write(ino, 0, b"a" * 100)
        await local.write(ino, 50, b"b" * 100)
        laptop.kill()
        again = laptop.open()
        assert again.namespace.inode(ino).size == 150
        assert again.dirty_content(ino, 150) == b"a" * 50 + b"b" * 100
        assert again.log.number == 3
        assert again.metadata.check() == []

    on_a_laptop(work)


def test_what_was_committed_truncated_or_dropped_is_not_dirty_again() -> None:
    async def work(laptop: Laptop) -> None:
        local = laptop.open()
        stored, cut, gone = (local.make(name) for name in (b"stored", b"cut", b"gone"))
        for ino in (stored, cut, gone):
            number = await local.write(ino, 0, b"x" * 100)
        local.commit(stored, 0, 100, number)
        local.namespace.change(cut, Change(size=10))
        local.namespace.change(cut, Change(size=100))
        local.namespace.unlink(1, b"gone")
        before = local.dirty.bytes
        laptop.kill()
        again = laptop.open()
        assert again.dirty.bytes == before == 10
        assert again.dirty_content(cut, 100) == b"x" * 10 + bytes(90)
        assert again.dirty.inodes == 1

    on_a_laptop(work)


async def _leave_a_gap(laptop: Laptop) -> tuple[int, int]:
    """The metadata knows a commit and a truncate that the spool lost. Returns the two inodes."""
    local = laptop.local or laptop.open()
    stored, cut = local.make(b"stored"), local.make(b"cut")
    number = await local.write(stored, 0, b"old" * 100)
    await local.write(cut, 0, b"old" * 100)
    laptop.close()
    folder: Any = laptop.node.platter.root.current["home"]
    old_spool = copy.deepcopy(folder.current["fs"].current["spool"])
    local = laptop.open()
    number = await local.write(stored, 0, b"new" * 100)
    local.commit(stored, 0, 300, number)
    local.namespace.change(cut, Change(size=0))
    local.namespace.change(cut, Change(size=300))
    laptop.close()
    home = folder.current["fs"]
    home.change({"spool": old_spool})
    home.sync()
    return stored, cut


def test_a_gap_is_filled_from_the_outbox_and_old_data_does_not_come_back() -> None:
    async def work(laptop: Laptop) -> None:
        _, cut = await _leave_a_gap(laptop)
        local = laptop.open()
        assert local.dirty.bytes == 0, "what was committed or cut is dirty again"
        assert local.log.number == local.metadata.applied == 8
        await local.write(cut, 10, b"further")
        laptop.kill()
        local = laptop.open()  # the gap is now in the middle of the spool
        assert local.dirty_content(cut, 300) == bytes(10) + b"further" + bytes(283)

    on_a_laptop(work)


def test_where_the_outbox_was_emptied_unsynced_data_before_the_gap_is_given_up() -> None:
    async def work(laptop: Laptop) -> None:
        await _leave_a_gap(laptop)
        local = laptop.open(emptied=7)
        assert local.dirty.bytes == local.dirty.inodes == local.spool.live_bytes == 0

    on_a_laptop(work)


@pytest.mark.parametrize("ends", ["kill", "crash"])
def test_data_before_a_gap_stays_when_the_outbox_is_emptied_behind_it(ends: str) -> None:
    """Once the gap was met, the spool has what it lost again, as far as the metadata knows it."""

    async def work(laptop: Laptop) -> None:
        local = laptop.open()
        kept = local.make(b"kept")
        await local.write(kept, 0, b"kept")
        _, cut = await _leave_a_gap(laptop)
        local = laptop.open()
        number = local.log.number
        await local.write(cut, 10, b"further")
        if ends == "crash":
            await local.log.make_durable()
            await local.spool.sync()
        getattr(laptop, ends)()
        local = laptop.open(emptied=number)
        assert local.dirty_content(kept, 4) == b"kept"
        assert local.dirty_content(cut, 300) == bytes(10) + b"further" + bytes(283)
        assert local.metadata.check() == []

    on_a_laptop(work)


@pytest.mark.parametrize("emptied", [0, 100])
def test_without_a_gap_it_does_not_matter_what_was_shipped(emptied: int) -> None:
    async def work(laptop: Laptop) -> None:
        local = laptop.open()
        ino = local.make(b"file")
        await local.write(ino, 0, b"data")
        laptop.close()
        local = laptop.open(emptied=emptied)
        assert local.dirty_content(ino, 4) == b"data"

    on_a_laptop(work)
