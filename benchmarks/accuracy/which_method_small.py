"""Which method to take: accuracy against cost, for every method of the family.

Tasks A and B of flatness.py with SGD: real images, 40 % of the training labels
wrong. Every method gets its own grid of learning rate, decay and rho (LookSAM's alpha
too), as many points as the base optimizer, LookSAM more. It is tuned on *validation*
images of tuning seeds: all points on two seeds, the best three on eight more. What was
chosen then runs on new seeds, and the picture shows the gain over the base on *test*
images against the gradients that a step evaluates; methods of one cost stand side by
side. (Smaller grids were tried first, with other seeds in the end, and widened where
what validation chose lay at an edge. Where it still does the table has brackets.)

The question: which method keeps at least nine tenths of SAM's gain at 1.2 gradients a
step or fewer? At most two are nominated, on validation; on the new seeds the ratio of
the gains gets a bootstrap interval, and "reached" is said only if its lower end lies
above 0.9.

All methods train for the same number of epochs. Under label noise a shorter training
is a rival that costs less, so the base at its best length (from flatness.py, where
it was searched more finely) is run as well. BatchNorm's averages are taken once, at
the end, over all training images: methods without a clean pass have none along the way.
Methods that skip gradients are not vmapped over seeds.

Writes which_method_small.json and which_method_small.png. Finished runs are kept in the
JSON: start it again, also with larger grids, and it goes on. 20 to 30 minutes on two
idle cores. By the stricter rules it is asked in which_method.py.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_sam
from benchmarks.accuracy import flatness, which_method_small_report
from benchmarks.lib import evaluation, methods, report, statistics, training
from benchmarks.lib.data import Examples, Split, loaded
from benchmarks.lib.networks import BATCH_NORM_MOMENTUM
from benchmarks.lib.runs import product
from benchmarks.lib.tasks import DIGITS, MNIST, Task

# Seeds: all points on the first, the best few of each method also on the next.
TUNING = ((range(700, 702), None), (range(702, 710), 3))
CONFIRM = range(900, 930)
COST_LIMIT, SHARE = 1.2, 0.9
NOMINATED = 2
RESAMPLED = 20_000
SIDE_BY_SIDE = 2
SAVE_EVERY = 20.0  # seconds
BASE, BEST_LENGTH = "base", "base, best length"
ALPHAS = (0.1, 0.3, 0.7)
TITLES = {
    DIGITS.name: "A: digits, conv net with BatchNorm, SGD",
    MNIST.name: "B: MNIST at 14x14, MLP, SGD",
}


class Point(NamedTuple):
    """What is tuned; all of it is traced."""

    lr: float
    decay: float
    rho: float = 0.0
    alpha: float = 0.3


@dataclasses.dataclass(frozen=True)
class Grid:
    """One task: learning rate and decay of the base and of the family; rho by method.

    They lie around the points at which flatness.py's base and SAM were the best.
    """

    task: Task
    epochs: int
    m: int
    base: tuple[tuple[float, float], ...]
    family: tuple[tuple[float, float], ...]
    rhos: dict[str, tuple[float, ...]]

    def points(self, name: str) -> list[Point]:
        if name == BASE:
            return [Point(*pair) for pair in self.base]
        alphas = ALPHAS if name.startswith("LookSAM") else (0.3,)
        grid = itertools.product(self.family, self.rhos[name], alphas)
        return [Point(*pair, rho, alpha) for pair, rho, alpha in grid]


GRIDS = (
    Grid(
        DIGITS,
        epochs=30,
        m=10,
        base=product((0.03, 0.1, 0.3, 0.6), (0.005, 0.01, 0.02, 0.03, 0.05)),
        family=((0.1, 0.01), (0.1, 0.025), (0.3, 0.005), (0.3, 0.01), (0.6, 0.005)),
        rhos={
            "SAM": (0.1, 0.2, 0.3, 0.5),
            "ASAM": (0.25, 0.5, 1.0, 2.0),
            "m-SAM": (0.05, 0.1, 0.2, 0.3),
            "GSAM": (0.1, 0.2, 0.3, 0.5),
            "WSAM": (0.01, 0.02, 0.05, 0.1),
            "F-SAM": (0.1, 0.2, 0.3, 0.5),
            "ESAM": (0.02, 0.05, 0.1, 0.2),
            "climb by 1/5": (0.1, 0.3, 0.5, 0.8),
            "climb by 1/5, ASAM": (0.5, 1.0, 2.0, 4.0),
            "LookSAM": (0.1, 0.3, 0.6),
            "LookSAM, ASAM": (0.5, 1.5, 3.0),
            "every 5th step": (0.2, 0.5, 1.0, 2.0),
            "every 5th step, ASAM": (1.0, 2.5, 5.0, 8.0),
            "random 1/5 of steps": (0.2, 0.5, 1.0, 2.0),
            "last 1/5 of steps": (0.2, 0.4, 0.8, 1.6),
            "momentum SAM": (0.3, 1.0, 2.0, 4.0),
            "random perturbation": (0.3, 1.0, 3.0, 8.0),
        },
    ),
    Grid(
        MNIST,
        epochs=60,
        m=20,
        base=product((0.005, 0.01, 0.03, 0.1), (0.01, 0.02, 0.03, 0.04, 0.06)),
        family=((0.01, 0.04), (0.03, 0.01), (0.03, 0.02), (0.03, 0.04), (0.1, 0.01)),
        rhos={
            "SAM": (0.1, 0.2, 0.3, 0.5),
            "ASAM": (0.75, 1.5, 3.0, 5.0),
            "m-SAM": (0.05, 0.1, 0.2, 0.3),
            "GSAM": (0.1, 0.2, 0.3, 0.5),
            "WSAM": (0.008, 0.015, 0.03, 0.06),
            "F-SAM": (0.1, 0.2, 0.3, 0.5),
            "ESAM": (0.05, 0.1, 0.2, 0.4),
            "climb by 1/5": (0.1, 0.2, 0.4, 0.6),
            "climb by 1/5, ASAM": (0.5, 1.0, 2.0, 4.0),
            "LookSAM": (0.2, 0.4, 0.8),
            "LookSAM, ASAM": (1.5, 4.0, 8.0),
            "every 5th step": (0.15, 0.3, 0.75, 1.5),
            "every 5th step, ASAM": (0.75, 1.5, 3.0, 7.0),
            "random 1/5 of steps": (0.15, 0.3, 0.75, 1.5),
            "last 1/5 of steps": (0.15, 0.3, 0.6, 1.2),
            "momentum SAM": (0.3, 1.0, 2.0, 3.0),
            "random perturbation": (1.0, 3.0, 10.0, 20.0),
        },
    ),
)


class Cell(NamedTuple):
    """One row of the results: what is the same for all seeds."""

    task: str
    method: str
    epochs: int
    point: Point


def cost(cell: Cell, epochs: int) -> float:
    """Gradients, over those of the base in as many epochs as the others have."""
    if cell.method == BEST_LENGTH:
        return cell.epochs / epochs
    return methods.BY_NAME[cell.method].gradients


# --- one run ------------------------------------------------------------------------


@functools.cache
def program(task: Task, name: str, m: int, steps: int):
    """A whole training in one compiled loop: (network, data, key, order, point).

    Conditionals in a loop skip; vmapped over seeds they would not.
    """
    method = methods.BY_NAME[name.removesuffix(", best length")]
    start = optax_sam.tail_schedule(1.0, steps, methods.TAIL)[1]

    def schedule(lr):
        if not name.startswith("last"):
            return training.warm_up_and_cosine(lr, steps)
        warm_up = round(training.WARM_UP * steps)
        return optax_sam.tail_schedule(lr, steps, methods.TAIL, warm_up)[0]

    @training.jit
    def train(network: training.Network, data: Examples, key, order, point: Point):
        setting = methods.Setting(point.rho, point.alpha, key, m, start)
        settings = training.Settings(point.lr, point.decay)
        optimizer = training.optimizer(
            training.Kind(), settings, steps, schedule(point.lr)
        )
        tx = methods.transformation(method, setting, optimizer)
        losses = functools.partial(training_losses, task, network.batch_stats)
        step = methods.step(method, tx, losses)

        def body(carry, indices):
            batch = jax.tree.map(lambda leaf: leaf[indices], data)
            *carry, _ = step(*carry, batch)
            return tuple(carry), None

        carry = (network.params, tx.init(network.params))
        (params, _), _ = jax.lax.scan(body, carry, order)
        return network._replace(params=params)

    return train


def training_losses(task: Task, batch_stats, params, batch: Examples):
    """Of each example, with the statistics of the batch it came in."""
    variables = {"params": params, "batch_stats": batch_stats}
    logits, _ = task.model.apply(
        variables, batch.images, train=True, mutable=["batch_stats"]
    )
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)


@functools.cache
def averages(task: Task):
    """The network with BatchNorm's averages over all training images at once."""

    @training.jit
    def of(network: training.Network, data: Examples):
        nothing = jax.tree.map(jnp.zeros_like, network.batch_stats)
        variables = {"params": network.params, "batch_stats": nothing}
        _, seen = task.model.apply(
            variables, data.images, train=True, mutable=["batch_stats"]
        )
        stats = seen.get("batch_stats", {})
        whole = jax.tree.map(lambda x: x / (1 - BATCH_NORM_MOMENTUM), stats)
        return network._replace(batch_stats=whole)

    return of


