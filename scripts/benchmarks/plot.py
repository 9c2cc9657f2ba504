"""Plots as SVG, where matplotlib is installed (the extra `bench`)."""

from __future__ import annotations

from pathlib import Path

from scripts.benchmarks.report import Plot


def is_possible() -> bool:
    try:
        import matplotlib  # noqa: F401 - only whether it is there
    except ImportError:
        return False
    return True


def draw(plot: Plot, directory: Path) -> Path:
    """Write one plot; returns where."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, points in plot.curves.items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
    if plot.log_x:
        axes.set_xscale("log")
    if plot.log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    path = directory / f"{plot.name}.svg"
    figure.savefig(path)
    pyplot.close(figure)
    return path
