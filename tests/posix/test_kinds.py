"""What each call does to each kind of object: its outcome, and what is there afterwards."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any

import pytest

from tests.posix.calls import (
    KINDS,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    Answer,
    about,
    kinds,
    opened,
    outcome,
    put,
    renameat2,
    tree,
    umask,
)
from tests.posix.stage import case

O_PATH = os.O_PATH
CALLS: dict[str, Callable[[], Any]] = {
    "chmod": lambda: os.chmod("it", 0o640),
    "chmod-special": lambda: os.chmod("it", 0o7777),
    "chown": lambda: os.chown("it", os.getuid(), os.getgid()),
    "lchown": lambda: os.lchown("it", os.getuid(), os.getgid()),
    "link": lambda: os.link("it", "new", follow_symlinks=False),
    "link-followed": lambda: os.link("it", "new", follow_symlinks=True),
    "mkdir-there": lambda: os.mkdir("it"),
    "mkfifo-there": lambda: os.mkfifo("it"),
    "mknod-there": lambda: os.mknod("it", stat.S_IFSOCK | 0o600),
    "symlink-there": lambda: os.symlink("target", "it"),
    "readlink": lambda: os.readlink("it"),
    "rmdir": lambda: os.rmdir("it"),
    "unlink": lambda: os.unlink("it"),
    "unlink-slash": lambda: os.unlink("it/"),
    "rename-away": lambda: os.rename("it", "new"),
    "rename-itself": lambda: os.rename("it", "it"),
    "rename-below-itself": lambda: os.rename("it", "it/below"),
    "truncate-shorter": lambda: os.truncate("it", 2),
    "truncate-longer": lambda: os.truncate("it", 20),
    "truncate-negative": lambda: os.truncate("it", -1),
    "open-read": lambda: opened("it", os.O_RDONLY | os.O_NONBLOCK),
    "open-write": lambda: opened("it", os.O_WRONLY | os.O_NONBLOCK),
    "open-both": lambda: opened("it", os.O_RDWR | os.O_NONBLOCK),
    "open-truncating": lambda: opened("it", os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK),
    "open-truncating-read": lambda: opened("it", os.O_RDONLY | os.O_TRUNC | os.O_NONBLOCK),
    "open-creating": lambda: opened("it", os.O_RDONLY | os.O_CREAT | os.O_NONBLOCK),
    "open-exclusive": lambda: opened("it", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NONBLOCK),
    "open-directory": lambda: opened("it", os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK),
    "open-directory-write": lambda: opened("it", os.O_RDWR | os.O_DIRECTORY | os.O_NONBLOCK),
    "open-nofollow": lambda: opened("it", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK),
    "open-path": lambda: opened("it", O_PATH | os.O_NOFOLLOW),
    "open-creating-directory": lambda: opened("it", os.O_RDONLY | os.O_CREAT | os.O_DIRECTORY),
    "utimens": lambda: os.utime("it", ns=(10**9 + 1, 10**9 + 2)),
    "utimens-nofollow": lambda: os.utime("it", ns=(1, 2), follow_symlinks=False),
    "setxattr-user": lambda: os.setxattr("it", "user.name", b"value"),
    "setxattr-user-nofollow": lambda: os.setxattr("it", "user.name", b"value", follow_symlinks=False),
    "getxattr": lambda: os.getxattr("it", "user.name", follow_symlinks=False),
    "removexattr": lambda: os.removexattr("it", "user.name", follow_symlinks=False),
    "listxattr": lambda: str(os.listxattr("it", follow_symlinks=False)),
    "scandir": lambda: str(sorted(os.listdir("it"))),
}


@case
@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("call", CALLS)
def test_call_on(call: str, kind: str) -> Answer:
    KINDS[kind]("it")
    said = outcome(CALLS[call])
    return said, tree()


REPLACED = ["absent", "file", "empty", "full", "link-file", "fifo"]
MOVED = ["file", "empty", "full", "link-directory", "socket"]
FLAGS = {"plain": 0, "noreplace": RENAME_NOREPLACE, "exchange": RENAME_EXCHANGE}


@case
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("replaced", REPLACED)
@pytest.mark.parametrize("moved", MOVED)
def test_rename_over(moved: str, replaced: str, flags: str) -> Answer:
    os.mkdir("from")
    os.mkdir("to")
    KINDS[moved]("from/old")
    if replaced != "absent":
        KINDS[replaced]("to/new")
    said = outcome(renameat2, "from/old", "to/new", FLAGS[flags])
    return said, tree(), [os.stat(path).st_nlink for path in ("from", "to")]


@case
@pytest.mark.parametrize("replaced", REPLACED)
@pytest.mark.parametrize("moved", MOVED)
def test_rename_within_a_directory(moved: str, replaced: str) -> Answer:
    KINDS[moved]("old")
    if replaced != "absent":
        KINDS[replaced]("new")
    return outcome(os.rename, "old", "new"), tree(), os.stat(".").st_nlink


FLAG_SETS = {
    "whiteout-exchange": RENAME_WHITEOUT | RENAME_EXCHANGE,
    "noreplace-exchange": RENAME_NOREPLACE | RENAME_EXCHANGE,
    "whiteout": RENAME_WHITEOUT,
    "unknown": 8,
    "unknown-high": 1 << 31,
}


@case
@pytest.mark.parametrize("flags", FLAG_SETS)
def test_rename_with_other_flags(flags: str) -> Answer:
    put("old")
    put("new")
    return outcome(renameat2, "old", "new", FLAG_SETS[flags]), sorted(os.listdir())


@case
@pytest.mark.parametrize("flags", FLAGS)
def test_rename_between_two_names_of_one_file(flags: str) -> Answer:
    put("a")
    os.link("a", "b")
    said = outcome(renameat2, "a", "b", FLAGS[flags])
    return said, tree()


@case
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a", "a/b/new"),
        ("a/b", "a"),
        ("a/b/c", "a"),
        ("a", "a/b"),
        ("a/b", "a/b/c"),
        (".", "new"),
        ("a/..", "new"),
        ("a", "."),
        ("a", "a/b/.."),
        ("a/b", "absent/new"),
        ("absent", "a/b/new"),
        ("absent", "a"),
        ("a", "link/new"),
    ],
)
def test_rename_along_a_branch(old: str, new: str, flags: str) -> Answer:
    os.makedirs("a/b/c")
    os.symlink("a/b", "link")
    return outcome(renameat2, old, new, FLAGS[flags]), tree()


@case
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o027, 0o077, 0o777], ids=oct)
@pytest.mark.parametrize("maker", ["file", "directory", "fifo", "socket", "link"])
def test_umask(maker: str, mask: int) -> Answer:
    with umask(mask):
        {
            "file": lambda: opened("it", os.O_WRONLY | os.O_CREAT, 0o7777),
            "directory": lambda: os.mkdir("it", 0o7777),
            "fifo": lambda: os.mkfifo("it", 0o666),
            "socket": lambda: os.mknod("it", stat.S_IFSOCK | 0o777),
            "link": lambda: os.symlink("target", "it"),
        }[maker]()
    return about("it")


@case
@pytest.mark.parametrize(
    "mode", [0o000, 0o111, 0o444, 0o644, 0o1777, 0o2755, 0o4755, 0o6711, 0o7000, 0o7777], ids=oct
)
@pytest.mark.parametrize("kind", ["file", "empty", "fifo"])
def test_chmod_keeps_exactly_the_bits(kind: str, mode: int) -> Answer:
    KINDS[kind]("it")
    os.chmod("it", mode)
    first = about("it")
    os.chmod("it", mode ^ 0o777)
    return first, about("it")


@case
@pytest.mark.parametrize("kind", kinds())
def test_links_of_an_object_are_counted(kind: str) -> Answer:
    KINDS[kind]("it")
    said = [os.lstat("it").st_nlink]
    for number in range(3):
        said.append(outcome(os.link, "it", f"name{number}", follow_symlinks=False))
        said.append(os.lstat("it").st_nlink)
    for number in range(3):
        said.append(outcome(os.unlink, f"name{number}"))
        said.append(os.lstat("it").st_nlink)
    return said


@case
def test_links_of_directories_are_counted() -> Answer:
    links = []

    def count() -> None:
        links.append([os.stat(path).st_nlink for path in (".", "a", "b")])

    os.mkdir("a")
    os.mkdir("b")
    count()
    os.mkdir("a/one")
    count()
    put("a/file")
    count()
    os.rename("a/one", "b/one")
    count()
    os.mkdir("a/two")
    os.rename("a/two", "b/one")
    count()
    renameat2("a/file", "b/one", RENAME_EXCHANGE)
    count()
    os.rmdir("a/file")
    count()
    return links


@case(root=True)
@pytest.mark.parametrize("device", [(0, 0), (1, 3), (8, 255), (255, 255), (259, 4097), (4095, 1048575)])
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_device_numbers(kind: int, device: tuple[int, int]) -> Answer:
    os.mknod("it", kind | 0o640, os.makedev(*device))
    seen = os.stat("it")
    return os.major(seen.st_rdev), os.minor(seen.st_rdev), about("it"), outcome(opened, "it", os.O_RDONLY)


@case
@pytest.mark.parametrize("kind", [stat.S_IFREG, 0, stat.S_IFDIR, stat.S_IFLNK, 0o150000])
def test_mknod_of_odd_kinds(kind: int) -> Answer:
    return outcome(os.mknod, "it", kind | 0o640), tree()


@case
def test_a_fifo_carries_bytes() -> Answer:
    os.mkfifo("fifo")
    reading = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open("fifo", os.O_WRONLY | os.O_NONBLOCK)
    answer = [os.write(writing, b"through"), os.read(reading, 100), outcome(os.read, reading, 1)]
    os.close(writing)
    answer.append(os.read(reading, 1))
    os.close(reading)
    return [*answer, os.stat("fifo").st_size, outcome(opened, "fifo", os.O_WRONLY | os.O_NONBLOCK)]


@case
def test_a_socket_is_bound_and_reached_by_name() -> Answer:
    import socket

    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket")
        server.listen()
        client.connect("socket")
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"hello")
            said = accepted.recv(10)
        again = outcome(server.bind, "socket")
    return said, again, about("socket", "type", "size", "links")
