"""Door 2: a drop-in for `jax.value_and_grad`, for who owns the training loop."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax

from optax_sam._checks import check_leaves, checked_loss
from optax_sam._climb import Climbed, Climber
from optax_sam._passes import Evaluation, Passes
from optax_sam._types import Ascent, Combine, Tree


def value_and_grad(
    loss_fn: Callable[..., Any],
    ascent: Ascent,
    *,
    combine: Combine | None = None,
    has_aux: bool = False,
    second_order: bool = False,
    num_steps: int | None = None,
    climb_dtype: Any = None,
    diagnostics: bool = False,
) -> Callable[..., tuple[Any, Tree]]:
    r"""The value of a loss, and the gradient after a climb.

    .. math:: L(w), \quad \nabla L(w + \epsilon), \quad \epsilon = a(\nabla L(w))

    Args:
      loss_fn: `loss_fn(params, *args, **kwargs)` returns a scalar, or `(scalar, aux)`
        with `has_aux`.
      ascent: from a gradient to a climb, e.g. `steepest_ascent(rho)` for SAM or
        `adaptive_ascent(rho)` for ASAM. It must be stateless; a schedule for rho is
        written `steepest_ascent(rho=schedule(step))` inside the training step.
      combine: a function of the clean and the climbed gradient that gives the one to
        return; `None` is the climbed one.
      has_aux: whether `loss_fn` returns auxiliary data, as for `jax.value_and_grad`.
      second_order: keep the term that SAM drops: differentiate `L(w + epsilon(w))`
        through the climb. About four gradients' FLOPs instead of two.
      num_steps: how many steps the climb takes, of rho / num_steps each (`None` is 1).
      climb_dtype: the dtype of the climbed copy of the parameters, e.g. `jnp.float32`
        where half precision would round the climb away; `None` is their own.
      diagnostics: also return a `Diagnostics` of the two passes: as aux, or as
        `(aux, diagnostics)` with `has_aux`. No further pass is made.

    Returns:
      A function with the arguments and results of
      `jax.value_and_grad(loss_fn, has_aux=has_aux)`, differentiating argument 0.
      Value and aux are those of the clean pass, so BatchNorm statistics are updated
      once. Two gradients are evaluated, one after the other, with the same arguments
      and so the same random keys; `loss_fn` is traced twice.

    Raises:
      ValueError: an ascent that keeps state.
      TypeError: a loss that is not a scalar; a tuple without `has_aux`; parameters
        that are not floating-point.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> grad_fn = optax_sam.value_and_grad(loss, optax_sam.steepest_ascent(rho=0.5))
      >>> value, gradient = grad_fn(jnp.array([3.0, 1.0]))
      >>> value, gradient
      (Array(6.5, dtype=float32), Array([3.3, 5.6], dtype=float32))

    Reference: Foret et al. 2021, algorithm 1; equation 3 and appendix C.4 for
      `second_order`.
    """
    climber = Climber(ascent, combine, num_steps, climb_dtype, diagnostics)
    climb = _through_the_climb if second_order else _without_the_climb

    def sam_value_and_grad(params: Tree, /, *args: Any, **kwargs: Any) -> Any:
        check_leaves(params, params)
        state = _no_state(ascent, params)
        checked = checked_loss(loss_fn, has_aux)

        def loss(point: Tree, _: Tree) -> Any:
            return checked(point, *args, **kwargs)

        passes = Passes(loss, params, has_aux=has_aux)
        gradient, clean, report = climb(climber, passes, state)
        aux = [clean.aux] if has_aux else []
        aux += [report] if diagnostics else []
        return (clean.value, *_one_or_pair(aux)) if aux else clean.value, gradient

    return sam_value_and_grad


def _without_the_climb(climber: Climber, passes: Passes, state: Any) -> Climbed:
    return climber.climb(passes, state)


def _through_the_climb(climber: Climber, passes: Passes, state: Any) -> Climbed:
    """The climb is a function of the parameters, and differentiated as such."""

    def climbed_loss(params: Tree) -> Any:
        here = replace(passes, params=params)
        clean = here.clean()
        point = climber.point(here, clean.gradient, state)
        return here.out(point)[0], (clean, point)

    (value, (clean, point)), gradient = jax.value_and_grad(climbed_loss, has_aux=True)(
        passes.params
    )
    climbed = Evaluation(value, gradient)
    return climber.come_out(passes, clean, climbed, point, num_gradients=4)


def _one_or_pair(aux: list[Any]) -> list[Any]:
    return [tuple(aux)] if len(aux) > 1 else aux


def _no_state(ascent: Ascent, params: Tree) -> Any:
    """The state of an ascent that has none; refused when it has."""
    if jax.tree.leaves(jax.eval_shape(ascent.init, params)):
        raise ValueError(
            "This ascent keeps a state (a schedule, a random key or an average), and "
            "value_and_grad has no place for it. Use door 1, optax.chain("
            "optax_sam.sharpness_aware(ascent), optimizer); or, for a schedule, write "
            "steepest_ascent(rho=schedule(step)) inside the training step."
        )
    return ascent.init(params)
