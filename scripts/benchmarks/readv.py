"""A cold sequential read for small and large k: messages and bytes per server, and the time they take.

For each k a k-of-n file system (n = 1.67 k) on six servers, with several shares a server, and on n servers;
each is read with readv and with a request for each range (mount option measure=single), in turns.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benchmarks.machine import measured
from scripts.benchmarks.place import MB, Bench, Place, check_file, cold, server_pids, status, write_file
from scripts.benchmarks.report import Bound, Plot, Result, Table
from tests.processes import LocalGrid, MountedFileSystem

QUESTION = "does a cold read cost more messages or time when k is large?"

SIZE = 100 * MB
FEW = 6
SHARES_PER_SERVER = 17
SLOWDOWN_MAX = 1.3
"""T(60) / T(3)."""


def shares_for(k: int) -> int:
    return max(k + 1, round(1.67 * k))


@dataclass
class Read:
    """One cold read."""

    seconds: float
    client_cpu_s: float
    server_cpu_s: float
    requests: dict[str, int]
    """By server."""
    bytes_in: dict[str, int]


def counters(mounted: MountedFileSystem) -> dict[str, tuple[int, int]]:
    servers: list[dict[str, Any]] = status(mounted)["servers"]
    return {each["name"]: (each["requests"].get("readv", 0), each["bytes_in"]) for each in servers}


def read_once(mounted: MountedFileSystem, digest: str, options: tuple[str, ...], servers: list[int]) -> Read:
    cold(mounted, *options)
    before = counters(mounted)
    with measured(mounted.daemon_pids(), servers) as used:
        check_file(mounted.path / "large", digest)
    after = counters(mounted)
    asked = {name: (after[name][0] - before[name][0], after[name][1] - before[name][1]) for name in after}
    return Read(
        used.seconds,
        used.client_cpu_s,
        used.server_cpu_s,
        {name: requests for name, (requests, _) in asked.items()},
        {name: size for name, (_, size) in asked.items()},
    )


@dataclass
class Layout:
    """Servers that hold the shares of all k."""

    name: str
    grid: LocalGrid
    shares_per_server: int
    count: int | None
    """Servers; None: as many as there are shares."""


class Measurement:
    def __init__(self, bench: Bench, place: Place, result: Result) -> None:
        self._bench, self._place, self._result = bench, place, result
        self._rounds: int = bench.choose(2, 3)
        self._table: Table = result.table(
            "cold read: medians of the rounds; requests and MB by server, least and most",
            *("servers", "k", "n", "asked by", "seconds", "MB/s", "client CPU s", "server CPU s"),
            *("requests", "requests a server", "MB a server"),
        )
        self.seconds: dict[str, dict[int, float]] = {}
        """By layout and way of asking, then by k."""

    def measure(self, layout: Layout, k: int) -> None:
        n = shares_for(k)
        servers = layout.count or n
        mounted = self._place.file_system(
            layout.grid,
            k,
            n,
            shares_per_server=layout.shares_per_server,
            servers_file=self._first_servers(layout.grid, servers),
        )
        digest = write_file(mounted.path / "large", SIZE, f"readv {k}")
        pids = server_pids(layout.grid, servers)
        ways = {"readv": (), "one range": ("measure=single",)}
        reads: dict[str, list[Read]] = {way: [] for way in ways}
        for _ in range(self._rounds):
            for way, options in ways.items():
                reads[way].append(read_once(mounted, digest, options, pids))
        mounted.umount()
        for way, found in reads.items():
            self._report(layout.name, k, n, way, found)

    def _first_servers(self, grid: LocalGrid, count: int) -> Path:
        lines = grid.servers_file.read_text().splitlines(keepends=True)
        file = self._place.directory / f"servers{count}"
        file.write_text("".join(lines[:count]))
        return file

    def _report(self, layout: str, k: int, n: int, way: str, reads: list[Read]) -> None:
        seconds = statistics.median(read.seconds for read in reads)
        self.seconds.setdefault(f"{layout} servers, {way}", {})[k] = seconds
        last = reads[-1]
        requests, sizes = last.requests.values(), [size / MB for size in last.bytes_in.values()]
        self._table.add(
            *(layout, k, n, way, seconds, SIZE / MB / seconds),
            statistics.median(read.client_cpu_s for read in reads),
            statistics.median(read.server_cpu_s for read in reads),
            sum(requests),
            f"{min(requests)}-{max(requests)}",
            f"{min(sizes):.1f}-{max(sizes):.1f}",
        )


def run(bench: Bench) -> Result:
    ks: tuple[int, ...] = bench.choose((3, 60), (1, 3, 10, 25, 54, 60))
    with Place(bench) as place:
        result = Result("", "", {"file": f"{SIZE // MB} MB", "transport": bench.transport})
        measurement = Measurement(bench, place, result)
        few = Layout(f"{FEW}", place.grid(FEW), SHARES_PER_SERVER, FEW)
        for k in ks:
            measurement.measure(few, k)
        few.grid.down()
        many = Layout("n", place.grid(max(map(shares_for, ks))), 1, None)
        for k in ks:
            measurement.measure(many, k)
    for name, seconds in measurement.seconds.items():
        if name.endswith("readv"):
            result.bounds.append(Bound(f"{name}: T(60) / T(3)", seconds[60] / seconds[3], SLOWDOWN_MAX))
    curves = {name: sorted(seconds.items()) for name, seconds in measurement.seconds.items()}
    title = f"Cold read of {SIZE // MB} MB"
    result.plots.append(Plot("readv", title, "k", "seconds", curves))
    return result
