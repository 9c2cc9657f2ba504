"""The life of a mount, and everything that is refused: one line, a documented exit code, nothing changed."""

from __future__ import annotations

import errno
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import MakeFileSystem
from tests.mount.support import assert_one_line, content, contents_of, is_drained, shell, wait_until
from tests.processes import FileSystemShape, LocalGrid, MountedFileSystem

MIB = 1 << 20
LOG_BYTES_MAX = 3 * MIB


@pytest.fixture
def unmounted(module_file_system: MountedFileSystem) -> Iterator[MountedFileSystem]:
    """The module's file system, not mounted; what a test changes in its folder is put back."""
    folder = module_file_system.home / module_file_system.name
    if module_file_system.daemon_pids():
        module_file_system.umount()
    saved = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    yield module_file_system
    assert not module_file_system.daemon_pids()
    for path, body in saved.items():
        path.write_bytes(body)


def lasting_files(home: Path) -> dict[str, bytes]:
    """All files of the file systems in `home` but logs and locks, which a refused command may touch."""
    return {
        name: body
        for name, body in contents_of(home).items()
        if not name.split("/")[-1].startswith(("mount.log", "lock"))
    }


# ---- refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("mount", "nothing", "."), 10, ("nothing", "gridfs create")),
        (("status", "nothing"), 10, ("nothing",)),
        (("umount", "/"), 1, ("not a gridfs mount point",)),
        (("sync", "/"), 1, ("not a gridfs mount point",)),
        (("mount", "test", "/nowhere/at/all"), 1, ("/nowhere/at/all", "does not exist")),
        (("mount", "test", "/etc/passwd"), 1, ("/etc/passwd", "not a directory")),
        (("mount", "test", "/proc"), 11, ("/proc", "mounted")),
        (("mount", "test", "/tmp", "-o", "rw,colour=red"), 2, ("colour=red",)),
        (("mount", "test", "/tmp", "-o", "fsync=never"), 2, ("fsync=never",)),
        (("mount", "test", "/tmp", "-o", "grid_timeout=soon"), 2, ("grid_timeout", "soon")),
        (("mount", "test", "/tmp", "-o", "spool=3"), 2, ("spool", "32M")),
        (("mount", "test"), 2, ("MOUNTPOINT",)),
        (("frobnicate",), 2, ("frobnicate",)),
        (("create", "test", "--servers", "SERVERS"), 1, ("exists already",)),
        (("create", "new", "--servers", "/nowhere"), 1, ("/nowhere",)),
        (("create", "new", "--servers", "/etc/passwd"), 2, ("line 1",)),
        (("create", "new", "--servers", "SERVERS", "-k", "5", "-n", "4"), 2, ("k <= happy <= n",)),
        (("create", "new", "--servers", "SERVERS", "-n", "257"), 2, ("256",)),
        (("create", "new", "--servers", "SERVERS", "-n", "9", "--happy", "7"), 14, ("6 servers", "--happy")),
        (("create", "new", "--servers", "SERVERS", "--passphrase", "x"), 2, ("--passphrase-command",)),
        (("create", "new", "--servers", "SERVERS", "--passphrase-command", "false"), 12, ("status 1",)),
    ],
)
def test_a_bad_command_changes_nothing(
    unmounted: MountedFileSystem, words: tuple[str, ...], code: int, said: tuple[str, ...]
) -> None:
    before = lasting_files(unmounted.home)
    given = [unmounted.grid.servers_file if word == "SERVERS" else word for word in words]
    assert_one_line(unmounted.command(*given, good=(code,)), *said)
    assert lasting_files(unmounted.home) == before


def damage_config(folder: Path, old: str, new: str) -> None:
    path = folder / "config.toml"
    text = path.read_text()
    assert re.search(old, text)
    path.write_text(re.sub(old, new, text, count=1))


def damage_database(folder: Path) -> None:
    database = sqlite3.connect(folder / "meta.sqlite")
    database.execute("PRAGMA user_version=99")
    database.close()


def damage_servers(folder: Path) -> None:
    path = folder / "servers"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))


