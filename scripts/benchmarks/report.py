"""What a benchmark found: tables, bounds and curves, as text for a person and as values for JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Value = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows of equal length."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Value, ...]] = field(default_factory=list)

    def add(self, *values: Value) -> None:
        assert len(values) == len(self.columns), values
        self.rows.append(values)

    def as_text(self) -> str:
        cells = [[_shown(value) for value in row] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(self.columns, *cells, strict=True)]
        lines = [self.title]
        for row in (list(self.columns), *cells):
            aligned = [
                cell.ljust(width) if index == 0 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  " + "  ".join(aligned).rstrip())
        return "\n".join(lines)

    def as_value(self) -> dict[str, Any]:
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"title": self.title, "rows": rows}


@dataclass(frozen=True)
class Bound:
    """What a figure should be, and what it is."""

    what: str
    found: float
    limit: float
    is_maximum: bool = True

    @property
    def is_met(self) -> bool:
        return bool(self.found <= self.limit if self.is_maximum else self.found >= self.limit)

    def as_text(self) -> str:
        word = "at most" if self.is_maximum else "at least"
        verdict = "met" if self.is_met else "MISSED"
        return f"{self.what}: {_shown(self.found)} ({word} {_shown(self.limit)}: {verdict})"


@dataclass(frozen=True)
class Plot:
    """Curves over one pair of axes."""

    name: str
    """Of the file."""
    title: str
    x_label: str
    y_label: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    log_x: bool = False
    log_y: bool = False


@dataclass
class Result:
    """Of one benchmark."""

    name: str
    question: str
    settings: dict[str, Any]
    """What was measured: k, n, happy, sizes, transport."""
    tables: list[Table] = field(default_factory=list)
    bounds: list[Bound] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What else one should know of these figures, a sentence each."""
    seconds: float = 0.0

    def table(self, title: str, *columns: str) -> Table:
        """A new table of this result."""
        made = Table(title, columns)
        self.tables.append(made)
        return made

    def as_text(self) -> str:
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        lines = [f"== {self.name}: {self.question}", f"   {settings}"]
        lines += [table.as_text() for table in self.tables if table.rows]
        lines += [bound.as_text() for bound in self.bounds]
        lines += self.notes
        lines.append(f"({self.seconds:.0f} s)")
        return "\n".join(lines)

    def as_value(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "question": self.question,
            "settings": self.settings,
            "tables": [table.as_value() for table in self.tables],
            "bounds": [asdict(bound) | {"is_met": bound.is_met} for bound in self.bounds],
            "curves": {plot.name: plot.curves for plot in self.plots},
            "notes": self.notes,
            "seconds": round(self.seconds, 1),
        }


def as_json(configuration: Mapping[str, Any], results: Sequence[Result]) -> str:
    values = {"configuration": configuration, "results": [result.as_value() for result in results]}
    return json.dumps(values, indent=2) + "\n"


def _shown(value: Value) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
