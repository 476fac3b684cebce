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
PERHAPS = "perhaps"  # two standard errors, and not certain after the correction
COLOURS = {COMPLEMENTARY: "#009e73", OVERLAPPING: "#d55e00", UNCLEAR: "#777777"}


class Square(NamedTuple):
    """What a technique gains over the base, and SAM beside it."""

    of_sam: Gain
    of_technique: Gain
    of_both: Gain
    over_better: Gain  # of both over the better one alone
    interaction: Gain


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


def verdicts(squares: dict[str, Square], planned: int = 0) -> dict[str, str]:
    """A word for each, with Holm's correction over both differences of all techniques
    that are `planned`, or of these."""
    asked = [gain for one in squares.values() for gain in one[-2:]]
    words = [word for word, _ in statistics.verdicts(asked, 2 * planned)]
    return {name: verdict(*words[2 * k : 2 * k + 2]) for k, name in enumerate(squares)}


def verdict(of_better: str, of_interaction: str) -> str:
    """From the words of both over the better one, and of the interaction."""
    if of_better in (statistics.CERTAIN, statistics.SUGGESTIVE):
        return likely(COMPLEMENTARY, of_better)
    if statistics.LOSS in of_interaction:
        return likely(OVERLAPPING, of_interaction)
    return UNCLEAR


def likely(word: str, said: str) -> str:
    return f"{PERHAPS} {word}" if statistics.SUGGESTIVE in said else word


def complete(found: Results) -> dict[str, Square]:
    """Of all techniques whose runs are there."""
    squares = {name: square(found, name) for name in techniques(found)}
    return {name: one for name, one in squares.items() if one}


def words_of(found: Results) -> dict[str, str]:
    """Those of what is there; what is still to come counts in the correction."""
    return verdicts(complete(found), len(techniques(found)))


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
    "better one alone. Overlapping: not so, and the interaction (both - SAM - "
    "technique + base) is negative. Both after Holm's correction over all rows at "
    '0.05; with "perhaps" it is two standard errors and no more.'
)


def notes(found: Results) -> Iterator[str]:
    sizes = ", ".join(f"{name} {n:,}" for name, n in found.head["images"].items())
    yield (
        f"Accuracies are means of {len(found.head['seeds'])} seeds ({sizes} images)."
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
    names, words = (
        ("SAM", "technique", "both", "interaction"),
        words_of(found),
    )
    yield f"{'technique':16}" + "".join(f"{name:>16}" for name in names)
    for technique in techniques(found):
        one = square(found, technique)
        if one is None:
            yield f"{technique:16}{missing(found, technique, SAM):>16}"
            continue
        gains = (one.of_sam, one.of_technique, one.of_both, one.interaction)
        yield f"{technique:16}" + "".join(f"{signed(gain):>16}" for gain in gains)
        better = signed(one.over_better)
        yield f"  both over the better one alone: {better}, {words[technique]}"


# --- the picture --------------------------------------------------------------------


def draw(found: Results, path: Path) -> None:
    """What decides the verdict: the gain of both over the better one alone."""
    rows, words = complete(found), words_of(found)
    figure, axes = pictures.new(1.4 + 0.42 * max(len(rows), 1))
    axes.axvline(0, color="#777777", lw=1.2)
    for place, (name, one) in enumerate(rows.items()):
        gain, colour = one.over_better, COLOURS[words[name].split()[-1]]
        axes.errorbar(
            gain.mean, place, xerr=2 * gain.error, fmt="o", color=colour, ms=7
        )
        where = {"xycoords": ("axes fraction", "data"), "va": "center"}
        axes.annotate(words[name], (1.02, place), color=colour, **where)
    axes.set_yticks(range(len(rows)), [f"SAM and {name}" for name in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.set_xlabel(
        "gain over the better one alone, points of test accuracy\n"
        "(bars: two standard errors, of seeds and images)"
    )
    pictures.title(figure, "What SAM and another regularizer gain together")
    pictures.save(figure, path)