# --- all runs, kept in a file -------------------------------------------------------


class Runs:
    """What was run: seed -> (validation, test) for each cell, and the file of it."""

    def __init__(self, path: Path, header: dict):
        self.path, self.header, self.saved = path, header, time.monotonic()
        self.cells: dict[Cell, dict[int, list[float]]] = {}
        if path.exists():
            for row in json.loads(path.read_text(encoding="utf-8"))["runs"]:
                point = Point(row["lr"], row["decay"], row["rho"], row["alpha"])
                cell = Cell(row["task"], row["method"], row["epochs"], point)
                pairs = zip(row["validation"], row["test"], strict=True)
                found = dict(zip(row["seeds"], map(list, pairs), strict=True))
                self.cells.setdefault(cell, {}).update(found)

    def missing(self, cells: Iterable[Cell], seeds) -> list[tuple[Cell, int]]:
        return [(c, s) for c in cells for s in seeds if s not in self.cells.get(c, {})]

    def keep(self, cells: Iterable[Cell], seeds) -> None:
        """Of an earlier start with other grids or seeds nothing stays."""
        self.cells = {
            cell: {
                seed: self.cells[cell][seed]
                for seed in self.cells[cell]
                if seed in seeds
            }
            for cell in dict.fromkeys(cells)
        }

    def add(self, cell: Cell, seed: int, found) -> None:
        self.cells.setdefault(cell, {})[seed] = list(found)
        if time.monotonic() - self.saved > SAVE_EVERY:
            self.save()

    def values(self, cell: Cell, which: str, seeds) -> np.ndarray:
        column = ("validation", "test").index(which)
        return np.array([self.cells[cell][seed][column] for seed in seeds])

    def save(self, summary: dict | None = None) -> None:
        rows = []
        for cell, found in self.cells.items():
            seeds = sorted(found)
            columns = np.array([found[seed] for seed in seeds]).T.tolist()
            rows.append(
                {
                    "task": cell.task,
                    "method": cell.method,
                    "epochs": cell.epochs,
                    **cell.point._asdict(),
                    "seeds": seeds,
                    **dict(zip(("validation", "test"), columns, strict=True)),
                }
            )
        part = self.path.with_suffix(".part")
        report.write_json(part, {**self.header, **(summary or {}), "runs": rows})
        part.replace(self.path)
        self.saved = time.monotonic()


