"""Files that nobody knows any more: dropped several at a time, soon, and never while somebody knows them."""

from __future__ import annotations

import trio
import trio.testing

from gridfs.fuse.nameless import MOMENT_S, Nameless
from gridfs.meta.operations import PARTS_MAX
from gridfs.meta.rows import ROOT
from tests.files.support import Laptop, Local, on_a_laptop


def remove(local: Local, nameless: Nameless, names: list[bytes]) -> list[int]:
    """Unlink files whose inodes the kernel knows; returns those."""
    found = [local.namespace.lookup(ROOT, name) for name in names]
    for name in names:
        nameless.outlived(ROOT, name, local.namespace.unlink, ROOT, name)
    return [inode.ino for inode in found if inode is not None]


def test_they_are_dropped_together_and_the_last_ones_after_a_moment() -> None:
    async def work(laptop: Laptop) -> None:
        local = laptop.open()
        nameless = Nameless(local.namespace)
        names = [b"%d" % number for number in range(2 * PARTS_MAX + 3)]
        for name in names:
            await local.write(local.make(name), 0, b"x" * 100)
        inodes = remove(local, nameless, names)
        assert local.metadata.orphans() == inodes
        before = local.log.number
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nameless.run)
            for ino in inodes:
                nameless.forgotten([ino])
            assert local.log.number - before == 2
            assert local.metadata.orphans() == inodes[-3:]
            assert local.dirty.bytes == 300
            await trio.sleep(2 * MOMENT_S)
            assert local.log.number - before == 3
            assert local.metadata.orphans() == []
            assert local.dirty.bytes == 0
            nursery.cancel_scope.cancel()
        assert local.metadata.check() == []
        assert not any(local.namespace.is_open(ino) for ino in inodes)

    on_a_laptop(work)


def test_what_is_forgotten_at_the_end_is_dropped_at_the_end() -> None:
    async def work(laptop: Laptop) -> None:
        local = laptop.open()
        nameless = Nameless(local.namespace)
        local.make(b"file")
        [ino] = remove(local, nameless, [b"file"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nameless.run)
            await trio.testing.wait_all_tasks_blocked()
            nameless.forgotten([ino, 77])
            nursery.cancel_scope.cancel()
        assert local.metadata.orphans() == []

    on_a_laptop(work)


def test_who_has_it_open_keeps_it_and_another_name_too() -> None:
    def work(laptop: Laptop) -> None:
        local = laptop.open()
        names, nameless = local.namespace, Nameless(local.namespace)
        opened, linked = local.make(b"opened"), local.make(b"linked")
        names.opened(opened)
        names.link(linked, ROOT, b"other")
        assert remove(local, nameless, [b"opened", b"linked"]) == [opened, linked]
        nameless.forgotten([opened, linked])
        nameless.drop()
        assert names.inode(opened).nlink == 0
        assert names.inode(linked).nlink == 1
        assert names.closed(opened) == [opened]
        assert local.metadata.orphans() == []

    on_a_laptop(work)


def test_a_disk_that_refuses_leaves_them_to_the_next_mount() -> None:
    def work(laptop: Laptop) -> None:
        local = laptop.open()
        nameless = Nameless(local.namespace)
        for name in (b"a", b"b"):
            local.make(name)
        inodes = remove(local, nameless, [b"a", b"b"])
        local.log.spool.append = refuse  # type: ignore[method-assign]
        nameless.forgotten(inodes)
        nameless.drop()
        assert local.metadata.orphans() == inodes
        laptop.kill()
        local = laptop.open()
        assert local.namespace.drop_orphans() == inodes
        assert local.metadata.orphans() == []

    on_a_laptop(work)


def refuse(*_: object) -> object:
    raise OSError(5, "the disk refuses")
