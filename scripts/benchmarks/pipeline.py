"""Sequential reads and writes over a line that is long and narrow: is it full all the time?

Virtual time. The client has one line to all its servers, each way; TCP's slow start and a window of 4 MiB a
connection are modelled. What counts is the rate in the second half of a transfer, as a part of the line: of
plaintext for reads, of n/k times as much for writes.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import trio

from gridfs.assembly import MountOptions, Parts
from scripts.benchmarks.place import PIECE, Bench, WrongData, piece
from scripts.benchmarks.report import Bound, Plot, Result
from scripts.benchmarks.virtual import on_a_grid
from tests.simulation.filesystem import Servers, Shell
from tests.simulation.machine import World
from tests.simulation.pipe import Link, Wire

QUESTION = "is a long line full, with the window that the client chooses by itself?"

K, N = 4, 6
DISTANCES_S = (0.0, 0.014, 0.05, 0.1)
MBITS = (10, 100, 1000)
WINDOWS = (1 << 18, 1 << 20, 1 << 22, 1 << 24)
TCP_WINDOW = 4 << 20
PART_MIN = 0.9
SAMPLE_S = 0.005
CLIENT = "client"
"""The machine's name."""
PATTERN = b"".join(piece("pipeline", index) for index in range(17))
OPTIONS = MountOptions(spool_bytes=1 << 30)


def content(position: int, size: int) -> bytes:
    """Of the file, which repeats itself after 17 MiB: no two packs are alike."""
    start = position % len(PATTERN)
    return (PATTERN[start:] + PATTERN)[:size]


@dataclass(frozen=True)
class Line:
    """Between the client and all its servers."""

    round_trip_s: float
    mbit_s: int

    @property
    def bytes_per_s(self) -> float:
        return self.mbit_s * 1e6 / 8

    @property
    def file_bytes(self) -> int:
        """So much that slow start and the growth of windows are over in the first half."""
        seconds = 1 + 18 * self.round_trip_s
        return max(16, math.ceil(self.bytes_per_s * seconds / PIECE)) * PIECE


@dataclass
class Rates:
    """Bytes a second in the second half."""

    reading: float = 0.0
    writing: float = 0.0


class Measurement:
    """One line, one window."""

    def __init__(self, line: Line, window: int | None) -> None:
        """window: largest read-ahead window in bytes; None for what the client chooses."""
        self.line, self._window = line, window
        self.rates = Rates()
        self._up, self._down = Wire(), Wire()
        self._fast = Link(line.round_trip_s)

    def run(self) -> Rates:
        on_a_grid(self._fast, self._write, self._read, options=OPTIONS, prepared=self._draw_line)
        return self.rates

    def _draw_line(self, world: World, servers: Servers) -> None:
        links = world.fabric.links
        line = Link(self.line.round_trip_s, self.line.bytes_per_s, TCP_WINDOW)
        for node in servers.nodes:
            links[CLIENT, node.name] = replace(line, wire=self._up)
            links[node.name, CLIENT] = replace(line, wire=self._down)

    async def _write(self, world: World, parts: Parts) -> bool:
        shell, size = Shell(parts), self.line.file_bytes
        handle = shell.files.open(shell.create("large"))

        async def write() -> None:
            for low in range(0, size, PIECE):
                await shell.files.write(handle, low, content(low, PIECE))
            shell.files.release(handle)
            await parts.files.drain()

        self.rates.writing = await self._rate(write, self._up, size * N / K)
        return True

    async def _read(self, world: World, parts: Parts) -> bool:
        shell, size = Shell(parts), self.line.file_bytes
        if self._window is not None:
            prefetcher = parts.prefetcher
            prefetcher.config = replace(prefetcher.config, window_bytes_max=self._window)
        ino = shell.find("large")
        assert ino is not None
        handle = shell.files.open(ino)

        async def read() -> None:
            for low in range(0, size, PIECE):
                if await shell.files.read(handle, low, PIECE) != content(low, PIECE):
                    raise WrongData(f"at {low}")

        self.rates.reading = await self._rate(read, self._down, size)
        shell.files.release(handle)
        return True

    async def _rate(self, transfer: Callable[[], Awaitable[None]], wire: Wire, useful: float) -> float:
        """Useful bytes a second while the wire carried the sixth to ninth tenth of all that it carried.

        In the last tenth less is under way than the line could carry. Bytes that were carried in vain, or
        twice, count whenever that was.
        """
        samples: list[tuple[float, int]] = []

        async def sample() -> None:
            while True:
                samples.append((trio.current_time(), wire.carried))
                await trio.sleep(SAMPLE_S)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sample)
            await transfer()
            nursery.cancel_scope.cancel()
        first, carried = samples[0][1], wire.carried - samples[0][1]
        counted = [(at, done) for at, done in samples if 0.5 <= (done - first) / carried <= 0.9]
        (begin, low), (end, high) = counted[0], counted[-1]
        return (high - low) / (end - begin) * min(1.0, useful / carried)


def run(bench: Bench) -> Result:
    settings = {"k": K, "n": N, "happy": 5, "TCP window": "4 MiB", "time": "virtual"}
    result = Result("", "", settings)
    distances: tuple[float, ...] = bench.choose((0.0, 0.1), DISTANCES_S)
    table = result.table(
        "the window that the client chooses",
        "round trip ms",
        "Mbit/s",
        "read, part",
        "written, part",
        "file MiB",
    )
    curves: dict[str, list[tuple[float, float]]] = {}
    worst = Rates(1.0, 1.0)
    for distance in distances:
        for mbit_s in MBITS:
            line = Line(distance, mbit_s)
            rates = Measurement(line, None).run()
            read, written = rates.reading / line.bytes_per_s, rates.writing / line.bytes_per_s
            table.add(distance * 1e3, mbit_s, read, written, line.file_bytes // PIECE)
            curves.setdefault(f"{mbit_s} Mbit/s", []).append((distance * 1e3, read))
            worst = Rates(min(worst.reading, read), min(worst.writing, written))
    result.bounds.append(Bound("least part of the line that a read fills", worst.reading, PART_MIN, False))
    result.bounds.append(Bound("least part of the line that a write fills", worst.writing, PART_MIN, False))
    result.plots.append(
        Plot("pipeline", "Sequential read, automatic window", "round trip ms", "part of the line", curves)
    )
    windows = result.table(
        "reads with a fixed largest window", "round trip ms", "Mbit/s", "window KiB", "read, part"
    )
    by_window: dict[str, list[tuple[float, float]]] = {}
    for distance, mbit_s in bench.choose(
        ((0.1, 100),), ((0.014, 100), (0.014, 1000), (0.1, 100), (0.1, 1000))
    ):
        line = Line(distance, mbit_s)
        for window in WINDOWS:
            part = Measurement(line, window).run().reading / line.bytes_per_s
            windows.add(distance * 1e3, mbit_s, window >> 10, part)
            name = f"{distance * 1e3:.0f} ms, {mbit_s} Mbit/s"
            by_window.setdefault(name, []).append((float(window >> 10), part))
    result.plots.append(
        Plot("pipeline-window", "Sequential read", "window KiB", "part of the line", by_window, log_x=True)
    )
    return result
