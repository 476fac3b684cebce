"""Table and picture of which_method.py: gain against cost, and the shares of SAM's."""

import functools
import textwrap
from collections.abc import Iterator
from pathlib import Path

from benchmarks.lib import methods, pictures, results, statistics
from benchmarks.lib.results import Results
from benchmarks.lib.results_table import accuracies, missing, notes, signed
from benchmarks.lib.statistics import Share

COST_LIMIT, KEPT = 1.2, 0.9
NOMINATED = 2
TASKS = 3  # that have to agree: this one, and Fashion-MNIST with both kinds of labels
COLOURS = {1: "#d55e00", 2: "#000000"}  # one gradient, two
BETWEEN = "#0072b2"
OVER = (results.STEPS, results.LENGTH)  # the bases that shares are taken over


def nominated(found: Results, task: str) -> list[str]:
    """Of the cheap methods those with the highest validation accuracy."""
    rows = found.rows(task)
    cheap = [name for name in found.methods(task) if cost(name) <= COST_LIMIT]
    return sorted(cheap, key=lambda name: -rows[name]["validation"])[:NOMINATED]


def cost(name: str) -> float:
    return methods.BY_NAME[name].gradients


@functools.cache
def shares(found: Results, task: str, over: str) -> dict[str, Share | None]:
    """Of both nominated methods, over the base at as many steps or of the length
    chosen, with intervals that hold for all tasks at once."""
    names = nominated(found, task)
    of_base = found.over(task, "SAM")[over]
    cells = [of_base, *((task, name) for name in ("SAM", *names))]
    if not all(found.complete(*cell) for cell in cells):
        return {}
    base, sam, *ours = (found.right(*cell) for cell in cells)
    chance = statistics.LEVEL / (NOMINATED * TASKS * len(OVER))
    kept = (statistics.share(one, sam, base, chance) for one in ours)
    return dict(zip(names, kept, strict=True))


# --- the table ----------------------------------------------------------------------


def table(found: Results) -> str:
    """Accuracies, gains in the order of their cost, and the answer."""
    lines = [*accuracies(found)]
    for task in found.tasks:
        lines += gains(found, task)
        lines += ["", *answers(found, task), ""]
    for note in notes(found):
        lines += textwrap.wrap(note, 80)
    return "\n".join(lines)


def gains(found: Results, task: str) -> Iterator[str]:
    verdicts = found.verdicts()
    yield (
        f"{task + ', gain':20}{'gradients':>10}{'equal steps':>16}"
        f"{'chosen length':>16}  verdict"
    )
    star = nominated(found, task)
    for name in sorted(found.methods(task), key=lambda name: (cost(name), name)):
        gains = found.gains(task, name)
        label = f"{name}{' *' if name in star else ''}"
        if gains is None:
            yield f"{label:20}{cost(name):>10.2f}{missing(found, task, name):>16}"
            continue
        steps, length = (signed(gains[w]) for w in (results.STEPS, results.LENGTH))
        yield (
            f"{label:20}{cost(name):>10.2f}{steps:>16}{length:>16}"
            f"  {verdicts[task, name].word}"
        )
    yield "* nominated on validation images"


def answers(found: Results, task: str) -> Iterator[str]:
    """Over both bases: a method has to reach it over each."""
    for over in OVER:
        for name, share in shares(found, task, over).items():
            yield f"{name}, {over}: {answer(share)}"


def answer(share: Share | None) -> str:
    """Reached only if the whole interval lies above."""
    if share is None:
        return "SAM's own gain may be none, so no share"
    interval = f"{share.of:.2f} ({share.low:.2f} to {share.high:.2f}) of SAM's gain"
    if share.low > KEPT:
        return f"{interval}: {KEPT} reached"
    return f"{interval}: {KEPT} {'not reached' if share.high < KEPT else 'not shown'}"


# --- the picture --------------------------------------------------------------------


def draw(found: Results, path: Path) -> None:
    """The gain that is hardest to have, over the base of the length chosen; the best
    on top, its cost at the right."""
    if not found.tasks:
        return
    task = found.tasks[0]
    names = [n for n in found.methods(task) if found.gains(task, n) is not None]
    gains = {name: found.gains(task, name)[results.LENGTH] for name in names}
    names.sort(key=lambda name: -gains[name].mean)
    figure, axes = pictures.new(1.3 + 0.26 * max(len(names), 1))
    axes.axvline(0, color="#444444", lw=1.2)
    for place, name in enumerate(names):
        gain, colour = gains[name], COLOURS.get(cost(name), BETWEEN)
        axes.errorbar(
            gain.mean, place, xerr=2 * gain.error, fmt="o", color=colour, ms=6
        )
        where = {"xycoords": ("axes fraction", "data"), "va": "center"}
        axes.annotate(f"{cost(name):.3g}", (1.02, place), color=colour, **where)
    star = nominated(found, task)
    axes.set_yticks(range(len(names)), [f"{n} *" if n in star else n for n in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.annotate("gradients\na step", (1.02, 1.01), xycoords="axes fraction")
    axes.set_xlabel(
        "gain over SGD of its best length, points of test accuracy\n"
        "(bars: two standard errors; *: nominated for a low cost)"
    )
    pictures.title(figure, "MNIST, 40 % of the labels wrong: each method tuned")
    pictures.save(figure, path)
