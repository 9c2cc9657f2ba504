"""Names, links, attributes: what each operation does, and that a misfit changes nothing."""

from __future__ import annotations

import stat

import pytest

from gridfs.meta.operations import (
    Drop,
    Link,
    Make,
    Operation,
    RemoveXattr,
    Rename,
    SetAttributes,
    SetXattr,
    Together,
    Unlink,
    Write,
)
from gridfs.meta.rows import FIRST_COOKIE, Inode
from gridfs.meta.store import ROOT
from storage.errors import Missing

from .support import DIRECTORY, FILE, Driver


def inode(driver: Driver, ino: int) -> Inode:
    found = driver.store.inode(ino)
    assert found is not None
    return found


def names(driver: Driver, parent: int = ROOT) -> list[bytes]:
    return [entry.name for entry in driver.store.entries(parent)]


def rename(driver: Driver, name: bytes, new: bytes, ino: int, **changes: int) -> Rename:
    fields = {"parent": ROOT, "new_parent": ROOT, "replaced": 0, "time": 500} | changes
    return Rename(
        fields["parent"], name, fields["new_parent"], new, ino, fields["replaced"],
        bool(changes.get("exchange", False)), fields["time"],
    )  # fmt: skip


def test_make_of_every_type(driver: Driver) -> None:
    link = driver.make(b"link", stat.S_IFLNK | 0o777, target=b"some/where")
    kinds = {
        driver.make(b"file"): FILE,
        driver.make(b"directory", DIRECTORY): DIRECTORY,
        driver.make(b"fifo", stat.S_IFIFO | 0o600): stat.S_IFIFO | 0o600,
        driver.make(b"socket", stat.S_IFSOCK | 0o600): stat.S_IFSOCK | 0o600,
    }
    for ino, mode in kinds.items():
        found = inode(driver, ino)
        assert (found.mode, found.uid, found.gid, found.size, found.target) == (mode, 10, 20, 0, b"")
        assert (found.atime, found.mtime, found.ctime) == (100, 100, 100)
        assert found.nlink == (2 if stat.S_ISDIR(mode) else 1)
    assert (inode(driver, link).target, inode(driver, link).size) == (b"some/where", 10)
    root = inode(driver, ROOT)
    assert (root.nlink, root.mtime, root.ctime, root.atime) == (3, 100, 100, 1)
    totals = driver.store.totals()
    assert (totals.files, totals.directories, totals.bytes) == (4, 2, 0)


def test_device_numbers_and_negative_times_are_kept(driver: Driver) -> None:
    ino = driver.store.reserve_inode()
    driver.do(Make(ino, ROOT, b"null", stat.S_IFCHR | 0o666, 0, 0, 0x103, b"", -7))
    found = inode(driver, ino)
    assert (found.rdev, found.mtime) == (0x103, -7)


def test_inode_numbers_are_never_given_twice(driver: Driver) -> None:
    first = driver.make(b"first")
    driver.do(Unlink(ROOT, b"first", first, 5))
    driver.do(Drop(first))
    driver.do(Make(900, ROOT, b"from elsewhere", FILE, 0, 0, 0, b"", 0))
    assert driver.store.reserve_inode() == 901
    driver.store.commit()
    driver.reopen()
    assert driver.store.reserve_inode() > 900


def test_hard_links_and_orphans(driver: Driver) -> None:
    ino = driver.make(b"one")
    driver.do(Link(ino, ROOT, b"two", 200))
    assert (inode(driver, ino).nlink, inode(driver, ino).ctime, inode(driver, ino).mtime) == (2, 200, 100)
    driver.do(Unlink(ROOT, b"one", ino, 300))
    assert driver.store.orphans() == []
    driver.do(Unlink(ROOT, b"two", ino, 400))
    assert (inode(driver, ino).nlink, inode(driver, ino).ctime) == (0, 400)
    assert driver.store.orphans() == [ino]
    assert inode(driver, ROOT).mtime == 400
    driver.do(Write(ino, 0, 10, 450))
    driver.do(Drop(ino))
    assert driver.store.inode(ino) is None
    assert driver.store.orphans() == []
    assert driver.store.totals().bytes == 0


