"""Listing directories: readdir, telldir, seekdir, rewinddir, also while names come and go."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterator

import pytest

from tests.posix.calls import KINDS, Answer, handle, kinds, outcome, put
from tests.posix.stage import case

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fdopendir.restype = ctypes.c_void_p
_libc.readdir64.restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long
for _function in (_libc.readdir64, _libc.telldir, _libc.rewinddir, _libc.closedir, _libc.dirfd):
    _function.argtypes = (ctypes.c_void_p,)
_libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)


class _Entry(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("length", ctypes.c_uint16),
        ("type", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    )


class Directory:
    """A DIR stream of the C library."""

    def __init__(self, path: str) -> None:
        self._stream = _libc.fdopendir(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
        assert self._stream

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_: object) -> None:
        _libc.closedir(self._stream)

    def read(self) -> _Entry | None:
        found = _libc.readdir64(self._stream)
        return ctypes.cast(found, ctypes.POINTER(_Entry)).contents if found else None

    def __iter__(self) -> Iterator[bytes]:
        while (entry := self.read()) is not None:
            yield bytes(entry.name)

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)


def filled(count: int) -> set[bytes]:
    """The directory `d` with files of names long enough for several requests."""
    os.mkdir("d")
    names = {b"%04d-" % number + b"n" * 60 for number in range(count)}
    for name in names:
        put(b"d/" + name, b"")
    return names


@case
@pytest.mark.parametrize("count", [0, 1, 2, 100, 700])
def test_every_name_once(count: int) -> Answer:
    names = filled(count)
    with Directory("d") as directory:
        listed = list(directory)
    assert sorted(listed) == sorted([*names, b".", b".."])
    return len(listed)


@case
@pytest.mark.parametrize("kind", kinds())
def test_type_and_inode_of_an_entry(kind: str) -> Answer:
    os.mkdir("d")
    KINDS[kind]("d/it")
    types = {}
    with Directory("d") as directory:
        while (entry := directory.read()) is not None:
            same = entry.ino == os.lstat(b"d/" + entry.name).st_ino
            types[bytes(entry.name)] = (stat.S_IFMT(entry.type << 12) == entry.type << 12, entry.type, same)
    return types


@case
def test_inodes_of_dot_and_dot_dot() -> Answer:
    os.makedirs("a/b")
    with Directory("a/b") as directory:
        found = {}
        while (entry := directory.read()) is not None:
            found[bytes(entry.name)] = entry.ino
    return found[b"."] == os.stat("a/b").st_ino, found[b".."] == os.stat("a").st_ino


@case
def test_seekdir_goes_back_to_every_place() -> Answer:
    filled(300)
    with Directory("d") as directory:
        places, names = [], []
        while True:
            places.append(directory.tell())
            entry = directory.read()
            if entry is None:
                break
            names.append(bytes(entry.name))
        right = []
        for index in range(len(names) - 1, -1, -7):
            directory.seek(places[index])
            right.append(next(iter(directory)) == names[index])
        directory.seek(places[-1])
        right.append(directory.read() is None)
    return all(right), len(right)


@case
def test_places_stay_when_other_names_go() -> Answer:
    filled(400)
    with Directory("d") as directory:
        places = {}
        while True:
            place = directory.tell()
            entry = directory.read()
            if entry is None:
                break
            places[bytes(entry.name)] = place
        doomed = sorted(places)[2::2]
        for name in doomed:
            os.unlink(b"d/" + name)
        right = []
        for name in sorted(places)[3::20]:
            directory.seek(places[name])
            right.append(next(iter(directory)) == name)
    return all(right), len(right)


@case
def test_what_stays_is_listed_once_while_others_come_and_go() -> Answer:
    lasting = filled(300)
    seen = []
    with Directory("d") as directory:
        for index, name in enumerate(directory):
            seen.append(name)
            if index < 200:
                put(f"d/new{index}", b"")
                if index > 3:
                    os.unlink(f"d/new{index - 3}")
    assert all(seen.count(name) == 1 for name in lasting)
    return len([name for name in seen if name in lasting])


@case
def test_a_directory_is_emptied_while_it_is_listed() -> Answer:
    filled(300)
    with Directory("d") as directory:
        for name in directory:
            if name not in (b".", b".."):
                os.unlink(b"d/" + name)
    return os.listdir("d"), outcome(os.rmdir, "d")


@case
def test_everything_is_renamed_while_it_is_listed() -> Answer:
    names = filled(300)
    os.mkdir("e")
    with Directory("d") as directory:
        for name in directory:
            if name in names:
                os.rename(b"d/" + name, b"e/" + name)
    return os.listdir("d"), sorted(os.listdir(b"e")) == sorted(names)


@case
def test_rewind_sees_what_is_new() -> Answer:
    filled(5)
    with Directory("d") as directory:
        before = len(list(directory))
        put("d/new")
        os.unlink("d/0000-" + "n" * 60)
        end = directory.read() is None
        directory.rewind()
        after = set(directory)
    return before, end, len(after), b"new" in after


@case
def test_a_name_made_before_the_first_read_is_listed() -> Answer:
    filled(3)
    with Directory("d") as directory:
        put("d/new")
        return b"new" in set(directory)


@case
def test_two_streams_of_one_directory() -> Answer:
    filled(50)
    with Directory("d") as one, Directory("d") as two:
        first = [next(iter(one)) for _ in range(20)]
        second = list(two)
        rest = list(one)
    return sorted(first + rest) == sorted(second), len(second)


@case
def test_a_removed_directory_lists_nothing() -> Answer:
    os.mkdir("d")
    with Directory("d") as directory:
        os.rmdir("d")
        return [name for name in directory if name not in (b".", b"..")]


@case
def test_a_listing_after_a_rename_of_the_directory() -> Answer:
    names = filled(200)
    with Directory("d") as directory:
        first = [next(iter(directory)) for _ in range(50)]
        os.rename("d", "moved")
        rest = list(directory)
    return {*first, *rest} == {*names, b".", b".."}


@case
def test_scandir_knows_the_kinds_and_stats_are_right() -> Answer:
    os.mkdir("d")
    for kind in ("file", "empty", "link-file", "fifo"):
        KINDS[kind](f"d/{kind}")
    found = {}
    for entry in os.scandir("d"):
        seen = entry.stat(follow_symlinks=False)
        found[entry.name] = (entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False),
                             entry.is_symlink(), oct(seen.st_mode), seen.st_nlink)  # fmt: skip
    return found


@case
def test_positions_of_a_directory_handle() -> Answer:
    filled(10)
    with handle("d", os.O_RDONLY) as directory:
        return [
            outcome(os.lseek, directory, 0, os.SEEK_SET),
            sorted(os.listdir(directory)) == sorted(os.listdir("d")),
            sorted(os.listdir(directory)) == sorted(os.listdir("d")),
        ]


@case
def test_many_names_are_made_and_found_and_removed() -> Answer:
    names = [f"name{number}" for number in range(300)]
    os.mkdir("d")
    for name in names:
        os.mkfifo(f"d/{name}")
    links = os.stat("d").st_nlink
    found = sum(os.path.lexists(f"d/{name}") for name in names)
    for name in names:
        os.unlink(f"d/{name}")
    return links, found, os.listdir("d"), [os.path.lexists(f"d/{name}") for name in names[:5]]
