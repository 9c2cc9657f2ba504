"""ACLs in the tree: they and the mode are changed in one operation, and inherited with the inode."""

from __future__ import annotations

import errno
import stat

import pytest

from gridfs.files import acl
from gridfs.files.acl import Acl, Entry, Tag
from gridfs.files.namespace import Change
from gridfs.meta.rows import ROOT
from tests.files.support import FILE, Laptop, Local, on_a_laptop
from tests.simulation.filesystem import FOLDER

NAMED: Acl = (
    Entry(Tag.USER_OBJ, 6),
    Entry(Tag.USER, 7, 1000),
    Entry(Tag.GROUP_OBJ, 4),
    Entry(Tag.MASK, 5),
    Entry(Tag.OTHER, 0),
)
MINIMAL: Acl = (Entry(Tag.USER_OBJ, 7), Entry(Tag.GROUP_OBJ, 5), Entry(Tag.OTHER, 1))


def mode_of(local: Local, ino: int) -> int:
    return stat.S_IMODE(local.namespace.inode(ino).mode)


def access_of(local: Local, ino: int) -> Acl:
    return acl.parse(local.namespace.xattr(ino, acl.ACCESS))


def set_acl(local: Local, ino: int, entries: Acl, name: bytes = acl.ACCESS, *, keeps: bool = True) -> None:
    local.namespace.set_acl(ino, name, acl.encode(entries), keeps_set_gid=keeps)


def test_an_acl_changes_the_mode_and_a_mode_the_acl_in_one_operation() -> None:
    def work(laptop: Laptop) -> None:
        local = laptop.open()
        ino = local.make(b"file")
        before = local.log.number
        set_acl(local, ino, NAMED)
        assert mode_of(local, ino) == 0o650
        local.namespace.change(ino, Change(mode=0o4731))
        assert local.log.number == before + 2
        assert mode_of(local, ino) == 0o4731
        assert access_of(local, ino) == acl.with_permissions(NAMED, 0o731)
        laptop.kill()
        local = laptop.open()
        assert mode_of(local, ino) == 0o4731
        assert access_of(local, ino) == acl.with_permissions(NAMED, 0o731)
        set_acl(local, ino, MINIMAL)
        assert mode_of(local, ino) == 0o4751
        assert local.namespace.xattrs(ino) == []
        set_acl(local, ino, MINIMAL)
        laptop.close()

    on_a_laptop(work)


def test_the_group_bit_goes_where_the_caller_may_not_keep_it() -> None:
    def work(laptop: Laptop) -> None:
        local = laptop.open()
        ino = local.make(b"folder", FOLDER | stat.S_ISGID)
        set_acl(local, ino, NAMED)
        assert mode_of(local, ino) == 0o2650
        set_acl(local, ino, NAMED, acl.DEFAULT, keeps=False)
        assert mode_of(local, ino) == 0o2650
        set_acl(local, ino, NAMED, keeps=False)
        assert mode_of(local, ino) == 0o650
        laptop.close()

    on_a_laptop(work)


def test_what_is_made_inherits_and_a_umask_counts_only_without_a_default() -> None:
    def work(laptop: Laptop) -> None:
        local = laptop.open()
        namespace = local.namespace
        folder = local.make(b"folder", FOLDER)
        plain = namespace.make(folder, b"plain", FILE | 0o666, 1, 1, umask=0o027)
        assert stat.S_IMODE(plain.mode) == 0o640
        set_acl(local, folder, NAMED, acl.DEFAULT)
        before = local.log.number
        file = namespace.make(folder, b"file", stat.S_IFREG | 0o666, 1, 1, umask=0o077).ino
        assert local.log.number == before + 1
        assert mode_of(local, file) == 0o640
        assert access_of(local, file) == acl.with_permissions(NAMED, 0o640)
        assert namespace.xattrs(file) == [acl.ACCESS]
        inner = namespace.make(folder, b"inner", stat.S_IFDIR | 0o777, 1, 1, umask=0o077).ino
        assert mode_of(local, inner) == 0o650
        assert acl.parse(namespace.xattr(inner, acl.DEFAULT)) == NAMED
        link = namespace.make(folder, b"link", stat.S_IFLNK | 0o777, 1, 1, target=b"x", umask=0o077).ino
        assert (mode_of(local, link), namespace.xattrs(link)) == (0o777, [])
        set_acl(local, folder, MINIMAL, acl.DEFAULT)
        file = namespace.make(folder, b"third", stat.S_IFREG | 0o666, 1, 1, umask=0o077).ino
        assert (mode_of(local, file), namespace.xattrs(file)) == (0o640, [])
        laptop.kill()
        assert laptop.open().namespace.xattrs(inner) == [acl.ACCESS, acl.DEFAULT]
        laptop.close()

    on_a_laptop(work)


def test_refusals_and_removal() -> None:
    def work(laptop: Laptop) -> None:
        local = laptop.open()
        ino = local.make(b"file")
        before = local.log.number
        with pytest.raises(OSError, match="denied") as caught:
            set_acl(local, ino, NAMED, acl.DEFAULT)
        assert caught.value.errno == errno.EACCES
        with pytest.raises(OSError, match="Invalid"):
            set_acl(local, ROOT, NAMED[1:])
        local.namespace.remove_acl(ino, acl.ACCESS)
        assert local.log.number == before
        set_acl(local, ino, NAMED)
        local.namespace.remove_acl(ino, acl.ACCESS)
        assert (local.namespace.xattrs(ino), mode_of(local, ino)) == ([], 0o650)
        laptop.close()

    on_a_laptop(work)