@pytest.mark.parametrize(
    ("damage", "code", "said"),
    [
        (lambda folder: damage_config(folder, "^", "colour = 1\n"), 1, ("config.toml", "colour")),
        (lambda folder: damage_config(folder, "version = 1", "version = 99"), 1, ("config.toml", "99")),
        (lambda folder: damage_config(folder, "k = 4", "k = four"), 1, ("config.toml",)),
        (lambda folder: (folder / "config.toml").unlink(), 10, ("test",)),
        (lambda folder: (folder / "key").write_bytes(b"not a key"), 15, ("key",)),
        (damage_database, 1, ("99",)),
        (damage_servers, 14, ("3 servers", "happy = 5")),
    ],
    ids=["config key", "config version", "config value", "no config", "key", "database version", "servers"],
)
def test_a_folder_that_cannot_be_used_says_why(
    unmounted: MountedFileSystem, damage: Callable[[Path], object], code: int, said: tuple[str, ...]
) -> None:
    folder = unmounted.home / unmounted.name
    damage(folder)
    assert_one_line(unmounted.mount(good=(code,)), *said)
    assert not os.path.ismount(unmounted.path)


def test_an_unknown_spool_version(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    mounted = make_file_system()
    (mounted.path / "file").write_bytes(b"x")
    mounted.kill_daemon()
    slots = sorted((mounted.home / mounted.name / "spool").glob("*.spool"))
    saved = slots[-1].read_bytes()
    assert saved[:8] == b"GRIDSPL\0"
    slots[-1].write_bytes(saved[:8] + (99).to_bytes(2, "little") + saved[10:])
    shell("fusermount3", "-u", "-z", mounted.path)
    assert_one_line(mounted.mount(good=(1,)), "spool", "99")
    slots[-1].write_bytes(saved)
    mounted.mount()
    assert (mounted.path / "file").read_bytes() == b"x"


def test_passphrases(six: LocalGrid, make_file_system: MakeFileSystem, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n")
    shape = FileSystemShape(options=("--passphrase-command", f"cat {secret}"))
    mounted = make_file_system(shape=shape)
    (mounted.path / "file").write_bytes(b"x")
    mounted.umount()
    secret.write_text("battery staple\n")
    assert_one_line(mounted.mount(good=(12,)), "passphrase")
    secret.unlink()
    assert_one_line(mounted.mount(good=(12,)), "passphrase command")
    secret.write_text("correct horse\n")
    mounted.mount()
    assert (mounted.path / "file").read_bytes() == b"x"


def test_no_server_answers(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    mounted = make_file_system()
    mounted.umount()
    for number in range(6):
        six.kill(number)
    assert_one_line(mounted.mount(good=(13,)), "servers")
    refused = mounted.command("create", "new", "--servers", six.servers_file, good=(13,))
    assert_one_line(refused, "only 0 of 6 servers answer")
    assert "0 of 6 servers answer" in mounted.command("status", mounted.name).stdout
    six.up()
    mounted.mount()


# ---- the lock, and who has it -----------------------------------------------------------------------


def test_a_second_mount_is_told_who_has_it(tools: MountedFileSystem, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (pid,) = tools.daemon_pids()
    for place in (other, tools.path):
        refused = tools.command("mount", tools.name, place, good=(11,))
        assert_one_line(refused, str(pid), str(tools.path))
    assert tools.status()["mounted"]


def test_umount_of_a_busy_mount_is_refused(tools: MountedFileSystem) -> None:
    with (tools.path / "held").open("w") as file:
        file.write("held")
        file.flush()
        assert_one_line(tools.command("umount", tools.path, good=(1,)), "in use", str(tools.path))
        file.write(" on")
    tools.umount()
    assert tools.daemon_pids() == []
    tools.mount()
    assert (tools.path / "held").read_text() == "held on"


def test_a_plain_umount_leaves_a_daemon_that_finishes(
    six: LocalGrid, make_file_system: MakeFileSystem
) -> None:
    mounted = make_file_system()
    for turn, command in enumerate((("umount", mounted.path), ("fusermount3", "-u", mounted.path))):
        body = content(turn, 9 * MIB)
        (mounted.path / f"file{turn}").write_bytes(body)
        if os.getuid() == 0 or command[0] != "umount":
            shell(*command)
        else:
            shell("fusermount3", "-u", mounted.path)
        wait_until(lambda: not mounted.daemon_pids(), "the daemon ended by itself")
        assert "unmounted" in (mounted.home / mounted.name / "mount.log").read_text()
        mounted.mount()
        assert mounted.status()["dirty_bytes"] == 0  # nothing was left in the spool
        assert (mounted.path / f"file{turn}").read_bytes() == body


def test_a_new_mount_takes_over_from_a_draining_daemon(
    six: LocalGrid, make_file_system: MakeFileSystem
) -> None:
    mounted = make_file_system()
    six.kill(0)
    six.kill(1)  # it cannot finish
    body = content("takeover", 5 * MIB)
    (mounted.path / "file").write_bytes(body)
    (old,) = mounted.daemon_pids()
    shell("fusermount3", "-u", mounted.path)
    wait_until(lambda: mounted.status()["mounted"] is False, "it knows that it is unmounted")
    assert mounted.status()["pid"] == old
    assert "uploading what is left" in mounted.command("status", mounted.name).stdout
    mounted.mount()
    (new,) = mounted.daemon_pids()
    assert new != old
    assert (mounted.path / "file").read_bytes() == body
    six.up()
    mounted.sync()
    mounted.remount()
    assert (mounted.path / "file").read_bytes() == body


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_unmounts_and_drains(
    six: LocalGrid, make_file_system: MakeFileSystem, number: signal.Signals
) -> None:
    mounted = make_file_system()
    body = content("signal", 9 * MIB)
    (mounted.path / "file").write_bytes(body)
    (pid,) = mounted.daemon_pids()
    os.kill(pid, number)
    wait_until(lambda: not mounted.daemon_pids(), "the daemon ended")
    assert not os.path.ismount(mounted.path)
    mounted.mount()
    assert mounted.status()["dirty_bytes"] == 0
    assert (mounted.path / "file").read_bytes() == body


def test_foreground(
    six: LocalGrid, make_file_system: MakeFileSystem, tmp_path: Path, ends_processes: list[int]
) -> None:
    mounted = make_file_system(mount=False)
    mounted.path.mkdir()
    with (tmp_path / "said").open("w+") as said:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("gridfs"), "mount", mounted.name, mounted.path, "--foreground"],
            env={**os.environ, "GRIDFS_HOME": str(mounted.home)},
            stdout=said,
            stderr=said,
        )
        ends_processes.append(process.pid)
        wait_until(lambda: os.path.ismount(mounted.path), "it is mounted")
        (mounted.path / "file").write_bytes(b"in the foreground")
        assert mounted.daemon_pids() == [process.pid]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert f"mounted at {mounted.path}" in (tmp_path / "said").read_text()
    assert "Traceback" not in (tmp_path / "said").read_text()
    mounted.mount()
    assert (mounted.path / "file").read_bytes() == b"in the foreground"


def test_a_dead_mount_point_can_be_unmounted(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    mounted = make_file_system()
    (mounted.path / "file").write_bytes(b"x")
    mounted.kill_daemon()
    assert "not mounted" in mounted.command("status", mounted.name).stdout
    mounted.umount()
    assert not os.path.ismount(mounted.path)
    mounted.mount()
    assert (mounted.path / "file").read_bytes() == b"x"


def test_another_file_systems_dead_mount_point_is_left_alone(
    six: LocalGrid, make_file_system: MakeFileSystem
) -> None:
    one, other = make_file_system(), make_file_system(mount=False)
    one.kill_daemon()
    refused = other.command("mount", other.name, one.path, good=(11,))
    assert_one_line(refused, str(one.path), "mounted")


# ---- options ----------------------------------------------------------------------------------------


def test_read_only(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    mounted = make_file_system()
    body = content("ro", MIB)
    (mounted.path / "file").write_bytes(body)
    mounted.umount()
    mounted.options = ("ro",)
    mounted.mount()
    assert (mounted.path / "file").read_bytes() == body
    for attempt in (
        lambda: (mounted.path / "new").write_bytes(b""),
        lambda: (mounted.path / "file").unlink(),
        lambda: (mounted.path / "file").chmod(0o600),
        lambda: (mounted.path / "file").open("ab"),
    ):
        with pytest.raises(OSError) as refused:  # noqa: PT011 - the errno is checked
            attempt()
        assert refused.value.errno == errno.EROFS
    mounted.umount()
    mounted.options = ()
    mounted.mount()
    assert contents_of(mounted.path) == {"file": body}


def test_options_of_mount_8_and_our_own(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    words = "rw,auto,nofail,_netdev,x-systemd.automount,attr_timeout=0.5,memory=64M,spool=64M,fsync=spool"
    mounted = make_file_system(options=tuple(words.split(",")))
    for number in range(6):
        six.kill(number)
    with (mounted.path / "file").open("wb") as file:  # fsync=spool asks no server
        file.write(b"x")
        os.fsync(file.fileno())
    assert mounted.status()["fsync"] == "spool"
    assert mounted.status()["space"]["spool_limit_bytes"] == 64 * MIB
    mounted.kill_daemon()
    six.up()
    mounted.mount()
    assert (mounted.path / "file").read_bytes() == b"x"


# ---- what is said -----------------------------------------------------------------------------------


def test_sync_brings_everything_into_the_grid(tools: MountedFileSystem) -> None:
    for number in range(20):
        (tools.path / f"sync-{number}").write_bytes(content(number, 10_000))
    operations = tools.status()["operations"]
    tools.sync()
    report = tools.status()
    assert report["dirty_bytes"] == 0
    assert report["operations_shipped"] >= operations
    # The daemon goes on with operations of its own, such as giving old packs back; those follow.
    wait_until(lambda: is_drained(tools), "all is shipped")


def test_the_fields_of_status(tools: MountedFileSystem) -> None:
    (tools.path / "status").write_bytes(content("status", 300_000))
    tools.sync()
    # A busy server may miss the deadline for telling about its space; it is asked again soon.
    wait_until(lambda: all(server["free_bytes"] for server in tools.status()["servers"]), "all servers tell")
    report = tools.status()
    assert (report["k"], report["n"], report["happy"], report["quorum"]) == (4, 6, 5, 5)
    assert report["mountpoint"] == str(tools.path)
    assert report["mounted"] is True
    assert [report["pid"]] == tools.daemon_pids()
    assert report["health"].startswith("all servers answer")
    assert report["packs"] > 0
    assert report["files"] > 0
    assert report["bytes"] >= 300_000
    assert (report["dirty_bytes"], report["in_flight_bytes"]) == (0, 0)
    assert report["space"]["total_bytes"] >= report["space"]["free_bytes"] > 0
    assert len(report["servers"]) == 6
    for server in report["servers"]:
        assert server["state"] == "connected"
        assert server["free_bytes"] > 0
        assert server["requests"]
    by_place = tools.command("status", tools.path, "--json").stdout
    assert f'"pid": {report["pid"]}' in by_place
    words = tools.command("status", tools.name).stdout
    for said in (str(tools.path), "4-of-6, happy 5", "all servers answer", "space:", "files", "dirty 0 B"):
        assert said in words


def test_the_log_is_bounded(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    mounted = make_file_system(mount=False)
    folder = mounted.home / mounted.name
    for name in ("mount.log", "mount.log.1", "mount.log.2"):
        (folder / name).write_bytes((b"x" * 79 + b"\n") * (MIB // 80 - 1))
    (folder / "mount.log.2").write_bytes(b"the oldest\n")
    mounted.mount()  # says more than still fits into the first
    assert "mounted at" in (folder / "mount.log").read_text()
    mounted.umount()
    sizes = {path.name: path.stat().st_size for path in folder.glob("mount.log*")}
    assert sorted(sizes) == ["mount.log", "mount.log.1", "mount.log.2"]
    assert sum(sizes.values()) < LOG_BYTES_MAX
    assert sizes["mount.log"] < MIB // 2  # a new one was begun
    assert b"the oldest" not in (folder / "mount.log.2").read_bytes()


def test_secrets_are_private(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    mounted = make_file_system()
    folder = mounted.home / mounted.name
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("key", "servers", "config.toml"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    recovery = mounted.home / "test.recovery-key"
    assert recovery.stat().st_mode & 0o777 == 0o600
