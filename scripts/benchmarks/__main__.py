"""scripts/bench NAME ...|all [--quick] [--out DIR] [--work DIR] [--transport unix|tls]

Runs the project's benchmarks, prints what was found as tables, and with --out writes results.json and plots
(SVG) to DIR. Each makes its own grids and mounts, below a temporary directory or one in --work, and takes
them away at the end. Cold reads drop the caches of the whole machine, which needs root. --quick takes smaller
sizes and fewer points: `all --quick` ends within ten minutes on two cores, `all` takes hours.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from scripts.benchmarks import plot
from scripts.benchmarks.machine import configuration
from scripts.benchmarks.place import Bench
from scripts.benchmarks.report import Result, as_json

NAMES = (
    "readv",
    "small-files",
    "memory",
    "pipeline",
    "sync-policy",
    "zero-copy",
    "convergence",
    "hedge",
    "scale",
)


def module_of(name: str) -> str:
    return f"scripts.benchmarks.{name.replace('-', '_')}"


def question_of(name: str) -> str:
    question: str = importlib.import_module(module_of(name)).QUESTION
    return question


def run(name: str, bench: Bench) -> Result:
    began = time.monotonic()
    result: Result = importlib.import_module(module_of(name)).run(bench)
    result.name, result.question = name, question_of(name)
    result.seconds = time.monotonic() - began
    return result


def write(results: list[Result], settings: dict[str, object], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(as_json(settings, results))
    if plot.is_possible():
        for each in results:
            for curve in each.plots:
                plot.draw(curve, out)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["benchmarks:", *(f"  {name:12} {question_of(name)}" for name in NAMES)]),
    )
    parser.add_argument("names", nargs="+", metavar="NAME", choices=(*NAMES, "all"), help="or all")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results.json and plots go")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where grids are made for a while")
    parser.add_argument("--transport", choices=("unix", "tls"), default="unix")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # nothing is left behind then, either
    os.umask(0o077)
    work = None if chosen.work is None else chosen.work.resolve()
    bench = Bench(chosen.quick, chosen.transport, work)
    if chosen.out is not None and not plot.is_possible():
        print("There will be no plots: those need matplotlib (pip install '.[bench]').")
    names = NAMES if "all" in chosen.names else chosen.names
    settings = configuration({"quick": bench.quick, "transport": bench.transport})
    print("\n".join(f"{name}: {value}" for name, value in settings.items()), flush=True)
    results: list[Result] = []
    failed = False
    for name in names:
        try:
            results.append(run(name, bench))
        except Exception:
            failed = True
            print(f"== {name} failed", flush=True)
            traceback.print_exc()
            continue
        print(f"\n{results[-1].as_text()}", flush=True)
        if chosen.out is not None:
            write(results, settings, chosen.out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
