"""Does SAM add to other regularizers, or does it do the same work again?

Task B of flatness.py: 1,000 MNIST images at 14x14 pixels with 40 % wrong labels, a
multilayer perceptron, SGD with momentum, 60 epochs. For each technique four cells: the
base, with SAM, with the technique, with both. The base of the technique "weight decay"
has none; the base of all others has weight decay, tuned.

Every cell has a grid of its own: learning rate x decay, x rho with SAM, x the strength
of the technique. All points are tried on one tuning seed, the best ones on all three;
the highest mean accuracy on *validation* images is chosen, and runs on ten new seeds.
Gains are differences of test accuracy, seed by seed, with their standard error;
interaction = both - SAM - technique + base. A word for each technique, by this rule:

  complementary  both gain more than the better one alone, by over two standard errors
  overlapping    not so, and the interaction is negative by over two standard errors
  unclear        all else

Dropout acts on the hidden layers, with one mask for both passes of SAM; augmentation
shifts each image by up to so many pixels; weight averaging is an exponential average of
the weights, evaluated at the end. Writes complements.json and complements.png.
Finished runs are kept: start it again and it goes on. About ten minutes on two cores;
`--smoke` does a little of everything in half a minute.
"""

import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_sam
from benchmarks.accuracy import complements_report
from benchmarks.lib import evaluation, report, training
from benchmarks.lib.data import CLASSES, Examples, Split
from benchmarks.lib.runs import Runs, at_edge, column
from benchmarks.lib.tasks import MNIST, Task

PLAIN, DECAY, DROPOUT, SHIFTS = "plain", "weight decay", "dropout", "augmentation"
SMOOTHING, AVERAGE = "label smoothing", "weight averaging"
STRENGTHS = {
    DROPOUT: (0.1, 0.25, 0.5),  # the share of the hidden units that is dropped
    SHIFTS: (1,),  # pixels; two were worse on the tuning seed
    SMOOTHING: (0.2, 0.4),
    AVERAGE: (0.99,),  # what stays of the average at every step
}
# SAM's best rate and decay lie below those of the base.
RATES, SAM_RATES = (0.03, 0.1, 0.2), (0.03, 0.1)
DECAYS, SAM_DECAYS = (0.005, 0.01, 0.02, 0.04), (0.005, 0.01, 0.02)
RHOS = (0.1, 0.2, 0.3, 0.4)
MARGIN = 2  # outermost pixels that a shift may bring in


class Cell(NamedTuple):
    """What is the same for all seeds of a run; `method` as in "dropout + SAM"."""

    method: str
    lr: float
    decay: float
    rho: float = 0.0
    strength: float = 0.0


class Square(NamedTuple):
    """The four methods that are compared for one technique."""

    technique: str
    base: str
    sam: str
    alone: str
    both: str


def with_sam(method: str) -> str:
    return f"{method} + SAM"


SQUARES = (
    Square(DECAY, PLAIN, with_sam(PLAIN), DECAY, with_sam(DECAY)),
    *(Square(name, DECAY, with_sam(DECAY), name, with_sam(name)) for name in STRENGTHS),
)


@dataclasses.dataclass(frozen=True)
class Plan:
    task: Task = MNIST
    epochs: int = 60
    tuning: tuple[int, ...] = (100, 101, 102)
    promising: int = 3  # points of each grid that go to all tuning seeds
    seeds: tuple[int, ...] = tuple(range(1200, 1210))
    rates: tuple[float, ...] = RATES
    sam_rates: tuple[float, ...] = SAM_RATES
    smaller_rates: tuple[float, ...] = (0.001, 0.003, 0.01)
    decays: tuple[float, ...] = DECAYS
    sam_decays: tuple[float, ...] = SAM_DECAYS
    rhos: tuple[float, ...] = RHOS

    def grid(self, method: str) -> list[Cell]:
        technique = method.removesuffix(" + SAM")
        sam = technique != method
        rates = self.sam_rates if sam else self.rates
        decays = self.sam_decays if sam else self.decays
        rhos = self.rhos if sam else (0.0,)
        if technique == PLAIN:  # then a small rate is what keeps wrong labels out
            rates, decays = (*self.smaller_rates, *rates), (0.0,)
        strengths = STRENGTHS.get(technique, (0.0,))
        points = itertools.product(rates, decays, rhos, strengths)
        return [Cell(method, *point) for point in points]


def tiny_plan() -> Plan:
    small = dataclasses.replace(
        MNIST, train=200, validation=100, model=MNIST.tiny_model
    )
    one = (0.1,)
    return Plan(small, 2, (100, 101), 2, (0, 1), one, one, (), (0.01,), (0.01,), one)


# --- one run ------------------------------------------------------------------------


