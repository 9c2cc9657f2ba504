"""Random reads while one of six servers hangs and another is slow, against those with all servers well.

The measurement is that of scripts/slow-servers; see there.
"""

from __future__ import annotations

import statistics

from scripts.benchmarks.place import Bench, Place
from scripts.benchmarks.report import Bound, Result
from tests.mount.slow_servers import PIECE, Round, measure, percentile, prepared

QUESTION = "what do slow and hung servers cost a reader, and how much more is asked because of them?"

HEDGED_MAX = 0.05
P99_RATIO_MAX = 2.0


def run(bench: Bench) -> Result:
    rounds, seconds, size_mib = bench.choose((2, 4.0, 96), (5, 8.0, 256))
    jobs: tuple[int, ...] = bench.choose((1,), (1, 4))
    settings = {"k": 4, "n": 6, "happy": 5, "reads": f"{PIECE >> 10} KiB", "file": f"{size_mib} MiB"}
    result = Result("", "", settings | {"transport": "unix"})
    table = result.table(
        f"{rounds} rounds of {seconds:.0f} s each way, the first second left out",
        *("jobs", "servers", "reads", "p50 ms", "p99 ms", "largest ms", "asked twice"),
    )
    for count in jobs:
        with Place(bench) as place, prepared(place.directory, size_mib, count) as measurement:
            found = list(measure(measurement, rounds, seconds))
        hedged = statistics.mean(each.hedged for each in found)
        ratios = []
        for name, times in (("all well", of(found, "healthy")), ("two in trouble", of(found, "disturbed"))):
            shown = [percentile(times, part) * 1e3 for part in (0.5, 0.99, 1.0)]
            ratios.append(shown[1])
            table.add(count, name, len(times), *shown, hedged if name != "all well" else None)
        result.bounds.append(Bound(f"bytes asked twice, {count} jobs", hedged, HEDGED_MAX))
        result.bounds.append(
            Bound(f"p99 against all well, {count} jobs", ratios[1] / ratios[0], P99_RATIO_MAX)
        )
    return result


def of(rounds: list[Round], kind: str) -> list[float]:
    """The times of all rounds, ascending."""
    return sorted(time for each in rounds for time in getattr(each, kind))