class Bench:
    """The tasks with their data, the runs, and a bar that shows the time left."""

    def __init__(self, grids: Iterable[Grid], names, tuning, runs: Runs):
        self.grids = {grid.task.name: grid for grid in grids}
        self.names, self.tuning = names, tuning
        self.runs, self.splits = runs, {}

    def split(self, task: Task, seed: int) -> Split:
        if (task.name, seed) not in self.splits:
            split = task.split(loaded(task.load), seed)
            self.splits[task.name, seed] = jax.device_put(split)
        return self.splits[task.name, seed]

    def train(self, cell: Cell, seed: int) -> tuple[float, float]:
        """The accuracy on validation and on test images, in percent."""
        grid = self.grids[cell.task]
        task, split = grid.task, self.split(grid.task, seed)
        order = training.order_of(task, cell.epochs, seed)
        network = training.initial(task)(jax.random.key(seed), split.train.images[:1])
        train = program(task, cell.method, grid.m, len(order))
        key = jax.random.fold_in(jax.random.key(seed), 1)
        network = train(network, split.train, key, order, cell.point)
        network = averages(task)(network, split.train)
        accuracy = evaluation.accuracy(task)
        return tuple(
            100 * float(accuracy(network, part))
            for part in (split.validation, split.test)
        )

    def run(self, cells: list[Cell], seeds, progress) -> None:
        """What is missing, side by side; every program is compiled by one thread."""
        jobs = self.runs.missing(cells, seeds)
        for job in jobs:
            self.split(self.grids[job[0].task].task, job[1])
        first = {(cell.task, cell.method): (cell, seed) for cell, seed in jobs}
        rest = [job for job in jobs if job not in first.values()]
        bar = progress.add_task(f"{len(cells)} cells", total=len(jobs))
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            for wave in (list(first.values()), rest):
                work = {pool.submit(self.train, *job): job for job in wave}
                for done in as_completed(work):
                    cell, seed = work[done]
                    self.runs.add(cell, seed, done.result())
                    text = f"{cell.task}, seed {seed}: {cell.method}"
                    progress.update(bar, advance=1, description=text)
        self.runs.save()

    def cells(self) -> dict[tuple[str, str], list[Cell]]:
        """All points of every task and method."""
        return {
            (task, name): [
                Cell(task, name, grid.epochs, point) for point in grid.points(name)
            ]
            for task, grid in self.grids.items()
            for name in self.names
        }

    def tune(self, progress) -> dict[tuple[str, str], Cell]:
        """The best cell of every task and method, on validation images."""
        candidates, seeds = self.cells(), []
        for more, best in self.tuning:
            if best is not None:
                candidates = {
                    key: self.best_of_each_alpha(cells, seeds, best)
                    for key, cells in candidates.items()
                }
            self.run(chain(candidates.values()), more, progress)
            seeds += more
        return {key: self.ranked(cells, seeds)[0] for key, cells in candidates.items()}

    @property
    def tuning_seeds(self) -> list[int]:
        return [seed for seeds, _ in self.tuning for seed in seeds]

    def ranked(self, cells: list[Cell], seeds) -> list[Cell]:
        def validation(cell: Cell) -> float:
            return -self.runs.values(cell, "validation", seeds).mean()

        return sorted(cells, key=validation)

    def best_of_each_alpha(self, cells: list[Cell], seeds, best: int) -> list[Cell]:
        """So that the alphas can be compared on the same seeds."""
        ranked = self.ranked(cells, seeds)
        alphas = dict.fromkeys(cell.point.alpha for cell in cells)
        return [
            cell
            for alpha in alphas
            for cell in [c for c in ranked if c.point.alpha == alpha][:best]
        ]

    def shorter(self, task: str) -> Cell:
        """The base at the length that flatness.py found for it."""
        found = next(c for c in flatness.COMPARISONS if c.task.name == task)
        best = next(m for m in found.methods if m.role == "best")
        epochs = min(best.epochs, self.grids[task].epochs)
        return Cell(task, BEST_LENGTH, epochs, Point(*best.settings))


