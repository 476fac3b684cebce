"""Methods with one full pass, the climbed one: cheaper than SAM."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam._checks import check_leaves
from optax_sam._climb import add_climb, cast_like
from optax_sam._diagnostics import no_loss
from optax_sam._local import (
    Averaged,
    Given,
    Local,
    SubBatches,
    clean_only,
    transformation,
)
from optax_sam._passes import Passes
from optax_sam._running import accumulate, nothing_yet
from optax_sam._types import Ascent, Scalar, SharpnessAware, Tree


class OneFullPassState(NamedTuple):
    """The loss that was seen in the full pass, and what the climb is made of."""

    climbed_loss: jax.Array
    ascent: Any


def one_full_pass(
    init_ascent: Callable[[Tree], Any],
    local: Local,
    next_state: Callable[[Any, Tree, Tree], Any],
    sub_batches: SubBatches,
    loss_of: Callable[[Any], Any] = lambda value_fn: value_fn,
) -> SharpnessAware:
    """A method from its local part, which takes all gradients that it needs itself.

    `local` returns a pair of gradients: the one that comes out, and the one whose
    average `next_state(state, gradient, params)` is made from. `loss_of` makes the
    loss that is differentiated out of the user's.
    """

    def init(params: Tree) -> OneFullPassState:
        return OneFullPassState(no_loss(params), init_ascent(params))

    def step(given: Given, state: OneFullPassState) -> tuple[Tree, OneFullPassState]:
        check_leaves(given.params, given.params)
        given = given._replace(updates=None, value_fn=loss_of(given.value_fn))
        if not given.climb:
            return sub_batches.average(clean_only, given, None)[1], state
        (value, _), (out, seen) = sub_batches.average(local, given, state.ascent)
        loss = jnp.asarray(value, state.climbed_loss.dtype)
        new = next_state(state.ascent, seen, given.params)
        return out, OneFullPassState(loss, new)

    return transformation(init, step)


def climb_without_gradient(
    ascent: Ascent, climb_dtype: Any, sub_batches: SubBatches
) -> SharpnessAware:
    """The gradient after a climb that does not look at the gradient."""

    def local(passes: Passes, state: Any) -> Averaged:
        here = passes.params
        climb, _ = ascent.update(None, state, here)
        value, gradient, _ = passes.at(add_climb(here, climb, here, climb_dtype))
        return (value, None), (cast_like(gradient, here), None)

    def next_state(state: Any, _: None, params: Tree) -> Any:
        return ascent.update(None, state, params)[1]

    return one_full_pass(ascent.init, local, next_state, sub_batches)


class MomentumState(NamedTuple):
    """The moving sum of the gradients that came out, and the ascent's state."""

    momentum: Tree
    ascent: Any


def climb_against_momentum(
    ascent: Ascent, decay: Scalar, climb_dtype: Any, sub_batches: SubBatches
) -> SharpnessAware:
    """The gradient after a climb along minus the momentum of what came out."""

    def init(params: Tree) -> MomentumState:
        return MomentumState(nothing_yet(params), ascent.init(params))

    def local(passes: Passes, state: MomentumState) -> Averaged:
        here, ahead = passes.params, jax.tree.map(jnp.negative, state.momentum)
        climb, _ = ascent.update(ahead, state.ascent, here)
        value, gradient, _ = passes.at(add_climb(here, climb, here, climb_dtype))
        gradient = cast_like(gradient, here)
        return (value, None), (gradient, gradient)

    def next_state(state: MomentumState, gradient: Tree, params: Tree) -> MomentumState:
        momentum, _ = accumulate(state.momentum, gradient, decay, 1)
        return MomentumState(momentum, ascent.update(gradient, state.ascent, params)[1])

    return one_full_pass(init, local, next_state, sub_batches)
