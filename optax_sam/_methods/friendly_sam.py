"""F-SAM: climb along what is particular to this batch."""

from typing import Unpack

from optax_sam._ascent import friendly_ascent
from optax_sam._ascent.steepest import steepest_unless
from optax_sam._core.options import ClimbOptions, product
from optax_sam._core.sharpness_aware import sharpness_aware
from optax_sam._core.transformation import SharpnessAware
from optax_sam._types import Ascent, AxisName, Rho, Scalar


@product
def friendly_sam(
    rho: Rho | None = None,
    sigma: Scalar = 1.0,
    decay: Scalar = 0.9,
    *,
    ascent: Ascent | None = None,
    params_axis_name: AxisName | None = None,
    **options: Unpack[ClimbOptions],
) -> SharpnessAware:
    r"""F-SAM: climb along the gradient less its moving average.

    .. math:: g \mapsto \nabla L\!\left(w + \rho \frac{d}{\|d\|}\right), \quad
              d = g - \sigma m

    Args:
      rho, sigma, decay, ascent, params_axis_name: as for `friendly_ascent`.
      when, diagnostics, has_aux, num_steps, climb_dtype, scan_passes, ignore_updates,
        microbatch_size, axis_name, mesh, at_once, unroll: as for `sharpness_aware`.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`. Its
      state holds the average m, a copy of the parameters.

    Raises:
      ValueError: a negative `sigma`, or a `decay` outside [0, 1); both `rho` and
        `ascent`; `update` raises as `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> w = jnp.array([3.0, 1.0])
      >>> tx = optax_sam.friendly_sam(rho=0.5)
      >>> tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)[0]
      Array([3.3, 5.6], dtype=float32)

    Reference: Li et al. 2024 (arXiv:2403.12350), "Friendly Sharpness-Aware
      Minimization", algorithm 1.
    """
    friendly = friendly_ascent(
        steepest_unless(ascent, rho, params_axis_name),
        sigma=sigma,
        decay=decay,
        params_axis_name=params_axis_name,
    )
    return sharpness_aware(friendly, **options)
