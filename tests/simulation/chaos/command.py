"""`scripts/simulate`: many seeds, a line each in a file named by the commit; or one seed with its trace."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import TextIO

from tests.simulation.chaos.run import Result, run

FAILED = 1
FAILURE_MAX = 4000
"""Letters of a failure that are kept."""
RUNS_PER_PROCESS = 100
REAL_S_MAX = 300


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    first, last = options.seeds
    if first == last and options.out is None:
        return _show(first)
    with (options.out or _default_out()).open("a") as out:
        return _run_all(first, last, options.jobs, options.minutes * 60, out)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description="Simulate a grid and its clients.")
    parser.add_argument(
        "--seeds", type=_seeds, required=True, metavar="A-B", help="or one seed, for its trace"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes")
    parser.add_argument("--minutes", type=float, default=1e6, metavar="M", help="begin no run after that")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: simulations/COMMIT.jsonl")
    return parser.parse_args(arguments)


def _seeds(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    seeds = int(first), int(last or first)
    if seeds[0] > seeds[1]:
        raise ValueError
    return seeds


def _default_out() -> Path:
    root = Path(__file__).parents[3]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True).stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD") or "unknown"
    changed = "-changed" if git("status", "--porcelain", "--untracked-files=no") else ""
    path = root / "simulations" / f"{commit}{changed}.jsonl"
    path.parent.mkdir(exist_ok=True)
    return path


# ---- one


def _show(seed: int) -> int:
    _be_quiet()
    result = run(seed, listen=lambda line: print(line))
    for line in (result.plan, dict(result.faults), _summary(result)):
        print(line)
    print(result.failure or "no violation")
    return 0 if result.ok else FAILED


def _summary(result: Result) -> str:
    return (
        f"seed {result.seed}: {result.operations} operations, {result.faults.total()} faults, "
        f"{result.virtual_s:.0f} s of virtual time, {result.records} records and {result.packs} packs, "
        f"events {result.digest or '-'}"
    )


# ---- many


def _run_all(first: int, last: int, jobs: int, seconds: float, out: TextIO) -> int:
    begin = time.monotonic()
    runs = failed = 0
    hours = 0.0
    for line in _lines(first, last, jobs, begin + seconds):
        runs += 1
        hours += line["virtual_s"] / 3600  # type: ignore[operator]
        out.write(json.dumps(line) + "\n")
        out.flush()
        if not line["ok"]:
            failed += 1
            print(f"seed {line['seed']}: {str(line['failure'])[-500:]}", flush=True)
        if runs % 100 == 0:
            print(f"{runs} runs, {failed} violations, {hours:.1f} simulated hours", flush=True)
    print(
        f"{runs} runs, {failed} violations, {hours:.1f} simulated hours in "
        f"{(time.monotonic() - begin) / 60:.1f} minutes; see {out.name}"
    )
    return FAILED if failed else 0


def _lines(first: int, last: int, jobs: int, until: float) -> Iterator[dict[str, object]]:
    seeds = iter(range(first, last + 1))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs, mp_context=spawn, initializer=_be_quiet, max_tasks_per_child=RUNS_PER_PROCESS
    ) as pool:
        under_way: set[Future[dict[str, object]]] = set()
        while True:
            while len(under_way) < 2 * jobs and time.monotonic() < until:
                seed = next(seeds, None)
                if seed is None:
                    break
                under_way.add(pool.submit(one_line, seed))
            if not under_way:
                return
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)


def one_line(seed: int) -> dict[str, object]:
    """One run, as the file has it."""
    begin = time.monotonic()
    with _alarm():
        result = run(seed)
    return {
        "seed": seed,
        "ok": result.ok,
        "checker": result.checker,
        "failure": result.failure[-FAILURE_MAX:],
        "operations": result.operations,
        "faults": dict(sorted(result.faults.items())),
        "records": result.records,
        "packs": result.packs,
        "virtual_s": round(result.virtual_s, 3),
        "real_s": round(time.monotonic() - begin, 2),
        "events": result.digest,
    }


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    """A loop that awaits nothing has no end: then the run fails."""

    def ring(*_: object) -> None:
        raise RuntimeError(f"no end after {REAL_S_MAX} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(REAL_S_MAX)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _be_quiet() -> None:
    """What a machine that dies leaves behind is no news."""
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    sys.excepthook = lambda *_: None


if __name__ == "__main__":
    sys.exit(main())
