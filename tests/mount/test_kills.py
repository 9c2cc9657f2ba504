"""kill -9 of the mount daemon, at all sorts of moments: what was acknowledged is there afterwards."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import MakeFileSystem
from tests.mount.support import content, contents_of, shell, wait_until
from tests.processes import LocalGrid, MountedFileSystem, end_processes

MIB = 1 << 20
LIBRARY = Path(json.__file__).parent.parent


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Files of all small sizes, and some of a few MiB."""
    source = tmp_path / "library"
    for name in ("json", "email", "encodings"):
        shutil.copytree(LIBRARY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for number in range(3):
        (source / f"large-{number}").write_bytes(content(("large", number), 4 * MIB + number))
    return source


def is_dead(path: Path) -> bool:
    try:
        os.statvfs(path)  # which the kernel does not answer by itself
    except OSError:
        return True
    return False


# ---- after cp returned ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dead", [pytest.param((), marks=pytest.mark.slow), (4,), pytest.param((0, 3), marks=pytest.mark.slow)]
)
def test_what_cp_copied_is_whole(
    six: LocalGrid, make_file_system: MakeFileSystem, library: Path, dead: tuple[int, ...]
) -> None:
    mounted = make_file_system()
    for number in dead:
        six.kill(number)
    for copy in range(2):
        shell("cp", "-r", library, mounted.path / f"copy-{copy}")
        mounted.kill_daemon()
        assert is_dead(mounted.path)
        mounted.mount()  # over the dead mount point
        for earlier in range(copy + 1):
            shell("diff", "-r", library, mounted.path / f"copy-{earlier}")
    six.up()
    mounted.sync()
    mounted.remount()
    for copy in range(2):
        shell("diff", "-r", library, mounted.path / f"copy-{copy}")


def bytes_read_by(pid: int) -> int:
    """What a process has read so far with system calls; a large number once it is gone."""
    try:
        text = Path(f"/proc/{pid}/io").read_text()
    except OSError:
        return 1 << 62
    return int(text.split("rchar: ")[1].split()[0])


