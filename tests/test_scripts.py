"""scripts/up and scripts/down, as a new user runs them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import ROOT, TRACE, end_processes, run, traced_processes, words_of

Script = Callable[..., str]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    """Runs a script on a home of this test's own, whose path is long and has a space in it."""
    home = tmp_path / ("a long name " + "x" * 60)
    monkeypatch.setenv("GRIDFS_HOME", str(home))

    def call(name: str, *words: object, good: tuple[int, ...] = (0,)) -> str:
        done = run([ROOT / "scripts" / name, *(str(word) for word in words)], good=good)
        return done.stdout + done.stderr

    yield call
    call("down")


def daemon_pids(home: Path) -> list[int]:
    """Servers and mount daemons: processes of this session with the home in their command line."""
    start = os.fsencode(home)
    return [
        pid
        for pid in traced_processes(os.environ[TRACE])
        if any(word.startswith(start) for word in words_of(pid))
    ]


@pytest.mark.mount
def test_up_and_down_and_what_a_reboot_leaves(script: Script) -> None:
    home = Path(os.environ["GRIDFS_HOME"])
    said = script("up")
    mountpoint = home / "mnt"
    assert mountpoint.is_mount()
    assert str(mountpoint) in said
    assert str(home / "local.recovery-key") in said
    assert (home / "local.recovery-key").stat().st_mode & 0o777 == 0o600
    (mountpoint / "kept").write_bytes(b"through it all")

    assert "0 started" in script("up")

    # What a reboot leaves: no process, stale pid files, stale sockets, a dead mount point.
    end_processes(daemon_pids(home), signal.SIGKILL)
    script("up")
    assert (mountpoint / "kept").read_bytes() == b"through it all"

    script("down")
    assert not mountpoint.is_mount()
    assert daemon_pids(home) == []
    script("down")
    script("up")
    assert (mountpoint / "kept").read_bytes() == b"through it all"


@pytest.mark.mount
def test_up_refuses_a_place_that_a_mount_would_hide(script: Script, tmp_path: Path) -> None:
    place = tmp_path / "full"
    place.mkdir()
    (place / "precious").write_text("x")
    said = script("up", place, good=(1,))
    assert "not empty" in said
    assert "Traceback" not in said
    assert script("up", "--bogus", good=(2,))
