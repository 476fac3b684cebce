"""One picture of a study: what each method gains over the base, task by task."""

from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D

from benchmarks.lib import pictures, report, results
from benchmarks.lib.results import Results

OTHER = "#d55e00"  # of a method that has no colour yet
MARKS = {results.STEPS: ("o", 0.17), results.GRADIENTS: ("D", -0.17)}  # and the height


def draw(found: Results, path: Path) -> None:
    """A panel a task; nothing where nothing can be shown."""
    tasks = found.tasks
    figure, axes = pictures.new(3.6, 1, max(len(tasks), 1), squeeze=False)
    rows = list(dict.fromkeys(row for task in tasks for row in found.methods(task)))
    for task, one in zip(tasks, axes[0], strict=False):
        panel(one, found, task, rows)
    for one in axes[0, 1:]:
        one.tick_params(labelleft=False)
    figure.supxlabel(
        "gain over the base, points of test accuracy; two standard errors", fontsize=10
    )
    figure.legend(handles=legend(), loc="outside upper center", ncols=3, fontsize=9)
    pictures.save(figure, path)


def panel(axes, found: Results, task: str, rows: list[str]) -> None:
    """Means with two standard errors, seeds as dots, from the top down: the rows of all
    tasks, at the same height in each panel."""
    for height, row in enumerate(rows):
        if row not in found.methods(task):
            continue
        if found.gains(task, row) is None:
            axes.text(0, height, " not run", va="center", color="#777777")
            continue
        for name, (mark, up) in MARKS.items():
            one(axes, found, task, row, name, mark, height - up)
    axes.axvline(0, color="#444444", lw=1.2)
    axes.set(title=task, yticks=range(len(rows)), yticklabels=rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def one(axes, found: Results, task, row, name, mark, height) -> None:
    """One gain of one method."""
    color = report.STYLES.get(row, {"color": OTHER})["color"]
    gain = found.gains(task, row)[name]
    ours = found.right(task, row).mean(1)
    theirs = found.right(*found.over(task, row)[name]).mean(1)
    seeds = 100 * (ours - theirs)
    axes.scatter(
        seeds, np.full(len(seeds), height + 0.12), s=14, color=color, alpha=0.4, lw=0
    )
    face = color if name == results.STEPS else "white"
    axes.errorbar(
        gain.mean,
        height,
        xerr=2 * gain.error,
        fmt=mark,
        color=color,
        mfc=face,
        ms=8,
        mew=1.8,
        lw=1.8,
    )


def legend() -> list[Line2D]:
    grey = {"color": "#555555", "ls": "", "ms": 8, "mew": 1.8}
    steps, gradients = (MARKS[name][0] for name in MARKS)
    return [
        Line2D([], [], marker=steps, label="at equal steps", **grey),
        Line2D(
            [], [], marker=gradients, mfc="white", label="at equal gradients", **grey
        ),
        Line2D([], [], marker=".", label="one seed (below)", color="#999999", ls=""),
    ]
