"""What untuned.py found, read from its file: gains, shares, verdicts, and a table.

Gains are over the base, all at as many steps, in pairs. A share is of the gain that
tuned SAM has. Where that is below two standard errors there is none, and the difference
to tuned SAM stands in its place.
"""

import functools
import textwrap
from collections.abc import Iterator

import numpy as np

from benchmarks.lib import statistics, untuned_runs
from benchmarks.lib.results import Report
from benchmarks.lib.results_table import MARKS, NOT_RUN, WIDTH, plain, signed
from benchmarks.lib.statistics import LOSS, NONE, Gain
from benchmarks.lib.store import Key, Store
from benchmarks.lib.study import BASE
from benchmarks.lib.untuned_runs import TUNED

WHOLE = next(iter(TUNED))  # the row that shares are taken of
CELL = 8  # characters
MOST = 0.5  # of its gain; fixed before any run that reported


class Found(Report):
    """Of one file; `tasks` are those whose network is sound."""

    def __init__(self, store: Store):
        super().__init__(store)
        self.tasks = [name for name, of in self.head["tasks"].items() if of["sound"]]
        self.rules = list(self.head["rules"])

    def rows(self, task: str) -> dict[str, dict]:
        return self.head["tasks"][task]["rows"]

    def keys(self, task: str, row: str) -> list[Key]:
        seeds = self.head["tasks"][task]["seeds"]
        return [untuned_runs.key(self.head, task, row, seed) for seed in seeds]

    def images(self, task: str, part: str) -> int:
        return self.head["tasks"][task]["images"]

    def gain(self, task: str, row: str) -> Gain | None:
        """Over the base; None before all runs of both are there."""
        return self.difference(task, row, BASE)

    @functools.cache  # noqa: B019
    def difference(self, task: str, row: str, other: str) -> Gain | None:
        if not (self.complete(task, row) and self.complete(task, other)):
            return None
        return statistics.gain(self.right(task, row), self.right(task, other))

    def share(self, task: str, row: str) -> float | None:
        """Of tuned SAM's gain, where that is two standard errors or more."""
        whole, ours = self.gain(task, WHOLE), self.gain(task, row)
        if not (whole and ours) or whole.mean <= 0 or whole.mean < 2 * whole.error:
            return None
        return ours.mean / whole.mean

    def shares(self, rule: str) -> dict[str, float]:
        """Of the tasks on which no number was chosen."""
        others = [task for task in self.tasks if task not in self.head["choosing"]]
        found = {task: self.share(task, rule) for task in others}
        return {task: share for task, share in found.items() if share is not None}

    @functools.cache  # noqa: B019
    def verdicts(self) -> dict[tuple[str, str], tuple[str, float]]:
        """A word and Holm's p-value for all rules on all tasks: one correction."""
        gains = {
            (task, rule): gain
            for task in self.tasks
            for rule in self.rules
            if (gain := self.gain(task, rule))
        }
        planned = len(self.tasks) * len(self.rules)
        words = statistics.verdicts(list(gains.values()), planned)
        return dict(zip(gains, words, strict=True))

    def hurt(self, rule: str) -> list[str]:
        """The tasks on which it is shown to hurt."""
        found = self.verdicts().items()
        return [task for (task, of), (word, _) in found if (of, word) == (rule, LOSS)]

    def everything(self) -> bool:
        """Whether all runs of all tasks are there."""
        return all(
            self.complete(task, row) for task in self.tasks for row in self.rows(task)
        )


# --- the table ----------------------------------------------------------------------


def table(found: Found) -> str:
    """Gains task by task, then a line for each rule, and how to read them."""
    lines = [line for task in found.tasks for line in of_task(found, task)]
    lines += [*in_one(found), *of_rules(found)]
    for note in (conclusion(found), *notes(found)):
        lines += textwrap.wrap(note, WIDTH)
    return "\n".join(lines)


def of_task(found: Found, task: str) -> Iterator[str]:
    columns = f"{'accuracy, gain':>16}{'of tuned SAM':>16}  verdict"
    yield f"{starred(found, task):31}{columns}"
    for row in found.rows(task):
        yield f"{row:31}" + of_row(found, task, row)
    yield ""


def of_row(found: Found, task: str, row: str) -> str:
    done, seeds = len(found.runs(task, row)), len(found.keys(task, row))
    if done < seeds:
        return f"{f'{done} of {seeds} seeds' if done else NOT_RUN:>16}"
    if row == BASE:
        return f"{plain(found.accuracy(task, row)):>16}"
    gain = found.gain(task, row)
    if gain is None:
        return f"{'no base yet':>16}"
    word, _ = found.verdicts().get((task, row), ("", 1.0))
    return f"{signed(gain):>16}{kept(found, task, row):>16}  {word}".rstrip()


