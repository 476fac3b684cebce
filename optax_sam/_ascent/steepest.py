"""SAM's climb: along the gradient itself."""

from optax_sam._ascent.dual import check_ord, dual_vector
from optax_sam._ascent.radius import climb_by
from optax_sam._old_spellings import respelt
from optax_sam._types import Ascent, AxisName, Rho


@respelt
def steepest_ascent(
    rho: Rho = 0.05,
    *,
    ord: float | None = None,
    params_axis_name: AxisName | None = None,
) -> Ascent:
    r"""SAM's ascent: the climb that raises the linearized loss most.

    .. math:: \epsilon = \arg\max_{\|\epsilon\|_p \le \rho} \langle g, \epsilon\rangle,
              \quad \text{for } p = 2:\ \epsilon = \rho \frac{g}{\|g\|_2}

    There is no epsilon in the denominator: the norm of the climb is rho for every
    finite gradient that is not zero, and the climb is zero for all others.

    Args:
      rho: radius of the climb, in the norm `ord` of the whole tree. A number, a
        traced scalar or, in the optimizer, an Optax schedule of the step.
      ord: the order p of the norm in [1, inf], a Python number; `None` is 2. With
        `jnp.inf` the climb is rho * sign(g), with 1 it moves the largest entry alone.
      params_axis_name: mesh axes over which the parameters themselves are split by hand
        inside `jax.shard_map`, so that the norm is the norm of the whole. Under
        `check_vma=True` leaves that are not split are counted once; elsewhere all
        leaves are taken to be split.

    Returns:
      An ascent: `update(gradient, state, params) -> (climb, state)`. The climb has
      the gradient's structure and dtypes and is *added* to the parameters. Stateless
      unless rho is a schedule.

    Raises:
      ValueError: a negative rho or an `ord` below 1, given as a number.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> ascent = optax_sam.steepest_ascent(rho=0.5)
      >>> gradient = jnp.array([3.0, 4.0])
      >>> climb, _ = ascent.update(gradient, ascent.init(gradient))
      >>> climb
      Array([0.3, 0.4], dtype=float32)

    Reference: Foret et al. 2021 (arXiv:2010.01412), "Sharpness-Aware Minimization for
      Efficiently Improving Generalization", equation 2.
    """
    check_ord(ord)
    return climb_by(rho, lambda g, params: dual_vector(g, ord, params_axis_name))


def steepest_unless(
    ascent: Ascent | None, rho: Rho | None, params_axis_name: AxisName | None = None
) -> Ascent:
    """The ascent that was given, or SAM's with this rho (`None` is 0.05)."""
    if ascent is not None and rho is not None:
        raise ValueError(
            "Both rho and ascent were given, but an ascent has its own radius. Leave "
            "rho out: ascent=adaptive_ascent(rho=0.5)."
        )
    if ascent is not None:
        return ascent
    radius = 0.05 if rho is None else rho
    return steepest_ascent(radius, params_axis_name=params_axis_name)
