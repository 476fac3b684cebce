"""WSAM: the sharpness weighted."""

from typing import Unpack

from optax_sam._ascent.steepest import steepest_unless
from optax_sam._checks import check_decay
from optax_sam._combine import gradient_norm_penalty
from optax_sam._core.options import ClimbOptions, product
from optax_sam._core.sharpness_aware import sharpness_aware
from optax_sam._core.transformation import SharpnessAware
from optax_sam._types import Ascent, Rho, Scalar


@product
def wsam(
    rho: Rho | None = None,
    gamma: Scalar = 0.9,
    *,
    ascent: Ascent | None = None,
    **options: Unpack[ClimbOptions],
) -> SharpnessAware:
    r"""WSAM, coupled: the sharpness weighted by gamma / (1 - gamma).

    .. math:: g \mapsto (1 - \alpha) g + \alpha g_s, \quad
              \alpha = \frac{\gamma}{1 - \gamma}

    gamma = 1/2 is SAM and 0 the base optimizer. (The decoupled form of the paper
    needs the learning rate behind the optimizer, and is not a gradient.)

    Args:
      rho: radius of the climb; `None` is 0.05.
      gamma: in [0, 1); may be traced.
      ascent: climb by this ascent instead of SAM's; then leave `rho` out.
      when, diagnostics, has_aux, num_steps, climb_dtype, scan_passes, ignore_updates,
        microbatch_size, axis_name, mesh, at_once, unroll: as for `sharpness_aware`.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`.

    Raises:
      ValueError: `gamma` outside [0, 1), given as a number; both `rho` and `ascent`;
        `update` raises as `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> w = jnp.array([3.0, 1.0])
      >>> tx = optax_sam.wsam(rho=0.5, gamma=0.75)
      >>> gradient, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
      >>> [round(float(x), 4) for x in gradient]
      [3.9, 8.8]

    Reference: Yue et al. 2023 (arXiv:2305.15817), "Sharpness-Aware Minimization
      Revisited: Weighted Sharpness as a Regularization Term", algorithm 1 (coupled).
    """
    check_decay("gamma", gamma)
    return sharpness_aware(
        steepest_unless(ascent, rho),
        combine=gradient_norm_penalty(gamma / (1 - gamma)),
        **options,
    )
