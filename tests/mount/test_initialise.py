"""FUSE_INIT answered by the daemon: what it saves, and that everything works when libfuse answers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import MakeFileSystem
from tests.mount.support import content, shell, wait_until
from tests.processes import LocalGrid, MountedFileSystem, mounts_below

WRITES = 512


def calls(mounted: MountedFileSystem) -> dict[str, int]:
    found: dict[str, int] = mounted.status()["calls"]
    return found


def asked(mounted: MountedFileSystem, work: Callable[[], object]) -> dict[str, int]:
    """What the kernel asked the daemon while `work` went on."""
    before = calls(mounted)
    work()
    return {name: count - before.get(name, 0) for name, count in calls(mounted).items()}


def write_small(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for number in range(WRITES):
            file.write(content(number, 4096))


def log_of(mounted: MountedFileSystem) -> str:
    return (mounted.home / mounted.name / "mount.log").read_text()


def use(mounted: MountedFileSystem) -> None:
    """A little of everything that INIT has a say in."""
    path = mounted.path
    write_small(path / "file")
    assert (path / "file").stat().st_size == WRITES * 4096
    shell("sh", "-c", "umask 027; touch made; ln -s made link", cwd=path)
    assert (path / "made").stat().st_mode & 0o777 == 0o640
    assert os.readlink(path / "link") == "made"
    (path / "made").chmod(0o4755)
    shell("setpriv", "--reuid", "1000", "--clear-groups", "--", "sh", "-c", "cat made", cwd=path)
    shell("setfacl", "-m", "u:1000:rw", path / "made")
    assert (path / "made").stat().st_mode & 0o777 == 0o775
    for name in ("file", "made", "link"):
        (path / name).unlink()


def test_small_writes_ask_nothing(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    mounted = make_file_system()
    assert mounted.status()["init"] == "own"
    counted = asked(mounted, lambda: write_small(mounted.path / "file"))
    assert counted["getxattr"] <= 2
    assert counted["write"] < WRITES / 4
    use(mounted)
    mounted.umount()
    assert not mounts_below(mounted.path)


def test_libfuse_may_do_it(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    mounted = make_file_system(options=("init=libfuse",))
    assert mounted.status()["init"] == "libfuse"
    counted = asked(mounted, lambda: write_small(mounted.path / "file"))
    assert counted["getxattr"] >= WRITES
    use(mounted)
    mounted.umount()


@pytest.mark.skipif(os.geteuid() != 0, reason="libfuse itself needs fusermount3 for anybody but root")
def test_libfuse_does_it_where_fusermount3_fails(
    six: LocalGrid, make_file_system: MakeFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted = make_file_system(mount=False)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "fusermount3").write_text("#!/bin/sh\necho out of order >&2\nexit 1\n")
    (programs / "fusermount3").chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        mounted.mount()
    assert "libfuse initialises the mount: out of order" in log_of(mounted)
    assert mounted.status()["init"] == "libfuse"
    use(mounted)
    mounted.umount()


def test_a_signal_unmounts(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    mounted = make_file_system()
    (mounted.path / "file").write_bytes(b"content")
    shell("sync", "--file-system", mounted.path / "file")
    (pid,) = mounted.daemon_pids()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not mounted.daemon_pids(), "the daemon ended")
    assert not mounts_below(mounted.path)
    mounted.mount()
    assert (mounted.path / "file").read_bytes() == b"content"


@pytest.mark.parametrize(("init", "name"), [("own", "a,b\\,c dépôt"), ("libfuse", "a,b\\,c home")])
def test_a_source_with_commas(six: LocalGrid, tmp_path: Path, init: str, name: str) -> None:
    mounted = MountedFileSystem(six, tmp_path / name, tmp_path / "mnt, hère", options=(f"init={init}",))
    try:
        mounted.home.mkdir(mode=0o700)
        mounted.command("create", "test", "--servers", six.servers_file, "-k", 4, "-n", 6, "--happy", 5)
        mounted.mount()
        assert mounted.status()["init"] == init
        (mounted.path / "file").write_bytes(b"content")
        mounted.remount()
        assert (mounted.path / "file").read_bytes() == b"content"
        mounted.umount()
    finally:
        mounted.tear_down()


def test_without_acls_nobody_is_asked_for_them(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    mounted = make_file_system(options=("noacl",))
    for number in range(50):
        (mounted.path / f"file-{number}").touch()
    mounted.remount()
    counted = asked(mounted, lambda: shell("ls", "-l", mounted.path))
    assert sum(counted.values()) < 20, counted
    done = shell("setfacl", "-m", "u:1000:rw", mounted.path / "file-1", good=(1,))
    assert "not supported" in done.stderr


def test_a_listing_asks_for_an_acl_each_and_nothing_else(
    six: LocalGrid, make_file_system: MakeFileSystem
) -> None:
    mounted = make_file_system()
    for number in range(50):
        (mounted.path / f"file-{number}").touch()
    mounted.remount()
    counted = asked(mounted, lambda: shell("ls", "-l", mounted.path))
    assert counted.pop("getxattr") <= 60
    assert sum(counted.values()) < 20, counted
    counted = asked(mounted, lambda: shell("find", mounted.path, "-newer", "/"))
    assert sum(counted.values()) < 20, counted
