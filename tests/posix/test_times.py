"""Which times each call changes, of the object and of its directories; setting them (utimensat)."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any

import pytest

from tests.posix.calls import (
    ALICE,
    BOB,
    KINDS,
    OLD,
    RENAME_EXCHANGE,
    UTIME_NOW,
    UTIME_OMIT,
    Answer,
    acting_as,
    changed_times,
    handle,
    kinds,
    opened,
    outcome,
    put,
    renameat2,
    utimensat,
    write_all,
)
from tests.posix.stage import case

SECOND = 10**9

# ---- what calls change ------------------------------------------------------------------------------

ON_NAMES: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "chmod": (lambda: os.chmod("d/it", 0o600), ("d", "d/it")),
    "chown": (lambda: os.lchown("d/it", os.getuid(), os.getgid()), ("d", "d/it")),
    "chown-nothing": (lambda: os.lchown("d/it", -1, -1), ("d", "d/it")),
    "link": (lambda: os.link("d/it", "e/new", follow_symlinks=False), ("d", "e", "d/it", "e/new")),
    "unlink": (lambda: os.unlink("d/it"), ("d", "d/it", ".")),
    "unlink-one-of-two": (lambda: os.unlink("d/other"), ("d", "d/it")),
    "rename": (lambda: os.rename("d/it", "e/new"), ("d", "e", "e/new", ".")),
    "rename-within": (lambda: os.rename("d/it", "d/new"), ("d", "d/new")),
    "rename-over": (lambda: os.rename("d/it", "e/file"), ("d", "e", "e/file", "e/twin")),
    "rename-to-itself": (lambda: os.rename("d/it", "d/it"), ("d", "d/it")),
    "rename-refused": (lambda: os.rename("d/it", "e/full"), ("d", "e", "d/it", "e/full")),
    "exchange": (lambda: renameat2("d/it", "e/file", RENAME_EXCHANGE), ("d", "e", "d/it", "e/file")),
    "rmdir": (lambda: os.rmdir("d/it"), ("d", "d/it")),
    "mkdir-there": (lambda: os.mkdir("d/it"), ("d", "d/it")),
    "utimens": (lambda: os.utime("d/it", ns=(5, 6), follow_symlinks=False), ("d",)),
    "setxattr": (lambda: os.setxattr("d/it", "user.a", b"b", follow_symlinks=False), ("d", "d/it")),
    "truncate": (lambda: os.truncate("d/it", 3), ("d", "d/it")),
    "lstat": (lambda: os.lstat("d/it").st_nlink, ("d", "d/it")),
    "open-read": (lambda: opened("d/it", os.O_RDONLY | os.O_NONBLOCK), ("d", "d/it")),
    "open-write": (lambda: opened("d/it", os.O_WRONLY | os.O_NONBLOCK), ("d", "d/it")),
}


@case
@pytest.mark.parametrize("kind", ["file", "empty", "full", "link-nowhere", "fifo"])
@pytest.mark.parametrize("call", ON_NAMES)
def test_times_of_an_object(call: str, kind: str) -> Answer:
    os.mkdir("d")
    os.mkdir("e")
    os.mkdir("e/full")
    put("e/full/inside")
    put("e/file")
    os.link("e/file", "e/twin")
    KINDS[kind]("d/it")
    outcome(os.link, "d/it", "d/other", follow_symlinks=False)
    return changed_times(ON_NAMES[call][0], *ON_NAMES[call][1])


MAKERS: dict[str, Callable[[], Any]] = {
    "mkdir": lambda: os.mkdir("d/new"),
    "mkfifo": lambda: os.mkfifo("d/new"),
    "mknod": lambda: os.mknod("d/new", stat.S_IFSOCK | 0o600),
    "symlink": lambda: os.symlink("target", "d/new"),
    "open": lambda: opened("d/new", os.O_WRONLY | os.O_CREAT),
    "open-exclusive": lambda: opened("d/new", os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "link": lambda: os.link("file", "d/new"),
    "rename": lambda: os.rename("file", "d/new"),
}


@case
@pytest.mark.parametrize("call", MAKERS)
def test_times_of_a_directory_that_gains_a_name(call: str) -> Answer:
    os.mkdir("d")
    put("file")
    return changed_times(MAKERS[call], "d", "d/new", ".")


@case
@pytest.mark.parametrize("call", MAKERS)
def test_a_new_object_has_three_times_of_now(call: str) -> Answer:
    os.mkdir("d")
    put("file")
    MAKERS[call]()
    seen, directory = os.lstat("d/new"), os.stat("d")
    together = seen.st_ctime_ns - directory.st_mtime_ns
    return abs(together) < SECOND, seen.st_atime_ns == seen.st_mtime_ns or call in ("link", "rename")


# The working file is open as `file`, read and written, with 10 000 bytes.
ON_HANDLES: dict[str, Callable[[int], Any]] = {
    "write": lambda file: os.write(file, b"new"),
    "write-nothing": lambda file: os.write(file, b""),
    "write-at-the-end": lambda file: os.pwrite(file, b"new", 10_000),
    "write-far-out": lambda file: os.pwrite(file, b"new", 1 << 20),
    "write-synced": lambda file: (os.write(file, b"new"), os.fsync(file))[0],
    "pwritev-dsync": lambda file: os.pwritev(file, [b"new"], 5, os.RWF_DSYNC),
    "ftruncate-shorter": lambda file: os.ftruncate(file, 5),
    "ftruncate-longer": lambda file: os.ftruncate(file, 50_000),
    "ftruncate-same": lambda file: os.ftruncate(file, 10_000),
    "ftruncate-zero": lambda file: os.ftruncate(file, 0),
    "fchmod": lambda file: os.fchmod(file, 0o640),
    "fchmod-same": lambda file: os.fchmod(file, stat.S_IMODE(os.fstat(file).st_mode)),
    "fchown": lambda file: os.fchown(file, os.getuid(), os.getgid()),
    "fchown-nothing": lambda file: os.fchown(file, -1, -1),
    "fsync": os.fsync,
    "fdatasync": os.fdatasync,
    "fstat": lambda file: os.fstat(file).st_size,
    "lseek": lambda file: os.lseek(file, 500, os.SEEK_SET),
    "read-nothing": lambda file: os.read(file, 0),
    "fsetxattr": lambda file: os.setxattr(file, "user.new", b"value"),
    "fgetxattr": lambda file: os.getxattr(file, "user.old"),
    "fremovexattr": lambda file: os.removexattr(file, "user.old"),
    "flistxattr": lambda file: len(os.listxattr(file)),
    "posix_fadvise": lambda file: os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED),
    "close-of-another": lambda file: os.close(os.dup(file)),
    "open-truncating": lambda file: opened("file", os.O_WRONLY | os.O_TRUNC),
    "open-reading": lambda file: opened("file", os.O_RDONLY),
    "open-writing": lambda file: opened("file", os.O_RDWR),
    "link": lambda file: os.link("file", "second"),
    "unlink": lambda file: os.unlink("file"),
    "rename": lambda file: os.rename("file", "moved"),
}


@case
@pytest.mark.parametrize("call", ON_HANDLES)
def test_times_of_an_open_file(call: str) -> Answer:
    put("file", b"x" * 10_000)
    os.setxattr("file", "user.old", b"value")
    with handle("file", os.O_RDWR) as file:
        return changed_times(lambda: ON_HANDLES[call](file), file)


@case
@pytest.mark.parametrize("call", ["write", "ftruncate-zero", "write-nothing"])
def test_times_after_the_close(call: str) -> Answer:
    put("file", b"x" * 10_000)

    def change() -> None:
        with handle("file", os.O_RDWR) as file:
            ON_HANDLES[call](file)

    return changed_times(change, "file")


@case
@pytest.mark.parametrize("size", [0, 10])
def test_open_with_truncation_changes_mtime_even_of_an_empty_file(size: int) -> Answer:
    put("file", b"x" * size)
    return changed_times(lambda: opened("file", os.O_WRONLY | os.O_TRUNC), "file", ".")


@case
@pytest.mark.parametrize("length", [0, 5, 7, 8, 100])
def test_truncate_changes_mtime_whatever_the_length(length: int) -> Answer:
    put("file", b"content")
    return changed_times(lambda: os.truncate("file", length), "file")


@case
def test_exclusive_open_that_fails_changes_nothing() -> Answer:
    put("file")
    return changed_times(lambda: opened("file", os.O_CREAT | os.O_EXCL | os.O_WRONLY), "file", ".")


@case
def test_shared_mapping_changes_mtime() -> Answer:
    import mmap

    put("file", bytes(8192))
    with handle("file", os.O_RDWR) as file, mmap.mmap(file, 8192) as memory:

        def change() -> None:
            memory[4000:4010] = b"0123456789"
            memory.flush()

        return changed_times(change, "file")


@case
def test_mtime_does_not_go_back_at_close() -> Answer:
    """The write is stamped when it is made, not when it reaches the server."""
    with handle("file", os.O_WRONLY | os.O_CREAT) as file:
        os.write(file, b"data")
        first = os.fstat(file)
        os.fsync(file)
        second = os.fstat(file)
    third = os.stat("file")
    return (
        first.st_mtime_ns == second.st_mtime_ns == third.st_mtime_ns,
        third.st_mtime_ns == third.st_ctime_ns,
    )


@case
def test_utime_before_the_close_stays() -> Answer:
    """As tar and cp -p do it: write, set the time by the descriptor, close."""
    with handle("file", os.O_WRONLY | os.O_CREAT) as file:
        os.write(file, b"data")
        os.utime(file, ns=(OLD, OLD + 1))
    seen = os.stat("file")
    return seen.st_atime_ns, seen.st_mtime_ns


@case
def test_times_go_on_from_call_to_call() -> Answer:
    """What is done later never has the earlier time, whoever stamps it."""
    put("first")
    os.mkdir("second")
    put("third")
    os.symlink("x", "fourth")
    with handle("fifth", os.O_WRONLY | os.O_CREAT) as file:
        write_all(file, b"more")
    os.chmod("first", 0o600)
    times = [os.lstat(name).st_ctime_ns for name in ("second", "third", "fourth", "fifth", "first")]
    return times == sorted(times)


# ---- atime ------------------------------------------------------------------------------------------

NEWER_ATIME = (OLD + SECOND, OLD)


@case
@pytest.mark.parametrize("kind", ["file", "full"])
def test_reading_moves_an_atime_that_is_older_than_the_mtime(kind: str) -> Answer:
    KINDS[kind]("it")

    def read() -> None:
        if kind == "file":
            with handle("it", os.O_RDONLY) as file:
                os.read(file, 100)
        else:
            os.listdir("it")

    return changed_times(read, "it")


@case
@pytest.mark.parametrize("kind", ["file", "full"])
@pytest.mark.parametrize("age", ["fresh", "old"])
def test_relatime(kind: str, age: str) -> Answer:
    """An atime behind mtime and ctime moves only when it is a day old."""
    import time

    KINDS[kind]("it")
    now = time.time_ns()
    ahead = now + 3600 * SECOND
    os.utime("it", ns=(ahead if age == "fresh" else now - 2 * 86400 * SECOND, OLD))
    if kind == "file":
        with handle("it", os.O_RDONLY) as file:
            os.read(file, 100)
    else:
        os.listdir("it")
    seen = os.stat("it").st_atime_ns
    return {"fresh": seen == ahead, "old": abs(seen - now) < 60 * SECOND}[age]


@case
def test_o_noatime_leaves_the_atime() -> Answer:
    put("file")
    os.utime("file", ns=(OLD, OLD))
    with handle("file", os.O_RDONLY | os.O_NOATIME) as file:
        os.read(file, 100)
    return os.stat("file").st_atime_ns


@case
def test_readlink_and_walking_through_a_link() -> Answer:
    put("file")
    os.symlink("file", "link")
    return changed_times(lambda: (os.stat("link"), None)[1], "link"), os.readlink("link")


# ---- setting times ----------------------------------------------------------------------------------

MOMENTS = {
    "zero": 0,
    "one-nanosecond": 1,
    "nanoseconds": 1_600_000_000_123_456_789,
    "last-nanosecond": 1_600_000_000_999_999_999,
    "1969": -1 * SECOND,
    "1969-nanoseconds": -1,
    "1960": -315_619_200 * SECOND + 123,
    "1902": (1 - (1 << 31)) * SECOND,
    "2037": ((1 << 31) - 1) * SECOND + 7,
    "2038": (1 << 31) * SECOND + 5,
    "2106": (1 << 32) * SECOND + 5,
    "2200": 7_258_118_400 * SECOND + 999_999_999,
}


@case
@pytest.mark.parametrize("kind", ["file", "empty", "link-nowhere", "fifo"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_moment_is_kept(moment: str, kind: str) -> Answer:
    KINDS[kind]("it")
    os.utime("it", ns=(MOMENTS[moment], MOMENTS[moment] + 1), follow_symlinks=False)
    seen = os.lstat("it")
    assert (seen.st_atime_ns, seen.st_mtime_ns) == (MOMENTS[moment], MOMENTS[moment] + 1)
    return seen.st_atime_ns, seen.st_mtime_ns


SPECIAL = {
    "both-now": ((0, UTIME_NOW), (0, UTIME_NOW)),
    "both-omitted": ((0, UTIME_OMIT), (0, UTIME_OMIT)),
    "atime-now": ((0, UTIME_NOW), (0, UTIME_OMIT)),
    "mtime-now": ((0, UTIME_OMIT), (0, UTIME_NOW)),
    "atime-set": ((1234, 5), (0, UTIME_OMIT)),
    "mtime-set": ((0, UTIME_OMIT), (1234, 5)),
    "now-and-set": ((0, UTIME_NOW), (1234, 5)),
    "set-and-now": ((1234, 5), (0, UTIME_NOW)),
    "both-set": ((1234, 5), (-77, 999_999_999)),
    "too-many-nanoseconds": ((0, 10**9), (0, 0)),
    "negative-nanoseconds": ((0, 0), (0, -1)),
    "seconds-ignored-with-now": ((77, UTIME_NOW), (88, UTIME_OMIT)),
}


@case
@pytest.mark.parametrize("kind", ["file", "empty", "link-nowhere"])
@pytest.mark.parametrize("special", SPECIAL)
def test_utimensat(special: str, kind: str) -> Answer:
    nofollow = 0x100
    KINDS[kind]("it")
    changed = changed_times(lambda: utimensat("it", *SPECIAL[special], nofollow), "it")
    seen = os.lstat("it")
    return changed, [time for time in (seen.st_atime_ns, seen.st_mtime_ns) if time < 10**18]


MAY_SET = {
    "owner": (ALICE, 0o444),
    "other-may-write": (BOB, 0o666),
    "other-may-read": (BOB, 0o644),
}


@case(root=True)
@pytest.mark.parametrize(
    "special", ["both-now", "both-omitted", "atime-now", "mtime-now", "both-set", "now-and-set"]
)
@pytest.mark.parametrize("who", MAY_SET)
def test_who_may_set_times(who: str, special: str) -> Answer:
    user, mode = MAY_SET[who]
    put("it", mode=mode)
    os.chown("it", ALICE.uid, ALICE.gid)
    with acting_as(user):
        return outcome(utimensat, "it", *SPECIAL[special])


@case
@pytest.mark.parametrize("kind", kinds())
def test_touch(kind: str) -> Answer:
    KINDS[kind]("it")
    return changed_times(lambda: os.utime("it", follow_symlinks=False), "it", ".")
