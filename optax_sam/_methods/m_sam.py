"""m-SAM: every sub-batch climbs by itself."""

from typing import Unpack

from optax_sam._ascent.steepest import steepest_unless
from optax_sam._core.options import ClimbOptions, product
from optax_sam._core.sharpness_aware import sharpness_aware
from optax_sam._core.transformation import SharpnessAware
from optax_sam._types import Ascent, Rho


@product
def m_sam(
    rho: Rho | None = None,
    *,
    ascent: Ascent | None = None,
    **options: Unpack[ClimbOptions],
) -> SharpnessAware:
    r"""m-SAM: every sub-batch of m examples climbs by itself.

    .. math:: g = \frac1n \sum_{j=1}^{n} \nabla L_{B_j}(w + \epsilon_j), \quad
              \epsilon_j = \rho \frac{\nabla L_{B_j}(w)}{\|\nabla L_{B_j}(w)\|_2}

    Over devices it needs one all-reduce a step where SAM needs two.

    Args:
      rho: radius of each climb; `None` is 0.05. A smaller m wants a smaller
        rho.
      ascent: climb by this ascent instead of SAM's; then leave `rho` out.
      microbatch_size: the paper's m, the number of examples in each sub-batch. The
        gradients are computed inside: `update(None, state, params, value_fn=loss_fn,
        batch=batch)`. The loss that they saw is in the diagnostics; a loss of your
        own beside them would be another pass.
      axis_name: the mapped axis whose devices hold one sub-batch each (or several of
        `microbatch_size`).
      when, diagnostics, has_aux, num_steps, climb_dtype, scan_passes, ignore_updates,
        mesh, at_once, unroll: as for `sharpness_aware`.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`.

    Raises:
      ValueError: neither `microbatch_size` nor `axis_name`; both `rho` and `ascent`;
        `update` raises as `sharpness_aware` and `m_sharpness` say.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> def loss(w, x):
      ...     return jnp.mean(0.5 * (x @ w) ** 2)
      >>> tx = optax_sam.m_sam(rho=0.5, microbatch_size=1)
      >>> params, batch = jnp.array([3.0, 1.0]), jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> tx.update(None, tx.init(params), params, value_fn=loss, batch=batch)[0]
      Array([1.75, 3.  ], dtype=float32)

    Reference: Foret et al. 2021 (arXiv:2010.01412), section 4.1 (m-sharpness).
    """
    named = (options.get("microbatch_size"), options.get("axis_name"))
    if named == (None, None):
        raise ValueError(
            "m_sam needs to know the sub-batches: give microbatch_size= (the examples "
            "in each), axis_name= (one for each device), or both. One climb for the "
            "whole batch is sam(rho)."
        )
    return sharpness_aware(
        steepest_unless(ascent, rho),
        **options,
    )
