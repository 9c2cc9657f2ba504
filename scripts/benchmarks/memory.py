"""Resident memory of the mount daemon and of the servers: idle, and its peak while files come and go.

Large files one after the other, then several files at once, each upload and each download in a daemon that
has just been started; the servers go on. Peaks are the kernel's own (VmHWM).
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

from scripts.benchmarks.machine import at_once, forget_peak, peak_bytes, resident_bytes
from scripts.benchmarks.place import MB, Bench, Place, check_file, cold, drain, server_pids, write_file
from scripts.benchmarks.report import Bound, Plot, Result, Table
from tests.processes import MountedFileSystem

QUESTION = "how much memory do the daemon and the servers take, whatever the size and number of files?"

MIB = 1 << 20
FLAT_MIB = 32
DAEMON_MIB = 160
SERVER_MIB = 48
PROGRAMS = {
    "gridfs mount": "gridfs.daemon.mounting, gridfs.fuse.session, gridfs.assembly",
    "gridfs-storage serve": "storage.cli, storage.server, storage.system",
    "python alone": "sys",
}
MEASURE_IMPORTS = """
import json, time
before = time.process_time()
import {modules}
used = time.process_time() - before
with open("/proc/self/status") as status:
    (resident,) = [int(line.split()[1]) for line in status if line.startswith("VmRSS:")]
print(json.dumps([used, resident]))
"""


def imports(result: Result) -> None:
    table = result.table("start-up: what importing costs", "program", "CPU ms", "resident MiB")
    for name, modules in PROGRAMS.items():
        script = MEASURE_IMPORTS.format(modules=modules)
        said = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout
        used, kilobytes = json.loads(said)
        table.add(name, used * 1e3, kilobytes / 1024)


class Measurement:
    def __init__(self, mounted: MountedFileSystem, table: Table) -> None:
        self._mounted, self._table = mounted, table
        self._servers = server_pids(mounted.grid)
        self.daemon_mib: dict[tuple[str, int, int], float] = {}
        """Peaks by (upload or download, files, bytes of each)."""
        self.server_mib = 0.0

    def measure(self, files: int, size: int) -> None:
        """So many files of this size at once."""
        folder = self._mounted.path / f"{files}-{size}"
        digests: dict[int, str] = {}

        def upload(number: int) -> None:
            digests[number] = write_file(folder / str(number), size, f"memory {files} {size} {number}")

        def download(number: int) -> None:
            check_file(folder / str(number), digests[number])

        cold(self._mounted)
        folder.mkdir()
        for kind, work in (("upload", upload), ("download", download)):
            (daemon,) = self._mounted.daemon_pids()
            idle = resident_bytes(daemon), max(map(resident_bytes, self._servers))
            for pid in (daemon, *self._servers):
                forget_peak(pid)
            at_once(partial(work, number) for number in range(files))
            if kind == "upload":
                drain(self._mounted)
            peaks = peak_bytes(daemon), max(map(peak_bytes, self._servers))
            self._table.add(kind, files, size / MB, *(each / MIB for each in (*idle, *peaks)))
            self.daemon_mib[kind, files, size] = peaks[0] / MIB
            self.server_mib = max(self.server_mib, peaks[1] / MIB)
            if kind == "upload":
                cold(self._mounted)


def run(bench: Bench) -> Result:
    sizes: tuple[int, ...] = bench.choose((10 * MB, 400 * MB), (10 * MB, 1000 * MB, 10_000 * MB))
    counts: tuple[int, ...] = bench.choose((8,), (8, 32))
    each: int = bench.choose(20 * MB, 100 * MB)
    result = Result("", "", {"k": 4, "n": 6, "happy": 5, "transport": bench.transport})
    imports(result)
    table = result.table(
        "resident MiB; of the servers, the largest",
        *("while", "files", "MB each", "daemon idle", "server idle", "daemon peak", "server peak"),
    )
    with Place(bench) as place:
        measurement = Measurement(place.file_system(place.grid(), happy=5), table)
        for size in sizes:
            measurement.measure(1, size)
        for count in counts:
            measurement.measure(count, each)
    found = measurement.daemon_mib
    for kind in ("upload", "download"):
        by_size = [found[kind, 1, size] for size in sizes]
        spread = max(by_size) - min(by_size)
        result.bounds.append(
            Bound(f"{kind}: MiB between the smallest and the largest file", spread, FLAT_MIB)
        )
    result.bounds.append(Bound("daemon, largest peak in MiB", max(found.values()), DAEMON_MIB))
    result.bounds.append(Bound("server, largest peak in MiB", measurement.server_mib, SERVER_MIB))
    curves = {kind: [(size / MB, found[kind, 1, size]) for size in sizes] for kind in ("upload", "download")}
    title = "Peak memory of the daemon, one file"
    result.plots.append(Plot("memory", title, "MB of the file", "MiB resident", curves, log_x=True))
    return result