class Mlp(nn.Module):
    """networks.Mlp, with dropout behind its hidden layers."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x, rate, key):
        x = x.reshape(len(x), -1)
        for layer, features in enumerate(self.features):
            x = nn.relu(nn.Dense(features)(x))
            if rate is not None:
                here = jax.random.fold_in(key, layer)
                kept = jax.random.bernoulli(here, 1 - rate, x.shape)
                x = jnp.where(kept, x / (1 - rate), 0)
        return nn.Dense(CLASSES)(x)


def shifted(images, pixels, key):
    """Each by its own whole number of pixels, at most so many each way."""
    edge = ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0))
    padded = jnp.pad(images, edge, mode="edge")
    by = jax.random.randint(key, (len(images), 2), MARGIN - pixels, MARGIN + pixels + 1)

    def cut(image, corner):
        return jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])

    return jax.vmap(cut)(padded, by)


def loss_fn(task: Task, technique: str, params, batch: Examples, strength, key):
    images, rate, smoothing = batch.images, None, 0.0
    if technique == SHIFTS:
        images = shifted(images, strength, key)
    elif technique == DROPOUT:
        rate = strength
    elif technique == SMOOTHING:
        smoothing = strength
    model = Mlp(task.model.features)
    logits = model.apply({"params": params}, images, rate, key)
    wanted = optax.smooth_labels(jax.nn.one_hot(batch.labels, CLASSES), smoothing)
    return optax.softmax_cross_entropy(logits, wanted).mean()


@functools.cache
def program(task: Task, method: str):
    """A whole training in one compiled loop."""
    technique = method.removesuffix(" + SAM")

    @training.jit
    def train(params, data: Examples, order, key, numbers):
        lr, decay, rho, strength = numbers
        settings = training.Settings(lr, decay)
        tx = training.optimizer(training.Kind(), settings, len(order))
        average = optax.ema(strength) if technique == AVERAGE else optax.identity()
        loss = functools.partial(loss_fn, task, technique)
        grad_fn = jax.value_and_grad(loss)
        if method != technique:
            grad_fn = optax_sam.value_and_grad(loss, optax_sam.steepest_ascent(rho))

        def step(carry, now):
            params, state, average_state, _ = carry
            indices, number = now
            batch = jax.tree.map(lambda leaf: leaf[indices], data)
            here = jax.random.fold_in(key, number)
            _, grads = grad_fn(params, batch, strength, here)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            shown, average_state = average.update(params, average_state)
            return (params, state, average_state, shown), None

        start = (params, tx.init(params), average.init(params), params)
        steps = (order, jnp.arange(len(order)))
        return jax.lax.scan(step, start, steps)[0][-1]

    return train


def run(plan: Plan, cell: Cell, seed: int, split: Split) -> dict[str, float]:
    task = plan.task
    order = training.order_of(task, plan.epochs, seed)
    params = training.initial(task)(jax.random.key(seed), split.train.images[:1]).params
    key = jax.random.fold_in(jax.random.key(seed), 1)
    strength = int(cell.strength) if SHIFTS in cell.method else float(cell.strength)
    numbers = (cell.lr, cell.decay, cell.rho, strength)
    params = program(task, cell.method)(params, split.train, order, key, numbers)
    accuracy, network = evaluation.accuracy(task), training.Network(params, {})
    parts = {"validation": split.validation, "test": split.test}
    return {name: 100 * float(accuracy(network, part)) for name, part in parts.items()}


# --- all of it ----------------------------------------------------------------------


def measure_all(plan: Plan, path: Path) -> None:
    data, splits = plan.task.load(), {}
    for seed in (*plan.tuning, *plan.seeds):
        splits[seed] = jax.device_put(plan.task.split(data, seed))

    def work(cell: Cell, seed: int) -> dict:
        return run(plan, cell, seed, splits[seed])

    names = dict.fromkeys(name for square in SQUARES for name in square[1:])
    grids = {name: plan.grid(name) for name in names}
    with report.progress_bar() as progress:
        runs = Runs(path, Cell, ("runs",), progress)
        cells = itertools.chain.from_iterable(grids.values())
        runs.run("runs", cells, plan.tuning[:1], work, "all points")
        best = {
            name: runs.promising(grid, plan.tuning[0], plan.promising)
            for name, grid in grids.items()
        }
        cells = itertools.chain.from_iterable(best.values())
        runs.run("runs", cells, plan.tuning, work, "the best of them")
        chosen = {name: runs.best(grid, plan.tuning) for name, grid in best.items()}
        runs.run("runs", chosen.values(), plan.seeds, work, "new seeds")
    names = (*Cell._fields[1:],)
    runs.finish(
        {
            "task": plan.task.name,
            "label_noise": plan.task.noise,
            "epochs": plan.epochs,
            "tuning_seeds": plan.tuning,
            "seeds": plan.seeds,
            "promising": plan.promising,
            "points": {name: len(grid) for name, grid in grids.items()},
            "chosen": {name: cell._asdict() for name, cell in chosen.items()},
            "at_edge": {
                n: at_edge(grids[n], cell, names) for n, cell in chosen.items()
            },
        }
    )


# --- results ------------------------------------------------------------------------


def summary(result: dict) -> list[dict]:
    return [of_square(result, square) for square in SQUARES]


def of_square(result: dict, square: Square) -> dict:
    try:
        base, sam, alone, both = (
            column(result, "runs", result["chosen"][name], "test")
            for name in square[1:]
        )
    except KeyError:
        return {"technique": square.technique, "verdict": "not run"}
    better = max(sam, alone, key=np.mean)
    found = {
        "base": base,
        "gain_of_sam": sam - base,
        "gain_of_technique": alone - base,
        "gain_of_both": both - base,
        "both_over_better": both - better,
        "interaction": both - sam - alone + base,
    }
    means = {name: report.mean_and_error(values) for name, values in found.items()}
    return {"technique": square.technique, **means, "verdict": verdict(means)}


def verdict(means: dict) -> str:
    more, its_error = means["both_over_better"]
    interaction, error = means["interaction"]
    if more > 2 * its_error:
        return "complementary"
    return "overlapping" if interaction < -2 * error else "unclear"


def main() -> None:
    options = report.parse(report.parser(__doc__, "complements.json"))
    path = options.out / "complements.json"
    console = report.console(130)
    if not options.redraw:
        measure_all(tiny_plan() if options.smoke else Plan(), path)
    result = json.loads(path.read_text(encoding="utf-8"))
    result |= {"summary": summary(result)}
    report.write_json(path, result)
    complements_report.print_tables(result, console)
    complements_report.draw(result, path.with_suffix(".png"))
    console.print(f"Wrote {path} and its pictures, .png and -dark.png")


if __name__ == "__main__":
    main()
