"""The fixtures' own promises: what tests start is found and ended, whatever state it is in."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.processes import (
    TRACE,
    LocalGrid,
    MountedFileSystem,
    clean_up,
    detach_mounts_below,
    end_processes,
    is_stopped,
    mounts_below,
    run,
    traced_processes,
    words_of,
)


def test_detached_processes_with_the_trace_are_found_and_ended_and_no_others(tmp_path: Path) -> None:
    children = [
        subprocess.Popen(["sleep", "1000"], env={**os.environ, TRACE: trace}, start_new_session=True)
        for trace in ("mine", "another's")
    ]
    try:
        os.kill(children[0].pid, signal.SIGSTOP)
        assert traced_processes("mine") == [children[0].pid]
        found = clean_up("mine", tmp_path)
        assert found == [f"process {children[0].pid}: sleep 1000 "]
        assert not any(words_of(children[0].pid))
        assert children[1].poll() is None
    finally:
        end_processes([child.pid for child in children])
        for child in children:
            child.wait()


def test_a_command_that_fails_shows_what_it_said() -> None:
    with pytest.raises(AssertionError, match="ended with 3\nout\nbad"):
        run(["sh", "-c", "echo out; echo bad >&2; exit 3"])
    assert run(["sh", "-c", "exit 3"], good=(3,)).returncode == 3


def test_a_server_can_be_hung_resumed_and_killed(grid: LocalGrid) -> None:
    pid = grid.pid(0)
    grid.hang(0)
    assert is_stopped(pid)
    grid.resume(0)
    grid.kill(0)
    assert not any(words_of(pid))


@pytest.mark.mount
def test_a_mounted_file_system_is_used_killed_and_taken_down(
    mounted: MountedFileSystem, tmp_path: Path
) -> None:
    (mounted.path / "file").write_bytes(b"content")
    mounted.remount()
    assert (mounted.path / "file").read_bytes() == b"content"
    mounted.kill_daemon()
    assert mounts_below(tmp_path) == [mounted.path]
    mounted.mount()
    assert (mounted.path / "file").read_bytes() == b"content"
    assert detach_mounts_below(tmp_path) == [mounted.path]
    assert mounts_below(tmp_path) == []
