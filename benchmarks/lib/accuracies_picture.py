"""One picture of a study: the test accuracy of every row on one axis, seeds as dots."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from benchmarks.lib import pictures, report, statistics
from benchmarks.lib.results import Results
from benchmarks.lib.statistics import Gain
from benchmarks.lib.study import BASE, BASELINES, CHOSEN, TWICE

ROW = 0.27  # inches
GREY = "#555555"
UNLIKE = 0.16  # of a row, up and down, so that equal accuracies are told apart


class Line(NamedTuple):
    """One row of the picture: test accuracy in percent, a value for each seed."""

    label: str
    values: np.ndarray
    colour: str


def chart(lines: list[Line], claim: str, path: Path) -> None:
    """All rows, from the top down."""
    figure, axes = pictures.new(1.25 + ROW * len(lines))
    for place, line in enumerate(lines):
        draw_line(axes, place, line)
    axes.set_yticks(range(len(lines)), [line.label for line in lines])
    for label, line in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_color(line.colour)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    count = len(lines[0].values)
    axes.set_xlabel(
        f"test accuracy, %: {count} seeds as dots, mean with two standard errors"
    )
    pictures.title(figure, claim)
    pictures.save(figure, path)


def draw_line(axes: Axes, place: int, line: Line) -> None:
    colour, values = line.colour, line.values
    heights = [place + UNLIKE * (1 - 2 * (k % 2)) for k in range(len(values))]
    axes.plot(values, heights, "o", color=colour, ms=3.5, alpha=0.45, mew=0)
    mean, error = statistics.mean_and_error(values)
    axes.errorbar(mean, place, xerr=2 * error, color=colour, lw=2, zorder=3)
    axes.plot(mean, place, "D", color=colour, ms=5.5, mec="white", mew=0.8, zorder=4)


# --- of a study ---------------------------------------------------------------------


def draw(found: Results, path: Path) -> None:
    """Best above, within each task; the baselines, which are the same, once."""
    lines = [line for task in found.tasks for line in of_task(found, task)]
    if not lines:
        return
    first = found.tasks[0]
    done = [name for name in BASELINES if found.complete(first, name)]
    lines += [Line(name, percent(found, first, name), GREY) for name in done]
    chart(lines, claim(found), path)


def of_task(found: Results, task: str) -> list[Line]:
    """The networks, by their mean; a base whose own length was chosen, once."""
    once = [*BASELINES, CHOSEN] if chosen_is_base(found, task) else BASELINES
    rows = [row for row in found.rows(task) if row not in once]
    lines = [
        Line(named(found, task, row), percent(found, task, row), colour_of(row))
        for row in rows
        if found.complete(task, row)
    ]
    return sorted(lines, key=lambda line: -line.values.mean())


def percent(found: Results, task: str, row: str) -> np.ndarray:
    return 100 * found.right(task, row).mean(1)


def chosen_is_base(found: Results, task: str) -> bool:
    """Whether both are the same runs."""
    rows = found.rows(task)
    same = ("method", "epochs", "settings")
    return CHOSEN in rows and all(rows[BASE][key] == rows[CHOSEN][key] for key in same)


def named(found: Results, task: str, row: str) -> str:
    epochs = found.rows(task)[row]["epochs"]
    if row == CHOSEN or (row == BASE and chosen_is_base(found, task)):
        return f"{task}, {epochs} epochs (chosen)"
    return f"{task}, {epochs} epochs" if row in (BASE, TWICE) else f"{task} + {row}"


def colour_of(row: str) -> str:
    black = {BASE: "base", TWICE: "longer", CHOSEN: "best"}
    return report.STYLES.get(black.get(row, row), {"color": GREY})["color"]


def claim(found: Results) -> str:
    """Of the method that was nominated on validation images: its smallest gain."""
    task, nominated = best(found)
    verdict = found.verdicts().get((task, nominated))
    if verdict is None:
        return f"{nominated}: not all of its runs are there"
    gains = found.gains(task, nominated)
    against = min(gains, key=lambda name: gains[name].mean)
    theirs = found.over(task, nominated)[against][0]
    name = f"{task} + {nominated}" if len(found.tasks) > 1 else nominated
    return (
        f"{name}, chosen on validation images: {points(verdict.gain)} points over "
        f"{theirs} ({against})"
    )


def best(found: Results) -> tuple[str, str]:
    """Of what was nominated, the task and the method that validate best."""
    tasks = found.head["settings"]["tasks"]
    nominated = [(task, tasks[task]["nominated"]) for task in found.tasks]
    return max(nominated, key=lambda one: tasks[one[0]]["rows"][one[1]]["validation"])


def points(gain: Gain) -> str:
    return f"{gain.mean:+.1f} ± {gain.error:.1f}".replace("-", "−")
