"""The same content again: is anything sent that is in the grid already?

A file that does not compress is written, then again under other names: at once, after a remount, and by a
client that was recovered on an empty machine. Each time until everything is in the grid.
"""

from __future__ import annotations

from typing import Any

from scripts.benchmarks.machine import measured
from scripts.benchmarks.place import (
    MB,
    PIECE,
    Bench,
    Place,
    check_file,
    cold,
    drain,
    server_pids,
    status,
    write_file,
)
from scripts.benchmarks.report import Bound, Result, Table
from tests.processes import MountedFileSystem

QUESTION = "is content that is in the grid encoded and sent again?"

NAME = "bench"


def sent(mounted: MountedFileSystem) -> int:
    """Share bytes sent to all servers since the mount, those of journals and checkpoints too."""
    servers: list[dict[str, Any]] = status(mounted)["servers"]
    return sum(server["bytes_out"] for server in servers)


class Measurement:
    def __init__(self, size: int, table: Table) -> None:
        self._size, self._table = size, table
        self._first = 0.0
        self.most_sent = 0

    def write(self, mounted: MountedFileSystem, what: str) -> str:
        """Write the content once more; returns its SHA-256."""
        before = sent(mounted)
        with measured(mounted.daemon_pids(), server_pids(mounted.grid)) as used:
            digest = write_file(mounted.path / what.replace(" ", "-"), self._size, "convergence", sync=True)
            drain(mounted)
        share_bytes = sent(mounted) - before
        if not self._first:
            self._first = used.seconds
        else:
            self.most_sent = max(self.most_sent, share_bytes)
        times = used.seconds, used.seconds / self._first, used.client_cpu_s, used.server_cpu_s
        self._table.add(what, *times, share_bytes / MB)
        return digest


def recovered(place: Place, mounted: MountedFileSystem) -> MountedFileSystem:
    """The same file system on a machine that has nothing but the recovery key."""
    home = place.directory / "recovered"
    home.mkdir(mode=0o700)
    made = MountedFileSystem(mounted.grid, home, place.directory / "mnt-recovered", NAME)
    key = mounted.home / f"{mounted.name}.recovery-key"
    servers = mounted.grid.servers_file
    made.command("recover", NAME, "--servers", servers, "--recovery-key-file", key)
    made.mount()
    return made


def run(bench: Bench) -> Result:
    size: int = bench.choose(128, 1024) * PIECE
    settings = {"k": 4, "n": 6, "happy": 5, "file": f"{size // PIECE} MiB", "transport": bench.transport}
    result = Result("", "", settings)
    table = result.table(
        "writing with fsync, until all is in the grid",
        *("copy", "seconds", "of the first", "client CPU s", "server CPU s", "share MB sent"),
    )
    measurement = Measurement(size, table)
    with Place(bench) as place:
        mounted = place.file_system(place.grid(), happy=5)
        digest = measurement.write(mounted, "first")
        measurement.write(mounted, "second")
        cold(mounted)
        measurement.write(mounted, "after a remount")
        mounted.umount()
        again = recovered(place, mounted)
        measurement.write(again, "after a recovery")
        cold(again)
        check_file(again.path / "after-a-recovery", digest)
        again.umount()
    result.bounds.append(Bound("share bytes sent again", measurement.most_sent, 0))
    return result
