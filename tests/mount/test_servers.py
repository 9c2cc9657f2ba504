"""Servers that die, lie about who they are, or are many: what a mount does, and what it says."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.wire.url import format_access, parse_access
from tests.mount.conftest import MakeFileSystem
from tests.mount.support import (
    assert_one_line,
    content,
    contents_of,
    drop_pages,
    is_drained,
    wait_until,
)
from tests.processes import FileSystemShape, LocalGrid, MountedFileSystem

MIB = 1 << 20
SIZES = (0, 1, 1000, 65536, 300_000, 5 * MIB + 17)


def fill(root: Path, name: str) -> dict[str, bytes]:
    """Files of all sizes in a new directory `name`; returns what contents_of(root) then adds."""
    (root / name).mkdir()
    written = {f"{name}/{size}": content((name, size), size) for size in SIZES}
    for path, body in written.items():
        (root / path).write_bytes(body)
    return written


def health(file_system: MountedFileSystem) -> str:
    return str(file_system.status()["health"])


def server_names(file_system: MountedFileSystem) -> list[str]:
    return [str(server["name"]) for server in file_system.status()["servers"]]


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("killed", [(0, 1), pytest.param((2, 5), marks=pytest.mark.slow)])
def test_any_two_of_six_may_die(
    six: LocalGrid, make_file_system: MakeFileSystem, killed: tuple[int, int]
) -> None:
    mounted = make_file_system()
    written = fill(mounted.path, "before")
    mounted.sync()
    drop_pages(mounted.path)
    for number in killed:
        six.kill(number)
    assert contents_of(mounted.path) == written
    mounted.remount()
    assert contents_of(mounted.path) == written
    names = server_names(mounted)
    report = mounted.command("status", mounted.path).stdout
    for number in killed:
        assert names[number] in health(mounted)
        assert any(names[number] in line and "unreachable" in line for line in report.splitlines())
    # This mount began while too few were left to record anything: it has nothing to record either.
    mounted.remount()
    assert contents_of(mounted.path) == written


def test_with_one_dead_writes_and_fsync_go_on(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    mounted = make_file_system(options=("grid_timeout=20",))
    written = fill(mounted.path, "before")
    six.kill(3)
    written |= fill(mounted.path, "after")
    for name in written:
        fsync(mounted.path / name)
    name = server_names(mounted)[3]
    wait_until(lambda: f"go on without {name}" in health(mounted), "status names the dead server")
    assert mounted.status()["missing_shares"] > 0
    assert "owed" in health(mounted)
    mounted.remount()
    assert contents_of(mounted.path) == written


def test_with_two_dead_writes_wait_in_the_spool_and_nothing_is_lost(
    six: LocalGrid, make_file_system: MakeFileSystem
) -> None:
    mounted = make_file_system(options=("grid_timeout=2",))
    written = fill(mounted.path, "before")
    mounted.sync()
    six.kill(1)
    six.kill(2)
    written |= fill(mounted.path, "after")
    for name in ("after/1000", f"after/{5 * MIB + 17}"):
        with pytest.raises(OSError) as failed:  # noqa: PT011 - the errno is checked
            fsync(mounted.path / name)
        assert failed.value.errno == errno.EIO
    assert contents_of(mounted.path) == written
    assert "writes wait in the spool" in health(mounted)
    assert "writes wait in the spool" in mounted.command("status", mounted.name).stdout
    assert mounted.status()["dirty_bytes"] > 5 * MIB
    # Killed as well, and mounted again while the two are still dead.
    mounted.kill_daemon()
    mounted.mount()
    assert contents_of(mounted.path) == written
    written |= fill(mounted.path, "later")
    six.up()
    wait_until(lambda: is_drained(mounted), "everything is in the grid by itself")
    wait_until(lambda: health(mounted).startswith("all servers answer"), "all is well again")
    for name in written:
        fsync(mounted.path / name)
    mounted.remount()
    assert contents_of(mounted.path) == written


@pytest.mark.slow  # half a minute, until two hung servers are given up
def test_one_server_back_is_enough_to_drain(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    mounted = make_file_system(options=("grid_timeout=2",))
    six.hang(1)
    six.hang(2)
    try:
        written = fill(mounted.path, "while two hang")
        wait_until(lambda: "writes wait in the spool" in health(mounted), "status says that writes wait")
        six.resume(1)
        wait_until(lambda: is_drained(mounted), "everything is in the grid by itself")
        drop_pages(mounted.path)
        assert contents_of(mounted.path) == written
        mounted.remount()
        assert contents_of(mounted.path) == written
    finally:
        six.resume(1)
        six.resume(2)


def test_with_eight_servers_two_dead_cost_nothing(
    make_grid: Callable[..., LocalGrid], make_file_system: MakeFileSystem
) -> None:
    grid = make_grid(servers=8)
    mounted = make_file_system(grid, options=("grid_timeout=20",))
    written = fill(mounted.path, "before")
    mounted.sync()
    drop_pages(mounted.path)
    grid.kill(0)
    grid.kill(7)
    written |= fill(mounted.path, "after")
    for name in written:
        fsync(mounted.path / name)
    report = mounted.status()
    assert report["missing_shares"] == 0  # each pack has all its shares, on other servers
    assert "reads and writes go on without" in report["health"]
    assert contents_of(mounted.path) == written
    mounted.remount()
    assert contents_of(mounted.path) == written


# ---- who a server is --------------------------------------------------------------------------------


def with_wrong(what: str, line: str, other: str) -> str:
    """An access line with another server's key, or with a secret that was never given out."""
    access = parse_access(line)
    if what == "pin":
        fields = {"server_id": parse_access(other).server_id, "secret": access.secret}
    else:
        fields = {"server_id": access.server_id, "secret": bytes(32)}
    wrong = type(access)(
        fields["server_id"] or b"", access.address, access.account, fields["secret"], access.rights
    )
    return format_access(wrong)


