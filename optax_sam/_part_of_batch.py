"""A part of each sub-batch: for the climb, or for the descent."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from optax_sam._checks import known
from optax_sam._climb import Climber, cast_like
from optax_sam._local import Averaged, SubBatches
from optax_sam._one_full_pass import one_full_pass
from optax_sam._passes import Passes
from optax_sam._sub_batches import batch_size, is_lone_key, partition
from optax_sam._types import SharpnessAware, Tree


def climb_by_a_part(
    climber: Climber, fraction: float, sub_batches: SubBatches
) -> SharpnessAware:
    """The gradient of all examples, after a climb by the first few of them."""

    def local(passes: Passes, state: Any) -> Averaged:
        few = passes.over(take(passes.examples, slice(part_of(passes, fraction))))
        clean = few.clean()
        point = climber.point(few, clean.gradient, state)
        value, gradient, _ = passes.at(point)
        gradient = cast_like(gradient, clean.gradient)
        return (value, None), (gradient, clean.gradient)

    return one_full_pass(climber.ascent.init, local, climber.next_state, sub_batches)


def descend_where_loss_rose(
    climber: Climber, gamma: float, sub_batches: SubBatches
) -> SharpnessAware:
    """The gradient of those examples whose loss the climb raised most.

    The loss function returns one loss for each.
    """

    def local(passes: Passes, state: Any) -> Averaged:
        clean, last = passes.clean(), passes
        point = climber.point(passes, clean.gradient, state)
        if gamma < 1:  # else all of them, and no need to look
            rise = passes.out(point)[1] - clean.aux
            _, rows = jax.lax.top_k(rise, part_of(passes, gamma))
            last = passes.over(take(passes.examples, rows))
        value, gradient, _ = last.at(point)
        gradient = cast_like(gradient, clean.gradient)
        return (value, None), (gradient, clean.gradient)

    loss_of = partial(mean_and_losses, has_aux=sub_batches.has_aux)
    inner = replace(sub_batches, has_aux=True)
    next_state = climber.next_state
    return one_full_pass(climber.ascent.init, local, next_state, inner, loss_of)


def mean_and_losses(losses_fn: Callable[..., Any], has_aux: bool) -> Callable[..., Any]:
    """The mean of the losses, and themselves as aux."""

    def loss(params: Tree, batch: Tree) -> tuple[jax.Array, jax.Array]:
        out = losses_fn(params, batch)
        losses = out[0] if has_aux else out
        count = _count(batch)
        if jnp.shape(losses) != (count,):
            raise TypeError(
                f"esam selects examples by their losses, so the loss function must "
                f"return one for each, shape ({count},), but it returned shape "
                f"{jnp.shape(losses)}. Leave the mean out: return losses, not "
                f"jnp.mean(losses)."
            )
        return jnp.mean(losses), losses

    return loss


def check_fraction(name: str, value: Any) -> None:
    """Refuse what is no share of a whole, or not known in Python."""
    if not known(value):
        raise TypeError(
            f"{name} was given as {type(value).__name__}, but it sets the size of "
            f"arrays and must be a Python number. Under optax.inject_hyperparams name "
            f"it in static_args=({name!r}, ...)."
        )
    if not 0 < float(value) <= 1:
        raise ValueError(f"{name} must lie in (0, 1], got {name} = {value}.")


def part_of(passes: Passes, fraction: float) -> int:
    """How many examples a share of the sub-batch is, rounded up."""
    if passes.examples is None:
        raise ValueError(
            "This method takes a part of the batch, so it must see it: update(None, "
            "state, params, value_fn=loss_fn, batch=batch), with loss_fn(params, "
            "batch)."
        )
    return math.ceil(fraction * _count(passes.examples))


def _count(batch: Tree) -> int:
    """How many examples; a single random key is none of them."""
    return batch_size(partition(batch, jax.tree.map(is_lone_key, batch))[0])


def take(batch: Tree, rows: Any) -> Tree:
    """These rows of every leaf of the batch; single random keys stay."""
    return jax.tree.map(lambda x: x if is_lone_key(x) else x[rows], batch)
