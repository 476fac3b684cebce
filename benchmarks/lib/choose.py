"""Choosing on validation images: a search for each row of a study.

The base is searched over learning rate and decay at the epochs of the study and at
twice as many, and at half or double the best while that is the longest or shortest. A
method is searched over rho at the base's best learning rate and decay, or at all of the
base's grid, and from the best of these over all three. A point counts by its mean over
the tuning seeds. In the end the base, at both lengths that gains are taken
over, is given as many points as the method that was tried most; if these find a better
best for it, every method is searched from there as well. Stages alternate between the
tasks, so that what was run when the time is up is the same for all.
"""

from collections.abc import Callable

import numpy as np

from benchmarks.lib import baselines, statistics
from benchmarks.lib.grids import Axis, Found, Point, search
from benchmarks.lib.store import Store
from benchmarks.lib.study import BASELINES, CHOSEN, LENGTH_ROWS, Bench, unpacked


class Choice:
    """The searches of a study; what was run before is taken from the store."""

    def __init__(self, bench: Bench, store: Store, tell: Callable[[str], None] = print):
        self.bench, self.study, self.store, self.tell = bench, bench.study, store, tell
        self.base: dict[tuple[str, int], Found] = {}  # by task and epochs
        self.methods: dict[tuple[str, str], Found] = {}
        self.baselines: dict[tuple[str, str], tuple[dict, float]] = {}

    def run(self) -> dict:
        """All stages; the settings to commit."""
        study = self.study
        stages = [self.of_base, self.of_baselines]
        stages += [
            lambda task, m=method: self.of_method(task, m) for method in study.methods
        ]
        stages += [self.of_twice, self.until_settled, self.of_lengths]
        for stage in stages:
            for task in study.tasks:
                stage(task)
        return {
            "study": study.name,
            "tuning_seeds": list(study.tuning_seeds),
            "tasks": {task: self.settings(task) for task in study.tasks},
        }

    # --- searches -------------------------------------------------------------------

    def values(self, task: str, method: str, epochs: int, points: list[dict]):
        """The validation accuracy of each point, mean of the tuning seeds."""
        seeds = self.study.tuning_seeds
        keys = [
            self.study.key(task, method, epochs, point, seed)
            for point in points
            for seed in seeds
        ]

        def work(key):
            found = self.bench.work(key)
            self.tell(
                f"{task}, {method}, {epochs} epochs, {key['settings']}: "
                f"{found['validation']:.2f} in {found['seconds']:.0f} s"
            )
            return found

        self.store.run(keys, work)
        found = [self.store.find(key)["validation"] for key in keys]
        return np.reshape(found, (-1, len(seeds))).mean(1).round(4).tolist()

    def of_base(self, task: str) -> None:
        self.search_base(task, self.study.epochs, self.study.tasks[task].base)

    def search_base(self, task: str, epochs: int, axes, at_least: int = 0) -> None:
        def evaluate(points: list[Point]):
            return self.values(task, "base", epochs, points)

        self.base[task, epochs] = search(axes, evaluate, at_least)

    def of_method(self, task: str, method: str) -> None:
        rho = self.study.tasks[task].rho
        if method not in rho:
            return
        best = self.base[task, self.study.epochs]
        whole = self.study.tasks[task].base
        start = self.around(task, best) if self.study.from_best else whole
        axes = start | {"rho": rho[method]}

        def evaluate(points: list[Point]):
            return self.values(task, method, self.study.epochs, points)

        found = search(axes, evaluate)
        if earlier := self.methods.get((task, method)):
            found.add([point for point, _ in earlier.tried], evaluate)
        self.methods[task, method] = found

    def around(self, task: str, found: Found) -> dict[str, Axis]:
        """The base's axes, with its best point alone to start at."""
        return {
            name: Axis((found.best[name],), axis.ratio, axis.low, axis.high)
            for name, axis in self.study.tasks[task].base.items()
        }

    def of_twice(self, task: str) -> None:
        start = self.around(task, self.base[task, self.study.epochs])
        self.search_base(task, 2 * self.study.epochs, start)

    def until_settled(self, task: str) -> None:
        """If its last points find the base a better best, methods start there too."""
        while True:
            best = self.base[task, self.study.epochs].best
            self.of_fair_base(task)
            if self.base[task, self.study.epochs].best == best:
                return
            for method in self.study.methods:
                self.of_method(task, method)

    def of_fair_base(self, task: str) -> None:
        most = max(len(f.tried) for (t, _), f in self.methods.items() if t == task)
        once, twice = self.study.epochs, 2 * self.study.epochs
        start = self.around(task, self.base[task, once])
        self.search_base(task, once, self.study.tasks[task].base, most)
        self.search_base(task, twice, start, most)

    def of_lengths(self, task: str) -> None:
        """Until both neighbours of the best length are worse, or a bound is reached."""
        while more := self.missing_lengths(task):
            best = self.base[task, self.best_length(task)]
            for epochs in more:
                self.search_base(task, epochs, self.around(task, best))

    def lengths(self, task: str) -> list[int]:
        return sorted(epochs for t, epochs in self.base if t == task)

    def best_length(self, task: str) -> int:
        return max(self.lengths(task), key=lambda e: self.base[task, e].value)

    def missing_lengths(self, task: str) -> list[int]:
        study, best = self.study, self.best_length(task)
        beside = [round(best / 2), 2 * best]
        inside = [e for e in beside if study.shortest <= e <= study.longest]
        return [epochs for epochs in inside if (task, epochs) not in self.base]

    def of_baselines(self, task: str) -> None:
        first = self.study.same_images(task)
        if first == task:
            self.of_logistic(task)
            self.of_neighbours(task)
        for name in BASELINES:
            self.baselines[task, name] = self.baselines[first, name]

    def of_logistic(self, task: str) -> None:
        found = search(
            baselines.AXES[baselines.LOGISTIC],
            lambda points: self.values(task, baselines.LOGISTIC, 0, points),
        )
        self.baselines[task, baselines.LOGISTIC] = (found.best, found.value)

    def of_neighbours(self, task: str) -> None:
        """Over k for every metric; the first metric's best k starts the others."""
        axis = baselines.AXES[baselines.NEIGHBOURS]["k"]
        best: list[tuple[float, dict]] = []
        for metric in baselines.METRICS:

            def evaluate(points: list[Point], metric=metric):
                full = [point | {"metric": metric} for point in points]
                return self.values(task, baselines.NEIGHBOURS, 0, full)

            found = search({"k": axis}, evaluate)
            best.append((found.value, found.best | {"metric": metric}))
            axis = Axis((found.best["k"],), axis.ratio, axis.low, axis.high)
        value, settings = max(best, key=lambda pair: pair[0])
        self.baselines[task, baselines.NEIGHBOURS] = (settings, value)

    # --- what was chosen ------------------------------------------------------------

    def settings(self, task: str) -> dict:
        """Of one task, as they are committed."""
        best = self.best_length(task)
        rows = {
            name: self.row("base", times * self.study.epochs, task)
            for name, times in LENGTH_ROWS.items()
        }
        rows[CHOSEN] = self.row("base", best, task)
        rows[CHOSEN]["at_bound"] += ["epochs"] * self.length_at_bound(best)
        names = self.study.tasks[task].rho
        rows |= {m: self.row(m, self.study.epochs, task) for m in names}
        return {
            "rows": rows,
            "lengths": {e: self.base[task, e].value for e in self.lengths(task)},
            "baselines": {
                name: {"settings": point, "validation": value}
                for (t, name), (point, value) in self.baselines.items()
                if t == task
            },
            "sound": self.sound(task),
            **self.rival(task),
            **self.baselines_of(task),
            "nominated": max(names, key=lambda m: rows[m]["validation"]),
        }

    def row(self, method: str, epochs: int, task: str) -> dict:
        one = (
            self.base[task, epochs] if method == "base" else self.methods[task, method]
        )
        return {
            "method": method,
            "epochs": epochs,
            "settings": one.best,
            "validation": one.value,
            "points": len(one.tried),
            "at_edge": one.at_edge(),
            "at_bound": one.at_bound(),
        }

    def length_at_bound(self, best: int) -> bool:
        study = self.study
        return not study.shortest <= round(best / 2) or not 2 * best <= study.longest

    def rival(self, task: str) -> dict:
        found = self.study.tasks[task].rival
        return {"rival": found} if found else {}

    def baselines_of(self, task: str) -> dict:
        found = self.study.same_images(task)
        return {} if found == task else {"baselines_of": found}

    def sound(self, task: str) -> bool:
        """Whether the tuned base, or a rival's, beats both baselines by two standard
        errors."""
        return any(self.beats_baselines(t) for t in (task, *self.rival(task).values()))

    def beats_baselines(self, task: str) -> bool:
        best, first = self.best_length(task), self.study.same_images(task)
        ours = self.right(task, "base", best, self.base[task, best].best)
        return all(
            statistics.beats(ours, self.right(first, name, 0, point))
            for (t, name), (point, _) in self.baselines.items()
            if t == task
        )

    def right(self, task: str, method: str, epochs: int, point: dict):
        """Of each validation image, the share of the tuning seeds that know it."""
        study, count = self.study, len(self.bench.sets.validation.labels)
        keys = [
            study.key(task, method, epochs, point, seed) for seed in study.tuning_seeds
        ]
        found = [self.store.find(key)["right"]["validation"] for key in keys]
        return np.mean([unpacked(text, count) for text in found], axis=0)