def kept(found: Found, task: str, row: str) -> str:
    """The share of tuned SAM's gain or, where there is none, the difference to it."""
    share = found.share(task, row)
    if share is not None:
        return percent(share)
    gain = found.difference(task, row, WHOLE)
    return "" if gain is None or row == WHOLE else signed(gain)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def in_one(found: Found) -> Iterator[str]:
    """All gains of tuned SAM and of the rules, a line for each task."""
    names = [WHOLE, *found.rules]
    short = [name.replace("momentum", "mom.") for name in names]
    words = [textwrap.wrap(name, CELL - 1) for name in short]
    deep = max(map(len, words))
    above = [[""] * (deep - len(of)) + of for of in words]
    for number, line in enumerate(zip(*above, strict=True), 1):
        first = "task" if number == deep else ""
        yield (f"{first:31}" + "".join(f"{word:>{CELL}}" for word in line)).rstrip()
    for task in found.tasks:
        cells = "".join(cell(found, task, row) for row in names)
        yield f"{starred(found, task):31}{cells}".rstrip()
    yield ""


def starred(found: Found, task: str) -> str:
    return f"{task}*" if task in found.head["choosing"] else task


def cell(found: Found, task: str, row: str) -> str:
    gain = found.gain(task, row)
    word, _ = found.verdicts().get((task, row), (NONE, 1.0))
    shown = NOT_RUN if gain is None else f"{gain.mean:+.2f}"
    return f"{shown:>{CELL - 1}}{MARKS[word]}"


def of_rules(found: Found) -> Iterator[str]:
    yield f"{'rule':21}{'number':>8}{'median share':>14}{'of tasks':>9}  hurts"
    for rule, of in found.head["rules"].items():
        shares = found.shares(rule)
        middle = percent(float(np.median([*shares.values()]))) if shares else "-"
        hurt = ", ".join(found.hurt(rule)) or "nowhere shown"
        start = f"{rule:21}{of['number']:>8g}{middle:>14}{len(shares):>9}  "
        yield from textwrap.wrap(start + hurt, WIDTH, subsequent_indent=54 * " ")
    yield ""


def conclusion(found: Found) -> str:
    """By the rule of the study: most of the gain, and nowhere shown to hurt."""
    if not found.everything():
        return "No conclusion before all runs are there."
    if not any(found.shares(rule) for rule in found.rules):
        return "Tuned SAM gains two standard errors on no task that chose no number."
    good = {
        rule: median
        for rule in found.rules
        if (shares := found.shares(rule)) and not found.hurt(rule)
        if (median := float(np.median([*shares.values()]))) > MOST
    }
    if not good:
        return (
            "No rule keeps more than half of tuned SAM's gain without being shown to "
            "hurt anywhere."
        )
    best = max(good, key=lambda rule: good[rule])
    return (
        f'"{best}" keeps {percent(good[best])} of the gain of tuned SAM (median), and '
        "is nowhere shown to hurt."
    )


def notes(found: Found) -> Iterator[str]:
    head = found.head
    yield (
        "In points, on test images: mean ± standard error over seeds ± that of the "
        "images, by bootstrap. Gains are over the base, in pairs, at as many steps. "
        "All rules have the learning rate and decay of the tuned base. Where tuned "
        "SAM gains less than two standard errors there is no share, but the difference "
        "to it. The verdict is on the gain, with Holm's correction over all rules and "
        'tasks at 0.05 ("*" in the table of all); "suggestive" ("~") is two standard '
        "errors from zero, and no more. Tuned SAM has no verdict here."
    )
    yield (
        "* The numbers that are not published were chosen here, on validation images; "
        "the median is over the other tasks."
    )
    for task, of in head["tasks"].items():
        if not of["sound"]:
            yield (
                f"{task}: not shown. On validation images its network does not beat "
                "both baselines by two standard errors."
            )
    for task, file in head["not_tuned"].items():
        yield f"{task}: {NOT_RUN}. There is no settings/{file}.json yet."
    blobs = {of["settings"]: of["settings_blob"] for of in head["tasks"].values()}
    blobs[head["study"]] = head["rules_blob"]
    for file, blob in blobs.items():
        yield f"{file}.json: git blob {blob}."
