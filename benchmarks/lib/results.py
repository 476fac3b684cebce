"""What a report found, read from its file: accuracies, gains and what is said of them.

A row counts when all of its seeds are there: nobody stops where it looks best.
"""

import functools
from typing import NamedTuple

import numpy as np

from benchmarks.lib import methods, report, reporting, statistics
from benchmarks.lib.statistics import Gain
from benchmarks.lib.store import Key, Store
from benchmarks.lib.study import BASE, CHOSEN, LENGTH_ROWS, unpacked

STEPS, GRADIENTS, LENGTH = "equal steps", "equal gradients", "chosen length"
OF_TIMES = {times: row for row, times in LENGTH_ROWS.items()}


class Accuracy(NamedTuple):
    """In percent, with its standard errors over seeds and of the test set."""

    mean: float
    seeds: float
    images: float


class Verdict(NamedTuple):
    """The smallest of a method's gains, a word for it, and Holm's p-value."""

    gain: Gain
    word: str
    p: float


class Report:
    """The runs of one file, by task and row. Which they are, a subclass says."""

    def __init__(self, store: Store):
        self.store, self.head = store, store.head

    def keys(self, task: str, row: str) -> list[Key]:
        """One for each seed, in their order."""
        raise NotImplementedError

    def images(self, task: str, part: str) -> int:
        """How many there are in a test set."""
        raise NotImplementedError

    def runs(self, task: str, row: str) -> list[dict]:
        """Those that are there, in the order of the seeds."""
        keys = self.keys(task, row)
        return [found for key in keys if (found := self.store.find(key))]

    def complete(self, task: str, row: str) -> bool:
        return len(self.runs(task, row)) == len(self.keys(task, row))

    def right(self, task: str, row: str, part: str = "test") -> np.ndarray:
        """Per-image correctness, (seeds, images)."""
        count = self.images(task, part)
        packed = [found["right"][part] for found in self.runs(task, row)]
        return np.stack([unpacked(text, count) for text in packed])

    def accuracy(self, task: str, row: str, part: str = "test") -> Accuracy:
        right = 100 * self.right(task, row, part).astype(float)
        mean, seeds = statistics.mean_and_error(right.mean(1))
        return Accuracy(mean, seeds, statistics.error_of_images(right.mean(0)))


class Results(Report):
    """Of one study; `tasks` are those whose network is sound."""

    def __init__(self, store: Store):
        super().__init__(store)
        found = self.head["settings"]["tasks"]
        self.tasks = [task for task, of in found.items() if of["sound"]]
        self.unsound = [task for task, of in found.items() if not of["sound"]]

    def rows(self, task: str) -> dict[str, dict]:
        return reporting.rows(self.head["settings"]["tasks"][task])

    def keys(self, task: str, row: str) -> list[Key]:
        chosen, seeds = self.rows(task)[row], self.head["seeds"]
        return [reporting.key(self.head, task, chosen, seed) for seed in seeds]

    def images(self, task: str, part: str) -> int:
        return self.head["images"][part]

    def methods(self, task: str) -> list[str]:
        """What gains are taken of."""
        rows = self.head["settings"]["tasks"][task]["rows"]
        return [name for name in rows if name not in (*LENGTH_ROWS, CHOSEN)]

    def mean(self, task: str, row: str, what: str) -> float:
        """Over the seeds, of a number that each run has."""
        return float(np.mean([found[what] for found in self.runs(task, row)]))

    # --- gains ----------------------------------------------------------------------

    def over(self, task: str, row: str) -> dict[str, tuple[str, str]]:
        """Task and row of the base that each gain of a method is taken over; a method
        of 1.2 gradients a step is held against a base that has 2, as is one of 4."""
        method = self.rows(task)[row]["method"]
        gradients = min(methods.BY_NAME[method].gradients, max(OF_TIMES))
        enough = min(times for times in OF_TIMES if times >= gradients)
        return {
            STEPS: (task, BASE),
            GRADIENTS: (task, OF_TIMES[enough]),
            LENGTH: (self.best_base(task), CHOSEN),
        }

    def best_base(self, task: str) -> str:
        """The task whose base of the chosen length is the best on validation images:
        this one, or its rival."""
        of = self.head["settings"]["tasks"]
        rival = of[task].get("rival")
        if rival is None:
            return task
        return max(task, rival, key=lambda t: of[t]["rows"][CHOSEN]["validation"])

    @functools.cache  # noqa: B019 one object a process
    def gains(self, task: str, row: str) -> dict[str, Gain] | None:
        """None before all of its runs and all of theirs are there."""
        over = self.over(task, row)
        if not all(self.complete(*one) for one in ((task, row), *over.values())):
            return None
        ours = self.right(task, row)
        return {
            name: statistics.gain(ours, self.right(*theirs))
            for name, theirs in over.items()
        }

    def verdicts(self) -> dict[tuple[str, str], Verdict]:
        """Of all methods on all tasks: one table, one correction."""
        asked = [(task, row) for task in self.tasks for row in self.methods(task)]
        smallest = {
            cell: statistics.smallest(gains.values())
            for cell in asked
            if (gains := self.gains(*cell))
        }
        found = statistics.verdicts(list(smallest.values()), len(asked))
        return {
            which: Verdict(one, *pair)
            for (which, one), pair in zip(smallest.items(), found, strict=True)
        }


@functools.cache
def committed_study(name: str) -> Results | None:
    """What benchmarks/results has of a study, or nothing yet."""
    path = report.where_committed(f"{name}_report.json")
    return Results(Store(path)) if path.exists() else None
