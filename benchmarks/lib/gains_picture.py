"""One picture of the tasks of several studies: the gain of every method on each."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from benchmarks.lib import pictures, report, results
from benchmarks.lib.results import Results

PANELS = {
    results.STEPS: "over the base, equal steps",
    results.LENGTH: "over the base, length chosen",
}
OTHER = "#d55e00"  # of a method that has no colour yet
ROW, REST = 0.5, 1.4  # inches: a task, and everything around them
APART = 0.22  # of a row: from one method to the next


def draw(found: list[Results], path: Path) -> None:
    """A row for each task, a panel for each base; nothing if no network is sound."""
    rows = [(one, task) for one in found for task in one.tasks]
    if not rows:
        return
    names = list(dict.fromkeys(m for one, task in rows for m in one.methods(task)))
    figure, axes = pictures.new(REST + ROW * len(rows), 1, len(PANELS), sharex=True)
    for one, (over, title) in zip(axes, PANELS.items(), strict=True):
        panel(one, rows, names, over)
        one.set_title(title)
    for one in axes[1:]:
        one.tick_params(labelleft=False)
    figure.supxlabel("gain, points of test accuracy; two standard errors", fontsize=10)
    figure.legend(
        handles=[dot(name) for name in names], loc="outside upper center", ncols=4
    )
    pictures.save(figure, path)


def panel(axes: Axes, rows: list, names: list[str], over: str) -> None:
    """Gains over one of the bases, tasks from the top down."""
    for height, (found, task) in enumerate(rows):
        if not any(found.gains(task, name) for name in found.methods(task)):
            axes.text(0, height, " not run", va="center", color="#777777")
            continue
        for name in found.methods(task):
            place = height + APART * (names.index(name) - (len(names) - 1) / 2)
            one(axes, found.gains(task, name), over, name, place)
    axes.axvline(0, color="#444444", lw=1.2)
    axes.set(yticks=range(len(rows)), yticklabels=[task for _, task in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def one(axes: Axes, gains, over: str, name: str, height: float) -> None:
    """One gain of one method, if it was run."""
    if gains is not None:
        gain = gains[over]
        axes.errorbar(
            gain.mean, height, xerr=2 * gain.error, fmt="o", color=colour(name), ms=5
        )


def colour(name: str) -> str:
    return report.STYLES.get(name, {"color": OTHER})["color"]


def dot(name: str) -> Line2D:
    return Line2D([], [], marker="o", ls="", ms=6, color=colour(name), label=name)
