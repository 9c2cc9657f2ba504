"""list, forget, spool export and destroy, with real servers and mounts."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import MakeFileSystem
from tests.mount.support import assert_one_line, content, wait_until
from tests.processes import LocalGrid, MountedFileSystem

MIB = 1 << 20
FAILED, USAGE, NONE, LOCKED, UNREACHABLE = 1, 2, 10, 11, 13


def listed(machine: MountedFileSystem) -> dict[str, dict[str, Any]]:
    """Those in its GRIDFS_HOME; what is mounted from elsewhere is listed with its path."""
    found = json.loads(machine.command("list", "--json").stdout)
    return {each["name"]: each for each in found if "/" not in each["name"]}


def manifest(directory: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "manifest.jsonl").read_text().splitlines()]
    return {line["path"]: line for line in lines if "path" in line}


def copy_of(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_list_and_forget(make_file_system: MakeFileSystem, six: LocalGrid, tmp_path: Path) -> None:
    here = make_file_system()
    (here.path / "file").write_bytes(b"x" * 1000)
    here.sync()
    key = here.home / "test.recovery-key"
    mounted = listed(here)["test"]
    assert (mounted["mountpoint"], mounted["state"]) == (str(here.path), "mounted")
    assert (mounted["k"], mounted["n"], mounted["left_bytes"]) == (4, 6, 0)
    shown = here.command("list").stdout
    assert "4-of-6" in shown
    assert str(here.path) in shown
    assert_one_line(here.command("forget", "test", good=(LOCKED,)), "mounted already")
    here.umount()
    gone = listed(here)["test"]
    assert (gone["mountpoint"], gone["state"]) == (None, "not mounted")
    assert (gone["left_bytes"], gone["left_is_exact"]) == (0, True)
    done = here.command("forget", "test")
    assert "only with it" in done.stdout
    assert sorted(path.name for path in here.home.iterdir()) == ["test.recovery-key"]
    assert listed(here) == {}
    assert_one_line(here.command("forget", "test", good=(NONE,)), "no file system")
    here.command("recover", "test", "--servers", six.servers_file, "--recovery-key-file", key)
    here.mount()
    assert (here.path / "file").read_bytes() == b"x" * 1000


def test_forget_and_export_of_what_is_not_in_the_grid(
    make_file_system: MakeFileSystem, six: LocalGrid, tmp_path: Path
) -> None:
    here = make_file_system()
    old = content("old", 3 * MIB)
    (here.path / "folder").mkdir()
    (here.path / "folder" / "old").write_bytes(old)
    here.sync()
    for number in range(3):
        six.kill(number)
    new = content("new", MIB)
    with (here.path / "folder" / "old").open("r+b") as file:
        file.seek(MIB)
        file.write(new)
    (here.path / "only here").write_bytes(content("here", 200_000))
    assert listed(here)["test"]["left_bytes"] > MIB
    assert_one_line(here.command("spool", "export", "test", tmp_path / "out", good=(LOCKED,)), "mounted")
    here.kill_daemon()
    state = listed(here)["test"]
    assert state["state"] == "its daemon is gone"
    assert state["left_bytes"] >= MIB + 200_000
    assert not state["left_is_exact"]
    here.command("umount", here.path)
    assert_one_line(
        here.command("forget", "test", good=(FAILED,)), "at most", "--force", "gridfs spool export"
    )
    spool = copy_of(here.home / "test" / "spool")
    done = here.command("spool", "export", "test", tmp_path / "out")
    assert "1 files are incomplete" in done.stdout
    assert (tmp_path / "out/files/only here").read_bytes() == content("here", 200_000)
    part = (tmp_path / "out/incomplete/folder/old").read_bytes()
    assert part == bytes(MIB) + new + bytes(MIB)
    lines = manifest(tmp_path / "out")
    assert lines["folder/old"]["missing"] == [[0, MIB], [2 * MIB, 3 * MIB]]
    assert_one_line(here.command("spool", "export", "test", tmp_path / "out", good=(FAILED,)), "not an empty")
    six.up()
    done = here.command("spool", "export", "test", tmp_path / "whole", "--all")
    assert "incomplete" not in done.stdout
    assert (tmp_path / "whole/files/folder/old").read_bytes() == old[:MIB] + new + old[2 * MIB :]
    assert (tmp_path / "whole/slots").is_dir()
    assert copy_of(here.home / "test" / "spool") == spool
    here.mount()
    assert (here.path / "folder" / "old").read_bytes() == old[:MIB] + new + old[2 * MIB :]
    assert (here.path / "only here").read_bytes() == content("here", 200_000)
    here.umount()
    here.command("spool", "export", "test", tmp_path / "nothing")
    assert (tmp_path / "nothing/manifest.jsonl").read_bytes() == b""
    here.command("forget", "test")


def test_a_client_that_was_taken_over_gets_its_data_out(
    make_file_system: MakeFileSystem, six: LocalGrid, tmp_path: Path
) -> None:
    old = make_file_system(options=("grid_timeout=3",))
    (old.path / "shared").write_bytes(b"before")
    old.sync()
    for number in range(3):
        six.kill(number)
    (old.path / "shared").write_bytes(b"what the old one wrote")
    (old.path / "late").write_bytes(content("late", 300_000))
    old.kill_daemon()
    old.command("umount", old.path)
    six.up()
    new = MountedFileSystem(six, tmp_path / "new-home", tmp_path / "new-mnt")
    new.home.mkdir(mode=0o700)
    try:
        new.command(
            "recover",
            "test",
            "--servers",
            six.servers_file,
            "--recovery-key-file",
            old.home / "test.recovery-key",
        )
        new.mount()
        (new.path / "shared").write_bytes(b"what the new one wrote")
        new.sync()
        assert_one_line(old.command("mount", "test", old.path, good=(LOCKED,)), "another client has written")
        old.command("spool", "export", "test", tmp_path / "out")
        assert (tmp_path / "out/files/shared").read_bytes() == b"what the old one wrote"
        assert (tmp_path / "out/files/late").read_bytes() == content("late", 300_000)
        assert (new.path / "shared").read_bytes() == b"what the new one wrote"
        assert_one_line(
            old.command("destroy", "test", "--yes-destroy", "test", good=(LOCKED,)), "another machine"
        )
        assert (new.path / "shared").read_bytes() == b"what the new one wrote"
        old.command("forget", "test", "--force")
    finally:
        new.tear_down()


def held_bytes(machine: MountedFileSystem) -> list[int]:
    return [server["share_bytes"] or 0 for server in machine.status()["servers"]]


@pytest.fixture
def alone(make_grid: Any) -> LocalGrid:
    """Servers that nobody else uses."""
    grid: LocalGrid = make_grid(servers=6)
    return grid


def test_destroy(make_file_system: MakeFileSystem, alone: LocalGrid, tmp_path: Path) -> None:
    doomed, neighbour = make_file_system(alone), make_file_system(alone)
    (neighbour.path / "file").write_bytes(content(1, MIB))
    neighbour.umount()
    others = held_bytes(neighbour)
    (doomed.path / "file").write_bytes(content(2, 4 * MIB))
    key = shutil.copy(doomed.home / "test.recovery-key", tmp_path / "key")
    assert_one_line(doomed.command("destroy", "test", "--yes-destroy", "test", good=(LOCKED,)), "mounted")
    doomed.umount()
    assert sum(held_bytes(doomed)) > sum(others)
    assert_one_line(doomed.command("destroy", "test", good=(USAGE,)), "--yes-destroy NAME")
    assert_one_line(doomed.command("destroy", "test", "--yes-destroy", "tset", good=(USAGE,)), "not test")
    alone.kill(0)
    done = doomed.command("destroy", "test", "--yes-destroy", "test", good=(UNREACHABLE,))
    assert_one_line(done, "1 servers still hold shares", "server 1", "forget test --force")
    assert listed(doomed)["test"]["state"] == "being destroyed"
    assert_one_line(doomed.command("mount", "test", doomed.path, good=(FAILED,)), "being destroyed")
    alone.up()
    assert "is destroyed" in doomed.command("destroy", "test", "--yes-destroy", "test").stdout
    assert not (doomed.home / "test").exists()
    assert held_bytes(neighbour) == others
    done = doomed.command(
        "recover", "again", "--servers", alone.servers_file, "--recovery-key-file", key, good=(NONE,)
    )
    assert_one_line(done, "know no file system")
    neighbour.mount()
    assert (neighbour.path / "file").read_bytes() == content(1, MIB)


def type_into(machine: MountedFileSystem, words: list[str], *typed: str) -> tuple[int, str]:
    """Run a command on a terminal of its own; its exit code and all that it showed."""
    program = Path(sys.executable).with_name("gridfs")
    mine, its = pty.openpty()
    try:
        with subprocess.Popen(
            [program, *words],
            stdin=its,
            stdout=its,
            stderr=its,
            env={**os.environ, "GRIDFS_HOME": str(machine.home)},
            start_new_session=True,
        ) as running:
            os.close(its)
            its = -1
            os.write(mine, "".join(f"{line}\n" for line in typed).encode())
            shown = b""
            while True:
                try:
                    data = os.read(mine, 4096)
                except OSError:  # the other end is closed
                    break
                if not data:
                    break
                shown += data
            return running.wait(), shown.decode()
    finally:
        os.close(mine)
        if its >= 0:
            os.close(its)


def test_destroy_asks_twice(make_file_system: MakeFileSystem, alone: LocalGrid) -> None:
    doomed = make_file_system(alone)
    (doomed.path / "file").write_bytes(content(2, MIB))
    doomed.umount()
    for typed, words in ((["no"], "nothing was destroyed"), (["yes", "tset"], "that is another name")):
        code, shown = type_into(doomed, ["destroy", "test"], *typed)
        assert (code, words in shown) == (FAILED, True), shown
        assert (doomed.home / "test").exists()
    code, shown = type_into(doomed, ["destroy", "test"], "yes", "test")
    assert code == 0, shown
    assert "for ever" in shown
    assert not (doomed.home / "test").exists()


def test_a_destroyed_file_system_frees_its_bytes(make_file_system: MakeFileSystem, alone: LocalGrid) -> None:
    doomed = make_file_system(alone)
    watcher = make_file_system(alone, mount=False)
    (doomed.path / "file").write_bytes(content(3, 8 * MIB))
    doomed.umount()
    assert sum(held_bytes(watcher)) > 8 * MIB
    doomed.command("destroy", "test", "--yes-destroy", "test")
    wait_until(lambda: held_bytes(watcher) == [0] * 6, "the servers hold nothing any more")


def test_a_file_system_that_was_never_mounted_is_destroyed(
    make_file_system: MakeFileSystem, alone: LocalGrid
) -> None:
    made = make_file_system(alone, mount=False)
    assert listed(made)["test"]["left_bytes"] == 0
    assert "is destroyed" in made.command("destroy", "test", "--yes-destroy", "test").stdout
    assert not (made.home / "test").exists()


def test_a_history_that_was_set_aside_is_listed_and_exported(
    make_file_system: MakeFileSystem, six: LocalGrid, tmp_path: Path
) -> None:
    """The folder was restored from a copy, and went on from there; then the newer one is brought back."""
    here = make_file_system()
    (here.path / "folder").mkdir()
    (here.path / "folder" / "file").write_bytes(content("first", MIB))
    here.umount()
    folder = here.home / "test"
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("control.sock"))
    here.mount()
    for number in range(3):
        six.kill(number)
    (here.path / "folder" / "late").write_bytes(content("late", 300_000))
    here.kill_daemon()
    here.command("umount", here.path)
    folder.rename(tmp_path / "newer")
    six.up()
    (tmp_path / "copy").rename(folder)
    here.mount()
    (here.path / "elsewhere").write_bytes(b"went on")
    here.umount()
    shutil.rmtree(folder)
    (tmp_path / "newer").rename(folder)
    here.mount()
    assert sorted(path.name for path in here.path.iterdir()) == ["elsewhere", "folder"]
    here.umount()
    assert "slots of the spool and 1 databases set aside" in here.command("list").stdout
    assert_one_line(here.command("forget", "test", good=(FAILED,)), "set aside", "gridfs spool export")
    here.command("spool", "export", "test", tmp_path / "out")
    line = manifest(tmp_path / "out")["folder/late"]
    assert (tmp_path / "out" / line["stored"]).read_bytes() == content("late", 300_000)
    here.command("forget", "test", "--force")
