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

#: `climb(gradient, params, *numbers, **extra_args)`: the climb of one step.
Climb = Callable[..., Tree]


def check_rho(rho: Any) -> None:
    """Refuse a negative or undefined radius where its value is known."""
    if isinstance(rho, optax.GradientTransformation):
        raise TypeError(
            "rho is a number, the radius of the climb, but an optimizer was given. SAM "
            "stands in front of the optimizer: optax.chain(sam(rho=0.05), "
            "optax.sgd(0.1))."
        )
    check_number("rho", rho)


def check_number(name: str, number: Any) -> None:
    """Refuse what says how far to climb and is no number, or negative."""
    if isinstance(number, jax.core.Tracer) or callable(number):
        return  # nothing to look at yet
    if np.shape(number) != ():
        raise ValueError(
            f"{name} is one number for the whole tree, but it has shape "
            f"{np.shape(number)}. For one for each part, give each its own ascent by "
            f"optax.partition."
        )
    if not jnp.issubdtype(np.asarray(number).dtype, np.number):  # nor a flag: True is 1
        raise TypeError(
            f"{name} says how far to climb, but {name} = {number!r} is no number. Give "
            f"a number, an array of shape () or a schedule of the step: {name}=0.05."
        )
    if not float(number) >= 0:
        raise ValueError(
            f"{name} must be non-negative, got {name} = {number}: it says how far to "
            f"climb. To descend, negate the updates of what stands behind SAM."
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

    def climb(gradient: Tree, params: Tree, rho: Any, **extra_args: Any) -> Tree:
        del extra_args
        return scale_to(direction(gradient, params), rho, gradient)

    return climb_at(climb, rho)


def climb_at(climb: Climb, *numbers: Rho) -> Ascent:
    """The ascent that makes its climb with these numbers, or those of schedules."""
    if any(callable(number) for number in numbers):
        return _scheduled(climb, numbers)
    return _constant(climb, numbers)


def _constant(climb: Climb, numbers: tuple[Rho, ...]) -> Ascent:
    def init(params: Tree) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: Tree, state: Any, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, Any]:
        return climb(updates, params, *numbers, **extra_args), state

    return optax.GradientTransformationExtraArgs(init, update)


def _scheduled(climb: Climb, numbers: tuple[Rho, ...]) -> Ascent:
    def init(params: Tree) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(
        updates: Tree,
        state: optax.ScaleByScheduleState,
        params: Tree | None = None,
        **extra_args: Any,
    ) -> tuple[Tree, optax.ScaleByScheduleState]:
        now = [x(state.count) if callable(x) else x for x in numbers]
        made = climb(updates, params, *now, **extra_args)
        count = optax.safe_increment(state.count)
        return made, optax.ScaleByScheduleState(count=count)

    return optax.GradientTransformationExtraArgs(init, update)
