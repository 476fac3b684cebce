"""Claims of the SAM and ASAM papers, tried at a size that two cores can train.

Task B of flatness.py: 1,000 MNIST images at 14x14 pixels with 40 % wrong labels, a
multilayer perceptron without BatchNorm, SGD with momentum. Learning rate, decay and
rho of every method are tuned on *validation* images of tuning seeds, on grids of about
the same size; what is shown was measured on new seeds, which draw all images anew.

  a  the norm of the climb: p = 2 against p = 1, p = infinity and a random direction
  b  the second-order term: accuracy with and without it, the cosine of both gradients
  c  the Hessian's largest eigenvalues along training
  d  accuracy, train-test gap and weight norm at 0.5 to 4 times the epochs
  e  accuracy against rho for SAM and ASAM, and what rescaling two layers changes

Beside each claim stands the result here. "agrees" means that the difference, seed
by seed, exceeds two standard errors in the paper's direction, "disagrees" the reverse,
and all else is "no difference seen". It is one small task: no verdict on a paper.

Writes paper_figures.json and a picture for each claim. Finished runs are kept: start it
again and it goes on. Fifteen to twenty minutes on two cores, half of it for Hessians;
`--smoke` does a little of everything in half a minute.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_sam
from benchmarks.accuracy import (
    paper_claims,
    paper_figures_pictures,
    paper_figures_report,
)
from benchmarks.lib import evaluation, methods, report, training
from benchmarks.lib.data import Examples, Split
from benchmarks.lib.methods import Method, Setting
from benchmarks.lib.runs import Runs, at_edge
from benchmarks.lib.tasks import MNIST, Task
from optax_sam import adaptive_ascent, measure, random_ascent, steepest_ascent

SECOND_ORDER = "second order"
METHODS = {
    "SGD": methods.BY_NAME["base"],
    "SAM": methods.BY_NAME["SAM"],
    "p = 1": Method("p = 1", lambda s: climb(steepest_ascent(s.rho, ord=1)), 2),
    "p = ∞": Method("p = ∞", lambda s: climb(steepest_ascent(s.rho, ord=jnp.inf)), 2),
    "random": Method("random", lambda s: climb(normal_ascent(s.rho, s.key)), 2),
    "ASAM": methods.BY_NAME["ASAM"],
}
climb = optax_sam.sharpness_aware


def normal_ascent(rho, key):
    """In a direction drawn as published, all being equally likely."""
    return random_ascent(rho, key=key, sampler=jax.random.normal)


# Learning rate and decay around what was the best for the base and for SAM.
BASE = tuple(
    itertools.product((0.005, 0.01, 0.03, 0.1, 0.2), (0.01, 0.02, 0.03, 0.04, 0.06))
)
FAMILY = ((0.01, 0.04), (0.03, 0.01), (0.03, 0.02), (0.03, 0.04), (0.1, 0.01))
RHOS = {
    "SAM": (0.05, 0.1, 0.2, 0.3, 0.5),
    "p = 1": (0.1, 0.3, 1.0, 3.0, 6.0),
    "p = ∞": (0.0003, 0.0006, 0.0012, 0.0025, 0.005),
    "random": (1.0, 3.0, 6.0, 10.0, 20.0),
    SECOND_ORDER: (0.05, 0.1, 0.2, 0.3, 0.5),
    "ASAM": (0.75, 1.5, 3.0, 5.0, 8.0),
}
# The response to rho, at the learning rate and decay that were chosen.
LADDERS = {
    "SAM": (0.0125, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8),
    "ASAM": (0.125, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0),
}
LENGTHS = (0.5, 1, 2, 4)
EIGENVALUES = 5
COSINE_BATCHES = 5
# Powers of two change no digit of a weight, so that rounding plays no part.
FACTORS = (1, 2, 4, 8)
CLIMBS = {
    "SAM": lambda: steepest_ascent(0.3),
    "ASAM, η = 0, all leaves": lambda: adaptive_ascent(3.0, eta=0.0, mask=True),
    "ASAM as published": lambda: adaptive_ascent(3.0, eta=0.01),
}


class Cell(NamedTuple):
    """What is the same for all seeds of a run."""

    method: str
    lr: float
    decay: float
    rho: float
    epochs: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is done; a smoke run does a little of everything."""

    task: Task = MNIST
    epochs: int = 60
    look: int = 6  # epochs between two looks at the Hessian
    tuning: tuple[int, ...] = (100, 101, 102)
    seeds: tuple[int, ...] = tuple(range(1100, 1110))
    look_seeds: int = 6  # the first of them, for what takes long
    base: tuple[tuple[float, float], ...] = BASE
    family: tuple[tuple[float, float], ...] = FAMILY
    points: int = 99  # of each list of rho

    def grid(self, method: str) -> list[Cell]:
        if method == "SGD":
            return [Cell(method, *pair, 0.0, self.epochs) for pair in self.base]
        grid = itertools.product(self.family, RHOS[method][: self.points])
        return [Cell(method, *pair, rho, self.epochs) for pair, rho in grid]


