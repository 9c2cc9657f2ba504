"""How long random reads take while servers are slow or hang. Run by scripts/slow-servers.

    scripts/slow-servers [--rounds 3] [--seconds 8] [--size 256] [--jobs 1]

Starts six servers on Unix sockets below a temporary directory, with a 4-of-6 file system and one file of
--size MiB, and takes all of it away at the end. Then, in each round: reads of 128 KiB at random places for
--seconds with every server well, and again with one server stopped (SIGSTOP) and another behind a proxy that
lets 1 MB/s through. The first second of each is left out; before each round everything is well for long
enough to be trusted again. It prints the middle, 99th percentile and largest time of each, the ratio of the
99th percentiles, and the bytes asked of further servers because one was late, as a share of the bytes read:
those of the first second count here. Nothing in it is a test; bytes that come back are compared, though.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.mount.proxy import Network
from tests.processes import TRACE, FileSystemShape, LocalGrid, MountedFileSystem, clean_up

MIB = 1 << 20
PIECE = 128 << 10
SLOW_BYTES_PER_S = 1e6
HUNG, SLOW = 1, 4
"""Numbers of servers."""
LEFT_OUT_S = 1.0


def random_reads(
    path: Path, data: bytes, seed: int, *, count: int | None = None, seconds: float | None = None
) -> list[tuple[float, float]]:
    """Read 128 KiB at random places, none of which the kernel has in its cache, and compare.

    So often, or for so long. Returns (begin, seconds) of each read.
    """
    generator = random.Random(seed)
    times: list[tuple[float, float]] = []
    began = time.monotonic()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        while len(times) != count and (seconds is None or time.monotonic() < began + seconds):
            offset = generator.randrange(len(data) - PIECE)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            begin = time.monotonic()
            found = os.pread(descriptor, PIECE, offset)
            times.append((begin - began, time.monotonic() - begin))
            assert found == data[offset : offset + PIECE], f"wrong bytes at {offset}"
    finally:
        os.close(descriptor)
    return times


class Measurement:
    """A mounted file with something to read, and its servers."""

    def __init__(self, mounted: MountedFileSystem, network: Network, data: bytes, jobs: int) -> None:
        self._mounted = mounted
        self._network = network
        self._data = data
        self._jobs = jobs
        self._seed = 0

    def healthy(self, seconds: float) -> list[float]:
        return self._reads(seconds)

    def disturbed(self, seconds: float) -> tuple[list[float], float]:
        """Also the hedged bytes as a share of the bytes read."""
        grid = self._mounted.grid
        before = self._mounted.status()
        self._network.slow(SLOW, SLOW_BYTES_PER_S)
        grid.hang(HUNG)
        try:
            times = self._reads(seconds)
            after = self._mounted.status()
        finally:
            grid.resume(HUNG)
            self._network.heal()
        read = after["readv"]["bytes"] - before["readv"]["bytes"]
        return times, (after["hedging"]["bytes"] - before["hedging"]["bytes"]) / read

    def until_all_are_trusted(self) -> None:
        while any(server["avoided"] for server in self._mounted.status()["servers"]):
            time.sleep(0.5)
        self._reads(1.0)

    def _reads(self, seconds: float) -> list[float]:
        """Ascending times of the reads that began after the first second."""
        found: list[tuple[float, float]] = []

        def read(seed: int) -> None:
            found.extend(random_reads(self._mounted.path / "file", self._data, seed, seconds=seconds))

        readers = []
        for _ in range(self._jobs):
            self._seed += 1
            readers.append(threading.Thread(target=read, args=(self._seed,)))
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return sorted(took for begin, took in found if begin >= LEFT_OUT_S)


def percentile(times: list[float], part: float) -> float:
    return times[min(int(len(times) * part), len(times) - 1)]


def in_words(times: list[float]) -> str:
    """Count, middle, 99th percentile, largest in ms."""
    shown = [percentile(times, part) * 1e3 for part in (0.5, 0.99, 1.0)]
    return f"{len(times):6d} reads, " + " / ".join(f"{value:6.1f}" for value in shown) + " ms"


@dataclass(frozen=True)
class Round:
    """Ascending times in seconds, and the hedged bytes as a share of those read while disturbed."""

    healthy: list[float]
    disturbed: list[float]
    hedged: float


def measure(measurement: Measurement, rounds: int, seconds: float) -> Iterator[Round]:
    for _ in range(rounds):
        measurement.until_all_are_trusted()
        healthy = measurement.healthy(seconds)
        disturbed, hedged = measurement.disturbed(seconds)
        yield Round(healthy, disturbed, hedged)


@contextmanager
def prepared(directory: Path, size_mib: int, jobs: int) -> Iterator[Measurement]:
    """Servers, a file system and a file in an empty directory, while the block runs."""
    grid = LocalGrid(directory / "grid")
    try:
        with Network() as network:
            grid.up(6)
            mounted = MountedFileSystem(grid, directory / "home", directory / "mnt")
            mounted.create(FileSystemShape())
            place = directory / "p"
            place.mkdir()
            file = network.in_front_of(place, grid, [SLOW])
            shutil.copy(file, mounted.home / mounted.name / "servers")
            mounted.mount()
            generator = random.Random(0)
            data = b"".join(generator.randbytes(MIB) for _ in range(size_mib))
            (mounted.path / "file").write_bytes(data)
            mounted.remount()
            yield Measurement(mounted, network, data, jobs)
            mounted.umount()
    finally:
        grid.tear_down()


def report(rounds: Iterator[Round]) -> None:
    everything: tuple[list[float], list[float]] = ([], [])
    print("                                 50 % /   99 % /  100 %", flush=True)
    for each in rounds:
        print(f"healthy    {in_words(each.healthy)}", flush=True)
        ratio = percentile(each.disturbed, 0.99) / percentile(each.healthy, 0.99)
        print(
            f"disturbed  {in_words(each.disturbed)}; p99 x{ratio:.2f}, hedged {each.hedged:.1%}", flush=True
        )
        everything[0].extend(each.healthy)
        everything[1].extend(each.disturbed)
    healthy_p99, disturbed_p99 = (percentile(sorted(times), 0.99) for times in everything)
    print(f"all rounds: p99 x{disturbed_p99 / healthy_p99:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/slow-servers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--size", type=int, default=256, help="MiB")
    parser.add_argument("--jobs", type=int, default=1)
    words = parser.parse_args()
    os.environ[TRACE] = uuid.uuid4().hex
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # nothing is left behind then, either
    directory = Path(tempfile.mkdtemp(prefix="slow"))
    try:
        with prepared(directory, words.size, words.jobs) as measurement:
            report(measure(measurement, words.rounds, words.seconds))
    finally:
        clean_up(os.environ[TRACE], directory)
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