def test_directories_count_their_subdirectories(driver: Driver) -> None:
    outer = driver.make(b"outer", DIRECTORY)
    inner = driver.make(b"inner", DIRECTORY, outer)
    assert (inode(driver, ROOT).nlink, inode(driver, outer).nlink) == (3, 3)
    assert driver.store.parent_of(inner) == outer
    assert driver.store.parent_of(ROOT) == ROOT
    assert "not empty" in driver.refused(Unlink(ROOT, b"outer", outer, 5))
    driver.do(Unlink(outer, b"inner", inner, 5))
    assert (inode(driver, outer).nlink, inode(driver, inner).nlink) == (2, 0)
    assert "takes names" in driver.refused(Make(99, inner, b"x", FILE, 0, 0, 0, b"", 0))
    driver.do(Drop(inner))
    driver.do(Unlink(ROOT, b"outer", outer, 5))
    driver.do(Drop(outer))
    assert driver.store.totals().directories == 1
    with pytest.raises(Missing):
        driver.store.parent_of(inner)


def test_rename_moves_replaces_and_exchanges(driver: Driver) -> None:
    box = driver.make(b"box", DIRECTORY)
    a, b = driver.make(b"a"), driver.make(b"b")
    driver.do(rename(driver, b"a", b"c", a))
    assert driver.store.lookup(ROOT, b"a") is None
    assert driver.store.lookup(ROOT, b"c") == a
    assert inode(driver, a).ctime == 500
    driver.do(rename(driver, b"c", b"b", a, replaced=b))
    assert names(driver) == [b"box", b"b"]
    assert inode(driver, b).nlink == 0
    driver.do(rename(driver, b"b", b"moved", a, new_parent=box))
    assert (names(driver), names(driver, box)) == ([b"box"], [b"moved"])
    c = driver.make(b"c")
    driver.do(rename(driver, b"c", b"moved", c, new_parent=box, replaced=a, exchange=True))
    assert (driver.store.lookup(ROOT, b"c"), driver.store.lookup(box, b"moved")) == (a, c)
    assert (inode(driver, a).nlink, inode(driver, c).nlink) == (1, 1)


def test_renamed_directories_take_their_links_along(driver: Driver) -> None:
    left, right = driver.make(b"left", DIRECTORY), driver.make(b"right", DIRECTORY)
    child = driver.make(b"child", DIRECTORY, left)
    victim = driver.make(b"victim", DIRECTORY, right)
    driver.do(rename(driver, b"child", b"victim", child, parent=left, new_parent=right, replaced=victim))
    assert [inode(driver, ino).nlink for ino in (left, right, child, victim)] == [2, 3, 2, 0]
    assert driver.store.parent_of(child) == right
    file = driver.make(b"file", FILE, left)
    driver.do(
        rename(driver, b"file", b"victim", file, parent=left, new_parent=right, replaced=child, exchange=True)
    )
    assert [inode(driver, ino).nlink for ino in (left, right, child)] == [3, 2, 2]
    assert driver.store.parent_of(child) == left
    driver.do(Drop(victim))


def test_a_directory_never_comes_to_lie_in_itself(driver: Driver) -> None:
    outer = driver.make(b"outer", DIRECTORY)
    inner = driver.make(b"inner", DIRECTORY, outer)
    deep = driver.make(b"deep", DIRECTORY, inner)
    assert "in itself" in driver.refused(rename(driver, b"outer", b"x", outer, new_parent=deep))
    assert "in itself" in driver.refused(rename(driver, b"outer", b"x", outer, new_parent=outer))
    assert "in itself" in driver.refused(
        rename(driver, b"outer", b"deep", outer, new_parent=inner, replaced=deep, exchange=True)
    )
    assert "in itself" in driver.refused(
        rename(driver, b"deep", b"outer", deep, parent=inner, new_parent=ROOT, replaced=outer, exchange=True)
    )


