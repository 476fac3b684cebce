"""Random perturbation: the baseline of one gradient a step."""

from typing import Any, Unpack

import jax

from optax_sam._ascent import random_ascent
from optax_sam._core.method import Method, Seen, finish_by, one_pass, reporting
from optax_sam._core.options import Options, product
from optax_sam._core.passes import Passes
from optax_sam._core.transformation import SharpnessAware, transformation
from optax_sam._types import AxisName, Rho, Sampler, Tree


@product
def random_perturbation(
    rho: Rho,
    *,
    key: jax.Array,
    sampler: Sampler | None = None,
    params_axis_name: AxisName | None = None,
    climb_dtype: Any = None,
    **options: Unpack[Options],
) -> SharpnessAware:
    r"""The gradient at a random point at distance rho: one gradient a step.

    .. math:: g = \nabla L\!\left(w + \rho \frac{z}{\|z\|}\right), \quad
              z_i \text{ independent, symmetric about } 0

    The baseline that SAM must beat at half its cost. (R-SAM, "Random
    Sharpness-Aware Minimization" of 2022, is another method, with two gradients.)

    Args:
      rho: radius, in the 2-norm of the whole tree; its best value is far above SAM's.
        A number, a traced scalar or a schedule of the step.
      key: a JAX random key; step t draws from `fold_in(key, t)`, every sub-batch its
        own.
      sampler, params_axis_name: as for `random_ascent`.
      climb_dtype, when, diagnostics, has_aux, ignore_updates, microbatch_size,
        axis_name, mesh, at_once, unroll: as for `sharpness_aware`.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`. The gradient
      is taken inside: `update(None, state, params, value_fn=...)`. The loss
      of the one pass, at the climbed point, is `optax.tree.get(state,
      "last_loss")`: logging the clean loss would be another pass.

    Raises:
      ValueError: a negative rho; `update` raises as `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> tx = optax_sam.random_perturbation(rho=0.5, key=jax.random.key(0))
      >>> w = jnp.array([3.0, 1.0])
      >>> gradient, state = tx.update(
      ...     None, tx.init(w), w, value_fn=lambda w: 0.5 * jnp.sum(w**2))
      >>> round(float(jnp.linalg.norm(gradient - w)), 6)
      0.5

    Reference: Foret et al. 2021 (arXiv:2010.01412), appendix C.5 (adversarial against
      random).
    """
    ascent = random_ascent(
        rho, key=key, sampler=sampler, params_axis_name=params_axis_name
    )

    def local(passes: Passes, state: Any, climbs: Any) -> Seen:
        def climb() -> Tree:
            return ascent.update(None, state, passes.params)[0]

        return one_pass(passes, climb, climbs, climb_dtype)

    method = reporting(Method(ascent.init, local, finish_by(ascent)))
    return transformation(method, takes_updates=False, **options)
