"""SAM: climb along the gradient."""

from typing import Unpack

from optax_sam._ascent import steepest_ascent
from optax_sam._core.options import ClimbOptions, product
from optax_sam._core.sharpness_aware import sharpness_aware
from optax_sam._core.transformation import SharpnessAware
from optax_sam._types import Rho


@product
def sam(
    rho: Rho = 0.05,
    *,
    ord: float | None = None,
    **options: Unpack[ClimbOptions],
) -> SharpnessAware:
    r"""SAM: climb by rho along the gradient, and take the gradient there.

    .. math:: g \mapsto \nabla L\!\left(w + \rho \frac{g}{\|g\|_2}\right)

    Args:
      rho: radius of the climb, in the norm `ord` of the whole tree. A number, a
        traced scalar or a schedule of the step. Start from 0.05.
      ord: the order p of the norm in [1, inf], a Python number; `None` is 2.
      when, diagnostics, has_aux, num_steps, climb_dtype, scan_passes, ignore_updates,
        microbatch_size, axis_name, mesh, at_once, unroll: as for `sharpness_aware`.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`.

    Raises:
      ValueError: a negative rho, or an `ord` below 1; `update` raises as
        `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> tx = optax.chain(optax_sam.sam(rho=0.5), optax.sgd(0.1))
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> params = jnp.array([3.0, 1.0])
      >>> updates, state = tx.update(
      ...     jax.grad(loss)(params), tx.init(params), params, value_fn=loss)
      >>> updates
      Array([-0.33, -0.56], dtype=float32)

    Reference: Foret et al. 2021 (arXiv:2010.01412), "Sharpness-Aware Minimization for
      Efficiently Improving Generalization", algorithm 1.
    """
    return sharpness_aware(
        steepest_ascent(rho, ord=ord),
        **options,
    )
