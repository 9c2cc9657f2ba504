"""Real processes for tests: a local grid, a mounted file system, and ending whatever tests started.

A process is known as ours by TRACE in its environment, which children inherit however they detach
themselves; no other is ever signalled.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
TRACE = "GRIDFS_TEST_TRACE"
COMMAND_SECONDS_MAX = 120.0
END_SECONDS_MAX = 20.0


@dataclass(frozen=True)
class GridShape:
    """What @pytest.mark.grid_shape takes."""

    servers: int = 6
    transport: str = "unix"


@dataclass(frozen=True)
class FileSystemShape:
    """What @pytest.mark.file_system_shape takes: the options of `gridfs create`."""

    k: int = 4
    n: int = 6
    happy: int = 5
    options: tuple[str, ...] = ()
    """Further ones, such as ("--shares-per-server", "2")."""


Completed = subprocess.CompletedProcess[str]


def run(
    command: Iterable[str | Path], *, good: tuple[int, ...] = (0,), home: Path | None = None, **options: Any
) -> Completed:
    """Run a command to its end without a terminal; AssertionError with its output on another exit code.

    Output goes through files, not pipes: a daemon that a command leaves behind may hold them open.
    """
    words = [str(word) for word in command]
    environment = dict(os.environ)
    if home is not None:
        environment["GRIDFS_HOME"] = str(home)
    with contextlib.ExitStack() as files:
        output, errors = (files.enter_context(temporary_text()) for _ in range(2))
        code = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            timeout=COMMAND_SECONDS_MAX,
            env=environment,
            check=False,
            **options,
        ).returncode
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read())
    done = subprocess.CompletedProcess(words, code, *texts)
    assert code in good, f"{words} ended with {code}\n{done.stdout}{done.stderr}"
    return done


def temporary_text() -> IO[str]:
    return tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")


class LocalGrid:
    """Storage servers started by scripts/local-grid, numbered from 0."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def servers_file(self) -> Path:
        """The servers FILE of `gridfs create`."""
        return self.directory / "servers"

    def up(
        self, servers: int | None = None, transport: str | None = None, serve: tuple[str, ...] = ()
    ) -> None:
        """Start what is missing: all, at first; later those that were killed. `serve`: options of theirs."""
        options = [] if servers is None else ["--servers", str(servers)]
        options += [] if transport is None else ["--transport", transport]
        options += [f"--serve={option}" for option in serve]
        self._script("up", *options)

    def down(self) -> None:
        self._script("down")

    def pid(self, number: int) -> int:
        return int((self.directory / f"{number}.pid").read_text())

    def kill(self, number: int) -> None:
        """kill -9, and wait until the process is gone."""
        end_processes([self.pid(number)], signal.SIGKILL)

    def hang(self, number: int) -> None:
        """Stop a server without ending it: it keeps its connections and answers nothing."""
        pid = self.pid(number)
        os.kill(pid, signal.SIGSTOP)
        deadline = time.monotonic() + END_SECONDS_MAX
        while not is_stopped(pid):
            # The signal reaches a thread that runs on another processor a moment later.
            assert time.monotonic() < deadline, f"process {pid} does not stop"
            os.sched_yield()

    def resume(self, number: int) -> None:
        os.kill(self.pid(number), signal.SIGCONT)

    def log(self, number: int) -> str:
        """What a server said on stderr since it was made."""
        return (self.directory / f"{number}.log").read_text()

    def tear_down(self) -> None:
        if self.directory.is_dir():
            self._script("down", good=(0, 1))

    def _script(self, verb: str, *options: str, good: tuple[int, ...] = (0,)) -> Completed:
        return run([ROOT / "scripts" / "local-grid", verb, self.directory, *options], good=good)


