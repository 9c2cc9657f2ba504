"""Copies on the way of a read: how many there are, and what one more costs.

Copies in our own memory are counted by client and servers themselves (virtual time, the real code), what
crosses to the kernel and back by strace. Then four files are read at once with O_DIRECT, at depths of 4, 32,
8 and 16, as they are and with one copy more at the client (mount option measure=copying) and at the servers
(serve --copying), in turns.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gridfs.assembly import Parts
from scripts.benchmarks.crossings import Crossings
from scripts.benchmarks.machine import at_once, measured
from scripts.benchmarks.place import (
    MB,
    Bench,
    Place,
    WrongData,
    check_file,
    cold,
    piece,
    server_pids,
    write_file,
)
from scripts.benchmarks.report import Bound, Result
from scripts.benchmarks.virtual import on_a_grid
from storage.server import ServerStatistics
from tests.processes import LocalGrid, MountedFileSystem
from tests.simulation.filesystem import OPTIONS, Servers, Shell
from tests.simulation.machine import World
from tests.simulation.pipe import Link

QUESTION = "how often is a byte copied on its way to the reader, and what does a copy cost?"

DEPTHS = (4, 32, 8, 16)
FILES = 4
BLOCK = 128 << 10
COUNTED_BYTES = 32 << 20
"""Of the file whose copies are counted."""
CLIENT_COPIES_MAX = 0.0
"""Copies by the client of each byte of a sequential read."""
SERVE_COPYING = ("--copying",)
MOUNT_COPYING = "measure=copying"


# ---- counted ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copies:
    """Of one way to read, per byte that was read."""

    by_client: float
    by_servers: float
    fetched: float
    """Share bytes that came from the servers."""


Pattern = tuple[int, bool]
"""Bytes of one read, and whether reads are at random places."""
PATTERNS: dict[str, Pattern] = {
    "sequential, 1 MiB": (1 << 20, False),
    "sequential, 128 KiB": (128 << 10, False),
    "random, 128 KiB": (128 << 10, True),
    "random, 4 KiB": (4 << 10, True),
}
RANDOM_READS = 64


def places(pattern: Pattern) -> list[int]:
    """Where each of the reads begins."""
    size, is_random = pattern
    every = list(range(0, COUNTED_BYTES, size))
    return random.Random(size).sample(every[1:], RANDOM_READS) if is_random else every


def copies(measure: str = "") -> dict[str, Copies]:
    """Of each pattern, on a mount of its own; `measure`: the mount option of that name."""
    content = b"".join(piece("copies", index) for index in range(COUNTED_BYTES >> 20))
    servers: list[ServerStatistics] = []

    def prepared(world: World, grid: Servers) -> None:
        servers.extend(each.statistics for each in grid.running.values())

    async def write(world: World, parts: Parts) -> Copies:
        await Shell(parts).write("file", content)
        await parts.files.drain()
        return Copies(0.0, 0.0, 0.0)

    def read(pattern: Pattern) -> Callable[[World, Parts], Awaitable[Copies]]:
        size, wanted = pattern[0], places(pattern)

        async def work(world: World, parts: Parts) -> Copies:
            shell = Shell(parts)
            ino = shell.find("file")
            assert ino is not None
            client = parts.prefetcher.reader
            before = client.copied_bytes, *totals(servers)
            handle = shell.files.open(ino)
            for at in wanted:
                if await shell.files.read(handle, at, size) != content[at : at + size]:
                    raise WrongData(f"at {at}")
            shell.files.release(handle)
            after = client.copied_bytes, *totals(servers)
            found = [(b - a) / (size * len(wanted)) for a, b in zip(before, after, strict=True)]
            return Copies(*found)

        return work

    works = [write, *map(read, PATTERNS.values())]
    found = on_a_grid(Link(), *works, options=replace(OPTIONS, measure=measure), prepared=prepared)[1:]
    return dict(zip(PATTERNS, found, strict=True))


def totals(servers: list[ServerStatistics]) -> tuple[int, int]:
    """Bytes copied, and bytes sent."""
    return sum(each.bytes_copied for each in servers), sum(each.bytes_out for each in servers)


def crossings(mounted: MountedFileSystem, digest: str, size: int, result: Result) -> None:
    """What a cold sequential read moves between processes and kernel."""
    if shutil.which("strace") is None:
        result.notes.append("Without strace, what crosses to the kernel was not counted.")
        return
    with Crossings(mounted.daemon_pids(), server_pids(mounted.grid)) as counted:
        check_file(mounted.path / "file-0", digest)
    table = result.table("bytes across the kernel's border, per byte of a cold read", "who", "what", "bytes")
    for (who, what), count in sorted(counted.bytes.items()):
        table.add(who, what, count / size)


# ---- what a copy costs ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """With or without copies."""

    name: str
    mount: tuple[str, ...] = ()
    serve: tuple[str, ...] = ()


WAYS = (
    Way("as it is"),
    Way("one more at the client", (MOUNT_COPYING,)),
    Way("one more at the servers", (), SERVE_COPYING),
    Way("both", (MOUNT_COPYING,), SERVE_COPYING),
)


@dataclass
class Found:
    """Of all runs of one way."""

    mb_s: list[float] = field(default_factory=list)
    client_cpu: list[float] = field(default_factory=list)
    """Seconds per GB."""
    server_cpu: list[float] = field(default_factory=list)


def fio(directory: Path, size: int) -> float:
    """Read four files at once, each to its end; MB/s of all together."""
    words = ["fio", "--output-format=json", "--rw=read", f"--bs={BLOCK}", "--direct=1", "--ioengine=libaio"]
    words += [f"--size={size}", f"--directory={directory}", "--readonly"]
    for number, depth in enumerate(DEPTHS):
        words += [f"--name=depth{depth}", f"--filename=file-{number}", f"--iodepth={depth}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"fio failed: {done.stderr.strip() or done.stdout.strip()}")
    jobs: list[dict[str, Any]] = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    seconds = max(job["read"]["runtime"] for job in jobs) / 1e3
    return float(sum(job["read"]["io_bytes"] for job in jobs) / MB / seconds)


def restart(grid: LocalGrid, serve: tuple[str, ...]) -> None:
    grid.down()
    grid.up(serve=serve)


def compare(mounted: MountedFileSystem, way: Way, size: int, found: Found) -> None:
    restart(mounted.grid, way.serve)
    cold(mounted, *way.mount)
    with measured(mounted.daemon_pids(), server_pids(mounted.grid)) as used:
        found.mb_s.append(fio(mounted.path, size))
    gigabytes = FILES * size / 1e9
    found.client_cpu.append(used.client_cpu_s / gigabytes)
    found.server_cpu.append(used.server_cpu_s / gigabytes)


def deviation(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def run(bench: Bench) -> Result:
    size: int = bench.choose(64 << 20, 512 << 20)
    rounds: int = bench.choose(2, 10)
    ways: tuple[Way, ...] = bench.choose((WAYS[0], WAYS[3]), WAYS)
    settings = {"k": 4, "n": 6, "happy": 5, "files": f"{FILES} of {size >> 20} MiB", "runs": rounds}
    result = Result("", "", settings | {"transport": bench.transport})
    counted = copies()
    table = result.table(
        "copies in our own memory, per byte read (virtual time)",
        *("reads", "by the client", "by the servers", "share bytes fetched"),
    )
    for name, each in counted.items():
        table.add(name, each.by_client, each.by_servers, each.fetched)
    most = max(each.by_client for name, each in counted.items() if name.startswith("sequential"))
    result.bounds.append(Bound("copies by the client, sequential", most, CLIENT_COPIES_MAX))
    found = {way.name: Found() for way in ways}
    with Place(bench) as place:
        mounted = place.file_system(place.grid(), happy=5)
        digests: dict[int, str] = {}

        def write(number: int) -> None:
            digests[number] = write_file(mounted.path / f"file-{number}", size, f"zero-copy {number}")

        at_once(lambda number=number: write(number) for number in range(FILES))
        for _ in range(rounds):
            for way in ways:
                compare(mounted, way, size, found[way.name])
        cold(mounted)
        for number, digest in digests.items():
            check_file(mounted.path / f"file-{number}", digest)
        restart(mounted.grid, ())
        cold(mounted)
        crossings(mounted, digests[0], size, result)
        mounted.umount()
    cost = result.table(
        f"fio, O_DIRECT, {BLOCK >> 10} KiB, depths {', '.join(map(str, DEPTHS))}: means of the runs",
        *("copies", "MB/s", "deviation", "client CPU s/GB", "deviation of that", "server CPU s/GB"),
    )
    for name, runs in found.items():
        means = [statistics.mean(values) for values in (runs.mb_s, runs.client_cpu, runs.server_cpu)]
        cost.add(name, means[0], deviation(runs.mb_s), means[1], deviation(runs.client_cpu), means[2])
    return result