def chain(*lists) -> list[Cell]:
    return [cell for some in lists for cells in some for cell in cells]


# --- what came out ------------------------------------------------------------------


def confirm(bench: Bench, chosen, seeds: list[int], progress) -> dict:
    """What was chosen, on new seeds; the nomination does not look at them."""
    names = nominated(bench, chosen)
    cells = [*chosen.values(), *(bench.shorter(task) for task in bench.grids)]
    bench.run(cells, seeds, progress)
    bench.runs.keep(
        chain(bench.cells().values(), [cells]), [*bench.tuning_seeds, *seeds]
    )
    rows = [row(bench, chosen, cell, seeds) for cell in cells]
    return {
        "epochs": {name: grid.epochs for name, grid in bench.grids.items()},
        "titles": {name: TITLES[name] for name in bench.grids},
        "cost_limit": COST_LIMIT,
        "share_to_keep": SHARE,
        "tuning_seeds": bench.tuning_seeds,
        "seeds": seeds,
        "nominated": names,
        "methods": rows,
        "alpha": alphas(bench),
    }


def row(bench: Bench, chosen, cell: Cell, seeds: list[int]) -> dict:
    """One method on one task: what was chosen, and what it does on the new seeds."""
    base, sam = chosen[cell.task, BASE], chosen[cell.task, "SAM"]
    test = functools.partial(bench.runs.values, which="test", seeds=seeds)
    gain, sam_gain = test(cell) - test(base), test(sam) - test(base)
    over_shorter = test(cell) - test(bench.shorter(cell.task))
    tuned = cell.method != BEST_LENGTH
    return {
        "task": cell.task,
        "method": cell.method,
        "gradients": cost(cell, bench.grids[cell.task].epochs),
        "epochs": cell.epochs,
        **cell.point._asdict(),
        "at_edge": tuned and edges(bench.grids[cell.task], cell),
        "validation_gain": (
            statistics.mean_and_error(validation_gain(bench, chosen, cell))
            if tuned
            else None
        ),
        "test_accuracy": statistics.mean_and_error(test(cell)),
        "gain": statistics.mean_and_error(gain),
        "share": gain.mean() / sam_gain.mean(),
        "share_interval": interval(gain, sam_gain),
        "gain_over_best_length": statistics.mean_and_error(over_shorter),
    }


