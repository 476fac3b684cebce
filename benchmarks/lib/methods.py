"""Every method of the family in one form, for what compares them all.

A method is a transformation, the share of gradients that it evaluates, and what a step
must hand to it. `step` is the training step as the README shows it, its loss returned.
"""

import dataclasses
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optax_sam
from optax_sam import adaptive_ascent, every_k, from_step, with_probability

Losses = Callable[[Any, Any], jax.Array]  # (params, batch) -> one loss per example

#: How often those climb that skip steps: all of them at 1.2 gradients a step.
EVERY = 5
TAIL = 0.2


class Setting(NamedTuple):
    """What a method is made with. Numbers may be traced, `m` and `start` may not."""

    rho: Any = 0.05
    alpha: Any = 0.3  # LookSAM's; the others keep the default of theirs
    key: Any = None
    m: int = 10  # the examples that climb together in m-SAM
    start: int = 0  # of the tail
    options: Any = MappingProxyType({})  # of the products: what is a sub-batch

    def adaptive(self):
        """ASAM's ascent with the published eta, for the products that take any."""
        return adaptive_ascent(self.rho, eta=0.01)


@dataclasses.dataclass(frozen=True)
class Method:
    """`gradients` is the mean per step, in gradients of the whole batch.

    `inside`: it takes its gradients itself, and wants the batch; `per_example`: and
    one loss for each example. `loops`: over sub-batches. `skips`: some of its steps
    cost less than others. `late`: it climbs in the last part of the training alone.
    """

    name: str
    make: Callable[[Setting], Any] | None
    gradients: float
    inside: bool = False
    per_example: bool = False
    loops: bool = False
    skips: bool = False
    late: bool = False


FIFTH = 1 + 1 / EVERY
METHODS = (
    Method("base", None, 1),
    Method("SAM", lambda s: optax_sam.sam(s.rho, **s.options), 2),
    Method("ASAM", lambda s: optax_sam.asam(s.rho, **s.options), 2),
    Method(
        "m-SAM",
        lambda s: optax_sam.m_sam(s.rho, microbatch_size=s.m, **s.options),
        2,
        inside=True,
        loops=True,
    ),
    Method("GSAM", lambda s: optax_sam.gsam(s.rho, **s.options), 2),
    Method("WSAM", lambda s: optax_sam.wsam(s.rho, **s.options), 2),
    # Its rho is the budget, in units of the loss.
    Method("LE-SAM", lambda s: optax_sam.le_sam(s.rho, rho_max=1.0, **s.options), 2),
    Method("F-SAM", lambda s: optax_sam.friendly_sam(s.rho, **s.options), 2),
    # A clean gradient, a forward pass to select by, and a gradient of half the batch.
    Method(
        "ESAM",
        lambda s: optax_sam.esam(s.rho, key=s.key, **s.options),
        1 + 1 / 3 + 1 / 2,
        inside=True,
        per_example=True,
    ),
    Method(
        "climb by 1/4",
        lambda s: optax_sam.partial_climb(s.rho, 0.25, **s.options),
        1.25,
        inside=True,
    ),
    Method(
        "climb by 1/5",
        lambda s: optax_sam.partial_climb(s.rho, 0.2, **s.options),
        1.2,
        inside=True,
    ),
    Method(
        "climb by 1/5, ASAM",
        lambda s: optax_sam.partial_climb(
            fraction=0.2, ascent=s.adaptive(), **s.options
        ),
        1.2,
        inside=True,
    ),
    Method(
        "LookSAM",
        lambda s: optax_sam.look_sam(s.rho, EVERY, s.alpha, **s.options),
        FIFTH,
        skips=True,
    ),
    Method(
        "LookSAM, ASAM",
        lambda s: optax_sam.look_sam(
            k=EVERY, alpha=s.alpha, ascent=s.adaptive(), **s.options
        ),
        FIFTH,
        skips=True,
    ),
    Method(
        "every 5th step",
        lambda s: optax_sam.sam(s.rho, when=every_k(EVERY), **s.options),
        FIFTH,
        skips=True,
    ),
    Method(
        "every 5th step, ASAM",
        lambda s: optax_sam.asam(s.rho, when=every_k(EVERY), **s.options),
        FIFTH,
        skips=True,
    ),
    Method(
        "random 1/5 of steps",
        lambda s: optax_sam.sam(
            s.rho, when=with_probability(1 / EVERY, key=s.key), **s.options
        ),
        FIFTH,
        skips=True,
    ),
    Method(
        "last 1/5 of steps",
        lambda s: optax_sam.sam(s.rho, when=from_step(s.start), **s.options),
        1 + TAIL,
        skips=True,
        late=True,
    ),
    Method(
        "momentum SAM",
        lambda s: optax_sam.momentum_sam(s.rho, **s.options),
        1,
        inside=True,
    ),
    Method(
        "stale SAM", lambda s: optax_sam.stale_sam(s.rho, **s.options), 1, inside=True
    ),
    Method(
        "random perturbation",
        lambda s: optax_sam.random_perturbation(s.rho, key=s.key, **s.options),
        1,
        inside=True,
    ),
)
BY_NAME = {method.name: method for method in METHODS}


def register(*more: Method) -> None:
    """Let the training loop know methods that one study alone has."""
    BY_NAME.update({method.name: method for method in more})


def transformation(method: Method, setting: Setting, optimizer):
    """The method with an optimizer behind it."""
    if method.make is None:
        return optax.with_extra_args_support(optimizer)
    return optax.chain(method.make(setting), optimizer)


def step(method: Method, tx, losses: Losses):
    """The README's step: (params, state, batch) -> (params, state, loss).

    The loss is that of the clean pass or, where there is none of the whole batch, of
    the one full pass that there is. Only m-SAM has none, in the optimizer.
    """

    def loss_fn(params, batch):
        return jnp.mean(losses(params, batch))

    def apart(params, state, batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = tx.update(
            grads, state, params, value_fn=lambda p: loss_fn(p, batch)
        )
        return optax.apply_updates(params, updates), state, loss

    def inside(params, state, batch):
        value_fn = losses if method.per_example else loss_fn
        updates, state = tx.update(None, state, params, value_fn=value_fn, batch=batch)
        loss = optax.tree.get(state, "last_loss", jnp.nan)
        return optax.apply_updates(params, updates), state, loss

    return inside if method.inside else apart
