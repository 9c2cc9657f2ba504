"""Clones and snapshots in a whole simulated file system: what is copied, when it appears, what is refused."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio

from gridfs.assembly import Parts
from gridfs.files.namespace import Change, Namespace
from gridfs.files.trees import STEP
from gridfs.meta.rows import ROOT
from tests.simulation.filesystem import FILE, FOLDER, Client, Shell, gauges, start_servers
from tests.simulation.machine import World, run_world

LINK = stat.S_IFLNK | 0o777
FIFO = stat.S_IFIFO | 0o640


def in_a_file_system(work: Callable[[Parts], Any], *more: Callable[[Parts], Any]) -> None:
    """Run `work(parts)`, then each of `more` in a mount of its own; at the end all must be in order."""

    async def scenario(world: World) -> None:
        client = Client(world, await start_servers(world))
        client.create()
        for each in (work, *more):
            async with client.mounted() as parts:
                await each(parts)
        async with client.mounted() as parts:
            await cleared(parts)
            await parts.files.drain()
            assert set(gauges(parts).values()) == {0}, gauges(parts)
            assert parts.log.metadata.check() == []

    run_world(1, scenario)


async def cleared(parts: Parts) -> None:
    """Wait until nothing without a name is left."""
    metadata = parts.log.metadata
    with trio.fail_after(60):
        while metadata.detached() or metadata.orphans():  # noqa: ASYNC110 - it is all on the disk
            await trio.sleep(0.1)


def attributes(names: Namespace, ino: int) -> tuple[object, ...]:
    inode = names.inode(ino)
    xattrs = [(name, names.xattr(ino, name)) for name in names.xattrs(ino)]
    return (
        inode.mode, inode.uid, inode.gid, inode.size, inode.nlink, inode.atime, inode.mtime, inode.rdev,
        inode.target, xattrs,
    )  # fmt: skip


def picture(names: Namespace, folder: int) -> dict[bytes, object]:
    """Names, attributes and hard links of everything below a folder."""
    result: dict[bytes, object] = {b"": attributes(names, folder)}
    firsts: dict[int, bytes] = {}
    waiting = [(b"", folder)]
    while waiting:
        prefix, directory = waiting.pop()
        for entry in names.entries(directory, 0, 10_000):
            path = prefix + entry.name
            result[path] = (firsts.setdefault(entry.ino, path), *attributes(names, entry.ino))
            if stat.S_ISDIR(entry.mode):
                waiting.append((path + b"/", entry.ino))
    return result


async def make_tree(parts: Parts) -> int:
    """A folder with one of everything; returns its inode."""
    shell, names = Shell(parts), parts.files.namespace
    folder = shell.mkdir("tree")
    deep = names.make(folder, b"deep", FOLDER | stat.S_ISGID, 3, 4).ino
    await shell.write("tree/file", b"content " * 1000)
    file = shell.find("tree/file")
    assert file is not None
    names.link(file, deep, b"hard")
    names.make(deep, b"link", LINK, 5, 6, target=b"../file")
    names.make(deep, b"fifo", FIFO, 5, 6)
    names.make(deep, b"device", stat.S_IFCHR | 0o600, 0, 0, rdev=0x103)
    for number in range(2 * STEP + 3):
        names.make(deep, b"%d" % number, FILE, 1, 1)
    names.set_xattr(file, b"user.x", b"1")
    names.set_xattr(deep, b"user.y", b"2")
    names.change(file, Change(mode=0o4711, uid=9, gid=8, atime=-5, mtime=7))
    names.change(deep, Change(atime=11, mtime=12))
    names.change(folder, Change(atime=13, mtime=14))
    return folder


def test_a_clone_shares_what_is_stored_and_what_is_not() -> None:
    async def work(parts: Parts) -> None:
        shell = Shell(parts)
        await shell.write("file", b"a" * 100_000)
        await shell.fsync("file")
        await shell.write("file", b"b" * 50_000, 25_000)
        await shell.clone("file", "clone")
        expected = b"a" * 25_000 + b"b" * 50_000 + b"a" * 25_000
        assert await shell.read("clone") == expected
        stored = parts.writer.bytes_stored
        await shell.write("file", b"c" * 10, 30_000)
        await shell.write("clone", b"d" * 10, 30_010)
        shell.truncate("file", 90_000)
        await shell.fsync("clone")
        assert parts.writer.bytes_stored - stored <= 150_000
        for _ in range(2):
            assert await shell.read("file") == (expected[:30_000] + b"c" * 10 + expected[30_010:])[:90_000]
            assert await shell.read("clone") == expected[:30_010] + b"d" * 10 + expected[30_020:]
            await parts.files.sync()

    in_a_file_system(work)


def test_a_clean_file_is_cloned_without_any_data() -> None:
    async def work(parts: Parts) -> None:
        shell = Shell(parts)
        await shell.write("file", b"x" * 3_000_000)
        await parts.files.sync()
        stored, number = parts.writer.packs_stored, parts.log.number
        await shell.clone("file", "clone")
        assert parts.log.number == number + 1
        assert parts.dirty.bytes == 0
        await parts.files.sync()
        assert parts.writer.packs_stored == stored
        assert await shell.read("clone") == b"x" * 3_000_000
        shell.unlink("file")
        assert await shell.read("clone") == b"x" * 3_000_000

    in_a_file_system(work)


def test_a_tree_is_copied_with_everything_in_it() -> None:
    async def make(parts: Parts) -> None:
        folder = await make_tree(parts)
        names = parts.files.namespace
        before = picture(names, folder)
        for name in ("one", "two"):
            made = await Shell(parts).clone("tree", name)
            assert picture(names, made) == before
        assert picture(names, folder) == before
        await Shell(parts).write("one/file", b"other")
        assert await Shell(parts).read("two/file") == b"content " * 1000

    async def look(parts: Parts) -> None:
        shell, names = Shell(parts), parts.files.namespace
        tree, two = shell.find("tree"), shell.find("two")
        assert tree is not None
        assert two is not None
        assert picture(names, tree) == picture(names, two)
        assert await shell.read("one/file") == b"other" + (b"content " * 1000)[5:]
        made = await shell.clone("one", "tree/inside")  # a folder of what is cloned takes the clone
        assert [entry.name for entry in names.entries(made, 0, 9)] == [b"deep", b"file"]

    in_a_file_system(make, look)


def test_a_tree_is_a_picture_of_one_moment() -> None:
    async def work(parts: Parts) -> None:
        shell, files = Shell(parts), parts.files
        folder = await make_tree(parts)
        before = picture(files.namespace, folder)
        file = shell.find("tree/file")
        assert file is not None
        handle = files.open(file)

        async def write() -> None:
            await files.write(handle, 0, b"changed!")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)  # its first step comes after the first of the clone, which is here
            assert not files.pause.is_on
            made = await shell.clone("tree", "clone")
            assert picture(files.namespace, made) == before
        files.release(handle)
        assert await shell.read("tree/file") == b"changed!" + (b"content " * 1000)[8:]
        assert await shell.read("clone/file") == b"content " * 1000

    in_a_file_system(work)


def test_what_gets_no_name_is_cleared_away() -> None:
    async def cancelled(parts: Parts) -> None:
        await make_tree(parts)
        totals = parts.log.metadata.totals()
        ino = Shell(parts).find("tree")
        assert ino is not None
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(parts.files.trees.build, ino, read_only=False))
                await trio.lowlevel.checkpoint()
                scope.cancel()
        await cleared(parts)
        parent, name, maker = ROOT, b"clone", 5
        async with parts.files.trees.prepared(ino, parent, name, maker, read_only=False):
            assert parts.files.trees.make(parent, name, FOLDER, 6) is None
            assert parts.files.trees.make(parent, b"other", FOLDER, maker) is None
            assert parts.files.trees.make(parent, name, FILE, maker) is None
            assert len(parts.log.metadata.detached()) == 1
        assert parts.files.trees.make(parent, name, FOLDER, maker) is None
        await cleared(parts)
        assert parts.log.metadata.totals() == totals
        assert not parts.files.pause.is_on
        await parts.files.trees.build(ino, read_only=False)  # and then the daemon ends

    async def after(parts: Parts) -> None:
        await cleared(parts)
        assert [entry.name for entry in parts.files.namespace.entries(ROOT, 0, 9)] == [b"tree"]

    in_a_file_system(cancelled, after)


Call = Callable[[Namespace, dict[str, int]], object]
REFUSED: list[tuple[str, Call]] = [
    ("make", lambda n, t: n.make(t["snap"], b"x", FILE, 1, 1)),
    ("make below", lambda n, t: n.make(t["deep"], b"x", FOLDER, 1, 1)),
    ("link into", lambda n, t: n.link(t["outside"], t["snap"], b"x")),
    ("link out", lambda n, t: n.link(t["file"], ROOT, b"x")),
    ("unlink", lambda n, t: n.unlink(t["snap"], b"file")),
    ("rmdir", lambda n, t: n.rmdir(t["snap"], b"deep")),
    ("rename within", lambda n, t: n.rename(t["snap"], b"file", t["snap"], b"x", 0)),
    ("rename out", lambda n, t: n.rename(t["snap"], b"file", ROOT, b"x", 0)),
    ("rename into", lambda n, t: n.rename(ROOT, b"outside", t["snap"], b"x", 0)),
    ("exchange", lambda n, t: n.rename(ROOT, b"outside", t["snap"], b"file", 2)),
    ("chmod", lambda n, t: n.change(t["file"], Change(mode=0o777))),
    ("chmod of the top", lambda n, t: n.change(t["snap"], Change(mode=0o777))),
    ("truncate", lambda n, t: n.change(t["file"], Change(size=0))),
    ("utimes", lambda n, t: n.change(t["deep"], Change(mtime=0))),
    ("setxattr", lambda n, t: n.set_xattr(t["file"], b"user.z", b"")),
    ("removexattr", lambda n, t: n.remove_xattr(t["file"], b"user.x")),
]


def test_nothing_below_a_snapshot_can_be_changed() -> None:
    async def work(parts: Parts) -> None:
        shell, names = Shell(parts), parts.files.namespace
        await make_tree(parts)
        tree = {"outside": shell.create("outside"), "snap": await shell.clone("tree", "snap", read_only=True)}
        tree |= {name: shell.find(f"snap/{name}") or 0 for name in ("file", "deep")}
        before, number = picture(names, tree["snap"]), parts.log.number
        for what, call in REFUSED:
            with pytest.raises(OSError, match=r".") as caught:
                call(names, tree)
            assert caught.value.errno == errno.EROFS, what
        for ino in (tree["file"], tree["deep"]):
            with pytest.raises(OSError, match="Read-only"):
                parts.files.require_writable(ino)
        handle = parts.files.open(tree["file"])
        with pytest.raises(OSError, match="Read-only"):
            await parts.files.write(handle, 0, b"x")
        parts.files.release(handle)
        assert parts.log.number == number
        shell.rename("snap", "renamed")
        assert picture(names, tree["snap"]) == before
        await shell.clone("renamed", "writable")
        await shell.write("writable/file", b"mine")

    in_a_file_system(work)


def test_a_snapshot_is_removed_as_a_whole_and_what_is_open_in_it_lives_on() -> None:
    async def work(parts: Parts) -> None:
        shell, names = Shell(parts), parts.files.namespace
        await make_tree(parts)
        await parts.files.sync()
        totals = parts.log.metadata.totals()
        top = await shell.clone("tree", "snap", read_only=True)
        file = shell.find("snap/file")
        assert file is not None
        handle, folder = parts.files.open(file), parts.files.open_directory(top)
        shell.rmdir("snap")
        assert shell.find("snap") is None
        await trio.sleep(1)
        assert parts.log.metadata.detached() == [top]
        assert parts.log.metadata.orphans() == [file]
        assert bytes(await parts.files.read(handle, 0, 8)) == b"content "
        parts.files.release(handle)
        parts.files.release_directory(folder)
        await cleared(parts)
        assert parts.log.metadata.totals() == totals
        assert names.lookup(ROOT, b"tree") is not None

    in_a_file_system(work)


def test_what_cannot_be_cloned_is_refused() -> None:
    async def work(parts: Parts) -> None:
        shell = Shell(parts)
        await make_tree(parts)
        for source, target, read_only, code in (
            ("tree/file", "snap", True, errno.ENOTDIR),
            ("tree", "tree/file", False, errno.EEXIST),
            ("tree", "tree/file/x", False, errno.ENOTDIR),
            ("tree", "tree/" + "n" * 256, False, errno.ENAMETOOLONG),
        ):
            parent, name = shell.parent(target)
            ino = shell.find(source)
            assert ino is not None
            with pytest.raises(OSError, match=r".") as caught:
                async with parts.files.trees.prepared(ino, parent, name, 1, read_only=read_only):
                    raise AssertionError(target)
            assert caught.value.errno == code
        with pytest.raises(OSError, match=r"[Ss]tale"):
            async with parts.files.trees.prepared(9999, ROOT, b"x", 1, read_only=False):
                raise AssertionError

    in_a_file_system(work)


@pytest.mark.parametrize("turns", range(8))
def test_a_clone_that_gets_its_name_while_others_are_cleared_away_keeps_what_lies_in_it(turns: int) -> None:
    async def work(parts: Parts) -> None:
        shell = Shell(parts)
        shell.mkdir("folder")
        for number in range(4 * STEP):
            shell.create(f"folder/{number}")
        folder = shell.find("folder")
        assert folder is not None
        await shell.clone("folder", "past", read_only=True)
        trees, maker = shell.files.trees, 77
        async with trees.prepared(folder, ROOT, b"twin", maker, read_only=False):
            shell.rmdir("past")
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            assert trees.make(ROOT, b"twin", FOLDER, maker) is not None
        await cleared(parts)
        twin = shell.find("twin")
        assert twin is not None
        assert len(shell.names.entries(twin, 0, 1000)) == 4 * STEP

    in_a_file_system(work)
