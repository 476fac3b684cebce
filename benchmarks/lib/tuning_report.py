"""Table and picture of what tuning.py's summary says."""

import itertools
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console

from benchmarks.lib import pictures, report

COLOURS = {
    **{name: style["color"] for name, style in report.STYLES.items()},
    "momentum SAM": "#d55e00",
    "micro-batches, ρ = 0": report.STYLES["control"]["color"],
}
MARKS = {
    "micro-batches, ρ = 0": "x",
    "SAM": "o",
    "ASAM": "s",
    "m-SAM": "D",
}
#: Keys of a summary's row, and the heads of their columns.
GAINS = {
    "gain": "gain over\nthe base",
    "gain_over_2x_epochs": "over it at\n2x epochs",
    "gain_over_best_length": "over it at its\nbest length",
}
GAIN = "gain_over_best_length"  # that decides


def print_table(result: dict, console: Console, title: str) -> None:
    seeds = len(result["seeds"])
    table = report.table(
        f"{title}; test accuracy, mean ± standard error of {seeds} new seeds\n"
        "* at an edge of its grid",
        *("task and method", "epochs", "lr", "decay", "rho", "accuracy, %"),
        *GAINS.values(),
    )
    for task, rows in itertools.groupby(result["summary"], lambda row: row["task"]):
        table.add_section()
        table.add_row(task, style="bold")
        for row in rows:
            table.add_row(f"  {row['method']}", *numbers(row))
    console.print(table)


def numbers(row: dict) -> list[str]:
    if row["test"] == "not run":
        return [*[""] * 4, "not run"]
    edges = row["at_edge"]
    settings = [f"{row[key]:g}{'*' * (key in edges)}" for key in ("lr", "decay", "rho")]
    gains = [report.plus_minus(row[key], 2, "+") for key in GAINS]
    return [str(row["epochs"]), *settings, report.plus_minus(row["test"], 2), *gains]


def draw(result: dict, path: Path, title: str) -> None:
    """Gain of every task and method over the base at its best length, the verdict's.

    Tasks are in the order of SAM's gain, those without one last.
    """
    of_sam = {
        row["task"]: row[GAIN][0]
        for row in result["summary"]
        if row["method"] == "SAM" and row.get(GAIN)
    }
    tasks = sorted(result["grids"], key=lambda task: -of_sam.get(task, -np.inf))
    figure, axes = pictures.new(1.7 + 0.55 * len(tasks))
    draw_gains(axes, result, tasks)
    pictures.title(figure, title)
    axes.set_xlabel(
        "gain over the base at its best length, points of test accuracy\n"
        f"(bars: two standard errors of {len(result['seeds'])} seeds)"
    )
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    handles, labels = axes.get_legend_handles_labels()
    place = {"loc": "outside lower center", "ncols": 3 if len(labels) > 4 else 4}
    figure.legend(handles, labels, **place)
    pictures.save(figure, path)


def draw_gains(axes: Axes, result: dict, tasks: list[str]) -> None:
    names = [
        name
        for name in dict.fromkeys(row["method"] for row in result["summary"])
        if not name.startswith("base")
    ]
    offsets = dict(zip(names, np.linspace(-0.3, 0.3, len(names)), strict=True))
    axes.axvline(0, color="#777777", lw=1.2)
    for place in range(1, len(tasks), 2):
        axes.axhspan(place - 0.5, place + 0.5, color="#f3f3f3", lw=0, zorder=0)
    for name, offset in offsets.items():
        mine = [r for r in result["summary"] if r["method"] == name and r.get(GAIN)]
        places = [tasks.index(row["task"]) + offset for row in mine]
        means, errors = np.array([row[GAIN] for row in mine], float).reshape(-1, 2).T
        look = {"color": COLOURS[name], "fmt": MARKS.get(name, "^"), "ms": 6}
        if mine:
            axes.errorbar(means, places, xerr=2 * errors, label=name, lw=1.6, **look)
    axes.grid(False, axis="y")
    for place, task in enumerate(tasks):
        if not any(r["task"] == task and r.get(GAIN) for r in result["summary"]):
            where = (0.5, place)
            axes.annotate("not run", where, xycoords=("axes fraction", "data"))
