"""Table and picture of climbs.py: gains over the base, and over SAM."""

import functools
import textwrap
from collections.abc import Iterator
from pathlib import Path

from benchmarks.lib import pictures, results, results_table, statistics
from benchmarks.lib.results import Results
from benchmarks.lib.results_table import WIDTH, signed
from benchmarks.lib.statistics import Gain

SAM = "SAM"
OF_SAM, OTHERS = "#0072b2", "#777777"


@functools.cache
def over_sam(found: Results, task: str) -> dict[str, Gain]:
    """Of each other climb, at as many steps; those whose runs are all there."""
    whole = [name for name in found.methods(task) if found.complete(task, name)]
    if SAM not in whole:
        return {}
    sam = found.right(task, SAM)
    return {
        name: statistics.gain(found.right(task, name), sam)
        for name in whole
        if name != SAM
    }


def verdicts(found: Results) -> dict[tuple[str, str], str]:
    """A word for every climb but SAM, with one correction for all."""
    gains = {
        (task, name): gain
        for task in found.tasks
        for name, gain in over_sam(found, task).items()
    }
    planned = sum(len(found.methods(task)) - 1 for task in found.tasks)
    words = statistics.verdicts(list(gains.values()), planned)
    return {which: word for which, (word, _) in zip(gains, words, strict=True)}


# --- the table ----------------------------------------------------------------------


def table(found: Results) -> str:
    """That of every study, and the gains over SAM."""
    lines = [*results_table.accuracies(found), *results_table.gains(found)]
    lines += [line for task in found.tasks for line in of_task(found, task)]
    for note in (
        "Over SAM: gains at as many steps, in pairs; the verdict is corrected over "
        "all climbs and both tasks.",
        *results_table.notes(found),
    ):
        lines += textwrap.wrap(note, WIDTH)
    return "\n".join(lines)


def of_task(found: Results, task: str) -> Iterator[str]:
    words = verdicts(found)
    yield f"{task + ', over SAM':31}{'gain':>16}{'rho':>10}  verdict"
    for name, gain in over_sam(found, task).items():
        rho = found.rows(task)[name]["settings"]["rho"]
        yield f"{name:31}{signed(gain):>16}{rho:>10g}  {words[task, name]}"
    yield ""


# --- the picture --------------------------------------------------------------------


def draw(found: Results, path: Path) -> None:
    """A panel for each task: its gains over the base at as many steps, SAM on top."""
    if not found.tasks:
        return
    count = max(len(found.methods(task)) for task in found.tasks)
    figure, axes = pictures.new(
        1.3 + 0.3 * count, 1, len(found.tasks), squeeze=False, sharex=True
    )
    for ax, task in zip(axes[0], found.tasks, strict=True):
        names = [n for n in found.methods(task) if found.gains(task, n) is not None]
        for place, name in enumerate(names):
            gain = found.gains(task, name)[results.STEPS]
            colour = OF_SAM if name == SAM else OTHERS
            ax.errorbar(
                gain.mean, place, xerr=2 * gain.error, fmt="o", color=colour, ms=5
            )
        ax.axvline(0, color="#444444", lw=1.2)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(count - 0.5, -0.5)
        ax.grid(False, axis="y")
        ax.set_title(task)
        ax.set_xlabel("gain over the base, points\n(bars: two standard errors)")
    pictures.title(figure, "What each climb gains, tuned for itself")
    pictures.save(figure, path)
