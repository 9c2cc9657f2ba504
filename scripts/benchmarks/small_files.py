"""Small files at a distance: what each costs in round trips, durable one by one, or many with one sync.

The time of a file is fitted to A + B x size. In virtual time A is exact: the work of client and servers takes
none. With real processes the servers stand behind a proxy that delays, and CPU and disks are in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from gridfs.assembly import Parts
from scripts.benchmarks.delay import far_away
from scripts.benchmarks.place import Bench, Place, drain, piece
from scripts.benchmarks.report import Bound, Plot, Result, Table
from scripts.benchmarks.virtual import REST_S, on_a_grid
from tests.simulation.filesystem import Shell
from tests.simulation.machine import World
from tests.simulation.pipe import Link

QUESTION = "how many round trips does a small file cost?"

DISTANCES_S = (0.0, 0.014, 0.1)
SIZE = 1000
SIZES = (0, 1000, 4000, 8000, 16000)
"""Bytes; up to 16 KiB travel in the head record itself."""
DURABLE_MAX = 2.0
"""Round trips of a file with fsync: one for data and metadata, one for what must follow."""
UNSYNCED_MAX = 0.05
"""Round trips of one of many files that are synced together."""


def fitted(points: list[tuple[float, float]]) -> tuple[float, float]:
    """A and B of the straight line A + B x, by least squares."""
    count = len(points)
    mean_x, mean_y = (sum(values) / count for values in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    return mean_y - slope * mean_x, slope


def in_round_trips(seconds: float, round_trip_s: float) -> float | None:
    return seconds / round_trip_s if round_trip_s else None


# ---- virtual time -----------------------------------------------------------------------------------


def durable(count: int, size: int) -> Callable[[World, Parts], Awaitable[float]]:
    """Seconds a file of files that are made, written and fsynced one after the other."""

    async def work(world: World, parts: Parts) -> float:
        shell = Shell(parts)
        began = trio.current_time()
        for number in range(count):
            name = f"{count}-{size}-{number}"
            await shell.write(name, piece(name, 0, size))
            await shell.fsync(name)
        took = trio.current_time() - began
        await parts.files.drain()
        await trio.sleep(REST_S)
        return took / count

    return work


def unsynced(count: int, size: int) -> Callable[[World, Parts], Awaitable[float]]:
    """Seconds a file of files that are made and written, and then all synced."""

    async def work(world: World, parts: Parts) -> float:
        shell = Shell(parts)
        began = trio.current_time()
        for number in range(count):
            name = f"many-{count}-{size}-{number}"
            await shell.write(name, piece(name, 0, size))
        await parts.files.sync()
        took = trio.current_time() - began
        await parts.files.drain()
        await trio.sleep(REST_S)
        return took / count

    return work


def in_virtual_time(bench: Bench, result: Result) -> None:
    counts: tuple[int, ...] = bench.choose((1, 300), (1, 100, 1000))
    files = result.table(
        f"virtual time: files of {SIZE} B, a file",
        *("round trip ms", "files", "durable ms", "durable round trips"),
        *("unsynced ms", "unsynced round trips"),
    )
    fits = result.table(
        "virtual time: a durable file, fitted", "round trip ms", "A ms", "A round trips", "B us/kB"
    )
    most_durable, most_unsynced = 0.0, 0.0
    for distance in DISTANCES_S:
        works = [make(count, SIZE) for count in counts for make in (durable, unsynced)]
        works += [durable(10, size) for size in SIZES]
        found = on_a_grid(Link(round_trip_s=distance), *works)
        for index, count in enumerate(counts):
            one, many = found[2 * index : 2 * index + 2]
            in_trips = in_round_trips(one, distance), in_round_trips(many, distance)
            files.add(distance * 1e3, count, one * 1e3, in_trips[0], many * 1e3, in_trips[1])
            if distance:
                most_durable = max(most_durable, one / distance)
                if count == counts[-1]:
                    most_unsynced = max(most_unsynced, many / distance)
        a, b = fitted(list(zip(map(float, SIZES), found[2 * len(counts) :], strict=True)))
        fits.add(distance * 1e3, a * 1e3, in_round_trips(a, distance), b * 1e9)
    result.bounds.append(Bound("round trips of a durable file", most_durable, DURABLE_MAX))
    text = f"round trips of one of {counts[-1]} files synced together"
    result.bounds.append(Bound(text, most_unsynced, UNSYNCED_MAX))


# ---- real processes ---------------------------------------------------------------------------------


def make_durably(folder: Path, count: int, size: int) -> float:
    """Seconds a file."""
    folder.mkdir()
    contents = [piece(folder.name, number, size) for number in range(count)]
    began = time.monotonic()
    for number, content in enumerate(contents):
        with (folder / str(number)).open("wb", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())
    return (time.monotonic() - began) / count


def measure_real(
    path: Path, distance: float, counts: tuple[int, ...], table: Table, fits: Table
) -> list[float]:
    """Fills the tables; returns the seconds of a file by size."""
    make_durably(path / "warm", 3, SIZE)
    for count in counts:
        one = make_durably(path / f"durable-{count}", count, SIZE)
        table.add(distance * 1e3, count, one * 1e3, in_round_trips(one, distance))
    found = [make_durably(path / f"size-{size}", counts[-1] // 5 or 1, size) for size in SIZES]
    a, b = fitted(list(zip(map(float, SIZES), found, strict=True)))
    fits.add(distance * 1e3, a * 1e3, in_round_trips(a, distance), b * 1e9)
    return found


def with_processes(bench: Bench, result: Result) -> None:
    counts: tuple[int, ...] = bench.choose((1, 50), (1, 100, 1000))
    table = result.table(
        f"real processes: files of {SIZE} B, a file",
        "round trip ms",
        "files",
        "durable ms",
        "durable round trips",
    )
    fits = result.table(
        "real processes: a durable file, fitted", "round trip ms", "A ms", "A round trips", "B us/kB"
    )
    curves = {}
    with Place(bench) as place:
        grid = place.grid(transport="unix")
        for distance in DISTANCES_S:
            with far_away(place, grid, distance) as far:
                servers = far if distance else grid.servers_file
                mounted = place.file_system(grid, servers_file=servers, happy=5)
                found = measure_real(mounted.path, distance, counts, table, fits)
                curves[f"{distance * 1e3:.0f} ms away"] = [
                    (float(size), seconds * 1e3) for size, seconds in zip(SIZES, found, strict=True)
                ]
                drain(mounted)
                mounted.umount()
    title = "A file with fsync, real processes"
    result.plots.append(Plot("small-files", title, "bytes", "ms a file", curves))


def run(bench: Bench) -> Result:
    result = Result("", "", {"k": 4, "n": 6, "happy": 5, "transport": "unix, behind a proxy that delays"})
    in_virtual_time(bench, result)
    with_processes(bench, result)
    return result
