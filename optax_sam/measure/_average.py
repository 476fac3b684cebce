"""How much higher the loss is nearby, on average."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_sam._ascent.radius import check_rho
from optax_sam._trees import widen
from optax_sam._types import Scalar, Tree
from optax_sam.measure._checks import (
    TOO_FAR,
    check_params,
    check_result,
    check_samples,
    scalar_loss,
)
from optax_sam.measure._estimate import Estimate, estimate
from optax_sam.measure._flat import flatten
from optax_sam.measure._loss import averaging
from optax_sam.measure._noise import noise_of


def average_sharpness(
    loss_fn: Callable[..., Any],
    params: Tree,
    *,
    rho: Scalar,
    key: jax.Array,
    num_samples: int,
    noise: str = "normal",
    adaptive: bool = False,
    batches: Any = None,
) -> Estimate:
    r"""How much higher the loss is at random points around the parameters, on average.

    .. math:: E_z [L(w + c\, z)] - L(w), \quad c = 1 \text{ or } |w|

    For small rho and normal noise it is the curvature's share alone,
    :math:`\tfrac12 \rho^2 \sum_i c_i^2 H_{ii}`, so rho^2 / 2 times the trace of the
    Hessian where c is 1. Being linear in the loss it is the same for sub-batches of
    any size: its m-sharpness is itself. Cost: one loss a sample.

    Args:
      loss_fn, params, batches: as for `climb_sharpness`.
      rho: the size of the noise, a number or a traced scalar; see `noise`.
      key: a JAX random key for the noise.
      num_samples: how many random points; at least 2.
      noise: how z is drawn. `"normal"`: every entry from N(0, rho^2), so that the
        whole is about rho sqrt(n) long. `"uniform"`: every entry between -rho and rho,
        in the ball of the worst case with `ord=jnp.inf`. `"sphere"`: the whole is rho
        long, on the rim of the ball of the worst case with `ord=2`.
      adaptive: whether the noise is in units of each weight's size, c = abs(w).

    Returns:
      The estimate and its standard error, a named tuple `(mean, standard_error)` of
      scalars in at least float32.

    Raises:
      TypeError: a leaf that is not real floating-point; a loss that is not a scalar.
      ValueError: a negative rho; an unknown `noise`; `num_samples` below 2;
        parameters without a single number; batches of different sizes; parameters
        or, outside `jax.jit`, a rise that is not finite.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_sam.measure import average_sharpness
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(w**2)
      >>> rise = average_sharpness(loss, jnp.zeros(4), rho=0.5,
      ...     key=jax.random.key(0), num_samples=8, noise="sphere")
      >>> round(float(rise.mean), 4)
      0.125

    Reference: Andriushchenko et al. 2023 (arXiv:2302.07011), "A Modern Look at the
      Relationship between Sharpness and Generalization", section 2.
    """
    check_params(params)
    check_rho(rho)
    check_samples("average_sharpness", num_samples)
    draw = noise_of(noise)
    point, unravel = flatten(params)
    scale = jnp.abs(point) if adaptive else jnp.ones_like(point)
    radius = jnp.asarray(rho, point.dtype)
    average, loss = averaging(batches), scalar_loss(loss_fn)

    def value(u: jax.Array) -> jax.Array:
        at = unravel(point + scale * u)
        return widen(average(lambda *batch: loss(at, *batch)))

    clean = value(jnp.zeros_like(point))

    def rise_of(key: jax.Array) -> jax.Array:
        return value(radius * draw(key, point)) - clean

    rise = estimate(rise_of, key, num_samples)
    check_result(rise, "The rise of the loss", TOO_FAR)
    return rise
