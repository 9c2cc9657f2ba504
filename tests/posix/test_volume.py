"""The file system as a whole: statvfs, df, sync, and what is there after a remount."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.posix.calls import Answer, handle, outcome, put
from tests.posix.differences import DIFFERENT
from tests.posix.stage import Stage, case
from tests.processes import MountedFileSystem

MIB = 1 << 20


def settled(path: str) -> None:
    with handle(path, os.O_RDWR) as file:
        os.fsync(file)


@case
def test_what_statvfs_says_of_names_and_blocks() -> Answer:
    seen = os.statvfs(".")
    assert seen.f_blocks >= seen.f_bfree >= seen.f_bavail > 0
    assert seen.f_files >= seen.f_ffree >= seen.f_favail > 0
    return seen.f_namemax, seen.f_frsize, seen.f_flag & os.ST_RDONLY


@case
def test_statvfs_is_the_same_from_everywhere() -> Answer:
    put("file")
    os.mkfifo("fifo")
    with handle("file", os.O_RDONLY) as file:
        numbers = [
            (seen.f_blocks, seen.f_frsize, seen.f_files)
            for seen in map(os.statvfs, (".", "file", "fifo", file))
        ]
    return len({*numbers})


@case
def test_inodes_are_counted() -> Answer:
    before = os.statvfs(".")
    for number in range(20):
        put(f"file{number}", b"")
    after = os.statvfs(".")
    for number in range(20):
        os.unlink(f"file{number}")
    end = os.statvfs(".")
    used = [seen.f_files - seen.f_ffree for seen in (before, after, end)]
    # What former cases unlinked may still be on its way out.
    return used[1] - used[0] > 10, used[2] < used[1]


def test_df_counts_user_data(stage: Stage) -> None:
    """What lies in the grid is used, holes are not, and the total does not depend on what is used."""
    path = stage.mount / "df"
    before = os.statvfs(stage.mount)
    path.write_bytes(os.urandom(8 * MIB))
    settled(str(path))
    with (stage.mount / "df-hole").open("wb") as file:
        file.truncate(1 << 50)
    after = os.statvfs(stage.mount)
    assert after.f_frsize == before.f_frsize
    assert after.f_blocks == before.f_blocks
    used = [(seen.f_blocks - seen.f_bfree) * seen.f_frsize for seen in (before, after)]
    assert used[1] - used[0] < 1 << 40


def test_df_shows_blocks_and_inodes(stage: Stage) -> None:
    def shell(*words: str) -> list[str]:
        done = subprocess.run([*words, stage.mount], check=True, capture_output=True, text=True)
        return done.stdout.splitlines()[1].split()

    size, used, available = (int(word) for word in shell("df", "-B1", "--output=size,used,avail"))
    assert size >= used + available > 0
    inodes, inodes_used, inodes_free = (int(word) for word in shell("df", "--output=itotal,iused,iavail"))
    assert inodes == inodes_used + inodes_free
    assert inodes_used > 1


@case
@pytest.mark.parametrize("call", ["fsync", "fdatasync", "sync_file_range", "syncfs"])
def test_sync_calls_succeed(call: str) -> Answer:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    put("file")
    with handle("file", os.O_RDWR) as file:
        os.write(file, b"data")
        if call == "sync_file_range":
            return libc.sync_file_range(file, ctypes.c_int64(0), ctypes.c_int64(0), 7)
        if call == "syncfs":
            return libc.syncfs(file), os.strerror(ctypes.get_errno())
        return outcome(getattr(os, call), file)


@case
def test_inode_numbers_tell_files_apart() -> Answer:
    for number in range(50):
        put(f"file{number}", b"")
    os.link("file0", "hard")
    numbers = {name: os.stat(name).st_ino for name in os.listdir()}
    return (
        len({*numbers.values()}),
        numbers["hard"] == numbers["file0"],
        len({os.stat(name).st_dev for name in numbers}),
    )


@case
def test_pathconf() -> Answer:
    return [
        outcome(os.pathconf, ".", name)
        for name in ("PC_NAME_MAX", "PC_PATH_MAX", "PC_CHOWN_RESTRICTED", "PC_NO_TRUNC", "PC_PIPE_BUF")
    ]


FIELDS = ("mode", "ino", "nlink", "uid", "gid", "size", "rdev", "mtime_ns", "ctime_ns", "atime_ns")


def described(top: bytes, result: dict[bytes, Any]) -> dict[bytes, Any]:
    """All attributes of everything, times too, but what looking moves: atimes of directories, links."""
    for entry in os.scandir(top):
        seen = entry.stat(follow_symlinks=False)
        result[entry.path] = fields = {name: getattr(seen, f"st_{name}") for name in FIELDS}
        if not stat.S_ISREG(seen.st_mode):
            del fields["atime_ns"]
        if entry.name == b"it":  # what the cases of extended attributes work on
            fields["xattrs"] = os.listxattr(entry.path, follow_symlinks=False)
        if stat.S_ISDIR(seen.st_mode):
            described(entry.path, result)
    return result


@pytest.mark.after_the_cases(1)
def test_everything_is_the_same_after_a_remount(
    stage: Stage, file_system_of_cases: MountedFileSystem
) -> None:
    """What the kernel showed is what the daemon kept: modes, owners, links, sizes and all three times."""
    top = os.fsencode(stage.mount)
    before = described(top, {})
    file_system_of_cases.remount()
    after = described(top, {})
    assert before.keys() == after.keys()
    changed = {
        name: [(field, was, after[name][field]) for field, was in seen.items() if was != after[name][field]]
        for name, seen in before.items()
        if seen != after[name]
    }
    assert changed == {}


def test_the_table_names_cases() -> None:
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for name in DIFFERENT:
        assert f"def {name.partition('[')[0]}(" in source


@pytest.mark.after_the_cases(3)
def test_noatime(stage: Stage, file_system_of_cases: MountedFileSystem) -> None:
    file_system_of_cases.umount()
    file_system_of_cases.options = ("noatime",)
    file_system_of_cases.mount()
    place = stage.mount / "noatime"
    place.mkdir()
    (place / "file").write_bytes(b"content")
    (place / "link").symlink_to("file")
    for path in (place / "file", place / "link", place):
        os.utime(path, ns=(5, 6), follow_symlinks=False)
    assert os.listdir(place)
    assert (place / "link").read_bytes() == b"content"
    for path in (place / "file", place / "link", place):
        assert path.lstat().st_atime_ns == 5
