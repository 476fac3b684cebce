"""The training loop of the studies: jitted steps, called from Python.

Not `lax.scan`: XLA runs convolutions inside of loops about 40 times slower on a CPU.
Everything that is a number (learning rate, decay, rho, the number of steps) is traced,
so that a process compiles each kind of training once.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_sam
from benchmarks.lib import methods, techniques
from benchmarks.lib.fixed_sets import Examples
from benchmarks.lib.techniques import Technique
from benchmarks.lib.training import WARM_UP, jit, optimizer

CHUNK = 1000  # images that are classified at a time, if a model has no `chunk`


@dataclasses.dataclass(frozen=True)
class Kind:
    """What changes the compiled program; `method` is a name of methods.BY_NAME."""

    model: nn.Module
    method: str = "base"
    optimizer: str = "sgd"
    batch: int = 128
    m: int = 32  # the images that climb together in m-SAM
    flips: bool = False
    steps: int = 0  # where the program depends on them: see `of_length`
    technique: Technique = techniques.NONE  # another regularizer

    def of_length(self, steps: int) -> "Kind":
        """For so many steps, which only a method that starts late has to know."""
        late = methods.BY_NAME[self.method].late
        return dataclasses.replace(self, steps=steps) if late else self


class Settings(NamedTuple):
    """What does not change it. `decay` is L2 for SGD, decoupled for AdamW; `strength`
    is the technique's."""

    lr: Any
    decay: Any
    rho: Any = 0.0
    strength: Any = 0.0


class Network(NamedTuple):
    """What the model needs to be applied."""

    params: Any
    batch_stats: Any  # BatchNorm's averages; empty without BatchNorm


# --- training -----------------------------------------------------------------------


def train(
    kind: Kind, settings: Settings, epochs: int, seed: int, data: Examples
) -> Network:
    """The network after all epochs.

    BatchNorm's averages are taken at the end, for all methods alike: some have no clean
    pass along the way.
    """
    for weights in along(kind, settings, epochs, seed, data):
        shown = weights
    return averaged(kind.model, shown, data)


def along(
    kind: Kind, settings: Settings, epochs: int, seed: int, data: Examples
) -> Iterator[Any]:
    """What would be tested after each step: its memory is that of the next one, too.

    Initial weights, the order of the examples and their flips depend on the seed
    alone, so that methods can be compared in pairs.
    """
    weights, *keys = jax.random.split(jax.random.key(seed), 3)
    params = initial(kind.model)(weights, data.images[:1])
    order = order_of(len(data.labels), kind.batch, epochs, seed)
    init, step = compiled(kind)
    state, numbers, steps = init(params), Settings(*map(float, settings)), len(order)
    shown = jax.tree.map(jnp.copy, params)  # a step takes over the memory of its own
    for number, indices in enumerate(order):
        params, state = step(params, state, data, indices, keys, number, numbers, steps)
        shown = average(kind.technique, shown, params, number, steps, numbers.strength)
        yield shown


def order_of(size: int, batch: int, epochs: int, seed: int) -> np.ndarray:
    """The examples of every step, (steps, batch); a rest that fills no batch is left
    out of its epoch."""
    rng = np.random.default_rng([seed, 1])  # not the numbers that drew the images
    whole = size // batch * batch
    rows = [rng.permutation(size)[:whole] for _ in range(epochs)]
    return np.concatenate(rows).reshape(-1, batch).astype(np.int32)


@functools.cache
def initial(model: nn.Module):
    """New parameters from a key and an image of the right size."""

    @jit
    def init(key, images):
        return model.init(key, images, train=False)["params"]

    return init


