"""Shares of 10 kB put to one server, many at once: what is it worth not to sync, or to sync in groups?

Real server processes, one for each policy, in turns on the same disk; one client puts so many shares at once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import trio

from gridfs.codec.pack import seal_pack
from scripts.benchmarks.machine import cpu_s
from scripts.benchmarks.place import Bench, Place, piece, server_pids
from scripts.benchmarks.report import Bound, Result
from storage.client import SharePut, StorageClient, Traffic
from storage.system import system_machine
from storage.wire.url import Access, parse_access
from tests.processes import LocalGrid

QUESTION = "how many small shares does a server store in a second, by its sync policy?"

POLICIES = ("none", "group", "each")
SHARE_BYTES = 10_000
AT_ONCE = 64
PART_OF_NONE_MIN = 0.5
FILE_SYSTEM = b"benchmark-of-syn"


def shares(round_number: int, count: int) -> list[SharePut]:
    """Valid shares that no server has, each of a pack of its own."""
    made = []
    for number in range(count):
        content = piece(f"sync {round_number}", number, SHARE_BYTES)
        pack = seal_pack(1, 1, [content], pack_key=None, convergence_secret=bytes(32))
        made.append(SharePut(pack.pack_id, 0, pack.shares[0]))
    return made


async def put_all(access: Access, wanted: list[SharePut], at_once: int) -> tuple[float, list[float]]:
    """Seconds for all, and those of each."""
    machine = system_machine()
    client = StorageClient(access, machine.network, machine.entropy)
    waiting: Iterator[SharePut] = iter(wanted)
    times: list[float] = []

    async def put_some() -> None:
        for share in waiting:
            began = time.monotonic()
            stored = await client.put([share], FILE_SYSTEM, (1, 1), Traffic.UPLOAD)
            assert stored == [True], "the server had it already"
            times.append(time.monotonic() - began)

    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        await client.info()
        began = time.monotonic()
        async with trio.open_nursery() as putting:
            for _ in range(at_once):
                putting.start_soon(put_some)
        seconds = time.monotonic() - began
        nursery.cancel_scope.cancel()
    return seconds, sorted(times)


def run(bench: Bench) -> Result:
    rounds, count = bench.choose((3, 400), (9, 4000))
    result = Result(
        "",
        "",
        {"share": f"{SHARE_BYTES} B", "at once": AT_ONCE, "shares": count, "transport": bench.transport},
    )
    rates: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    cpu: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    waits: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    with Place(bench) as place:
        grids: dict[str, LocalGrid] = {policy: place.grid(1, (f"--sync={policy}",)) for policy in POLICIES}
        for number in range(rounds):
            wanted = shares(number, count)
            for policy, grid in grids.items():
                access = parse_access(grid.servers_file.read_text().splitlines()[0])
                before = cpu_s(server_pids(grid))
                seconds, times = trio.run(put_all, access, wanted, AT_ONCE)
                rates[policy].append(count / seconds)
                cpu[policy].append((cpu_s(server_pids(grid)) - before) / count)
                waits[policy].append(times[len(times) // 2])
    table = result.table(
        "medians of the rounds", "policy", "shares a second", "of none", "server CPU us a share", "wait ms"
    )
    none = statistics.median(rates["none"])
    for policy in POLICIES:
        rate = statistics.median(rates[policy])
        wait, used = statistics.median(waits[policy]), statistics.median(cpu[policy])
        table.add(policy, rate, rate / none, used * 1e6, wait * 1e3)
    by_round = [group / without for group, without in zip(rates["group"], rates["none"], strict=True)]
    found = statistics.median(by_round)
    result.bounds.append(Bound("group as a part of none", found, PART_OF_NONE_MIN, is_maximum=False))
    return result
