"""Table and picture of what tuning.py's summary says."""

import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

from benchmarks.lib import report

COLOURS = {
    **{name: style["color"] for name, style in report.STYLES.items()},
    "momentum SAM": "#d55e00",
    "micro-batches, ρ = 0": report.STYLES["control"]["color"],
    "base, 2x epochs": report.STYLES["longer"]["color"],
    "base, best length": report.STYLES["best"]["color"],
}
MARKS = {
    "base, 2x epochs": "<",
    "base, best length": "|",
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


def print_table(result: dict, console: Console, title: str) -> None:
    seeds = len(result["seeds"])
    table = Table(
        title=f"{title}; test accuracy, mean ± standard error of {seeds} new seeds\n"
        "* at an edge of its grid",
        title_justify="left",
    )
    table.add_column("task and method", no_wrap=True)
    for name in ("epochs", "lr", "decay", "rho", "accuracy, %", *GAINS.values()):
        table.add_column(name, justify="right", no_wrap=True)
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
    """Gain over the base of every task and method: equal steps, and its best length."""
    report.picture_style()
    tasks = list(result["grids"])
    figure, axes = plt.subplots(
        1, 2, figsize=(13, 1.8 + 0.85 * len(tasks)), sharey=True
    )
    panels = {
        "gain": "over the base with as many steps",
        "gain_over_best_length": "over the base at its best length",
    }
    for one, (key, text) in zip(axes, panels.items(), strict=True):
        draw_panel(one, result, tasks, key)
        one.set_title(text)
        one.set_xlabel("gain, points of test accuracy\n(± standard error)")
    report.same_limits(axes, "x")
    axes[0].set_yticks(range(len(tasks)), tasks)
    axes[0].set_ylim(len(tasks) - 0.5, -0.5)
    handles = dict(
        pair
        for one in axes
        for pair in zip(*reversed(one.get_legend_handles_labels()), strict=True)
    )
    figure.suptitle(title, x=0.01, ha="left")
    figure.tight_layout()
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="upper center",
        bbox_to_anchor=(0.55, 0),
        ncols=len(handles),
        frameon=False,
    )
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def draw_panel(axes: Axes, result: dict, tasks: list[str], key: str) -> None:
    methods = dict.fromkeys(row["method"] for row in result["summary"])
    names = [name for name in methods if name != "base"]
    offsets = dict(zip(names, np.linspace(-0.32, 0.32, len(names)), strict=True))
    axes.axvline(0, color="#777777", lw=1)
    for place in range(1, len(tasks), 2):
        axes.axhspan(place - 0.5, place + 0.5, color="#f5f5f5", lw=0, zorder=0)
    for name, offset in offsets.items():
        mine = [r for r in result["summary"] if r["method"] == name and r.get(key)]
        places = [tasks.index(row["task"]) + offset for row in mine]
        means, errors = [[row[key][i] for row in mine] for i in (0, 1)]
        look = {"color": COLOURS[name], "fmt": MARKS.get(name, "^"), "ms": 7}
        if mine:
            axes.errorbar(means, places, xerr=errors, label=name, lw=1.6, **look)
    axes.grid(False, axis="y")
    for place, task in enumerate(tasks):
        if not any(r["task"] == task and r.get(key) for r in result["summary"]):
            where = (0.5, place)
            axes.annotate("not run", where, xycoords=("axes fraction", "data"))