@dataclass
class MountedFileSystem:
    """A file system on a local grid, with a GRIDFS_HOME of its own."""

    grid: LocalGrid
    home: Path
    """GRIDFS_HOME of all its commands."""
    path: Path
    """The mount point."""
    name: str = "test"
    options: tuple[str, ...] = field(default=())
    """Words for `gridfs mount -o`, kept for every mount."""

    def create(self, shape: FileSystemShape) -> Completed:
        self.home.mkdir(mode=0o700, exist_ok=True)
        words = ["create", self.name, "--servers", self.grid.servers_file, "-k", shape.k, "-n", shape.n]
        return self.command(*words, "--happy", shape.happy, *shape.options)

    def mount(self, *, good: tuple[int, ...] = (0,)) -> Completed:
        with contextlib.suppress(FileExistsError):
            self.path.mkdir()  # not exist_ok, which looks at what is there: it may be a dead mount
        options = ["-o", ",".join(self.options)] if self.options else []
        return self.command("mount", self.name, self.path, *options, good=good)

    def umount(self) -> Completed:
        """Returns when everything is in the grid."""
        return self.command("umount", self.path)

    def sync(self) -> Completed:
        return self.command("sync", self.path)

    def remount(self) -> None:
        self.umount()
        self.mount()

    def status(self) -> dict[str, Any]:
        """`gridfs status --json`."""
        report: dict[str, Any] = json.loads(self.command("status", self.name, "--json").stdout)
        return report

    def command(self, *words: object, good: tuple[int, ...] = (0,)) -> Completed:
        """Run `gridfs WORDS` on this file system's home."""
        program = Path(sys.executable).with_name("gridfs")
        return run([program, *(str(word) for word in words)], good=good, home=self.home)

    def daemon_pids(self) -> list[int]:
        """The mount's process or processes: ours, `mount` with this mount point among their words.

        fusermount3, which they call, names the mount point too and is none of them.
        """
        wanted = {b"mount", os.fsencode(self.path)}
        return [pid for pid in traced_processes(os.environ[TRACE]) if wanted <= set(words_of(pid))]

    def kill_daemon(self) -> None:
        """kill -9 of the mount daemon, as a crash; leaves the mount point dead."""
        pids = self.daemon_pids()
        assert pids, "no mount daemon runs"
        end_processes(pids, signal.SIGKILL)

    def tear_down(self) -> None:
        """For the end of a test: quick, and good in any state. Nothing is waited for to be stored."""
        detach_mounts_below(self.path)
        # SIGTERM would let it go on until everything is in a grid that may be dead.
        end_processes(self.daemon_pids(), signal.SIGKILL)


# ---- processes and mounts ---------------------------------------------------------------------------


def words_of(pid: int) -> list[bytes]:
    """The command line; empty for a process that is gone or was never ours to read."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def is_stopped(pid: int) -> bool:
    """By a signal: state T in its stat line, behind the name in parentheses."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def traced_processes(trace: str) -> list[int]:
    """All living processes, but this one, that were started with `trace` in their environment."""
    wanted = f"{TRACE}={trace}".encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                found.append(int(name))
    return sorted(found)


def end_processes(pids: Iterable[int], first: signal.Signals = signal.SIGTERM) -> None:
    """Signal all, wait, and SIGKILL what is still there after END_SECONDS_MAX."""
    with contextlib.ExitStack() as files:
        running: dict[int, int] = {}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
                files.callback(os.close, descriptor)
                running[descriptor] = pid
        for number in (first, signal.SIGKILL):
            for descriptor in running:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, number)
                    signal.pidfd_send_signal(descriptor, signal.SIGCONT)
            await_ends(running)
        assert not running, f"these processes do not end: {list(running.values())}"


def await_ends(running: dict[int, int]) -> None:
    """Take from `running` (pidfd: pid) what ends in time; a pidfd is readable when its process ended."""
    poll = select.poll()
    for descriptor in running:
        poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + END_SECONDS_MAX
    while running and (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left * 1000):
            poll.unregister(descriptor)
            pid = running.pop(descriptor)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def mounts_below(directory: Path) -> list[Path]:
    """Mount points at or under `directory`, the innermost first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target = line.split(" ")[4]
        for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
            target = target.replace(code, character)
        if Path(target).is_relative_to(directory):
            found.append(Path(target))
    return found[::-1]


def detach_mounts_below(directory: Path) -> list[Path]:
    """Detach them, dead ones too; returns what there was."""
    found = mounts_below(directory)
    for path in found:
        if os.getuid() == 0:
            run(["umount", "--lazy", "--internal-only", path], good=(0, 32))
        else:
            run(["fusermount3", "-u", "-z", path], good=(0, 1))
    return found


def clean_up(trace: str, directory: Path) -> list[str]:
    """End every process with `trace`, detach every mount below `directory`; what there was, in words."""
    found = [f"mount {path}" for path in detach_mounts_below(directory)]
    pids = traced_processes(trace)
    found += [f"process {pid}: {b' '.join(words_of(pid)).decode(errors='replace')}" for pid in pids]
    end_processes(pids)
    return found
