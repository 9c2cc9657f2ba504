"""Many servers: two hundred in one process and a hundred processes, really; ten thousand in drawn placements.

Loss is counted in the packs drawn. A year's expectation is that of servers that fail independently, each with
the rate below, and are repaired in the time below: C(n, m+1) (m+1) rate^(m+1) time^m a pack, m = n - k.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager
from pathlib import Path

from blake3 import blake3

from gridfs.grid import placement
from gridfs.grid.roster import parse_roster
from scripts.benchmarks.machine import Used, measured, resident_bytes
from scripts.benchmarks.many_servers import many_servers
from scripts.benchmarks.place import MB, Bench, Place, check_file, cold, drain, server_pids, write_file
from scripts.benchmarks.report import Bound, Result, Table
from tests.processes import LocalGrid

QUESTION = "what do hundreds of servers cost, and how do ten thousand share the packs?"

IN_ONE_PROCESS = 200
PROCESSES = 100
K, N = 4, 6
DOMAINS, SERVERS_EACH = 100, 100
PACKS = 100_000_000
"""That figures are scaled to."""
PACK_BYTES = 8 << 20
FAILURES_A_YEAR = 0.05
REPAIR_H = 24.0
HOURS_A_YEAR = 8766.0
FULLEST_MAX = 1.05
MOVED_MAX = 2.1
"""Times what must move: a server that goes takes weight from its domain, which moves as much again."""


def stopwatch() -> AbstractContextManager[Used]:
    """Its `seconds` are known when the block is left."""
    return measured((), ())


# ---- real servers -----------------------------------------------------------------------------------


class Measurement:
    def __init__(self, bench: Bench, place: Place, result: Result) -> None:
        self.place = place
        self._size: int = bench.choose(32, 256) * MB
        self._codes: tuple[tuple[int, int], ...] = bench.choose(((60, 100),), ((K, N), (60, 100)))
        self._table: Table = result.table(
            f"real servers; a file of {self._size // MB} MB",
            *("servers", "k", "n", "start s", "MiB a server", "create s", "mount s", "status s"),
            *("status offline s", "upload MB/s", "cold read MB/s", "daemon MiB"),
        )

    def measure(self, name: str, grid: LocalGrid, servers: Path, start_s: float, resident: float) -> None:
        for k, n in self._codes:
            with stopwatch() as create:
                mounted = self.place.file_system(grid, k, n, servers_file=servers, mount=False)
            with stopwatch() as offline:
                mounted.status()
            with stopwatch() as mount:
                mounted.mount()
            with stopwatch() as status:
                mounted.status()
            with stopwatch() as upload:
                digest = write_file(mounted.path / "large", self._size, "scale")
                drain(mounted)
            cold(mounted)
            with stopwatch() as read:
                check_file(mounted.path / "large", digest)
            daemon = max(map(resident_bytes, mounted.daemon_pids()))
            mounted.umount()
            times = (each.seconds for each in (create, mount, status, offline))
            rates = (self._size / MB / each.seconds for each in (upload, read))
            self._table.add(name, k, n, start_s, resident / 2**20, *times, *rates, daemon / 2**20)


def real_servers(bench: Bench, result: Result) -> None:
    with Place(bench) as place:
        measurement = Measurement(bench, place, result)
        directory = place.directory / "many"
        began = time.monotonic()
        with many_servers(directory, IN_ONE_PROCESS) as (pid, servers_file):
            start_s = time.monotonic() - began
            resident = resident_bytes(pid) / IN_ONE_PROCESS
            name = f"{IN_ONE_PROCESS} in one process"
            measurement.measure(name, LocalGrid(directory), servers_file, start_s, resident)
    with Place(bench) as place:
        measurement.place = place
        with stopwatch() as start:
            grid = place.grid(PROCESSES)
        pids = server_pids(grid)
        resident = sum(map(resident_bytes, pids)) / len(pids)
        measurement.measure(f"{PROCESSES} processes", grid, grid.servers_file, start.seconds, resident)
        product_placement(bench, grid.servers_file, result)


def product_placement(bench: Bench, servers_file: Path, result: Result) -> None:
    """The rule as it is in the client today: every pack scores every server."""
    roster = parse_roster(servers_file.read_text())
    packs: int = bench.choose(2000, 20_000)
    counts: dict[bytes, int] = {}
    began = time.process_time()
    for number in range(packs):
        for server in placement.order(blake3(b"%d" % number).digest(), roster)[:N]:
            counts[server] = counts.get(server, 0) + 1
    used = (time.process_time() - began) / packs
    fair = packs * N / len(roster)
    table = result.table(
        "the client's own placement", "servers", "packs", "CPU us a pack", "fullest against fair"
    )
    table.add(len(roster), packs, used * 1e6, max(counts.values()) / fair)


# ---- drawn placements -------------------------------------------------------------------------------


def expected_losses(k: int, n: int, packs: float) -> float:
    """Packs a year."""
    rate, hours = FAILURES_A_YEAR / HOURS_A_YEAR, REPAIR_H
    more = n - k + 1
    return packs * HOURS_A_YEAR * math.comb(n, more) * more * rate**more * hours ** (more - 1)


def drawn(bench: Bench, result: Result) -> None:
    try:
        import numpy as np

        from scripts.benchmarks import placement_simulator as simulator
    except ImportError:
        result.notes.append("Without numpy no placements were drawn.")
        return
    packs: int = bench.choose(100_000, 1_000_000)
    scale = PACKS / packs
    servers = simulator.population(DOMAINS, SERVERS_EACH, 1)
    width = DOMAINS * SERVERS_EACH
    began = time.process_time()
    placed = simulator.draw(servers, packs, N)
    used = (time.process_time() - began) / packs
    found = simulator.balance(servers, placed, scale)
    table = result.table(
        f"drawn: {packs} packs, {K}-of-{N}, {servers.servers} servers of three sizes in {DOMAINS} domains",
        *("what", "found", f"with {PACKS} packs"),
    )
    table.add("hashes a pack (flat: one for each server)", DOMAINS + N * SERVERS_EACH, None)
    table.add("CPU us a pack, vectorised", used * 1e6, None)
    table.add("fullest server against its fair part", found.fullest, 1 + 4 * found.scaled)
    table.add("deviation, part of the mean", found.deviation, found.scaled)
    table.add("deviation by chance alone", found.by_chance, found.by_chance / scale**0.5)
    result.bounds.append(
        Bound("fullest server, scaled, within four deviations", 1 + 4 * found.scaled, FULLEST_MAX)
    )

    gone = float(servers.weights[3, 5] / servers.weights.sum())
    moved = simulator.moved(placed, simulator.draw(servers.without(3, 5), packs, N))
    table.add("moved when a server goes, times what must", moved / gone, None)
    result.bounds.append(Bound("moved when a server goes, times what must", moved / gone, MOVED_MAX))
    grown = servers.with_domain()
    fair = float(grown.weights[-1].sum() / grown.weights.sum())
    moved = simulator.moved(placed, simulator.draw(grown, packs, N))
    table.add("moved when a domain comes, times what must", moved / fair, None)

    chance = np.random.default_rng(2)
    for count in (3, 30, 100, 300):
        part = simulator.lost(placed, chance.choice(width, count, replace=False), width, K)
        table.add(f"packs lost with {count} servers at once", part * packs, part * PACKS)
    for count in (1, 2, 3, 4):
        dead = np.concatenate([np.arange(SERVERS_EACH) + domain * SERVERS_EACH for domain in range(count)])
        part = simulator.lost(placed, dead, width, K)
        table.add(f"packs lost with {count} whole domains", part * packs, part * PACKS)
    what = f"packs lost a year ({FAILURES_A_YEAR:.0%} of servers fail, repair {REPAIR_H:.0f} h)"
    table.add(what, expected_losses(K, N, packs), expected_losses(K, N, PACKS))

    shares, others = simulator.helpers(placed, 3 * SERVERS_EACH + 5)
    share_gb = PACK_BYTES / K / 1e9
    table.add("shares on one server", shares, shares * scale)
    table.add("servers that share packs with it", others, None)
    table.add("repair of one server, GB read", shares * K * share_gb, shares * scale * K * share_gb)
    table.add("repair of one server, GB written", shares * share_gb, shares * scale * share_gb)
    a_year = FAILURES_A_YEAR * packs * N * (K + 1) * share_gb / 1000
    table.add("repair traffic a year, TB", a_year, a_year * scale)


def run(bench: Bench) -> Result:
    result = Result("", "", {"transport": bench.transport, "placements": f"{K}-of-{N}"})
    drawn(bench, result)
    real_servers(bench, result)
    return result
