"""A mount on another machine that holds the read key only: real daemons, servers and kernel caches."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridfs.exits import FAILED, GRID_UNREACHABLE, NO_SUCH_FILE_SYSTEM, WRONG_KEY
from tests.mount.conftest import MakeFileSystem
from tests.mount.support import content, contents_of, wait_until
from tests.processes import LocalGrid, MountedFileSystem

SEEN_SECONDS = 3.0


@pytest.fixture
def make_follower(tmp_path: Path) -> Iterator[object]:
    made: list[MountedFileSystem] = []

    def make(writer: MountedFileSystem, *, mount: bool = True) -> MountedFileSystem:
        place = tmp_path / f"follower{len(made)}"
        place.mkdir()
        key = place / "read-key"
        writer.command("key", "read", writer.name, "--output", key)
        assert key.stat().st_mode & 0o777 == 0o600
        follower = MountedFileSystem(writer.grid, place / "home", place / "mnt")
        made.append(follower)
        follower.home.mkdir(mode=0o700)
        words = "--servers", writer.grid.servers_file, "--read-key-file", key
        follower.command("follow", follower.name, *words)
        if mount:
            follower.mount()
        return follower

    yield make
    for follower in made:
        follower.tear_down()


def test_a_thousand_changes_are_seen_in_order_and_whole(
    make_file_system: MakeFileSystem, make_follower: MakeFileSystem
) -> None:
    """Each version of a file is one repeated number: bytes of two of them are told apart."""
    writer = make_file_system()
    sizes = [4096, 8192, 20_000, 100_000]
    for index, size in enumerate(sizes):
        _write(writer.path / str(index), 0, size)
    follower = make_follower(writer)
    synced = [0] * len(sizes)
    seen = [0] * len(sizes)
    done = threading.Event()

    def write() -> None:
        generator = random.Random(1)
        for version in range(1, 1001):
            index = generator.randrange(len(sizes))
            path = writer.path / str(index)
            if index < 2:
                _write(path, version, sizes[index])
            else:
                _write(writer.path / "new", version, sizes[index])
                os.rename(writer.path / "new", path)
                _sync(path)
            synced[index] = version
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        looks = 0
        while not done.is_set():
            for index, size in enumerate(sizes):
                path = follower.path / str(index)
                version = _read(path, size)
                assert version >= seen[index], f"file {index}: {version} after {seen[index]}"
                seen[index] = version
                looks += 1
    finally:
        thread.join()
    deadline = time.monotonic() + SEEN_SECONDS
    while [_read(follower.path / str(index), size) for index, size in enumerate(sizes)] != synced:
        assert time.monotonic() < deadline, "what was synced is not seen"
        time.sleep(0.05)
    assert looks > 100
    assert contents_of(follower.path) == contents_of(writer.path)


def _write(path: Path, version: int, size: int) -> None:
    data = version.to_bytes(4, "big") * (size // 4)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        assert os.write(descriptor, data) == size
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path, size: int) -> int:
    """The version that a file holds, all of it."""
    while True:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            data = os.read(descriptor, size + 1)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
            continue  # replaced between open and read
        finally:
            os.close(descriptor)
        assert len(data) == size, f"{path.name}: {len(data)} bytes"
        assert data == data[:4] * (size // 4), f"{path.name}: parts of two versions"
        return int.from_bytes(data[:4], "big")


def test_a_follower_sees_everything_and_changes_nothing(
    make_file_system: MakeFileSystem, make_follower: MakeFileSystem
) -> None:
    writer = make_file_system()
    (writer.path / "folder").mkdir()
    (writer.path / "folder" / "file").write_bytes(content("file", 300_000))
    os.symlink("folder/file", writer.path / "link")
    os.setxattr(writer.path / "folder", "user.note", b"text")
    writer.sync()
    follower = make_follower(writer)
    path = follower.path
    assert (path / "link").read_bytes() == content("file", 300_000)
    assert os.getxattr(path / "folder", "user.note") == b"text"
    assert os.statvfs(path).f_flag & os.ST_RDONLY

    for change in (
        lambda: (path / "folder" / "file").write_bytes(b"x"),
        lambda: (path / "new").touch(),
        lambda: (path / "sub").mkdir(),
        lambda: os.unlink(path / "link"),
        lambda: os.rename(path / "link", path / "other"),
        lambda: os.chmod(path / "folder", 0o700),
        lambda: os.setxattr(path / "folder", "user.note", b"other"),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            change()

    os.unlink(writer.path / "link")
    os.rename(writer.path / "folder", writer.path / "renamed")
    writer.sync()
    wait_until(lambda: sorted(os.listdir(path)) == ["renamed"], "the change is seen", SEEN_SECONDS)
    assert not (path / "link").exists()
    status = follower.status()
    assert status["following"]["trouble"] is None
    assert status["dirty_bytes"] == 0

    for words in (
        ("key", "show", follower.name),
        ("key", "read", follower.name, "--output", path.parent / "k"),
        ("heads", follower.name, "--remove", "1"),
    ):
        refused = follower.command(*words, good=(FAILED,))
        assert "only read on this machine" in refused.stderr or "Read-only file system" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert not list(follower.home.glob("*/key"))
    follower.remount()
    assert contents_of(path) == contents_of(writer.path)
    follower.umount()
    refused = follower.command("destroy", follower.name, "--yes-destroy", follower.name, good=(FAILED,))
    assert "only read on this machine" in refused.stderr
    follower.command("forget", follower.name)
    (writer.path / "more").write_bytes(b"goes on")
    writer.sync()


def test_without_servers_it_waits_and_says_so(
    six: LocalGrid, make_file_system: MakeFileSystem, make_follower: MakeFileSystem
) -> None:
    writer = make_file_system()
    (writer.path / "file").write_bytes(b"1")
    writer.sync()
    follower = make_follower(writer)
    assert (follower.path / "file").read_bytes() == b"1"
    for number in range(6):
        six.kill(number)
    wait_until(lambda: follower.status()["following"]["trouble"], "it is told", 15)
    assert "read-only, as it was" in follower.status()["health"]
    assert os.listdir(follower.path) == ["file"]
    follower.umount()
    failed = follower.mount(good=(GRID_UNREACHABLE,))
    assert len(failed.stderr.splitlines()) == 1
    six.up()
    follower.mount()
    assert (follower.path / "file").read_bytes() == b"1"


def test_a_wrong_read_key_and_new_keys_are_told(
    make_file_system: MakeFileSystem, make_follower: MakeFileSystem, tmp_path: Path
) -> None:
    writer = make_file_system()
    (writer.path / "file").write_bytes(b"1")
    writer.sync()
    follower = make_follower(writer)
    bad = tmp_path / "bad"
    bad.write_text("gridfs-read-ABCDEFGH")
    words = "--servers", writer.grid.servers_file, "--read-key-file"
    refused = follower.command("follow", "other", *words, bad, good=(WRONG_KEY,))
    assert "letters are missing" in refused.stderr

    stranger = make_file_system(mount=False)
    key = tmp_path / "stranger"
    stranger.command("key", "read", stranger.name, "--output", key)
    refused = follower.command("follow", "other", *words, key, good=(NO_SUCH_FILE_SYSTEM,))
    assert "know no file system of this read key" in refused.stderr

    writer.umount()
    recovery = next(writer.home.rglob("*recovery*"))
    words = ("--servers", writer.grid.servers_file, "--recovery-key-file", recovery, "--new-keys")
    writer.command("recover", "again", *words)
    wait_until(lambda: "new keys" in (follower.status()["following"]["trouble"] or ""), "it is told", 15)
    assert (follower.path / "file").read_bytes() == b"1"
