"""How far: rho as a number, a traced array or a schedule of the step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam._checks import check_floats, known
from optax_sam._types import Ascent, Rho, Tree

Direction = Callable[[Tree, Tree], Tree]


def check_rho(rho: Any) -> None:
    """Refuse a negative or undefined radius where it is known in Python."""
    if known(rho) and not float(rho) >= 0:
        raise ValueError(
            f"rho must be non-negative, got rho = {rho}: it is the radius of the ball "
            f"to climb in. To descend, negate the updates of what stands behind SAM."
        )


def scale_to(direction: Tree, rho: Any, like: Tree) -> Tree:
    """The climb rho * direction, each leaf in the dtype of its gradient."""
    check_floats(like, "gradient")  # in an integer's dtype the climb would round to 0
    return jax.tree.map(lambda d, g: (rho * d).astype(g.dtype), direction, like)


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
