"""One picture: the share of tuned SAM's gain that each rule keeps, task by task."""

import textwrap
from pathlib import Path

import numpy as np

from benchmarks.lib import pictures, report
from benchmarks.lib.untuned_results import Found, conclusion

LOW, HIGH = -100, 200  # percent; what lies beyond is drawn at the edge, as an arrow
UP = 0.22  # of a row: so far dots are moved up and down, to be told apart
LINE = 76  # characters
OTHER = "#d55e00"  # of what has no colour yet


def draw(found: Found, path: Path) -> None:
    """A row for each rule, a dot for each task, a diamond for the median."""
    figure, axes = pictures.new(1.5 + 0.5 * len(found.rules))
    for height, rule in enumerate(found.rules):
        one(axes, height, [*found.shares(rule).values()], colour(found, rule))
    axes.axvline(0, color="#444444", lw=1.2)
    axes.axvline(100, color="#888888", lw=1.2, ls=(0, (4, 2)))
    count = len(found.rules)
    axes.set(yticks=range(count), yticklabels=found.rules, xlim=(LOW - 8, HIGH + 8))
    axes.set_ylim(count - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(
        "% of tuned SAM's gain: tasks as dots, median as a diamond; 0 is the base"
    )
    pictures.title(figure, textwrap.fill(conclusion(found), LINE))
    pictures.save(figure, path)


def one(axes, height: int, shares: list[float], color: str) -> None:
    values = 100 * np.asarray(shares)
    for number, value in enumerate(values):
        inside = LOW <= value <= HIGH
        mark = "o" if inside else ("<" if value < LOW else ">")
        place = height + UP * (1 - 2 * (number % 2))
        at = np.clip(value, LOW, HIGH)
        axes.plot(at, place, mark, color=color, ms=6, alpha=0.55, mew=0)
    if len(values):
        middle = np.clip(np.median(values), LOW, HIGH)
        axes.plot(middle, height, "D", color=color, ms=9, mec="white", mew=1, zorder=4)
    else:
        axes.text(0, height, " no share yet", va="center", color="#777777")


def colour(found: Found, rule: str) -> str:
    """That of the method, where the pictures have one for it."""
    method = found.head["rules"][rule]["method"]
    styles = {name.split(",")[0]: style for name, style in report.STYLES.items()}
    return styles.get(method, {"color": OTHER})["color"]
