"""Tune on validation images, report on new seeds: what several benchmarks do alike.

A plan has tasks, and for each task *groups* of cells: the base at several lengths, and
the methods. Every group has a grid with the same number of points. All points run on
the first tuning seed, the best few on the others too; the highest mean accuracy on
validation images is chosen, and runs on the reporting seeds. Test images are looked at
by the summary only.

The JSON holds the plan and every run, so that summary, table and picture can be made
again, and of a run that was stopped early: what is missing is "not run".
"""

import argparse
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.lib import methods, report, runs, statistics, training, tuning_report

BASE, TWICE, BEST = "base", "base, 2x epochs", "base, best length"
CONTROL = "micro-batches, ρ = 0"
LENGTHS = {BASE: 1, TWICE: 2, "base, 1/2 epochs": 0.5, "base, 1/4 epochs": 0.25}
#: Each over which row of the same task.
OVER = {
    "gain": BASE,
    "gain_over_2x_epochs": TWICE,
    "gain_over_best_length": BEST,
}


class Cell(NamedTuple):
    """What is the same for all seeds of a run; `method` as in methods.py."""

    task: str
    method: str
    epochs: int
    lr: float
    decay: float
    rho: float = 0.0


@dataclasses.dataclass(frozen=True)
class Grid:
    """(learning rate, decay) of the base and of the family; the family's rho."""

    epochs: int
    base: tuple[tuple[float, float], ...]
    family: tuple[tuple[float, float], ...]
    rhos: dict[str, tuple[float, ...]]
    control: bool = False  # micro-batches that do not climb

    def groups(self, task: str) -> dict[str, list[Cell]]:
        found = {
            name: [Cell(task, BASE, round(length * self.epochs), *p) for p in self.base]
            for name, length in LENGTHS.items()
        }
        for name, rhos in self.rhos.items():
            points = itertools.product(self.family, rhos)
            found[name] = [Cell(task, name, self.epochs, *p, rho) for p, rho in points]
        if self.control:
            found[CONTROL] = [Cell(task, "m-SAM", self.epochs, *p) for p in self.base]
        return found


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is run. `promising` points of each group see all tuning seeds."""

    grids: dict[str, Grid]
    tuning: tuple[int, ...] = (100, 101, 102)
    promising: int = 3
    seeds: tuple[int, ...] = tuple(range(600, 610))

    @property
    def groups(self) -> dict[str, dict[str, list[Cell]]]:
        return {task: grid.groups(task) for task, grid in self.grids.items()}

    def header(self) -> dict:
        return {
            "tuning_seeds": self.tuning,
            "promising": self.promising,
            "seeds": self.seeds,
            "grids": {
                task: {name: [list(c) for c in cells] for name, cells in groups.items()}
                for task, groups in self.groups.items()
            },
        }


# --- training -----------------------------------------------------------------------


@functools.cache
def compiled_epoch(losses, method: methods.Method, optimizer, m: int, at_once: int):
    """A first state, and one pass over the data: one program for all settings.

    `losses(params, batch)` gives one loss per example, `optimizer(settings, steps)` a
    transformation; `order` is (steps, batch) indices.
    """

    def transformation(settings: training.Settings, steps):
        options = {"at_once": at_once} if method.loops else {}
        setting = methods.Setting(settings.rho, m=m, options=options)
        behind = optimizer(settings, steps)
        return methods.transformation(method, setting, behind)

    @training.jit
    def epoch(params, state, data, order, settings: training.Settings, steps):
        step = methods.step(method, transformation(settings, steps), losses)

        def body(carry, indices):
            batch = jax.tree.map(lambda leaf: leaf[indices], data)
            return step(*carry, batch)[:2], None

        return jax.lax.scan(body, (params, state), order)[0]

    return transformation(training.Settings(0.0, 0.0), 1).init, epoch


def train(program, params, data, batch: int, cell: Cell, seed: int):
    """The parameters after all epochs; the order depends on the seed alone."""
    init, epoch = program
    state, rng = init(params), np.random.default_rng(seed)
    size = len(data.labels) // batch * batch
    settings = training.Settings(cell.lr, cell.decay, cell.rho)
    steps = cell.epochs * size // batch
    for _ in range(cell.epochs):
        order = rng.permutation(len(data.labels))[:size].reshape(-1, batch)
        params, state = epoch(params, state, data, order, settings, steps)
    return params


def percent(accuracy) -> float:
    """Rounded, so that what is chosen from the file is what was chosen in the run."""
    return round(100 * float(accuracy), 3)


# --- all runs -----------------------------------------------------------------------


class Kept(runs.Runs):
    """Runs in a file that always tells the plan too."""

    def __init__(self, path: Path, header: dict, progress):
        self.header = header
        super().__init__(path, Cell, ("runs",), progress)

    def save(self, more: dict | None = None) -> None:
        super().save({**self.header, **(more or {})})


def measure(plan: Plan, path: Path, work: Callable[[Cell, int], dict]) -> None:
    """All that is missing, task by task."""
    with report.progress_bar() as progress:
        kept = Kept(path, plan.header(), progress)

        def run(cells, seeds, text: str) -> None:
            kept.run("runs", cells, seeds, work, text)

        for number, (task, groups) in enumerate(plan.groups.items(), 1):
            text = f"{number}/{len(plan.grids)} {task}"
            run(itertools.chain(*groups.values()), plan.tuning[:1], text)
            best = {
                name: promising(plan, kept, cells) for name, cells in groups.items()
            }
            run(itertools.chain(*best.values()), plan.tuning, f"{text}, the best")
            chosen = [kept.best(cells, plan.tuning) for cells in best.values()]
            run(chosen, plan.seeds, f"{text}, new seeds")
        kept.finish({})


def promising(plan: Plan, kept: Kept, cells: list[Cell]) -> list[Cell]:
    """In the order of the grid, of which the first of equals is taken in the end."""
    best = kept.promising(cells, plan.tuning[0], plan.promising)
    return [cell for cell in cells if cell in best]


# --- results ------------------------------------------------------------------------


def values(result: dict, cell: Cell, name: str, seeds) -> np.ndarray | None:
    """A measure of these seeds, in their order; None where one of them was not run."""
    try:
        some = {"runs": result["runs"], "seeds": seeds}
        return runs.column(some, "runs", cell._asdict(), name)
    except KeyError:
        return None


def chosen(result: dict, cells: list[Cell]) -> Cell | None:
    """As in the run: the best few on the first tuning seed, then the best on all."""
    seeds, count = result["tuning_seeds"], result["promising"]
    first = {cell: values(result, cell, "validation", seeds[:1]) for cell in cells}
    if any(value is None for value in first.values()):
        return None
    best = sorted(cells, key=lambda cell: first[cell][0], reverse=True)[:count]
    found = {c: values(result, c, "validation", seeds) for c in cells if c in best}
    if any(value is None for value in found.values()):
        return None
    return max(found, key=lambda cell: runs.rounded_mean(found[cell]))


def summary(result: dict) -> list[dict]:
    return [row for task in result["grids"] for row in of_task(result, task)]


def of_task(result: dict, task: str) -> list[dict]:
    """A row for the base, its other lengths, and every method."""
    grids = {
        name: [Cell(*cell) for cell in cells]
        for name, cells in result["grids"][task].items()
    }
    best = {name: chosen(result, cells) for name, cells in grids.items()}
    lengths = [best[name] for name in LENGTHS if name in best]
    shown = {BASE: best[BASE], TWICE: best[TWICE], BEST: None}
    if all(lengths):
        shown[BEST] = chosen(result | {"promising": len(lengths)}, lengths)
    shown |= {name: cell for name, cell in best.items() if name not in LENGTHS}
    tests = {
        name: cell and values(result, cell, "test", result["seeds"])
        for name, cell in shown.items()
    }
    rows = []
    for name, cell in shown.items():
        row = {"task": task, "method": name}
        if tests[name] is None:
            rows.append(row | {"test": "not run"})
            continue
        grid = next(cells for cells in grids.values() if cell in cells)
        rows.append(
            row
            | {k: v for k, v in cell._asdict().items() if k not in row}
            | {
                "points": len(grid),
                "at_edge": runs.at_edge(grid, cell),
                "test": statistics.mean_and_error(tests[name]),
                **{key: gain(tests, name, other) for key, other in OVER.items()},
            }
        )
    return rows


def gain(tests: dict, name: str, other: str) -> tuple[float, float] | None:
    """The difference seed by seed; nothing for a method and itself."""
    if name == other or tests[other] is None:
        return None
    return statistics.mean_and_error(tests[name] - tests[other])


def main(plan: Plan, options: argparse.Namespace, name: str, title: str, work) -> None:
    """Measure what is missing, then table, picture and summary from the file."""
    path, console = options.out / f"{name}.json", report.console()
    if not options.redraw:
        measure(plan, path, work)
    result = json.loads(path.read_text(encoding="utf-8"))
    result = {k: v for k, v in result.items() if k not in ("runs", "summary")} | {
        "summary": summary(result),
        "runs": result["runs"],
    }
    report.write_json(path, result)
    result = json.loads(path.read_text(encoding="utf-8"))
    tuning_report.print_table(result, console, title)
    tuning_report.draw(result, path.with_suffix(".png"), title)
    console.print(f"Wrote {path} and its pictures, .png and -dark.png")