@functools.cache
def compiled(kind: Kind):
    """A first state from parameters, and the step: one program for all settings."""
    method, technique = methods.BY_NAME[kind.method], kind.technique

    def transformation(settings: Settings, steps, key):
        # Inside of a loop the convolutions would be slow.
        options = {"unroll": True} if method.loops else {}
        schedule, start = late_start(kind, settings.lr)
        if technique.schedule:
            schedule = technique.schedule(settings.lr, steps, settings.strength)
        setting = methods.Setting(
            settings.rho, key=key, m=kind.m, start=start, options=options
        )
        behind = optimizer(kind, settings, steps, schedule)
        return methods.transformation(method, setting, behind)

    @functools.partial(jit, donate_argnums=(0, 1))
    def step(params, state, data, indices, keys, number, settings, steps):
        of_flips, of_method = keys
        batch = jax.tree.map(lambda leaf: leaf[indices], data)
        here = jax.random.fold_in(of_flips, number)
        if kind.flips:
            batch = flipped(batch, here)
        batch, losses = changed(kind, batch, settings.strength, here)
        tx = transformation(settings, steps, of_method)
        return methods.step(method, tx, losses)(params, state, batch)[:2]

    return jit(transformation(Settings(0.0, 0.0), 1, jax.random.key(0)).init), step


def late_start(kind: Kind, lr):
    """The schedule that anneals twice, and the step at which the second part begins;
    (None, 0) of a method that climbs all along."""
    if not kind.steps:
        return None, 0
    warm_up = round(WARM_UP * kind.steps)
    return optax_sam.tail_schedule(lr, kind.steps, methods.TAIL, warm_up)


def flipped(batch: Examples, key) -> Examples:
    """Each image mirrored, left to right, with probability 1/2."""
    mirrored = jax.random.bernoulli(key, shape=(len(batch.labels), 1, 1, 1))
    images = jnp.where(mirrored, batch.images[:, :, ::-1], batch.images)
    return batch._replace(images=images)


def changed(kind: Kind, batch: Examples, strength, key):
    """The batch and the losses as the technique has them."""
    technique, losses = kind.technique, functools.partial(training_losses, kind.model)
    if technique.images:
        batch = batch._replace(images=technique.images(batch.images, strength, key))
    if technique.losses:
        losses = functools.partial(
            technique.losses, kind.model, strength=strength, key=key
        )
    return batch, losses


def training_losses(model: nn.Module, params, batch: Examples):
    """Of each example, with the statistics of the batch it came in."""
    logits, _ = model.apply(
        {"params": params}, batch.images, train=True, mutable=["batch_stats"]
    )
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)


def average(technique: Technique, mean, params, number, steps, strength):
    """What is tested in the end: the last weights, or the technique's average."""
    if technique.newest is None:
        return params
    return mixed(technique)(mean, params, number, steps, strength)


@functools.cache
def mixed(technique: Technique):
    """The average with one more step in it."""

    @jit
    def of(mean, params, number, steps, strength):
        share = technique.newest(number, steps, strength)
        return optax.incremental_update(params, mean, share)

    return of


# --- the trained network ------------------------------------------------------------


def chunks(model: nn.Module, data: Examples):
    """A few images at a time, so that their activations fit into the cache."""
    size = getattr(model, "chunk", CHUNK)
    for start in range(0, len(data.labels), size):
        yield Examples(*(leaf[start : start + size] for leaf in data))


def averaged(model: nn.Module, params, data: Examples) -> Network:
    """The network with BatchNorm's averages over the training images: the mean of
    those of the chunks, in which a last one of fewer images counts as much."""
    found = [statistics(model)(params, part.images) for part in chunks(model, data)]
    return Network(
        params, jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *found)
    )


@functools.cache
def statistics(model: nn.Module):
    """Mean and variance of each feature over the given images: what the running
    averages of a BatchNorm with momentum 0 are."""

    @jit
    def of(params, images):
        variables = {"params": params}
        seen = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return seen[1].get("batch_stats", {})

    return of


class Outcome(NamedTuple):
    """Of each image whether it is classified right, and the mean loss."""

    right: np.ndarray
    loss: float


def evaluate(model: nn.Module, network: Network, data: Examples) -> Outcome:
    """In evaluation mode."""
    found = [classified(model)(network, part) for part in chunks(model, data)]
    right, losses = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Outcome(right, float(losses.mean(dtype=np.float64)))


@functools.cache
def classified(model: nn.Module):
    """Right or wrong, and the loss, of each image."""

    @jit
    def of(network: Network, data: Examples):
        variables = network._asdict()
        logits = model.apply(variables, data.images, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, data.labels)
        return logits.argmax(-1) == data.labels, losses

    return of
