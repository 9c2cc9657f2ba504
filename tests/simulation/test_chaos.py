"""Chaos on simulated grids: seeds that keep every promise, and planted bugs, which are noticed."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.simulation.chaos.plan import FAULTS_MIN, OPERATIONS_MIN, Weights
from tests.simulation.chaos.planted import BUGS
from tests.simulation.chaos.run import Result, run

# SQLite, whose machine dies, cannot close what it opened, and says so.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SEEDS = [1, 5, 9, 12]
"""Beside those of the planted bugs."""


@cache
def true_run(seed: int, is_weighted: bool = False) -> Result:
    """Of the code as it is. `is_weighted`: as the planted bug of this seed wants it."""
    bugs = [bug for bug in BUGS.values() if bug.seed == seed] if is_weighted else []
    return run(seed, weights=bugs[0].weights if bugs else Weights())


@pytest.mark.parametrize("seed", SEEDS)
def test_every_promise_is_kept(seed: int) -> None:
    result = true_run(seed)
    assert result.ok, result.failure
    assert result.operations >= OPERATIONS_MIN
    assert result.faults.total() >= FAULTS_MIN
    assert result.records
    assert result.packs


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_noticed(name: str) -> None:
    bug = BUGS[name]
    result = run(bug.seed, weights=bug.weights, planted=bug.planted())
    assert result.checker in bug.checkers, result.failure
    true = true_run(bug.seed, is_weighted=True)
    assert true.ok, true.failure


def test_the_twelve_bugs() -> None:
    assert len(BUGS) == 12


def test_the_command_writes_a_line_for_each_seed_which_is_one_run_in_every_process(tmp_path: Path) -> None:
    out = tmp_path / "runs.jsonl"
    done = subprocess.run(
        [ROOT / "scripts" / "simulate", "--seeds", "6-7", "--jobs", "2", "--out", out],
        env={**os.environ, "PYTHONHASHSEED": "17"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "2 runs, 0 violations" in done.stdout
    lines = {line["seed"]: line for line in map(json.loads, out.read_text().splitlines())}
    assert sorted(lines) == [6, 7]
    for seed, line in lines.items():
        true = true_run(seed, is_weighted=True)
        assert (line["ok"], line["events"]) == (True, true.digest)
        assert line["operations"] == true.operations


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 160))
def test_every_promise_is_kept_for_more_seeds(seed: int) -> None:
    result = run(seed)
    assert result.ok, result.failure
