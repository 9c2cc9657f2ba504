"""open(2): what its flags do, and what keeps a file from being opened."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.posix.calls import ALICE, Answer, about, acting_as, each, get, handle, opened, outcome, put, tree
from tests.posix.stage import case

PAGE = 4096
FLAGS = {
    "read": os.O_RDONLY,
    "write": os.O_WRONLY,
    "both": os.O_RDWR,
    "neither": os.O_ACCMODE,
}
MORE = {
    "plain": 0,
    "append": os.O_APPEND,
    "truncate": os.O_TRUNC,
    "create": os.O_CREAT,
    "create-truncate": os.O_CREAT | os.O_TRUNC,
    "sync": os.O_SYNC,
    "dsync": os.O_DSYNC,
    "nonblock": os.O_NONBLOCK,
    "noctty": os.O_NOCTTY,
    "cloexec": os.O_CLOEXEC,
}


@case
@pytest.mark.parametrize("more", MORE)
@pytest.mark.parametrize("access", FLAGS)
def test_what_a_handle_may(access: str, more: str) -> Answer:
    put("file", b"content")
    with handle("file", FLAGS[access] | MORE[more]) as file:
        said = each(
            {
                "read": lambda: os.read(file, 4),
                "write": lambda: os.write(file, b"new"),
                "seek": lambda: os.lseek(file, 0, os.SEEK_CUR),
                "pread": lambda: os.pread(file, 100, 0),
                "pwrite": lambda: os.pwrite(file, b"X", 1),
                "truncate": lambda: os.ftruncate(file, 5),
                "sync": lambda: os.fsync(file),
                "list": lambda: os.listdir(file),
            }
        )
    return said, tree()


@case
@pytest.mark.parametrize("access", FLAGS)
def test_what_a_handle_of_a_directory_may(access: str) -> Answer:
    os.mkdir("d")
    put("d/file")
    said = outcome(opened, "d", FLAGS[access])
    if said != "ok":
        return said
    with handle("d", FLAGS[access]) as directory:
        return each(
            {
                "read": lambda: os.read(directory, 4),
                "write": lambda: os.write(directory, b"new"),
                "truncate": lambda: os.ftruncate(directory, 5),
                "sync": lambda: os.fsync(directory),
                "datasync": lambda: os.fdatasync(directory),
                "list": lambda: os.listdir(directory),
                "chmod": lambda: os.fchmod(directory, 0o700),
                "stat": lambda: about(directory),
            }
        )


@case
def test_path_handles_only_point() -> Answer:
    put("file")
    with handle("file", os.O_PATH) as file:
        return each(
            {
                "read": lambda: os.read(file, 4),
                "write": lambda: os.write(file, b"new"),
                "chmod": lambda: os.fchmod(file, 0o600),
                "stat": lambda: about(file),
                "xattr": lambda: os.getxattr(file, "user.a"),
                "reopened": lambda: opened(f"/proc/self/fd/{file}", os.O_RDWR),
            }
        )


@case
def test_exclusive_creation_has_one_winner() -> Answer:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    os.symlink("target", "link")
    return [outcome(opened, name, flags) for name in ("new", "new", "link", "target", "link")]


@case
def test_creation_through_a_dangling_link() -> Answer:
    os.symlink("target", "link")
    return outcome(opened, "link", os.O_CREAT | os.O_WRONLY), tree()


@case
def test_creation_with_exclusive_nofollow_and_directory_flags() -> Answer:
    os.symlink("target", "link")
    return [
        outcome(opened, "link", os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW),
        outcome(opened, "link", os.O_DIRECTORY),
        outcome(opened, "new/", os.O_CREAT | os.O_WRONLY),
        outcome(opened, "new", os.O_CREAT | os.O_DIRECTORY),
        outcome(opened, ".", os.O_CREAT | os.O_RDONLY),
        sorted(os.listdir()),
    ]


@case
def test_append_from_two_handles() -> Answer:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with handle("file", flags) as one, handle("file", flags) as two:
        for number in range(20):
            os.write((one, two)[number % 2], b"%02d," % number)
        os.lseek(one, 0, os.SEEK_SET)
        os.write(one, b"end")
        position = os.lseek(one, 0, os.SEEK_CUR)
    return get("file"), position


@case
def test_append_and_pwrite() -> Answer:
    """Linux appends, whatever the offset."""
    put("file", b"content")
    with handle("file", os.O_RDWR | os.O_APPEND) as file:
        said = [os.pwrite(file, b"XX", 1), os.lseek(file, 0, os.SEEK_CUR), os.pread(file, 3, 2)]
        said.append(os.pwritev(file, [b"Y"], 0, os.RWF_APPEND))
    return said, get("file")


@case
def test_append_after_a_truncation() -> Answer:
    with handle("file", os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
        os.write(file, b"long content")
        os.truncate("file", 4)
        os.write(file, b"END")
        os.truncate("file", 10)
        os.write(file, b"!")
    return get("file")


@case
def test_a_write_behind_a_truncation_leaves_zeros() -> Answer:
    with handle("file", os.O_WRONLY | os.O_CREAT) as file:
        os.write(file, b"long content")
        opened("file", os.O_WRONLY | os.O_TRUNC)
        os.write(file, b"END")
    return get("file")


@case
@pytest.mark.parametrize("flag", ["O_SYNC", "O_DSYNC"])
def test_synchronous_writes(flag: str) -> Answer:
    with handle("file", os.O_RDWR | os.O_CREAT | getattr(os, flag)) as file:
        said = [os.write(file, b"a" * 10_000), os.pwrite(file, b"b", 5), os.ftruncate(file, 100)]
        said.append(os.pread(file, 8, 0))
    return said, len(get("file"))


def aligned(size: int) -> Any:
    import mmap

    return mmap.mmap(-1, size)


@case(reference="ext4")
@pytest.mark.parametrize("size", [PAGE, 16 * PAGE, 1 << 20])
def test_direct(size: int) -> Answer:
    memory = aligned(size)
    memory.write(os.urandom(size))
    with handle("file", os.O_RDWR | os.O_CREAT | os.O_DIRECT) as file:
        said = [os.write(file, memory), os.fstat(file).st_size]
        back = aligned(size)
        said.append(os.preadv(file, [back], 0))
        said.append(back[:] == memory[:])
        said.append(os.preadv(file, [back], size))
        os.ftruncate(file, size - 1000)
        said.append(os.preadv(file, [back], size - PAGE))
    return said, get("file") == memory[: size - 1000]


@case
def test_direct_and_cached_handles_see_each_other() -> Answer:
    memory = aligned(PAGE)
    memory.write(b"d" * PAGE)
    put("file", b"c" * 3 * PAGE)
    with handle("file", os.O_RDWR | os.O_DIRECT) as direct, handle("file", os.O_RDWR) as cached:
        os.pwrite(direct, memory, PAGE)
        said = [os.pread(cached, 2 * PAGE, PAGE // 2)]
        os.pwrite(cached, b"again", 0)
        os.preadv(direct, [memory], 0)
        said.append(memory[:10])
    return said


@case
def test_a_program_that_runs_is_not_written() -> Answer:
    """ETXTBSY both ways."""
    import shutil
    import subprocess

    program = shutil.which("sleep")
    assert program is not None
    shutil.copy(program, "program")
    os.chmod("program", 0o755)
    with handle("program", os.O_WRONLY):
        try:
            subprocess.run(["./program", "0"], check=True)
            first = "ran"
        except OSError as error:
            first = os.strerror(error.errno or 0)
    with subprocess.Popen(["./program", "60"]) as running:
        said = each(
            {
                "write": lambda: opened("program", os.O_WRONLY),
                "both": lambda: opened("program", os.O_RDWR),
                "truncate": lambda: os.truncate("program", 0),
                "read": lambda: opened("program", os.O_RDONLY),
                "unlink": lambda: os.unlink("program"),
            }
        )
        running.kill()
    return first, said


@case
def test_a_script_runs() -> Answer:
    import subprocess

    put("script", b"#!/bin/sh\necho ran $1\n", mode=0o755)
    return subprocess.run(["./script", "well"], check=True, capture_output=True).stdout


@case
def test_handles_by_way_of_proc() -> Answer:
    put("file", b"content")
    with handle("file", os.O_RDONLY) as file:
        os.rename("file", "moved")
        os.chmod("moved", 0o600)
        return (
            os.path.basename(os.readlink(f"/proc/self/fd/{file}")),
            outcome(opened, f"/proc/self/fd/{file}", os.O_RDWR | os.O_TRUNC),
            tree(),
        )


@case
def test_relative_to_directory_handles() -> Answer:
    os.makedirs("a/b")
    with handle("a", os.O_RDONLY) as directory, handle("a/b", os.O_RDONLY) as inner:
        os.mkdir("made", dir_fd=directory)
        os.symlink("target", "link", dir_fd=inner)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=inner))
        os.link("file", "hard", src_dir_fd=inner, dst_dir_fd=directory)
        os.rename("file", "moved", src_dir_fd=inner, dst_dir_fd=directory)
        os.unlink("hard", dir_fd=directory)
        os.rmdir("made", dir_fd=directory)
        os.chmod("moved", 0o640, dir_fd=directory)
        os.utime("moved", ns=(1, 2), dir_fd=directory)
        os.mkfifo("fifo", dir_fd=directory)
        said = [os.readlink("link", dir_fd=inner), os.stat("moved", dir_fd=directory).st_mtime_ns]
        said.append(outcome(os.rmdir, "b", dir_fd=directory))
        with handle("a/moved", os.O_RDONLY) as file:
            said.append(outcome(os.mkdir, "x", dir_fd=file))
    return said, tree()


@case(root=True)
@pytest.mark.parametrize("mode", [0o600, 0o622, 0o666], ids=oct)
@pytest.mark.parametrize("kind", ["file", "fifo"])
def test_create_over_files_of_others_in_sticky_directories(kind: str, mode: int) -> Answer:
    """protected_regular and protected_fifos are the machine's settings."""
    if kind == "file":
        put("it")
    else:
        os.mkfifo("it")
    os.chmod("it", mode)
    os.chmod(".", 0o1777)
    with acting_as(ALICE):
        return outcome(opened, "it", os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK)


@case
def test_temporary_files_without_a_name() -> Answer:
    return outcome(opened, ".", os.O_TMPFILE | os.O_RDWR)


FS_IOC_GETFLAGS = 0x80086601
FICLONE = 0x40049409


@case
@pytest.mark.parametrize("request_name", ["flags", "clone", "nonsense"])
def test_ioctl(request_name: str) -> Answer:
    import fcntl

    put("file", b"content")
    with handle("file", os.O_RDWR) as file, handle("other", os.O_RDWR | os.O_CREAT) as other:
        match request_name:
            case "flags":
                return outcome(fcntl.ioctl, file, FS_IOC_GETFLAGS, bytes(8)) != "ENOTTY"
            case "clone":
                return outcome(fcntl.ioctl, other, FICLONE, file)
            case _:
                return outcome(fcntl.ioctl, file, 0x12345, bytes(8))