def edges(grid: Grid, cell: Cell) -> list[str]:
    """Which of the chosen numbers are the smallest or the largest of their grid."""
    points = np.array(grid.points(cell.method))
    low, high = points.min(0), points.max(0)
    names = zip(Point._fields, cell.point, low, high, strict=True)
    return [
        name
        for name, value, lowest, highest in names
        if lowest < highest and value in (lowest, highest) and name != "alpha"
    ]


def validation_gain(bench: Bench, chosen, cell: Cell) -> np.ndarray:
    seeds = bench.tuning_seeds
    base = bench.runs.values(chosen[cell.task, BASE], "validation", seeds)
    return bench.runs.values(cell, "validation", seeds) - base


def nominated(bench: Bench, chosen) -> list[str]:
    """The cheap methods with the largest share of SAM's gain on their worse task."""

    def share(name: str, task: str) -> float:
        gains = [
            validation_gain(bench, chosen, chosen[task, which]).mean()
            for which in (name, "SAM")
        ]
        return gains[0] / gains[1]

    cheap = [
        name
        for name in bench.names
        if name != BASE and methods.BY_NAME[name].gradients <= COST_LIMIT
    ]
    ranked = sorted(cheap, key=lambda name: -min(share(name, t) for t in bench.grids))
    return ranked[:NOMINATED]


def interval(gain: np.ndarray, sam_gain: np.ndarray) -> tuple[float, float]:
    """95 % of the ratio of the means, seeds drawn again in pairs."""
    drawn = np.random.default_rng(0).integers(len(gain), size=(RESAMPLED, len(gain)))
    ratios = gain[drawn].mean(1) / sam_gain[drawn].mean(1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def alphas(bench: Bench) -> list[dict]:
    """LookSAM's alpha: the best validation accuracy that was reached with each."""
    rows, seeds = [], bench.tuning_seeds
    looking = [name for name in bench.names if name.startswith("LookSAM")]
    for task, name in itertools.product(bench.grids, looking):
        grid = bench.grids[task]
        for alpha in ALPHAS:
            cells = [
                cell
                for point in grid.points(name)
                if point.alpha == alpha
                and not bench.runs.missing(
                    [cell := Cell(task, name, grid.epochs, point)], seeds
                )
            ]
            best = bench.ranked(cells, seeds)[0]
            values = bench.runs.values(best, "validation", seeds)
            rows.append(
                {
                    "task": task,
                    "method": name,
                    **best.point._asdict(),
                    "validation_accuracy": statistics.mean_and_error(values),
                }
            )
    return rows


# --- options ------------------------------------------------------------------------


def main() -> None:
    parser = report.parser(__doc__, "which_method_small.json")
    options = report.parse(parser)
    path = options.out / "which_method_small.json"
    console = report.console()
    if not options.redraw:
        measure(options, path)
    result = json.loads(path.read_text(encoding="utf-8"))
    which_method_small_report.print_tables(result, console)
    which_method_small_report.draw(result, path.with_suffix(".png"))
    console.print(f"Wrote {path} and its picture, .png")


def measure(options: argparse.Namespace, path: Path) -> None:
    names = [BASE, *GRIDS[0].rhos]
    grids, tuning, seeds = GRIDS, TUNING, CONFIRM
    if options.smoke:
        grids, names = [tiny(GRIDS[1])], [BASE, "SAM", "LookSAM", "momentum SAM"]
        tuning = ((range(700, 702), None), (range(702, 703), 1))
        seeds = range(900, 903)
    runs = Runs(path, report.provenance())
    bench = Bench(grids, names, tuning, runs)
    with report.progress_bar() as progress:
        chosen = bench.tune(progress)
        summary = confirm(bench, chosen, list(seeds), progress)
    runs.save(summary)


def tiny(grid: Grid) -> Grid:
    """The same path in seconds: few images, a small network, two epochs."""
    task = dataclasses.replace(
        grid.task, train=200, validation=100, model=grid.task.tiny_model
    )
    small = {"base": ((0.03, 0.01), (0.03, 0.02)), "family": ((0.03, 0.02),)}
    return dataclasses.replace(grid, task=task, epochs=2, **small)


if __name__ == "__main__":
    main()