def test_what_does_not_fit_is_refused_and_changes_nothing(driver: Driver) -> None:
    file, other = driver.make(b"file"), driver.make(b"other")
    directory = driver.make(b"directory", DIRECTORY)
    driver.make(b"inside", FILE, directory)
    no_names = (b"", b".", b"..", b"a/b", b"\0", b"n" * 256)
    misfits: list[Operation] = [
        Make(file, ROOT, b"new", FILE, 0, 0, 0, b"", 0),
        Make(ROOT, ROOT, b"new", DIRECTORY, 0, 0, 0, b"", 0),
        Make(90, ROOT, b"file", FILE, 0, 0, 0, b"", 0),
        Make(90, file, b"new", FILE, 0, 0, 0, b"", 0),
        Make(90, 77, b"new", FILE, 0, 0, 0, b"", 0),
        Make(90, ROOT, b"new", 0o644, 0, 0, 0, b"", 0),
        Make(90, ROOT, b"new", FILE, 0, 0, 0, b"target", 0),
        Make(90, ROOT, b"new", stat.S_IFLNK | 0o777, 0, 0, 0, b"", 0),
        *[Make(90, ROOT, name, FILE, 0, 0, 0, b"", 0) for name in no_names],
        Link(directory, ROOT, b"new", 0),
        Link(77, ROOT, b"new", 0),
        Link(file, ROOT, b"other", 0),
        Unlink(ROOT, b"nothing", file, 0),
        Unlink(ROOT, b"file", other, 0),
        Unlink(ROOT, b"directory", directory, 0),
        Drop(file),
        Drop(77),
        rename(driver, b"nothing", b"new", file),
        rename(driver, b"file", b"other", file),
        rename(driver, b"file", b"other", file, replaced=directory),
        rename(driver, b"file", b"new", file, replaced=other),
        rename(driver, b"file", b"new", file, exchange=True),
        rename(driver, b"file", b"file", file, replaced=file),
        rename(driver, b"file", b"directory", file, replaced=directory),
        rename(driver, b"file", b"new", file, new_parent=other),
        SetAttributes(77, 0, None, None, None, None, None, 0),
        SetAttributes(directory, None, None, None, None, None, 0, 0),
        Write(directory, 0, 1, 0),
        Write(77, 0, 1, 0),
        SetXattr(77, b"user.a", b"", 0),
        RemoveXattr(file, b"user.a", 0),
    ]  # fmt: skip
    for misfit in misfits:
        driver.refused(misfit)
    driver.store.commit()
    for misfit in misfits:
        driver.refused(misfit)
        assert not driver.store.in_transaction


def test_listing_is_stable_while_names_come_and_go(driver: Driver) -> None:
    inodes = [driver.make(b"%d" % number) for number in range(10)]
    first = driver.store.entries(ROOT, 0, 4)
    assert [entry.name for entry in first] == [b"0", b"1", b"2", b"3"]
    assert first[0].cookie >= FIRST_COOKIE
    end = driver.store.last_cookie
    driver.do(Unlink(ROOT, b"1", inodes[1], 5))
    driver.do(Unlink(ROOT, b"5", inodes[5], 5))
    driver.do(rename(driver, b"6", b"renamed", inodes[6]))
    driver.do(rename(driver, b"0", b"7", inodes[0], replaced=inodes[7]))
    driver.make(b"new")
    rest = driver.store.entries(ROOT, first[-1].cookie, 100)
    # What stayed is seen once; the renamed name keeps its place; the new one comes behind the old end.
    assert [entry.name for entry in rest] == [b"4", b"renamed", b"7", b"8", b"9", b"new"]
    assert [entry.name for entry in rest if entry.cookie <= end] == [b"4", b"renamed", b"7", b"8", b"9"]
    cookies = [entry.cookie for entry in driver.store.entries(ROOT)]
    assert cookies == sorted(set(cookies))


def test_entries_tell_the_type(driver: Driver) -> None:
    driver.make(b"d", DIRECTORY)
    driver.make(b"l", stat.S_IFLNK | 0o777, target=b"d")
    assert [entry.mode for entry in driver.store.entries(ROOT)] == [stat.S_IFDIR, stat.S_IFLNK]
    assert driver.store.has_entries(ROOT)
    assert not driver.store.has_entries(driver.store.lookup(ROOT, b"d") or 0)


def test_attributes_change_one_by_one(driver: Driver) -> None:
    ino = driver.make(b"file")
    driver.do(SetAttributes(ino, 0o100600, None, None, None, None, None, 201))
    driver.do(SetAttributes(ino, None, 1, None, None, None, None, 202))
    driver.do(SetAttributes(ino, None, None, 2, None, None, None, 203))
    driver.do(SetAttributes(ino, None, None, None, -4, None, None, 204))
    driver.do(SetAttributes(ino, None, None, None, None, 5, None, 205))
    driver.do(SetAttributes(ino, None, None, None, None, None, 6, 206))
    expected = Inode(ino, stat.S_IFREG | 0o600, 1, 2, 6, 1, -4, 5, 206, 0, b"", 0)
    assert inode(driver, ino) == expected
    # The type cannot be changed.
    driver.do(SetAttributes(ino, stat.S_IFDIR | 0o4711, None, None, None, None, None, 206))
    assert inode(driver, ino).mode == stat.S_IFREG | 0o4711


