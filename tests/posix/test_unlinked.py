"""Files and directories without a name, which stay usable while they are open."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.posix.calls import (
    AT_FDCWD,
    KINDS,
    Answer,
    about,
    changed_times,
    get,
    handle,
    kinds,
    opened,
    outcome,
    put,
    tree,
)
from tests.posix.stage import case

_libc = ctypes.CDLL(None, use_errno=True)
AT_EMPTY_PATH, AT_SYMLINK_FOLLOW = 0x1000, 0x400


def linkat(directory: int, old: str, new: str, flags: int) -> None:
    if _libc.linkat(directory, old.encode(), AT_FDCWD, new.encode(), flags) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


USES: dict[str, Callable[[int], Any]] = {
    "stat": about,
    "read": lambda file: os.pread(file, 100, 0),
    "write": lambda file: (os.pwrite(file, b"new", 3), os.pread(file, 100, 0)),
    "append": lambda file: (os.pwrite(file, b"end", 100_000), os.fstat(file).st_size),
    "truncate": lambda file: (os.ftruncate(file, 3), os.pread(file, 100, 0), os.fstat(file).st_size),
    "extend": lambda file: (os.ftruncate(file, 30), os.pread(file, 100, 0)),
    "chmod": lambda file: (os.fchmod(file, 0o640), about(file)),
    "chown": lambda file: (os.fchown(file, os.getuid(), os.getgid()), about(file)),
    "utimens": lambda file: (os.utime(file, ns=(5, 6)), os.fstat(file).st_mtime_ns),
    "sync": os.fsync,
    "xattr": lambda file: (
        os.setxattr(file, "user.a", b"b"),
        os.getxattr(file, "user.a"),
        os.listxattr(file),
    ),
    "reopen": lambda file: opened(f"/proc/self/fd/{file}", os.O_RDWR),
    "reopen-truncating": lambda file: (
        opened(f"/proc/self/fd/{file}", os.O_WRONLY | os.O_TRUNC),
        about(file),
    ),
    "link-by-proc": lambda file: linkat(AT_FDCWD, f"/proc/self/fd/{file}", "again", AT_SYMLINK_FOLLOW),
    "link-by-handle": lambda file: linkat(file, "", "again", AT_EMPTY_PATH),
    "allocate": lambda file: (os.posix_fallocate(file, 0, 1000), os.fstat(file).st_size),
    "new-of-that-name": lambda file: (put("file", b"another"), os.pread(file, 100, 0), tree()),
}


@case
@pytest.mark.parametrize("way", ["unlinked", "replaced"])
@pytest.mark.parametrize("use", USES)
def test_a_nameless_file(use: str, way: str) -> Answer:
    put("file", b"content")
    with handle("file", os.O_RDWR) as file:
        if way == "unlinked":
            os.unlink("file")
        else:
            put("other", b"other")
            os.rename("other", "file")
        return outcome(USES[use], file), os.fstat(file).st_nlink, tree()


@case
@pytest.mark.parametrize("kind", kinds())
def test_a_handle_that_only_points_to_what_is_nameless(kind: str) -> Answer:
    KINDS[kind]("it")
    with handle("it", os.O_PATH | os.O_NOFOLLOW) as pointer:
        said = [outcome(os.unlink, "it"), outcome(os.rmdir, "it")]
        return said, about(pointer), outcome(linkat, pointer, "", "again", AT_EMPTY_PATH)


@case
def test_two_handles_of_a_nameless_file() -> Answer:
    put("file", b"content")
    with handle("file", os.O_RDWR) as one, handle("file", os.O_RDONLY) as two:
        os.unlink("file")
        os.pwrite(one, b"NEW", 0)
        said = [os.pread(two, 10, 0)]
        os.close(os.dup(one))
        os.ftruncate(one, 4)
        said.append(os.pread(two, 10, 0))
    return said


@case
def test_the_last_of_two_names() -> Answer:
    put("file")
    os.link("file", "other")
    with handle("file", os.O_RDONLY) as file:
        links = [os.fstat(file).st_nlink]
        for name in ("file", "other"):
            links.append(changed_times(lambda name=name: os.unlink(name), file)[str(file)])
            links.append(os.fstat(file).st_nlink)
    return links


@case
def test_created_unlinked_and_filled() -> Answer:
    with handle("file", os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
        os.unlink("file")
        for number in range(50):
            os.write(file, b"%05d" % number * 1000)
        os.fsync(file)
        return os.fstat(file).st_size, os.pread(file, 10, 200_000), os.listdir()


@case
def test_a_handle_of_a_removed_directory() -> Answer:
    os.mkdir("d")
    with handle("d", os.O_RDONLY) as directory:
        os.rmdir("d")
        return (
            about(directory),
            os.listdir(directory),
            outcome(os.mkdir, "new", dir_fd=directory),
            outcome(os.stat, "..", dir_fd=directory) in ("ENOENT",) or "found",
            outcome(os.fsync, directory),
            outcome(os.fchmod, directory, 0o700),
        )


@case
def test_the_working_directory_is_removed() -> Answer:
    here = os.getcwd()
    os.mkdir("d")
    os.chdir("d")
    os.rmdir("../d")
    said = [outcome(os.getcwd), outcome(os.mkdir, "new"), os.listdir("."), outcome(os.rmdir, "../d")]
    os.chdir(here)
    return said, os.listdir()


@case
def test_a_directory_replaced_by_rename_while_open() -> Answer:
    os.mkdir("old")
    os.mkdir("new")
    put("new/inside")
    with handle("old", os.O_RDONLY) as directory:
        os.rename("new", "old")
        return os.fstat(directory).st_nlink, os.listdir(directory), os.listdir("old")


@case
def test_readers_keep_the_old_version() -> Answer:
    put("file", b"version 0" * 1000)
    with handle("file", os.O_RDONLY) as reader:
        for version in range(1, 5):
            put("fresh", b"version %d" % version * 1000)
            os.rename("fresh", "file")
        return os.pread(reader, 20, 0), get("file")[:20]


def test_linkat_reports_its_errno() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
        linkat(AT_FDCWD, "/absent", "/nowhere", 0)
