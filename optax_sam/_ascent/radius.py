"""How far: rho as a number, a traced array or a schedule of the step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam._checks import check_floats
from optax_sam._types import Ascent, Rho, Tree

Direction = Callable[[Tree, Tree], Tree]


def check_rho(rho: Any) -> None:
    """Refuse a negative or undefined radius where its value is known."""
    if isinstance(rho, optax.GradientTransformation):
        raise TypeError(
            "rho is a number, the radius of the climb, but an optimizer was given. SAM "
            "stands in front of the optimizer: optax.chain(sam(rho=0.05), "
            "optax.sgd(0.1))."
        )
    if isinstance(rho, jax.core.Tracer) or callable(rho):
        return  # nothing to look at yet
    if np.shape(rho) != ():
        raise ValueError(
            f"rho is one number for the whole tree, but it has shape {np.shape(rho)}. "
            f"For a radius for each part, give each its own ascent by optax.partition."
        )
    if not float(rho) >= 0:
        raise ValueError(
            f"rho must be non-negative, got rho = {rho}: it is the radius of the ball "
            f"to climb in. To descend, negate the updates of what stands behind SAM."
        )


def scale_to(direction: Tree, rho: Any, like: Tree) -> Tree:
    """The climb rho * direction, each leaf in the dtype of its gradient."""
    check_floats(like, "gradient")  # in an integer's dtype the climb would round to 0

    def climb(d: jax.Array, g: Any) -> jax.Array:
        return (jnp.asarray(rho, d.dtype) * d).astype(jnp.result_type(g))

    return jax.tree.map(climb, direction, like)


def climb_by(rho: Rho, direction: Direction) -> Ascent:
    """The ascent that climbs `rho` along `direction(gradient, params)`.

    Stateless for a number; with a schedule the state counts the steps.
    """
    check_rho(rho)
    return _scheduled(rho, direction) if callable(rho) else _constant(rho, direction)


def _constant(rho: Any, direction: Direction) -> Ascent:
    return optax.stateless(lambda g, params: scale_to(direction(g, params), rho, g))


def _scheduled(rho: Callable[[Any], Any], direction: Direction) -> Ascent:
    def init(params: Tree) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(
        updates: Tree, state: optax.ScaleByScheduleState, params: Tree | None = None
    ) -> tuple[Tree, optax.ScaleByScheduleState]:
        climb = scale_to(direction(updates, params), rho(state.count), updates)
        count = optax.safe_increment(state.count)
        return climb, optax.ScaleByScheduleState(count=count)

    return optax.GradientTransformation(init, update)
