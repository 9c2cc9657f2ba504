"""scripts/bench, end to end on its smallest benchmark, and what it makes of figures."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.benchmarks.place import piece
from scripts.benchmarks.plot import draw
from scripts.benchmarks.report import Bound, Plot, Table
from scripts.benchmarks.small_files import fitted
from tests.processes import ROOT, run


def test_a_benchmark_prints_tables_and_writes_json(tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "w"
    said = run([ROOT / "scripts" / "bench", "sync-policy", "--quick", "--out", out, "--work", work]).stdout
    found = json.loads((out / "results.json").read_text())
    configuration, (result,) = found["configuration"], found["results"]
    assert {"gridfs", "commit", "python", "packages", "machine", "kernel"} <= configuration.keys()
    assert result["name"] == "sync-policy"
    assert [row["policy"] for row in result["tables"][0]["rows"]] == ["none", "group", "each"]
    assert all(row["shares a second"] > 0 for row in result["tables"][0]["rows"])
    assert "group as a part of none" in said
    assert list(work.iterdir()) == []


def test_an_unknown_benchmark_is_refused() -> None:
    assert "invalid choice" in run([ROOT / "scripts" / "bench", "speed"], good=(2,)).stderr


def test_a_table_is_aligned() -> None:
    table = Table("title", ("name", "value"))
    table.add("a", 1234.5)
    table.add("long name", 0.25)
    table.add("none", None)
    assert table.as_text().splitlines() == [
        "title",
        "  name       value",
        "  a           1234",
        "  long name   0.25",
        "  none           -",
    ]


def test_bounds_say_whether_they_are_met() -> None:
    assert Bound("what", 1.0, 1.3).as_text() == "what: 1 (at most 1.3: met)"
    assert Bound("what", 0.7, 0.9, is_maximum=False).as_text() == "what: 0.7 (at least 0.9: MISSED)"


def test_a_plot_is_an_svg(tmp_path: Path) -> None:
    path = draw(Plot("curve", "title", "x", "y", {"a": [(1, 2), (10, 3)]}, log_x=True), tmp_path)
    assert path == tmp_path / "curve.svg"
    assert "<svg" in path.read_text()


def test_a_straight_line_is_found() -> None:
    a, b = fitted([(0.0, 5.0), (10.0, 25.0), (20.0, 45.0)])
    assert (round(a, 9), round(b, 9)) == (5, 2)


def test_contents_differ_with_the_seed_and_do_not_compress() -> None:
    assert piece("a", 0, 4096) == piece("a", 0, 4096) != piece("a", 1, 4096)
    assert len(set(piece("b", 0, 65536))) == 256
