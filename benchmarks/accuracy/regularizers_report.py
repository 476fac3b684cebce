"""Table and picture of regularizers.py: what SAM and a technique gain together."""

import functools
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.lib import pictures, statistics
from benchmarks.lib.results import Results
from benchmarks.lib.results_table import WIDTH, accuracies, bounds, missing, signed
from benchmarks.lib.statistics import Gain
from benchmarks.lib.study import BASE

NO_DECAY, DECAY = "no decay", "weight decay"  # tasks without any other technique
SAM = "SAM"
ROWS = (BASE, SAM)
COMPLEMENTARY, OVERLAPPING, UNCLEAR = "complementary", "overlapping", "unclear"
COLOURS = {COMPLEMENTARY: "#009e73", OVERLAPPING: "#d55e00", UNCLEAR: "#777777"}


class Square(NamedTuple):
    """What a technique gains over the base, and SAM beside it."""

    of_sam: Gain
    of_technique: Gain
    of_both: Gain
    over_better: Gain  # of both over the better one alone
    interaction: Gain

    @property
    def verdict(self) -> str:
        if certain(self.over_better) > 0:
            return COMPLEMENTARY
        return OVERLAPPING if certain(self.interaction) < 0 else UNCLEAR


def certain(gain: Gain) -> int:
    """The sign of what lies two standard errors from zero, else 0."""
    return (gain.mean > 2 * gain.error) - (gain.mean < -2 * gain.error)


def techniques(found: Results) -> list[str]:
    """All that has a base to be compared with."""
    return [name for name in found.tasks if base_of(name) in found.tasks]


def base_of(technique: str) -> str:
    """The task without it."""
    return {DECAY: NO_DECAY, NO_DECAY: ""}.get(technique, DECAY)


@functools.cache
def square(found: Results, technique: str) -> Square | None:
    """None before all of its runs are there."""
    cells = [(task, row) for task in (base_of(technique), technique) for row in ROWS]
    if not all(found.complete(*cell) for cell in cells):
        return None
    base, sam, alone, both = (100 * found.right(*cell).astype(float) for cell in cells)
    better = max(sam, alone, key=lambda right: right.mean())
    differences = (
        sam - base,
        alone - base,
        both - base,
        both - better,
        both - sam - alone + base,
    )
    return Square(*map(statistics.of_differences, differences))


# --- the table ----------------------------------------------------------------------


def table(found: Results) -> str:
    """Accuracies, and the four cells of every technique."""
    lines = [*accuracies(found), *strengths(found), "", *squares(found), ""]
    for note in (EXPLAINED, *notes(found)):
        lines += textwrap.wrap(note, WIDTH)
    return "\n".join(lines)


EXPLAINED = (
    "SAM, technique and both: gains over the base at equal steps, in points, with the "
    "errors over seeds and of the images. Complementary: both gain more than the "
    "better one alone, by over two standard errors. Overlapping: not so, and the "
    "interaction (both - SAM - technique + base) is negative by as much."
)


def notes(found: Results) -> Iterator[str]:
    sizes = ", ".join(f"{name} {n:,}" for name, n in found.head["images"].items())
    yield (
        f"Accuracies are means of {len(found.head['seeds'])} seeds ({sizes} images). A "
        "word is that of its row, without a correction for the number of rows."
    )
    for task in found.unsound:
        yield f"{task}: not shown, as its network does not beat both baselines."
    for task in found.tasks:
        yield from bounds(task, found.head["settings"]["tasks"][task]["rows"])
    yield f"Settings: git blob {found.head['settings_blob']}."


def strengths(found: Results) -> Iterator[str]:
    """Those that were chosen, alone and beside SAM."""
    for task in found.tasks:
        alone, both = (found.rows(task)[row]["settings"] for row in ROWS)
        if "strength" in alone:
            yield (
                f"{task}: strength {alone['strength']:g}, beside SAM "
                f"{both['strength']:g}"
            )


def squares(found: Results) -> Iterator[str]:
    names = ("SAM", "technique", "both", "interaction")
    yield f"{'technique':16}" + "".join(f"{name:>16}" for name in names)
    for technique in techniques(found):
        one = square(found, technique)
        if one is None:
            yield f"{technique:16}{missing(found, technique, SAM):>16}"
            continue
        gains = (one.of_sam, one.of_technique, one.of_both, one.interaction)
        yield f"{technique:16}" + "".join(f"{signed(gain):>16}" for gain in gains)
        better = signed(one.over_better)
        yield f"  both over the better one alone: {better}, {one.verdict}"


# --- the picture --------------------------------------------------------------------


def draw(found: Results, path: Path) -> None:
    """What decides the verdict: the gain of both over the better one alone."""
    all_of_them = {name: square(found, name) for name in techniques(found)}
    rows = {name: one for name, one in all_of_them.items() if one}
    figure, axes = pictures.new(1.4 + 0.42 * max(len(rows), 1))
    axes.axvline(0, color="#777777", lw=1.2)
    for place, one in enumerate(rows.values()):
        gain, colour = one.over_better, COLOURS[one.verdict]
        axes.errorbar(
            gain.mean, place, xerr=2 * gain.error, fmt="o", color=colour, ms=7
        )
        where = {"xycoords": ("axes fraction", "data"), "va": "center"}
        axes.annotate(one.verdict, (1.02, place), color=colour, **where)
    axes.set_yticks(range(len(rows)), [f"SAM and {name}" for name in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.set_xlabel(
        "gain over the better one alone, points of test accuracy\n"
        "(bars: two standard errors, of seeds and images)"
    )
    pictures.title(figure, "What SAM and another regularizer gain together")
    pictures.save(figure, path)
