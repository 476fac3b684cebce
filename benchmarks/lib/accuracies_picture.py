"""One picture of a study: the test accuracy of every row on one axis, seeds as dots."""

from pathlib import Path

from matplotlib.axes import Axes

from benchmarks.lib import pictures, report, statistics
from benchmarks.lib.results import Results
from benchmarks.lib.statistics import Gain
from benchmarks.lib.study import BASE, BASELINES, CHOSEN, TWICE

ROW = 0.27  # inches
GREY = "#555555"
UNLIKE = 0.16  # of a row, up and down, so that equal accuracies are told apart


def draw(found: Results, path: Path) -> None:
    """Best above, within each task; the baselines, which are the same, once."""
    lines = [line for task in found.tasks for line in of_task(found, task)]
    first = found.tasks[0]
    lines += [(name, first, name, GREY) for name in BASELINES]
    lines = [line for line in lines if found.complete(*line[1:3])]
    figure, axes = pictures.new(1.25 + ROW * len(lines))
    for place, (_, task, row, colour) in enumerate(lines):
        draw_row(axes, place, 100 * found.right(task, row).mean(1), colour)
    axes.set_yticks(range(len(lines)), [name for name, *_ in lines])
    for label, (*_, colour) in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_color(colour)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    count = len(found.head["seeds"])
    axes.set_xlabel(
        f"test accuracy, %: {count} seeds as dots, mean with two standard errors"
    )
    pictures.title(figure, claim(found))
    pictures.save(figure, path)


def of_task(found: Results, task: str):
    """(label, task, row, colour) of the networks, by their mean."""
    rows = [row for row in found.rows(task) if row not in BASELINES]
    rows = [row for row in rows if found.complete(task, row)]
    for row in sorted(rows, key=lambda row: -found.mean(task, row, "test")):
        yield named(found, task, row), task, row, colour_of(row)


def named(found: Results, task: str, row: str) -> str:
    epochs = found.rows(task)[row]["epochs"]
    if row == CHOSEN:
        return f"{task}, {epochs} epochs (chosen)"
    return f"{task}, {epochs} epochs" if row in (BASE, TWICE) else f"{task} + {row}"


def colour_of(row: str) -> str:
    black = {BASE: "base", TWICE: "longer", CHOSEN: "best"}
    return report.STYLES.get(black.get(row, row), {"color": GREY})["color"]


def draw_row(axes: Axes, place: int, values, colour: str) -> None:
    up = [UNLIKE * (1 - 2 * (k % 2)) for k in range(len(values))]
    axes.plot(
        values, [place + one for one in up], "o", color=colour, ms=3.5, alpha=0.3, mew=0
    )
    mean, error = statistics.mean_and_error(values)
    axes.errorbar(mean, place, xerr=2 * error, color=colour, lw=2, zorder=3)
    axes.plot(mean, place, "D", color=colour, ms=5.5, mec="white", mew=0.8, zorder=4)


def claim(found: Results) -> str:
    """Of the method that was nominated on validation images: its smallest gain."""
    task = found.tasks[0]
    nominated = found.head["settings"]["tasks"][task]["nominated"]
    verdict = found.verdicts().get((task, nominated))
    if verdict is None:
        return f"{nominated}: not all of its runs are there"
    against = min(found.gains(task, nominated).items(), key=lambda pair: pair[1].mean)
    return (
        f"{nominated}, chosen on validation images: {points(verdict.gain)} points over "
        f"{task} ({against[0]})"
    )


def points(gain: Gain) -> str:
    return f"{gain.mean:+.1f} ± {gain.error:.1f}".replace("-", "−")
