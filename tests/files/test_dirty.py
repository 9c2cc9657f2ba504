"""Dirty data: the spool's accounts, the order for the writer, and waiting for room."""

from __future__ import annotations

import pytest
import trio

from gridfs.files.namespace import Change
from storage.errors import Exhausted
from tests.files.support import Laptop, on_a_laptop


def test_every_way_out_gives_the_bytes_back_to_the_spool() -> None:
    async def work(laptop: Laptop) -> None:
        local = laptop.open()
        inodes = [local.make(b"%d" % index) for index in range(4)]
        for ino in inodes:
            number = await local.write(ino, 0, bytes(10_000))
        overwritten, cut, stored, dropped = inodes
        assert local.dirty.bytes == 40_000
        await local.write(overwritten, 5000, bytes(10_000))
        assert local.dirty.bytes == 45_000
        local.namespace.change(cut, Change(size=100))
        assert local.dirty.bytes == 35_100
        await local.write(stored, 0, bytes(1))
        local.commit(stored, 0, 10_000, number)
        assert local.dirty.bytes_of(stored) == 1, "a byte written after the freeze stays"
        local.namespace.unlink(1, b"3")
        assert local.dirty.bytes_of(dropped) == 0
        assert local.dirty.bytes == 15_000 + 100 + 1
        assert local.dirty.bytes == sum(local.dirty.bytes_of(ino) for ino in inodes)
        for ino in inodes[:3]:
            local.namespace.change(ino, Change(size=0))
        assert (local.dirty.bytes, local.dirty.inodes) == (0, 0)
        assert not local.dirty.touched
        assert not local.dirty.since

    on_a_laptop(work)


def test_the_order_is_that_of_the_last_write_and_of_the_first() -> None:
    async def work(laptop: Laptop) -> None:
        local = laptop.open()
        a, b = local.make(b"a"), local.make(b"b")
        for ino in (a, b, a):
            await local.write(ino, 0, b"x")
            await trio.sleep(1)
        assert local.dirty.touched == {b: 1.0, a: 2.0}
        assert list(local.dirty.touched) == [b, a]
        assert local.dirty.since == {a: 0.0, b: 1.0}
        assert list(local.dirty.since) == [a, b]

    on_a_laptop(work)


def test_a_full_spool_makes_writers_wait_then_fail_and_nothing_is_half_written() -> None:
    async def work(laptop: Laptop) -> None:
        local = laptop.open(spool_bytes=16 << 20)
        ino = local.make(b"file")
        data = bytes(1 << 20)
        written = 0
        while local.spool.room(len(data)):
            await local.write(ino, written, data)
            written += len(data)
        begin = trio.current_time()
        with pytest.raises(Exhausted, match="stayed full for 30 s"):
            await local.write(ino, written, data)
        assert trio.current_time() - begin == pytest.approx(30)
        assert local.namespace.inode(ino).size == written
        assert local.dirty.waiting == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(local.write, ino, written, data)
            await trio.sleep(10)
            assert local.dirty.waiting == 1
            assert local.namespace.inode(ino).size == written
            for low in range(0, written, len(data)):
                local.commit(ino, low, len(data), local.log.number, mark=low + 1)
            await local.log.make_durable()
        assert local.namespace.inode(ino).size == written + len(data)
        assert local.dirty.bytes == len(data)

    on_a_laptop(work)
