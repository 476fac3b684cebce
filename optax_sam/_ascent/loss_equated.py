"""LE-SAM's climb: as far as a budget of loss allows."""

from typing import Any

import jax
import jax.numpy as jnp

from optax_sam._ascent.dual import check_ord, dual_vector_and_norm
from optax_sam._ascent.radius import check_number, climb_at, scale_to
from optax_sam._checks import check_scalar
from optax_sam._types import Ascent, AxisName, Rho, Tree


def loss_equated_ascent(
    budget: Rho,
    *,
    rho_max: Rho,
    ord: float | None = None,
    of_loss: bool = False,
    params_axis_name: AxisName | None = None,
) -> Ascent:
    r"""LE-SAM's ascent: climb until the linearized loss has risen by a budget.

    .. math:: \epsilon = \min\left(\frac{b}{\|g\|_q}, \rho_{\max}\right) v, \quad
              v = \arg\max_{\|v\|_p \le 1} \langle g, v \rangle, \quad
              \frac1p + \frac1q = 1

    The direction is that of `steepest_ascent`, along which the linearized loss rises by
    the norm of the gradient. So it rises by b exactly, wherever that does not take a
    climb longer than rho_max; where the gradient is small, rho_max is the radius.

    Only the abstract of the paper could be verified, from which this is written: a
    fixed budget of loss in place of a fixed radius. The cap is taken as a minimum,
    and nothing is added to the norm.

    Args:
      budget: b, how much the linearized loss is to rise, in units of the loss (with
        `of_loss` a share of it, 0.1 for a tenth). A number, a traced scalar or, in the
        optimizer, an Optax schedule of the step.
      rho_max: the largest radius, in the norm `ord` of the whole tree: as `budget`, a
        number or a schedule. `jnp.inf` is no cap.
      ord: the order p of the norm in [1, inf], a Python number; `None` is 2.
      of_loss: whether the budget is a share of the clean loss of the sub-batch that
        climbs. A loss that is negative, or not finite, has no share: no climb is made.
      params_axis_name: as for `steepest_ascent`: for parameters split by hand.

    Returns:
      An ascent: `update(gradient, state, params, *, value=None) -> (climb, state)`,
      where `value` is the clean loss, which the library hands over wherever it is
      known. Stateless unless a number is a schedule. The climb is zero for a gradient
      that is zero or not finite.

    Raises:
      ValueError: a negative budget or `rho_max`, or an `ord` below 1, given as a
        number; in `update`, `of_loss` without a loss: a gradient came in without
        `value=`, or the method makes no clean pass (`momentum_sam`, `stale_sam`).

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> gradient = jnp.array([3.0, 4.0])
      >>> for rho_max in (1.0, 0.1):
      ...     ascent = optax_sam.loss_equated_ascent(2.5, rho_max=rho_max)
      ...     climb, _ = ascent.update(gradient, ascent.init(gradient))
      ...     print([round(float(x), 4) for x in climb])
      [0.3, 0.4]
      [0.06, 0.08]

    Reference: LE-SAM (ICML 2026), arXiv:2605.10183, abstract.
    """
    check_ord(ord)
    check_number("budget", budget)
    check_number("rho_max", rho_max)

    def climb(
        gradient: Tree, params: Tree, budget: Any, rho_max: Any, **extra_args: Any
    ) -> Tree:
        del params
        unit, norm = dual_vector_and_norm(gradient, ord, params_axis_name)
        rise = jnp.asarray(budget, norm.dtype)
        if of_loss:
            rise = rise * _positive(extra_args.get("value"), norm.dtype)
        radius = _radius(rise, norm, jnp.asarray(rho_max, norm.dtype))
        return scale_to(unit, radius, gradient)

    return climb_at(climb, budget, rho_max)


def _radius(rise: jax.Array, norm: jax.Array, rho_max: jax.Array) -> jax.Array:
    """min(rise / norm, rho_max), divided only where that is the smaller one.

    So its derivative is finite. Where the norm is zero any finite radius will do: there
    is no direction.
    """
    norm = jnp.where(norm > 0, norm, 1)
    within = rise <= rho_max * norm
    return jnp.where(within, rise / jnp.where(within, norm, 1), rho_max)


def _positive(value: Any, dtype: Any) -> jax.Array:
    """The clean loss, or 0 where no share of it can be taken."""
    if value is None:
        raise ValueError(
            "With of_loss=True the budget is a share of the clean loss, but this climb "
            "was told none. Where a gradient is given to SAM, hand its loss over as "
            "well, update(grads, state, params, value_fn=..., value=loss), or let both "
            "be taken inside, update(None, state, params, value_fn=...). A method "
            "without a clean pass (momentum_sam, stale_sam) needs a budget in units of "
            "the loss: leave of_loss out."
        )
    check_scalar(value)
    loss = jnp.asarray(value, dtype)
    return jnp.where(jnp.isfinite(loss) & (loss > 0), loss, 0)