@pytest.mark.parametrize("what", [pytest.param("secret", marks=pytest.mark.slow), "pin"])
def test_a_server_that_is_not_who_it_should_be_is_named(
    make_grid: Callable[..., LocalGrid], make_file_system: MakeFileSystem, tmp_path: Path, what: str
) -> None:
    grid = make_grid(servers=7, transport="tls")
    good = grid.servers_file.read_text().splitlines()
    lines = [*good[:2], with_wrong(what, good[2], good[6]), *good[3:6]]
    (tmp_path / "wrong").write_text("".join(f"{line}\n" for line in lines))
    grid.servers_file.write_text("".join(f"{line}\n" for line in good[:6]))

    mounted = make_file_system(grid)
    refused = mounted.command("create", "other", "--servers", tmp_path / "wrong", good=(1,))
    assert_one_line(refused, "server 3", "refused", what if what == "secret" else "key")
    assert sorted(path.name for path in mounted.home.iterdir()) == ["test", "test.recovery-key"]

    written = fill(mounted.path, "before")
    mounted.umount()
    (mounted.home / "test" / "servers").write_text("".join(f"{line}\n" for line in lines))
    done = mounted.mount()
    assert "server 3" in done.stderr
    assert "refused" in done.stderr
    assert contents_of(mounted.path) == written
    server = mounted.status()["servers"][2]
    assert server["state"].startswith("refused")
    assert server["name"] in health(mounted)


# ---- geometries -------------------------------------------------------------------------------------


def test_one_share_on_one_server(
    make_grid: Callable[..., LocalGrid], make_file_system: MakeFileSystem
) -> None:
    grid = make_grid(servers=1)
    mounted = make_file_system(grid, FileSystemShape(k=1, n=1, happy=1))
    written = fill(mounted.path, "alone")
    for name in written:
        fsync(mounted.path / name)
    mounted.remount()
    assert contents_of(mounted.path) == written


def test_sixty_of_a_hundred_on_ten_servers(
    make_grid: Callable[..., LocalGrid], make_file_system: MakeFileSystem
) -> None:
    grid = make_grid(servers=10)
    shape = FileSystemShape(k=60, n=100, happy=62, options=("--shares-per-server", "10"))
    mounted = make_file_system(grid, shape)
    written = fill(mounted.path, "wide")
    mounted.remount()
    assert contents_of(mounted.path) == written
    drop_pages(mounted.path)
    for number in (0, 3, 6, 9):  # forty shares less
        grid.kill(number)
    assert contents_of(mounted.path) == written


def test_a_happy_that_no_placement_reaches_is_refused(
    six: LocalGrid, make_file_system: MakeFileSystem
) -> None:
    """With several shares a server, `happy` counts the servers that may be lost."""
    made = make_file_system(mount=False)
    words = ("create", "other", "--servers", six.servers_file, "-k", 10, "-n", 24, "--shares-per-server", 4)
    refused = made.command(*words, "--happy", 17, good=(14,))
    assert_one_line(refused, "6 servers", "happy = 17", "--happy 13")
    assert "happy 12" in made.command(*words).stdout