def test_write_extends_and_an_empty_write_does_not(driver: Driver) -> None:
    ino = driver.make(b"file")
    driver.do(Write(ino, 100, 50, 300))
    assert (inode(driver, ino).size, inode(driver, ino).mtime, inode(driver, ino).ctime) == (150, 300, 300)
    driver.do(Write(ino, 0, 10, 301))
    driver.do(Write(ino, 1000, 0, 302))
    assert (inode(driver, ino).size, inode(driver, ino).mtime) == (150, 302)
    assert driver.store.totals().bytes == 150


def test_a_write_without_a_time_leaves_the_times(driver: Driver) -> None:
    ino = driver.make(b"file")
    driver.do(SetAttributes(ino, None, None, None, None, 77, None, 88))
    driver.do(Write(ino, 0, 10, None))
    assert (inode(driver, ino).size, inode(driver, ino).mtime, inode(driver, ino).ctime) == (10, 77, 88)


def test_more_bytes_in_sparse_files_than_an_integer_holds(driver: Driver) -> None:
    for number in range(6):
        ino = driver.make(b"sparse%d" % number)
        driver.do(SetAttributes(ino, None, None, None, None, None, 1 << 62, 300))
    assert driver.store.totals().bytes == (6 << 62) % (1 << 63)
    driver.store.commit()
    driver.reopen()
    assert inode(driver, ino).size == 1 << 62
    driver.do(SetAttributes(ino, None, None, None, None, None, 0, 301))
    driver.store.commit()
    assert driver.store.totals().bytes == (5 << 62) % (1 << 63)


def test_extended_attributes(driver: Driver) -> None:
    ino = driver.make(b"file")
    driver.do(SetXattr(ino, b"user.b", b"1", 300))
    driver.do(SetXattr(ino, b"user.a", b"", 301))
    driver.do(SetXattr(ino, b"user.b", b"2", 302))
    assert driver.store.xattrs(ino) == [b"user.a", b"user.b"]
    assert driver.store.xattr(ino, b"user.b") == b"2"
    assert driver.store.xattr(ino, b"user.a") == b""
    assert driver.store.xattr(ino, b"user.c") is None
    assert (inode(driver, ino).ctime, inode(driver, ino).mtime) == (302, 100)
    driver.do(RemoveXattr(ino, b"user.b", 303))
    assert driver.store.xattrs(ino) == [b"user.a"]
    driver.do(Unlink(ROOT, b"file", ino, 304))
    driver.do(Drop(ino))
    assert driver.store.xattrs(ino) == []


def test_together_makes_all_of_its_parts_or_none(driver: Driver) -> None:
    ino = driver.store.reserve_inode()
    made = Make(ino, ROOT, b"file", FILE, 1, 2, 0, b"", 100)
    driver.do(Together([made, SetXattr(ino, b"user.a", b"1", 101), SetXattr(ino, b"user.b", b"2", 102)]))
    assert driver.store.xattrs(ino) == [b"user.a", b"user.b"]
    changed = SetAttributes(ino, 0o600, None, None, None, None, None, 103)
    driver.do(Together([changed, RemoveXattr(ino, b"user.a", 104)]))
    assert (inode(driver, ino).mode, inode(driver, ino).ctime) == (stat.S_IFREG | 0o600, 104)
    assert driver.store.xattrs(ino) == [b"user.b"]

    driver.do(SetXattr(ino, b"user.c", b"3", 105))
    wider = SetAttributes(ino, 0o777, None, None, None, None, None, 106)
    assert "user.a" in driver.refused(Together([wider, RemoveXattr(ino, b"user.a", 106)]))
    other = Make(ino + 1, ROOT, b"other", FILE, 1, 2, 0, b"", 107)
    assert "already" in driver.refused(Together([other, made]))
    assert names(driver) == [b"file"]
    driver.store.commit()
    driver.reopen()
    assert driver.store.xattrs(ino) == [b"user.b", b"user.c"]
    assert driver.store.check() == []