def tiny_plan() -> Plan:
    small = dataclasses.replace(
        MNIST, train=200, validation=100, model=MNIST.tiny_model
    )
    return Plan(small, 2, 1, (100,), (0, 1), 2, BASE[:2], FAMILY[:1], points=2)


# --- one run ------------------------------------------------------------------------


def losses(task: Task, params, batch: Examples):
    """The loss of each example."""
    logits = task.model.apply({"params": params}, batch.images, train=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)


def mean_loss(task: Task, params, batch: Examples):
    return jnp.mean(losses(task, params, batch))


def transformation(method: str, setting: Setting, optimizer):
    if method == SECOND_ORDER:
        return optimizer  # the term is a matter of value_and_grad: step_of
    return methods.transformation(METHODS[method], setting, optimizer)


def step_of(task: Task, method: str, tx, rho):
    if method != SECOND_ORDER:
        return methods.step(METHODS[method], tx, functools.partial(losses, task))
    loss = functools.partial(mean_loss, task)
    exact = optax_sam.value_and_grad(loss, steepest_ascent(rho), second_order=True)

    def step(params, state, batch):
        value, grads = exact(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


@functools.cache
def compiled(task: Task, method: str):
    """Several steps; all that may differ between two runs of a method is traced."""

    def parts(cell: Any, steps, key):
        settings = training.Settings(cell[0], cell[1])
        optimizer = training.optimizer(training.Kind(), settings, steps)
        return transformation(method, Setting(cell[2], key=key), optimizer)

    @training.jit
    def init(params, cell, steps, key):
        return parts(cell, steps, key).init(params)

    @training.jit
    def some(params, state, data: Examples, order, cell, steps, key):
        step = step_of(task, method, parts(cell, steps, key), cell[2])

        def body(carry, indices):
            batch = jax.tree.map(lambda leaf: leaf[indices], data)
            *carry, _ = step(*carry, batch)
            return tuple(carry), None

        return jax.lax.scan(body, (params, state), order)[0]

    return init, some


def train(plan: Plan, cell: Cell, seed: int, data: Examples) -> Iterator[tuple]:
    """(epochs done, parameters), at every look."""
    task = plan.task
    size = task.train // task.batch * task.batch
    steps = cell.epochs * size // task.batch
    init, some = compiled(task, cell.method)
    rng, key = np.random.default_rng(seed), jax.random.fold_in(jax.random.key(seed), 1)
    numbers = (cell.lr, cell.decay, cell.rho)
    params = training.initial(task)(jax.random.key(seed), data.images[:1]).params
    state = init(params, numbers, steps, key)
    for done in range(plan.look, cell.epochs + 1, plan.look):
        rows = [rng.permutation(task.train)[:size] for _ in range(plan.look)]
        order = np.concatenate(rows).reshape(-1, task.batch).astype(np.int32)
        params, state = some(params, state, data, order, numbers, steps, key)
        yield done, params


def run(plan: Plan, cell: Cell, seed: int, split: Split) -> dict[str, float]:
    *_, (_, params) = train(plan, cell, seed, split.train)
    accuracy = evaluation.accuracy(plan.task)
    network = training.Network(params, {})
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    found = {name: 100 * float(accuracy(network, part)) for name, part in parts.items()}
    return found | {"weight_norm": float(optax.tree.norm(params))}


# --- along training, and at its end -------------------------------------------------


@functools.cache
def spectrum(task: Task):
    @training.jit
    def of(params, data: Examples):
        return measure.hessian_eigenvalues(
            lambda p: mean_loss(task, p, data), params, k=EIGENVALUES
        )

    return of


@functools.cache
def cosines(task: Task):
    """Between SAM's gradient and the one that keeps the second-order term."""

    @training.jit
    def of(params, data: Examples, rho):
        loss, ascent = functools.partial(mean_loss, task), steepest_ascent(rho)
        both = [
            optax_sam.value_and_grad(loss, ascent, second_order=kept)
            for kept in (False, True)
        ]

        def of_batch(batch):
            a, b = (grad_fn(params, batch)[1] for grad_fn in both)
            return optax.tree.vdot(a, b) / optax.tree.norm(a) / optax.tree.norm(b)

        parts = jax.tree.map(
            lambda x: x[: COSINE_BATCHES * task.batch].reshape(
                -1, task.batch, *x.shape[1:]
            ),
            data,
        )
        return jax.lax.map(of_batch, parts).mean()

    return of


@functools.cache
def rises(task: Task):
    """How far each climb raises the training loss, after w1 * c and w2 / c."""

    @training.jit
    def of(params, data: Examples, c):
        first, second = params["Dense_0"], params["Dense_1"]
        rescaled = params | {
            "Dense_0": jax.tree.map(lambda x: x * c, first),
            "Dense_1": second | {"kernel": second["kernel"] / c},
        }
        loss = functools.partial(mean_loss, task, batch=data)
        value, grads = jax.value_and_grad(loss)(rescaled)

        def rise(ascent):
            e, _ = ascent.update(grads, ascent.init(rescaled), rescaled)
            return loss(optax.apply_updates(rescaled, e)) - value

        return {name: rise(make()) for name, make in CLIMBS.items()}

    return of


def along(plan: Plan, cell: Cell, seed: int, split: Split, rho: float) -> dict:
    """Eigenvalues and cosines at every look, and the rises at the end."""
    task, found = plan.task, {"looked_at": []}
    held_out = jax.tree.map(lambda leaf: leaf[: task.train], split.test)
    lists = {"train": [], "held_out": [], "cosine": []}
    for done, params in train(plan, cell, seed, split.train):
        found["looked_at"].append(done)
        for name, data in (("train", split.train), ("held_out", held_out)):
            lists[name].append(spectrum(task)(params, data).tolist())
        lists["cosine"].append(float(cosines(task)(params, split.train, rho)))
    ends = [rises(task)(params, split.train, float(c)) for c in FACTORS]
    names = CLIMBS
    return found | lists | {f"rise, {n}": [float(e[n]) for e in ends] for n in names}


# --- all of it ----------------------------------------------------------------------


class Bench:
    """The plan with its data, and what was run of it."""

    def __init__(self, plan: Plan, path: Path, progress):
        self.plan, self.data, self.splits = plan, plan.task.load(), {}
        self.runs = Runs(path, Cell, ("runs", "looks"), progress)

    def split(self, seed: int) -> Split:
        if seed not in self.splits:
            split = self.plan.task.split(self.data, seed)
            self.splits[seed] = jax.device_put(split)
        return self.splits[seed]

    def train(self, text: str, cells, seeds) -> None:
        def work(cell: Cell, seed: int) -> dict:
            return run(self.plan, cell, seed, self.split(seed))

        self.runs.run("runs", cells, seeds, work, text)

    def look(self, cells, rho: float) -> None:
        def work(cell: Cell, seed: int) -> dict:
            return along(self.plan, cell, seed, self.split(seed), rho)

        seeds = self.plan.seeds[: self.plan.look_seeds]
        self.runs.run("looks", cells, seeds, work, "Hessians")


def measure_all(plan: Plan, path: Path) -> None:
    start = time.perf_counter()
    with report.progress_bar() as progress:
        bench = Bench(plan, path, progress)
        grids = {method: plan.grid(method) for method in ("SGD", *RHOS)}
        everything = itertools.chain.from_iterable(grids.values())
        bench.train("tuning", everything, plan.tuning)
        chosen = {
            method: bench.runs.best(grid, plan.tuning) for method, grid in grids.items()
        }
        sgd, sam = chosen["SGD"], chosen["SAM"]
        control = sam._replace(method="SGD", rho=0.0)  # at SAM's settings
        several = [sgd, control, sam]
        longer = [
            cell._replace(epochs=int(length * plan.epochs))
            for cell, length in itertools.product(several, LENGTHS)
        ]
        ladders = [
            chosen[method]._replace(rho=rho)
            for method, rhos in LADDERS.items()
            for rho in rhos[: plan.points]
        ]
        bench.train("new seeds", [*chosen.values(), *longer, *ladders], plan.seeds)
        bench.look(several, sam.rho)
        bench.runs.finish(
            {
                "seconds_of_this_start": time.perf_counter() - start,
                "tuning_seeds": plan.tuning,
                "seeds": plan.seeds,
                "looks_seeds": plan.seeds[: plan.look_seeds],
                "epochs": plan.epochs,
                "lengths": LENGTHS,
                "label_noise": plan.task.noise,
                "factors": FACTORS,
                "ladders": {m: rhos[: plan.points] for m, rhos in LADDERS.items()},
                "chosen": {name: cell._asdict() for name, cell in chosen.items()},
                "control": control._asdict(),
                "at_edge": {n: at_edge(grids[n], chosen[n]) for n in chosen},
            }
        )


def main() -> None:
    options = report.parse(report.parser(__doc__, "paper_figures.json"))
    path = options.out / "paper_figures.json"
    console = report.console()
    if not options.redraw:
        measure_all(plan_of(options), path)
    result = json.loads(path.read_text(encoding="utf-8"))
    result |= {"claims": paper_claims.claims(result)}
    report.write_json(path, result)
    paper_figures_report.print_tables(result, console)
    for picture in paper_figures_pictures.draw(result, path):
        console.print(f"Wrote {picture}, and its dark variant")
    console.print(f"Wrote {path}")


def plan_of(options: argparse.Namespace) -> Plan:
    return tiny_plan() if options.smoke else Plan()


if __name__ == "__main__":
    main()
