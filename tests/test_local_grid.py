"""scripts/local-grid on real server processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.ports import TlsAddress, UnixAddress
from storage.wire.url import parse_access
from tests.processes import ROOT, LocalGrid, run, words_of

MakeGrid = Callable[..., LocalGrid]


def script(*words: object, good: tuple[int, ...] = (0,)) -> tuple[int, str]:
    done = run([ROOT / "scripts" / "local-grid", *(str(word) for word in words)], good=good)
    return done.returncode, done.stdout + done.stderr


def is_running(pid: int) -> bool:
    return any(words_of(pid))


def test_up_again_starts_only_what_is_missing_and_keeps_the_addresses(make_grid: MakeGrid) -> None:
    grid = make_grid(servers=3)
    listed = grid.servers_file.read_text()
    pids = [grid.pid(number) for number in range(3)]
    assert script("status", grid.directory)[0] == 0
    grid.kill(1)
    code, text = script("status", grid.directory, good=(1,))
    assert (code, "2 of 3 servers run" in text) == (1, True)
    assert "(1 started)" in script("up", grid.directory)[1]
    assert [grid.pid(0), grid.pid(2)] == [pids[0], pids[2]]
    assert grid.pid(1) != pids[1]
    assert grid.servers_file.read_text() == listed
    assert "(1 started)" in script("up", grid.directory, "--servers", 4)[1]
    assert grid.servers_file.read_text().startswith(listed)
    assert len(grid.servers_file.read_text().splitlines()) == 4


@pytest.mark.parametrize(("transport", "kind"), [("unix", UnixAddress), ("tls", TlsAddress)])
def test_down_and_up_brings_the_same_servers_back(
    make_grid: MakeGrid, transport: str, kind: type[object]
) -> None:
    grid = make_grid(servers=2, transport=transport)
    listed = grid.servers_file.read_text()
    assert grid.servers_file.stat().st_mode & 0o777 == 0o600
    assert all(isinstance(parse_access(line).address, kind) for line in listed.splitlines())
    pids = [grid.pid(number) for number in range(2)]
    grid.down()
    assert not any(is_running(pid) for pid in pids)
    assert not list(grid.directory.glob("*.pid"))
    assert "no server was running" in script("down", grid.directory)[1]
    grid.up()
    assert grid.servers_file.read_text() == listed


def test_a_pid_that_is_another_processes_now_is_left_alone(make_grid: MakeGrid) -> None:
    """As after a reboot: the pid file is stale, and its number was given to somebody else."""
    grid = make_grid(servers=1)
    grid.kill(0)
    (grid.directory / "0.pid").write_text(f"{os.getpid()}\n")
    assert script("status", grid.directory, good=(1,))[0] == 1
    grid.down()
    grid.up()
    assert grid.pid(0) != os.getpid()


def test_a_stopped_server_is_ended_too(make_grid: MakeGrid) -> None:
    grid = make_grid(servers=1)
    pid = grid.pid(0)
    os.kill(pid, signal.SIGSTOP)
    grid.down()
    assert not is_running(pid)


def test_a_long_path_gets_its_sockets_elsewhere(make_grid: MakeGrid) -> None:
    grid = make_grid(servers=1, name="x" * 120)
    address = parse_access(grid.servers_file.read_text()).address
    assert isinstance(address, UnixAddress)
    sockets = Path(address.path).parent
    assert not sockets.is_relative_to(grid.directory)
    assert sockets.stat().st_mode & 0o777 == 0o700
    grid.down()
    assert not sockets.exists()


def test_what_cannot_be_done_is_said_in_a_line(tmp_path: Path, make_grid: MakeGrid) -> None:
    assert script("up", tmp_path / "grid", "--servers", 0, good=(2,))[0] == 2
    assert "there is no grid" in script("down", tmp_path / "none", good=(1,))[1]
    assert "there is no grid" in script("status", tmp_path / "none", good=(1,))[1]
    grid = make_grid(servers=1)
    assert "stays so" in script("up", grid.directory, "--transport", "tls", good=(1,))[1]
    grid.down()
    (grid.directory / "0" / "server.key").write_bytes(b"damaged")
    code, text = script("up", grid.directory, good=(1,))
    assert (code, text.count("\n"), "server.key" in text) == (1, 1, True)
