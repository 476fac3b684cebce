"""The training loop that the benchmarks share: Flax, Optax and `optax_sam`.

All that may differ between two runs of one kind of method (learning rate, weight decay,
radius, length, data) is traced, so that XLA compiles each kind once.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_sam
from benchmarks.lib.data import Examples
from benchmarks.lib.tasks import Task

WARM_UP = 0.05  # the share of the steps; a cosine to zero follows
MOMENTUM = 0.9
# For programs as small as these, LLVM's highest level costs twice the time to compile
# and gives nothing back.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
ASCENTS = {
    "sam": optax_sam.steepest_ascent,
    # The published ASAM: biases climb without adaptation, all else with abs(w) + eta.
    "asam": functools.partial(optax_sam.adaptive_ascent, eta=0.01),
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """What changes the compiled program.

    `ascent` None is the plain gradient; `microbatch` None takes the batch whole.
    """

    optimizer: str = "sgd"
    ascent: str | None = None
    microbatch: int | None = None

    @property
    def gradients_per_step(self) -> int:
        """How often a step evaluates the gradient on its whole batch."""
        return 1 if self.ascent is None else 2


class Settings(NamedTuple):
    """What does not change it. `decay` is L2 for SGD, decoupled for AdamW."""

    lr: float
    decay: float
    rho: float = 0.0


class Network(NamedTuple):
    """What the model needs to be applied."""

    params: Any
    batch_stats: Any  # BatchNorm's running averages; empty without BatchNorm


def run(
    task: Task, kind: Kind, settings: Settings, epochs: int, seed: int, data: Examples
) -> Iterator[tuple[int, Network, jax.Array]]:
    """Train, and give (epochs done, network, mean training loss) after every epoch.

    Initial weights and the order of the examples depend on the seed alone, so that
    methods can be compared in pairs.
    """
    size = len(data.labels) // task.batch * task.batch
    steps = epochs * size // task.batch
    network = initial(task)(jax.random.key(seed), data.images[:1])
    opt_state = optimizer(kind, settings, steps).init(network.params)
    epoch = compiled_epoch(task, kind)
    rng = np.random.default_rng(seed)
    for done in range(1, epochs + 1):
        order = rng.permutation(len(data.labels))[:size].reshape(-1, task.batch)
        network, opt_state, loss = epoch(
            network, opt_state, data, order, settings, steps
        )
        yield done, network, loss


def training_loss(model, params, batch: Examples, batch_stats):
    """Cross-entropy in training mode; the new BatchNorm averages come with it."""
    logits, updated = model.apply(
        {"params": params, "batch_stats": batch_stats},
        batch.images,
        train=True,
        mutable=["batch_stats"],
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    return loss.mean(), updated.get("batch_stats", {})


def gradient(loss, kind: Kind, rho):
    """The whole difference between the methods."""
    if kind.ascent is None:
        grad_fn = jax.value_and_grad(loss, has_aux=True)
    else:
        ascent = ASCENTS[kind.ascent](rho)
        grad_fn = optax_sam.value_and_grad(loss, ascent, has_aux=True)
    if kind.microbatch is None:
        return grad_fn

    def over_microbatches(params, batch, batch_stats):
        # All of them side by side: small as they are, that is faster than a loop.
        return optax_sam.m_sharpness(
            grad_fn,
            microbatch_size=kind.microbatch,
            at_once=len(batch.labels) // kind.microbatch,
        )(params, batch, batch_stats)

    return over_microbatches


def warm_up_and_cosine(lr, steps):
    """The learning rate of each step; it ends at zero."""

    def schedule(step):
        warm_up = WARM_UP * steps
        done = jnp.clip((step - warm_up) / (steps - warm_up), 0, 1)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * done))
        return lr * jnp.where(step < warm_up, step / warm_up, cosine)

    return schedule


def optimizer(kind: Kind, settings: Settings, steps, schedule=None):
    """Momentum with coupled L2, or AdamW; no decay on biases and BatchNorm's scales."""
    schedule = schedule or warm_up_and_cosine(settings.lr, steps)

    def matrices(params):
        return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)

    if kind.optimizer == "adamw":
        return optax.adamw(schedule, weight_decay=settings.decay, mask=matrices)
    return optax.chain(
        optax.add_decayed_weights(settings.decay, mask=matrices),
        optax.sgd(schedule, momentum=MOMENTUM),
    )


def order_of(task: Task, epochs: int, seed: int) -> np.ndarray:
    """The examples of every step; depends on the seed alone, as do initial weights."""
    rng = np.random.default_rng(seed)
    size = task.train // task.batch * task.batch
    rows = [rng.permutation(task.train)[:size] for _ in range(epochs)]
    return np.concatenate(rows).reshape(-1, task.batch).astype(np.int32)


@functools.cache
def initial(task: Task):
    """A new network from a key and an image of the right size."""

    @jit
    def init(key, images) -> Network:
        variables = task.model.init(key, images, train=False)
        return Network(variables["params"], variables.get("batch_stats", {}))

    return init


@functools.cache
def compiled_epoch(task: Task, kind: Kind):
    """One pass over the training data; `order` is (steps, batch) indices."""
    loss = functools.partial(training_loss, task.model)

    @jit
    def epoch(network, opt_state, data: Examples, order, settings: Settings, steps):
        grad_fn = gradient(loss, kind, settings.rho)
        tx = optimizer(kind, settings, steps)

        def step(carry, indices):
            (params, batch_stats), opt_state = carry
            batch = jax.tree.map(lambda leaf: leaf[indices], data)
            # Value and BatchNorm's averages are those of the clean pass.
            (value, batch_stats), grads = grad_fn(params, batch, batch_stats)
            updates, opt_state = tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (Network(params, batch_stats), opt_state), value

        carry, values = jax.lax.scan(step, (network, opt_state), order)
        return *carry, values.mean()

    return epoch
