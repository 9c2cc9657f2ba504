"""The machine is lost: real servers, real mounts, and another machine with the recovery key."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gridfs.codec.keys import RecoveryKey
from tests.mount.conftest import MakeFileSystem
from tests.mount.support import assert_one_line, content, describe_tree, wait_until
from tests.processes import Completed, FileSystemShape, LocalGrid, MountedFileSystem

EXIT = {"failed": 1, "usage": 2, "none": 10, "locked": 11, "key": 12, "unreachable": 13}


@pytest.fixture
def machines() -> list[MountedFileSystem]:
    return []


@pytest.fixture(autouse=True)
def unmounts(machines: list[MountedFileSystem]) -> Iterator[None]:
    yield
    for machine in machines:
        machine.tear_down()


class Elsewhere:
    """Another machine: a GRIDFS_HOME and a mount point of its own, and what was put in a safe place."""

    def __init__(self, lost: MountedFileSystem, place: Path, machines: list[MountedFileSystem]) -> None:
        place.mkdir()
        (place / "home").mkdir(mode=0o700)
        self.key = place / "recovery-key"
        shutil.copy(lost.home / "test.recovery-key", self.key)
        self.machine = replace(lost, home=place / "home", path=place / "mnt")
        machines.append(self.machine)

    def recover(self, *options: object, good: tuple[int, ...] = (0,)) -> Completed:
        machine = self.machine
        return machine.command(
            "recover",
            machine.name,
            "--servers",
            machine.grid.servers_file,
            "--recovery-key-file",
            self.key,
            *options,
            good=good,
        )


def fill(path: Path) -> None:
    """Files of all sizes, names, links and attributes; some of it synced, the rest after a sync of all."""
    for number in range(40):
        folder = path / f"folder-{number % 4}"
        folder.mkdir(exist_ok=True)
        (folder / f"file {number}").write_bytes(content(number, number * number * 40))
    (path / "large").write_bytes(content("large", 5 << 20))
    os.link(path / "large", path / "twin")
    os.symlink("folder-1", path / "link")
    os.setxattr(path / "large", "user.colour", b"blue")
    os.chmod(path / "folder-2", 0o700)
    os.rename(path / "folder-3", path / "ümläut")


def sync_file(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def test_the_machine_is_lost(
    make_file_system: MakeFileSystem, tmp_path: Path, machines: list[MountedFileSystem]
) -> None:
    lost = make_file_system()
    fill(lost.path)
    lost.sync()
    sync_file(lost.path / "last words", b"one fsync, in a record alone")
    before = describe_tree(lost.path)
    lost.kill_daemon()
    elsewhere = Elsewhere(lost, tmp_path / "elsewhere", machines)
    shutil.rmtree(lost.home)
    done = elsewhere.recover()
    assert "recovered" in done.stdout
    assert "43 files, 5 directories" in done.stdout  # the twin is no further file, the symbolic link is one
    assert done.stderr == ""
    elsewhere.machine.mount()
    assert describe_tree(elsewhere.machine.path) == before
    (elsewhere.machine.path / "new").write_bytes(b"goes on")
    elsewhere.machine.remount()
    assert (elsewhere.machine.path / "new").read_bytes() == b"goes on"


@pytest.mark.parametrize("new_keys", [False, True])
def test_the_old_machine_comes_back(
    make_file_system: MakeFileSystem,
    tmp_path: Path,
    machines: list[MountedFileSystem],
    new_keys: bool,
) -> None:
    """Its mount, which was only out of sight, may read on and keeps what it has, but writes nothing more."""
    old = make_file_system(options=("grid_timeout=5",))
    (old.path / "file").write_bytes(b"before")
    sync_file(old.path / "synced", b"synced")
    old.sync()
    elsewhere = Elsewhere(old, tmp_path / "elsewhere", machines)
    elsewhere.recover(*(["--new-keys"] if new_keys else []))
    with pytest.raises(OSError, match=r"Input/output|Read-only") as failed:
        sync_file(old.path / "late", b"too late" * 1000)
    assert failed.value.errno in (errno.EIO, errno.EROFS)
    wait_until(lambda: "read-only" in old.status()["health"], "the old mount learns that it was taken over")
    assert ("shut out" if new_keys else "another client") in old.status()["health"]
    with pytest.raises(OSError, match="Read-only"):
        (old.path / "later").write_bytes(b"x")
    assert (old.path / "file").read_bytes() == b"before"
    elsewhere.machine.mount()
    assert sorted(os.listdir(elsewhere.machine.path)) == ["file", "synced"]
    (elsewhere.machine.path / "file").write_bytes(b"after")
    elsewhere.machine.sync()
    left = old.command("umount", old.path, good=(EXIT["locked"],))
    assert_one_line(left, "not everything got into the grid", "gridfs spool export")
    assert not os.path.ismount(old.path)
    again = old.command("mount", old.name, old.path, good=(EXIT["locked"],))
    assert_one_line(again, "shut out" if new_keys else "another client has written")
    sync_file(elsewhere.machine.path / "on", b"and on")  # the one that had to give way took nothing with it
    assert (elsewhere.machine.path / "file").read_bytes() == b"after"


def test_with_new_keys_an_unmounted_old_machine_is_shut_out(
    make_file_system: MakeFileSystem, tmp_path: Path, machines: list[MountedFileSystem]
) -> None:
    old = make_file_system()
    fill(old.path)
    before = describe_tree(old.path)
    old.umount()
    first = Elsewhere(old, tmp_path / "first", machines)
    first.recover("--new-keys")
    done = old.command("mount", old.name, old.path, good=(EXIT["locked"],))
    assert_one_line(done, "this machine was shut out", "gridfs recover")
    first.machine.mount()
    assert describe_tree(first.machine.path) == before
    first.machine.umount()
    assert "generation 1" in first.machine.command("key", "show", "test").stdout
    second = Elsewhere(old, tmp_path / "second", machines)
    second.recover("--new-keys")
    assert_one_line(
        first.machine.command("mount", "test", first.machine.path, good=(EXIT["locked"],)), "shut out"
    )
    second.machine.mount()
    assert describe_tree(second.machine.path) == before


def test_with_too_few_head_servers_somebody_must_decide(
    make_grid: Callable[..., LocalGrid],
    make_file_system: MakeFileSystem,
    tmp_path: Path,
    machines: list[MountedFileSystem],
) -> None:
    grid = make_grid(servers=4)
    lost = make_file_system(grid, FileSystemShape(k=1, n=4, happy=2))
    (lost.path / "file").write_bytes(b"content" * 1000)
    lost.umount()
    for number in (0, 1, 2):
        grid.kill(number)
    elsewhere = Elsewhere(lost, tmp_path / "elsewhere", machines)
    done = elsewhere.recover(good=(EXIT["unreachable"],))
    assert_one_line(done, "there may be a newer state", "1 of the 2 head servers", "--accept-older", "silent")
    assert os.listdir(elsewhere.machine.home) == []
    done = elsewhere.recover("--accept-older", good=(EXIT["unreachable"],))
    assert_one_line(done, "other head servers", "1 of the 2")
    # After the fire: one server is left, and there is a new one.
    new = make_grid(servers=1, name="new")
    left = grid.servers_file.read_text().splitlines()[-1]
    place = tmp_path / "after"
    place.mkdir()
    (place / "servers").write_text(f"{left}\n{new.servers_file.read_text()}")
    elsewhere.machine.grid = LocalGrid(place)
    assert_one_line(elsewhere.recover(good=(EXIT["unreachable"],)), "1 of the 2 head servers")
    assert "recovered" in elsewhere.recover("--accept-older").stdout
    elsewhere.machine.mount()
    assert (elsewhere.machine.path / "file").read_bytes() == b"content" * 1000
    sync_file(elsewhere.machine.path / "more", b"goes on")
    elsewhere.machine.remount()
    assert (elsewhere.machine.path / "more").read_bytes() == b"goes on"


def test_head_servers_that_are_gone_for_good_are_given_up(
    make_grid: Callable[..., LocalGrid],
    make_file_system: MakeFileSystem,
    tmp_path: Path,
    machines: list[MountedFileSystem],
) -> None:
    """The newest record is certain, and yet too few head servers are left to write another."""
    grid = make_grid(servers=4)
    lost = make_file_system(grid, FileSystemShape(k=1, n=4, happy=2))
    (lost.path / "file").write_bytes(b"content" * 1000)
    lost.umount()
    for number in (0, 2):
        grid.kill(number)
    elsewhere = Elsewhere(lost, tmp_path / "elsewhere", machines)
    done = elsewhere.recover(good=(EXIT["unreachable"],))
    assert_one_line(done, "3 head servers are needed, and 2 answer", "--accept-older", "silent: server 1")
    assert os.listdir(elsewhere.machine.home) == []
    assert "recovered" in elsewhere.recover("--accept-older").stdout
    elsewhere.machine.mount()
    assert (elsewhere.machine.path / "file").read_bytes() == b"content" * 1000
    sync_file(elsewhere.machine.path / "more", b"goes on")
    grid.up()
    assert_one_line(lost.command("mount", "test", lost.path, good=(EXIT["locked"],)), "another client")
    elsewhere.machine.remount()
    assert (elsewhere.machine.path / "more").read_bytes() == b"goes on"


@pytest.mark.parametrize(
    ("key", "code", "words"),
    [
        ("nothing", EXIT["failed"], "No such file"),
        ("typing error", EXIT["key"], "typing error"),
        ("rubbish", EXIT["key"], "not a recovery key"),
        ("another", EXIT["none"], "know no file system of this recovery key"),
    ],
)
def test_a_wrong_key_is_said_so_and_leaves_nothing(
    make_file_system: MakeFileSystem,
    tmp_path: Path,
    machines: list[MountedFileSystem],
    key: str,
    code: int,
    words: str,
) -> None:
    lost = make_file_system()
    (lost.path / "file").write_bytes(b"x")
    lost.umount()
    elsewhere = Elsewhere(lost, tmp_path / "elsewhere", machines)
    text = elsewhere.key.read_text().strip()
    if key == "nothing":
        elsewhere.key.unlink()
    elif key == "typing error":
        elsewhere.key.write_text(text[:-1] + ("A" if text[-1] != "A" else "B"))
    elif key == "rubbish":
        elsewhere.key.write_text("correct horse battery staple")
    else:
        elsewhere.key.write_text(RecoveryKey(bytes(32)).text())
    assert_one_line(elsewhere.recover(good=(code,)), words)
    assert os.listdir(elsewhere.machine.home) == []


def test_recover_does_not_touch_what_is_there(
    make_file_system: MakeFileSystem, tmp_path: Path, machines: list[MountedFileSystem]
) -> None:
    here = make_file_system()
    (here.path / "file").write_bytes(b"x")
    here.umount()
    elsewhere = Elsewhere(here, tmp_path / "elsewhere", machines)
    elsewhere.machine.home.joinpath("test").mkdir()
    assert_one_line(elsewhere.recover(good=(EXIT["failed"],)), "exists already")
    assert os.listdir(elsewhere.machine.home / "test") == []


def test_a_recovered_file_system_takes_a_passphrase(
    make_file_system: MakeFileSystem, tmp_path: Path, machines: list[MountedFileSystem]
) -> None:
    lost = make_file_system()
    (lost.path / "file").write_bytes(b"x")
    lost.umount()
    elsewhere = Elsewhere(lost, tmp_path / "elsewhere", machines)
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n")
    elsewhere.recover("--passphrase-command", f"cat {secret}")
    elsewhere.machine.mount()
    assert (elsewhere.machine.path / "file").read_bytes() == b"x"
    elsewhere.machine.umount()
    secret.write_text("wrong\n")
    done = elsewhere.machine.command("mount", "test", elsewhere.machine.path, good=(EXIT["key"],))
    assert_one_line(done, "passphrase")


def test_a_hung_recovery_leaves_nothing_and_the_grid_as_it_was(
    make_file_system: MakeFileSystem, six: LocalGrid, tmp_path: Path, machines: list[MountedFileSystem]
) -> None:
    lost = make_file_system()
    (lost.path / "file").write_bytes(content(1, 100_000))
    lost.umount()
    for number in range(6):
        six.kill(number)
    elsewhere = Elsewhere(lost, tmp_path / "elsewhere", machines)
    assert_one_line(elsewhere.recover(good=(EXIT["unreachable"],)), "none of the 6 servers answers")
    assert os.listdir(elsewhere.machine.home) == []
    six.up()
    elsewhere.recover()
    elsewhere.machine.mount()
    assert (elsewhere.machine.path / "file").read_bytes() == content(1, 100_000)
