"""ASAM: climb in proportion to the size of each parameter."""

from typing import Unpack

from optax_sam._ascent import adaptive_ascent
from optax_sam._core.options import ClimbOptions, product
from optax_sam._core.sharpness_aware import sharpness_aware
from optax_sam._core.transformation import SharpnessAware
from optax_sam._types import Mask, Rho, Scalar


@product
def asam(
    rho: Rho = 0.5,
    *,
    eta: Scalar = 0.01,
    mask: Mask | None = None,
    ord: float | None = None,
    **options: Unpack[ClimbOptions],
) -> SharpnessAware:
    r"""ASAM: SAM whose climb is proportional to the size of each parameter.

    .. math:: g \mapsto \nabla L\!\left(w + \rho \frac{T^2 g}{\|T g\|_2}\right),
              \quad T = |w| + \eta

    Args:
      rho: radius of the climb, in the norm `ord` of climb / T; 10 to 20 times SAM's.
        Start from 0.5.
      eta: added to abs(w).
      mask: where T = abs(w) + eta, elsewhere T = 1: a tree of booleans or a function
        of the parameters; `None` is every leaf but the biases, `True` every leaf.
      ord: the order p of the norm in [1, inf], a Python number; `None` is 2.
      when, diagnostics, has_aux, num_steps, climb_dtype, scan_passes, ignore_updates,
        microbatch_size, axis_name, mesh, at_once, unroll: as for `sharpness_aware`.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`.

    Raises:
      ValueError: a negative rho or eta, or an `ord` below 1; `update` raises as
        `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> tx = optax_sam.asam(rho=0.5, eta=0.0)
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> params = jnp.array([3.0, 1.0])
      >>> gradient, _ = tx.update(
      ...     jax.grad(loss)(params), tx.init(params), params, value_fn=loss)
      >>> [round(float(x), 4) for x in gradient]
      [4.3707, 4.8123]

    Reference: Kwon et al. 2021 (arXiv:2102.11600), "ASAM: Adaptive Sharpness-Aware
      Minimization for Scale-Invariant Learning of Deep Neural Networks", algorithm 1.
    """
    return sharpness_aware(
        adaptive_ascent(rho, eta=eta, ord=ord, mask=mask),
        **options,
    )
