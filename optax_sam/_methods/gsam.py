"""GSAM: SAM that also closes the surrogate gap."""

from typing import Unpack

from optax_sam._ascent.steepest import steepest_unless
from optax_sam._combine import surrogate_gap
from optax_sam._core.options import ClimbOptions, product
from optax_sam._core.sharpness_aware import sharpness_aware
from optax_sam._core.transformation import SharpnessAware
from optax_sam._types import Ascent, AxisName, Rho, Scalar


@product
def gsam(
    rho: Rho | None = None,
    alpha: Scalar = 0.4,
    *,
    ascent: Ascent | None = None,
    params_axis_name: AxisName | None = None,
    **options: Unpack[ClimbOptions],
) -> SharpnessAware:
    r"""GSAM: SAM that also steps down the surrogate gap.

    .. math:: g \mapsto g_s - \alpha g_\perp, \quad
              g_\perp = g - \frac{\langle g, g_s \rangle}{\|g_s\|^2} g_s

    Args:
      rho: radius of the climb; `None` is 0.05. The paper ties it to the learning rate:
        `rho=proportional_rho(learning_rate, ...)`.
      alpha: weight of g_perp; 0 is SAM. The paper: 0.4 for ViTs, 0.01 for ResNets.
      ascent: climb by this ascent instead of SAM's; then leave `rho` out.
      params_axis_name: as for `steepest_ascent`: for parameters split by hand.
      when, diagnostics, has_aux, num_steps, climb_dtype, scan_passes, ignore_updates,
        microbatch_size, axis_name, mesh, at_once, unroll: as for `sharpness_aware`.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`.

    Raises:
      ValueError: a negative `alpha`; both `rho` and `ascent`; `update` raises as
        `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> w = jnp.array([3.0, 1.0])
      >>> tx = optax_sam.gsam(rho=0.5, alpha=0.4)
      >>> tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)[0]
      Array([3.109136 , 5.7124734], dtype=float32)

    Reference: Zhuang et al. 2022 (arXiv:2203.08065), "Surrogate Gap Minimization
      Improves Sharpness-Aware Training", algorithm 1.
    """
    return sharpness_aware(
        steepest_unless(ascent, rho, params_axis_name),
        combine=surrogate_gap(alpha, params_axis_name=params_axis_name),
        **options,
    )