def mount_and_kill(mounted: MountedFileSystem, read_bytes: int, pids: list[int]) -> bool:
    """Kill a daemon that has read so much; whether that was before its `gridfs mount` returned."""
    starting = subprocess.Popen(
        [Path(sys.executable).with_name("gridfs"), "mount", mounted.name, mounted.path],
        env={**os.environ, "GRIDFS_HOME": str(mounted.home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    pids.append(starting.pid)

    def daemons() -> list[int]:
        return [pid for pid in mounted.daemon_pids() if pid != starting.pid]

    def is_far_enough() -> bool:
        found = daemons()
        return bool(found) and all(bytes_read_by(pid) > read_bytes for pid in found)

    wait_until(is_far_enough, "a daemon starts and reads the spool")
    end_processes(daemons(), signal.SIGKILL)
    was_killed = starting.wait() != 0
    # A child of `gridfs mount` on its way to becoming fusermount3 may have looked like the daemon.
    end_processes(daemons(), signal.SIGKILL)
    return was_killed


def test_kills_during_the_replay(
    six: LocalGrid, make_file_system: MakeFileSystem, library: Path, ends_processes: list[int]
) -> None:
    mounted = make_file_system()
    six.kill(1)
    six.kill(2)  # all stays in the spool
    shell("cp", "-r", library, mounted.path / "copy")
    spooled = mounted.status()["space"]["spool_bytes"]
    assert spooled > 12 * MIB
    mounted.kill_daemon()
    killed_in_replay = sum(
        mount_and_kill(mounted, spooled * part // 6, ends_processes) for part in range(1, 7)
    )
    assert killed_in_replay
    mounted.mount()
    shell("diff", "-r", library, mounted.path / "copy")
    six.up()
    mounted.sync()
    mounted.remount()
    shell("diff", "-r", library, mounted.path / "copy")


def test_a_kill_while_the_unmounted_daemon_drains(
    six: LocalGrid, make_file_system: MakeFileSystem, library: Path
) -> None:
    mounted = make_file_system()
    six.kill(0)
    six.kill(1)
    shell("cp", "-r", library, mounted.path / "copy")
    shell("fusermount3", "-u", mounted.path)
    assert not mounted.status()["mounted"]
    mounted.kill_daemon()
    six.up()
    mounted.mount()
    shell("diff", "-r", library, mounted.path / "copy")
    mounted.remount()
    shell("diff", "-r", library, mounted.path / "copy")


def test_a_close_after_a_kill_does_not_tell_that_all_is_well(make_file_system: MakeFileSystem) -> None:
    mounted = make_file_system()
    (mounted.path / "before").write_bytes(b"closed")
    descriptor = os.open(mounted.path / "file", os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, bytes(1000))  # stays in the kernel's cache
    mounted.kill_daemon()
    with pytest.raises(OSError, match="not connected"):
        os.close(descriptor)
    mounted.mount()
    assert (mounted.path / "before").read_bytes() == b"closed"


# ---- a small spool ----------------------------------------------------------------------------------


class Writing(threading.Thread):
    """Writes files of about 3 MiB until `total` bytes are written, or the mount is dead."""

    def __init__(self, root: Path, name: str, total: int) -> None:
        super().__init__()
        self.root, self.name_, self.total = root, name, total
        self.closed: dict[str, bytes] = {}
        self.begun: tuple[str, bytes] | None = None
        self.error: OSError | None = None

    def run(self) -> None:
        written = 0
        try:
            while written < self.total:
                number = len(self.closed)
                body = content((self.name_, number), 3 * MIB + 1001 * number)
                name = f"{self.name_}-{number}"
                self.begun = (name, body)
                (self.root / name).write_bytes(body)
                self.closed[name] = body
                self.begun = None
                written += len(body)
        except OSError as error:
            self.error = error

    @property
    def closed_bytes(self) -> int:
        return sum(map(len, list(self.closed.values())))


def assert_kept(root: Path, closed: dict[str, bytes], begun: tuple[str, bytes] | None) -> None:
    """Closed files are whole; the one that was being written has right bytes or holes, and no others."""
    for name, body in closed.items():
        assert (root / name).read_bytes() == body, name
    names = set(os.listdir(root))
    assert names >= set(closed)
    assert names - set(closed) <= ({begun[0]} if begun else set())
    if begun and begun[0] in names:
        found = (root / begun[0]).read_bytes()
        assert len(found) <= len(begun[1])
        for low in range(0, len(found), 4096):
            page = found[low : low + 4096]
            assert page in (begun[1][low : low + len(page)], bytes(len(page)))


def test_a_small_spool_is_used_many_times_over(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    mounted = make_file_system(options=("spool=32M",))
    closed: dict[str, bytes] = {}
    for turn, (total, kill_at) in enumerate([(90 * MIB, 40 * MIB), (90 * MIB, 55 * MIB), (100 * MIB, 0)]):
        writing = Writing(mounted.path, f"turn{turn}", total)
        writing.start()
        try:
            if kill_at:
                wait_until(lambda w=writing, n=kill_at: w.closed_bytes > n, "files are written")
                mounted.kill_daemon()
        finally:
            writing.join()
        closed |= writing.closed
        assert (writing.error is not None) == bool(kill_at), writing.error
        if kill_at:
            mounted.mount()
            assert_kept(mounted.path, closed, writing.begun)
            if writing.begun:
                (mounted.path / writing.begun[0]).unlink(missing_ok=True)
        spool = mounted.home / mounted.name / "spool"
        assert sum(path.stat().st_size for path in spool.iterdir()) < 64 * MIB
    assert sum(map(len, closed.values())) > 190 * MIB
    mounted.remount()
    assert_kept(mounted.path, closed, None)


# ---- operations in their order ----------------------------------------------------------------------


def random_operation(chance: random.Random, root: Path) -> Callable[[Path], None]:
    """One system call that changes names or attributes, chosen by what is below `root` now."""
    directories = [Path()]
    files = []
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        (directories if stat.S_ISDIR(path.lstat().st_mode) else files).append(relative)
    name = chance.choice(directories) / f"name-{chance.randrange(40)}"
    size, mode = chance.randrange(200_000), chance.randrange(0o1000)
    one = chance.choice(files) if files else name
    directory = chance.choice(directories[1:]) if directories[1:] else name
    kinds: list[Callable[[Path], None]] = [
        lambda base: os.mknod(base / name, stat.S_IFREG | 0o644),
        lambda base: os.mkdir(base / name),
        lambda base: os.rename(base / one, base / name),
        lambda base: os.unlink(base / one),
        lambda base: os.link(base / one, base / name, follow_symlinks=False),
        lambda base: os.symlink(f"target {size}", base / name),
        lambda base: os.truncate(base / one, size),
        lambda base: os.chmod(base / one, mode),
        lambda base: os.rmdir(base / directory),
        lambda base: os.rename(base / directory, base / name),
        lambda base: os.setxattr(base / one, "user.x", str(size).encode(), follow_symlinks=False),
    ]
    weights = [6, 3, 4, 2, 2, 1, 3, 1, 1, 1, 1]
    return chance.choices(kinds, weights)[0]


def names_and_attributes(root: Path) -> dict[str, object]:
    """All that the operations above change."""
    links: dict[int, list[str]] = {}
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name, status = str(path.relative_to(root)), path.lstat()
        values: list[object] = [oct(status.st_mode)]
        if stat.S_ISREG(status.st_mode):
            links.setdefault(status.st_ino, []).append(name)
            values += [status.st_size, status.st_nlink, {x: os.getxattr(path, x) for x in os.listxattr(path)}]
        if stat.S_ISLNK(status.st_mode):
            values.append(os.readlink(path))
        found[name] = values
    found["hard links"] = sorted(names for names in links.values() if len(names) > 1)
    return found


class Changing(threading.Thread):
    """Does operations on a mount, and each that succeeded on a plain directory too, until the mount dies."""

    def __init__(self, root: Path, model: Path, seed: int) -> None:
        super().__init__()
        self.root, self.model = root, model
        self.chance = random.Random(seed)
        self.done = 0
        self.last: Callable[[Path], None] | None = None
        self.differences: list[str] = []

    def run(self) -> None:
        while True:
            self.last = random_operation(self.chance, self.model)
            refusal = self._errno(self.root)
            if refusal in DEAD:
                return
            if self._errno(self.model) != refusal:
                self.differences.append(f"operation {self.done}: {refusal}")
                return
            self.done += 1
            self.last = None

    def _errno(self, base: Path) -> int:
        assert self.last is not None
        try:
            self.last(base)
        except OSError as error:
            return error.errno or -1
        return 0


DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
"""What a program gets from a mount whose daemon was killed."""


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_operations_are_kept_in_their_order(
    six: LocalGrid, make_file_system: MakeFileSystem, tmp_path: Path, seed: int
) -> None:
    """All that was acknowledged is there, and of the one under way at the kill everything or nothing."""
    mounted = make_file_system()
    if seed == 3:
        six.kill(0)
        six.kill(1)
    model = tmp_path / "model"
    model.mkdir()
    for turn in range(2):
        changing = Changing(mounted.path, model, seed * 100 + turn)
        changing.start()
        wait_until(lambda c=changing: c.done > 60 + 90 * seed or not c.is_alive(), "operations are done")
        mounted.kill_daemon()
        changing.join()
        assert not changing.differences
        mounted.mount()
        found = names_and_attributes(mounted.path)
        if found != names_and_attributes(model):
            assert changing.last is not None
            changing.last(model)
            assert found == names_and_attributes(model)
    six.up()
    mounted.sync()
    mounted.remount()
    assert names_and_attributes(mounted.path) == names_and_attributes(model)
    assert contents_of(mounted.path) == contents_of(model)
