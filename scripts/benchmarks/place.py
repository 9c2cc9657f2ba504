"""Where a benchmark works: a directory with grids and file systems in it, gone when the block is left.

    with Place(bench) as place:
        grid = place.grid(servers=6)
        mounted = place.file_system(grid, k=4, n=6)
        digest = write_file(mounted.path / "file", 100_000_000, seed=1)
        cold(mounted)
        assert read_file(mounted.path / "file") == digest

Cold means: everything in the grid, unmounted, the page cache of the machine dropped (by root; else the pages
of the servers' files), mounted again. Contents do not compress and differ with the seed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from gridfs.control import client as control
from gridfs.host.home import Home
from tests.processes import TRACE, LocalGrid, MountedFileSystem, clean_up

PIECE = 1 << 20
DRAIN_SECONDS_MAX = 3600.0
"""Without any progress told."""
MB = 1_000_000


@dataclass(frozen=True)
class Bench:
    """How the benchmarks are to be run."""

    quick: bool = False
    transport: str = "unix"
    work: Path | None = None
    """Where grids are made; a temporary directory without it."""

    def choose(self, quick: Any, full: Any) -> Any:
        return quick if self.quick else full


class Place:
    """One benchmark's directory, processes and mounts."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._trace = uuid.uuid4().hex
        self._before: dict[str, str | None] = {}
        self.directory = Path()
        self._made = 0
        self._grids: list[LocalGrid] = []

    def __enter__(self) -> Place:
        for name, value in ((TRACE, self._trace), ("GRIDFS_HOME", None)):
            self._before[name] = os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if self._bench.work is not None:
            self._bench.work.mkdir(parents=True, exist_ok=True)
        self.directory = Path(tempfile.mkdtemp(prefix="gridfs-bench-", dir=self._bench.work))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        clean_up(self._trace, self.directory)
        for grid in self._grids:
            with contextlib.suppress(AssertionError):
                grid.tear_down()  # takes its sockets away, too
        shutil.rmtree(self.directory, ignore_errors=True)
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    def grid(self, servers: int = 6, serve: tuple[str, ...] = (), transport: str | None = None) -> LocalGrid:
        """Running servers; `serve`: options of `gridfs-storage serve`."""
        self._made += 1
        grid = LocalGrid(self.directory / f"grid{self._made}")
        self._grids.append(grid)
        grid.up(servers, transport or self._bench.transport, serve)
        return grid

    def file_system(
        self,
        grid: LocalGrid,
        k: int = 4,
        n: int = 6,
        *,
        happy: int | None = None,
        shares_per_server: int = 1,
        servers_file: Path | None = None,
        options: tuple[str, ...] = (),
        mount: bool = True,
    ) -> MountedFileSystem:
        """A new file system on a grid; `servers_file` where others than the grid's are to be used."""
        self._made += 1
        home = self.directory / f"home{self._made}"
        home.mkdir(mode=0o700)
        made = MountedFileSystem(grid, home, self.directory / f"mnt{self._made}", "bench", options)
        words = ["--servers", servers_file or grid.servers_file, "-k", k, "-n", n]
        words += [] if happy is None else ["--happy", happy]
        made.command("create", made.name, *words, "--shares-per-server", shares_per_server)
        if mount:
            made.mount()
        return made


def server_pids(grid: LocalGrid, count: int | None = None) -> list[int]:
    pids = sorted(int(path.stem) for path in grid.directory.glob("*.pid"))
    return [grid.pid(number) for number in pids[:count]]


def remount(mounted: MountedFileSystem, *options: str) -> None:
    """Wait until everything is in the grid, unmount, and mount with these options."""
    if mounted.daemon_pids():
        drain(mounted)
        mounted.umount()
    mounted.options = options
    mounted.mount()


def cold(mounted: MountedFileSystem, *options: str) -> None:
    """The same with all caches dropped in between."""
    drain(mounted)
    mounted.umount()
    drop_caches(mounted.grid)
    mounted.options = options
    mounted.mount()


def drain(mounted: MountedFileSystem) -> None:
    """Wait until everything is in the grid, however long that takes."""
    *_, last = control.ask(_home(mounted), "sync", timeout_s=DRAIN_SECONDS_MAX)
    if "ok" not in last:
        raise RuntimeError(f"the upload does not end well: {last}")


def status(mounted: MountedFileSystem) -> dict[str, Any]:
    """`gridfs status --json`, without the start of a program."""
    return control.status(_home(mounted))


def _home(mounted: MountedFileSystem) -> Home:
    return Home(mounted.home / mounted.name)


def drop_caches(grid: LocalGrid) -> None:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        for path in grid.directory.rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)


# ---- contents ---------------------------------------------------------------------------------------


def piece(seed: object, index: int, size: int = PIECE) -> bytes:
    """Bytes that do not compress, made at several GB/s: an AES key stream."""
    key = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(size))


def write_file(path: Path, size: int, seed: object, *, sync: bool = False) -> str:
    """Write a file; returns its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for index, low in enumerate(range(0, size, PIECE)):
            data = piece(seed, index, min(PIECE, size - low))
            digest.update(data)
            file.write(data)
        if sync:
            os.fsync(file.fileno())
    return digest.hexdigest()


def read_file(path: Path) -> str:
    """Read a file; returns its SHA-256."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class WrongData(Exception):
    """What was read is not what was written."""


def check_file(path: Path, digest: str) -> None:
    if read_file(path) != digest:
        raise WrongData(f"{path.name} is not what was written")
