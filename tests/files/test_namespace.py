"""Names and attributes: the errno of every refusal, in Linux's order, and inodes that live on while open."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from typing import Any

import pytest

from gridfs.files.accesstimes import DAY_NS, PENDING_MAX
from gridfs.files.contents import FILE_SIZE_MAX
from gridfs.files.namespace import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    TARGET_MAX,
    XATTR_VALUE_MAX,
    Change,
    Namespace,
)
from gridfs.meta.rows import ROOT
from tests.files.support import FILE, Laptop, Local, on_a_laptop
from tests.simulation.filesystem import FOLDER

LINK = stat.S_IFLNK | 0o777
FAR = b"t" * (TARGET_MAX + 1)


def make_tree(local: Local) -> dict[str, int]:
    """file, folder/inner/deep, empty/ and link -> file."""
    tree = {"file": local.make(b"file"), "folder": local.make(b"folder", FOLDER)}
    tree["inner"] = local.make(b"inner", FOLDER, tree["folder"])
    tree["deep"] = local.make(b"deep", FILE, tree["inner"])
    tree["empty"] = local.make(b"empty", FOLDER)
    tree["link"] = local.namespace.make(ROOT, b"link", LINK, 1, 1, target=b"file").ino
    return tree


LONG = b"n" * 256
Call = Callable[[Namespace, dict[str, int]], Any]
REFUSED: list[tuple[str, int, Call]] = [
    ("make over a name", errno.EEXIST, lambda n, t: n.make(ROOT, b"file", FILE, 1, 1)),
    ("make in a file", errno.ENOTDIR, lambda n, t: n.make(t["file"], b"x", FILE, 1, 1)),
    ("make with a long name", errno.ENAMETOOLONG, lambda n, t: n.make(ROOT, LONG, FILE, 1, 1)),
    ("a long target", errno.ENAMETOOLONG, lambda n, t: n.make(ROOT, b"x", LINK, 1, 1, 0, FAR)),
    ("make in what is gone", errno.ESTALE, lambda n, t: n.make(999, b"x", FILE, 1, 1)),
    ("lookup of a long name", errno.ENAMETOOLONG, lambda n, t: n.lookup(ROOT, LONG)),
    ("an inode that never was", errno.ESTALE, lambda n, t: n.inode(999)),
    ("link of a folder", errno.EPERM, lambda n, t: n.link(t["folder"], ROOT, b"x")),
    ("link over a name", errno.EEXIST, lambda n, t: n.link(t["file"], ROOT, b"empty")),
    ("unlink of nothing", errno.ENOENT, lambda n, t: n.unlink(ROOT, b"x")),
    ("unlink of a folder", errno.EISDIR, lambda n, t: n.unlink(ROOT, b"empty")),
    ("rmdir of a file", errno.ENOTDIR, lambda n, t: n.rmdir(ROOT, b"file")),
    ("rmdir of a full folder", errno.ENOTEMPTY, lambda n, t: n.rmdir(ROOT, b"folder")),
    ("rename of nothing", errno.ENOENT, lambda n, t: n.rename(ROOT, b"x", ROOT, b"y", 0)),
    ("rename with odd flags", errno.EINVAL, lambda n, t: n.rename(ROOT, b"file", ROOT, b"y", 4)),
    ("rename with both flags", errno.EINVAL, lambda n, t: n.rename(ROOT, b"file", ROOT, b"link", 3)),
    ("rename into itself", errno.EINVAL, lambda n, t: n.rename(ROOT, b"folder", t["inner"], b"x", 0)),
    ("rename of folder over file", errno.ENOTDIR, lambda n, t: n.rename(ROOT, b"empty", ROOT, b"file", 0)),
    ("rename of file over folder", errno.EISDIR, lambda n, t: n.rename(ROOT, b"file", ROOT, b"empty", 0)),
    ("rename over a full folder", errno.ENOTEMPTY, lambda n, t: n.rename(ROOT, b"empty", ROOT, b"folder", 0)),
    (
        "rename over its ancestor", errno.ENOTEMPTY,
        lambda n, t: n.rename(t["folder"], b"inner", ROOT, b"folder", 0),
    ),
    ("no replace", errno.EEXIST, lambda n, t: n.rename(ROOT, b"file", ROOT, b"link", RENAME_NOREPLACE)),
    ("exchange for nothing", errno.ENOENT, lambda n, t: n.rename(ROOT, b"file", ROOT, b"x", 2)),
    (
        "exchange with its ancestor", errno.EINVAL,
        lambda n, t: n.rename(t["folder"], b"inner", ROOT, b"folder", RENAME_EXCHANGE),
    ),
    ("an attribute that is not there", errno.ENODATA, lambda n, t: n.xattr(t["file"], b"user.x")),
    ("removing what is not there", errno.ENODATA, lambda n, t: n.remove_xattr(t["file"], b"user.x")),
    ("a long attribute name", errno.ERANGE, lambda n, t: n.set_xattr(t["file"], LONG, b"")),
    ("a large attribute", errno.E2BIG, lambda n, t: n.set_xattr(t["file"], b"a", bytes(XATTR_VALUE_MAX + 1))),
]  # fmt: skip


@pytest.mark.parametrize(("code", "call"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_is_refused_has_its_errno_and_changes_nothing(code: int, call: Call) -> None:
    def work(laptop: Laptop) -> None:
        local = laptop.open()
        tree = make_tree(local)
        number = local.log.number
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the code is what counts
            call(local.namespace, tree)
        assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code]
        assert local.log.number == number
        assert local.metadata.check() == []

    on_a_laptop(work)


def test_rename_says_what_took_whose_place() -> None:
    def work(laptop: Laptop) -> None:
        local = laptop.open()
        tree, names = make_tree(local), local.namespace
        assert names.rename(ROOT, b"file", ROOT, b"free", 0) == (local.log.number, [])
        assert names.rename(ROOT, b"free", ROOT, b"free", 0) == (local.log.number, [])
        assert names.rename(ROOT, b"free", ROOT, b"link", 0) == (local.log.number - 1, [tree["file"]])
        assert names.lookup(ROOT, b"free") is None
        with pytest.raises(OSError, match="Stale"):
            names.inode(tree["link"])
        exchanged = names.rename(ROOT, b"link", tree["inner"], b"deep", RENAME_EXCHANGE)
        assert exchanged == (local.log.number, [tree["file"], tree["deep"]])
        found = names.lookup(ROOT, b"link")
        assert found is not None
        assert found.ino == tree["deep"]
        assert local.metadata.check() == []

    on_a_laptop(work)


def test_a_nameless_inode_stays_while_it_is_open_and_no_longer() -> None:
    async def work(laptop: Laptop) -> None:
        local = laptop.open()
        names, ino = local.namespace, local.make(b"file")
        await local.write(ino, 0, b"x" * 100)
        names.opened(ino)
        names.opened(ino)
        names.unlink(ROOT, b"file")
        assert names.inode(ino).nlink == 0
        assert local.dirty.bytes == 100
        assert names.closed(ino) == []
        assert names.closed(ino) == [ino]
        assert local.dirty.bytes == 0
        with pytest.raises(OSError, match="Stale"):
            names.inode(ino)

    on_a_laptop(work)


def test_what_a_killed_mount_left_nameless_is_dropped_by_the_next() -> None:
    async def work(laptop: Laptop) -> None:
        local = laptop.open()
        ino = local.make(b"file")
        await local.write(ino, 0, b"x" * 100)
        local.namespace.opened(ino)
        local.namespace.unlink(ROOT, b"file")
        laptop.kill()
        again = laptop.open()
        assert again.namespace.drop_orphans() == [ino]
        assert again.dirty.bytes == 0
        assert again.namespace.drop_orphans() == []

    on_a_laptop(work)


def test_a_set_group_id_folder_hands_its_group_down() -> None:
    def work(laptop: Laptop) -> None:
        local = laptop.open()
        shared = local.namespace.make(ROOT, b"shared", FOLDER | stat.S_ISGID, 1, 77).ino
        file = local.namespace.make(shared, b"file", FILE, 1, 1)
        folder = local.namespace.make(shared, b"folder", FOLDER, 1, 1)
        assert (file.gid, file.mode) == (77, FILE)
        assert (folder.gid, folder.mode) == (77, FOLDER | stat.S_ISGID)

    on_a_laptop(work)


def test_links_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gridfs.files.namespace.LINK_MAX", 4)

    def work(laptop: Laptop) -> None:
        local = laptop.open()
        names = local.namespace
        file, full, other = local.make(b"file"), local.make(b"full", FOLDER), local.make(b"other", FOLDER)
        for name in (b"1", b"2", b"3"):
            names.link(file, other, name)
        for name in (b"1", b"2"):
            local.make(name, FOLDER, full)
        local.make(b"moved", FOLDER, other)
        for call in (
            lambda: names.link(file, full, b"5"),
            lambda: local.make(b"3", FOLDER, full),
            lambda: names.rename(other, b"moved", full, b"moved", 0),
        ):
            with pytest.raises(OSError, match="Too many links"):
                call()
        names.rename(other, b"moved", full, b"1", 0)
        local.make(b"a file counts no link", FILE, full)
        assert (names.inode(file).nlink, names.inode(full).nlink, names.inode(other).nlink) == (4, 4, 2)

    on_a_laptop(work)


def test_dots_and_times() -> None:
    def work(laptop: Laptop) -> None:
        local = laptop.open()
        tree, names = make_tree(local), local.namespace
        assert names.lookup(tree["inner"], b".") == names.inode(tree["inner"])
        assert names.lookup(tree["inner"], b"..") == names.inode(tree["folder"])
        names.change(tree["file"], Change(atime=1, mtime=2, ctime=3))
        changed = names.inode(tree["file"])
        assert (changed.atime, changed.mtime, changed.ctime) == (1, 2, 3)
        names.change(tree["file"], Change(size=10))
        assert names.inode(tree["file"]).mtime == names.inode(tree["file"]).ctime > 3

    on_a_laptop(work)


@pytest.mark.parametrize(
    ("atime", "mtime", "ctime", "moves"),
    [
        (-5, -5, -9, True),
        (-5, -9, -5, True),
        (-5, -9, -4, True),
        (-5, -9, -9, False),
        (5, -9, -9, False),
        (-DAY_NS, -DAY_NS - 5, -DAY_NS - 5, True),
        (1 - DAY_NS, -DAY_NS - 5, -DAY_NS - 5, False),
    ],
)
def test_relatime(atime: int, mtime: int, ctime: int, moves: bool) -> None:
    """An access time moves where mtime or ctime is not behind it, and when it is a day old."""

    def work(laptop: Laptop) -> None:
        local = laptop.open()
        ino, names, now = local.make(b"file"), local.namespace, local.machine.clock.now_ns()
        names.change(ino, Change(atime=now + atime, mtime=now + mtime, ctime=now + ctime))
        assert names.accessed(ino) == moves
        recorded = local.log.number
        for _ in range(2):
            seen = names.inode(ino)
            assert (seen.mtime, seen.ctime) == (now + mtime, now + ctime)
            assert names.access.of(seen) == (now if moves else now + atime)
            names.access.settle_all()
        assert local.log.number == recorded + moves
        assert names.inode(ino).atime == (now if moves else now + atime)

    on_a_laptop(work)


def test_access_times_are_in_memory_until_they_are_many_or_set() -> None:
    def work(laptop: Laptop) -> None:
        local = laptop.open()
        names, first = local.namespace, local.make(b"first")
        others = [local.make(b"%d" % number) for number in range(PENDING_MAX)]
        for ino in (first, *others):
            names.change(ino, Change(atime=5))
        number = local.log.number
        for ino in (first, *others[:-1]):
            assert names.accessed(ino)
        assert local.log.number == number
        names.change(others[0], Change(atime=7))
        assert names.access.of(names.inode(others[0])) == 7
        names.unlink(ROOT, b"1")
        number = local.log.number
        for _ in range(3):
            assert names.accessed(others[-1])
        assert names.accessed(others[0])
        assert local.log.number == number
        assert names.accessed(local.make(b"last"))
        assert local.log.number == number + 2
        assert names.inode(first).atime == local.machine.clock.now_ns()
        names.access.settle_all()
        assert names.inode(others[2]).atime == local.machine.clock.now_ns()
        assert names.inode(others[0]).atime == local.machine.clock.now_ns()

    on_a_laptop(work)


def test_a_file_has_a_largest_size() -> None:
    def work(laptop: Laptop) -> None:
        local = laptop.open()
        ino = local.make(b"file")
        local.namespace.change(ino, Change(size=FILE_SIZE_MAX))
        with pytest.raises(OSError, match="File too large"):
            local.namespace.change(ino, Change(size=FILE_SIZE_MAX + 1))
        assert local.namespace.inode(ino).size == FILE_SIZE_MAX

    on_a_laptop(work)
