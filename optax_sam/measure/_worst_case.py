"""How much higher the loss is at the worst point of a ball."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_sam._ascent.dual import check_ord, dual_vector
from optax_sam._ascent.radius import check_rho
from optax_sam._trees import widen
from optax_sam._types import Scalar, Tree
from optax_sam.measure._checks import TOO_FAR, check_params, check_result, scalar_loss
from optax_sam.measure._flat import flatten
from optax_sam.measure._lanczos import norm
from optax_sam.measure._loss import Average, over_sub_batches
from optax_sam.measure._noise import noise_of


def worst_case_sharpness(
    loss_fn: Callable[..., Any],
    params: Tree,
    *,
    rho: Scalar,
    key: jax.Array,
    ord: float | None = None,
    adaptive: bool = False,
    num_steps: int = 20,
    num_restarts: int = 1,
    batches: Any = None,
    microbatch_size: int | None = None,
) -> jax.Array:
    r"""How much higher the loss is at the worst point of a ball, as far as found.

    .. math:: \max_{\|\delta / c\|_p \le \rho} L(w + \delta) - L(w), \quad
              c = 1 \text{ or } |w|

    The maximum is sought by projected gradient ascent, from the parameters, where the
    first step is SAM's climb, and from random points of the ball. A step that does
    not raise the loss is taken back and halved, and what counts is the highest loss
    seen: never less than `climb_sharpness` with the ascent of the same ball, which is
    `steepest_ascent(rho, ord=ord)` or `adaptive_ascent(rho, ord=ord, eta=0,
    mask=True)`. It remains a lower bound of the maximum: more steps and restarts find
    more, so report them with it.

    The adaptive form does not change when weights are scaled in a way that leaves the
    network's function as it was, the plain one does. Both grow with the logits:
    `normalize_logits` removes that scale. In none of these forms does a small value
    promise good accuracy: over modern networks the two hardly correlate.

    Cost: `(num_restarts + 1) * (num_steps + 1)` gradients and one loss.

    Args:
      loss_fn, params, batches, microbatch_size: as for `climb_sharpness`; with
        `microbatch_size` every sub-batch has its own worst point.
      rho: radius of the ball, a number or a traced scalar. For `adaptive` it is a
        share of the weights: 0.25 to 2 for p = 2 in the paper, far less for infinity.
      key: a JAX random key for the random starts.
      ord: the order p of the norm over the whole tree, 2 or `jnp.inf`; `None` is 2.
      adaptive: whether the ball is stretched by the size of each weight, c = abs(w).
        Weights that are zero do not move.
      num_steps: steps of the ascent from each start.
      num_restarts: random starts beside the parameters themselves; may be 0.

    Returns:
      The rise, a scalar in at least float32; never negative, for the ball holds w.

    Raises:
      TypeError: a leaf that is not real floating-point; a loss that is not a scalar;
        a `microbatch_size` that is no whole number.
      ValueError: a negative rho; an `ord` that is neither 2 nor infinity;
        `num_steps` below 1, or a negative `num_restarts`; parameters without a single
        number; a `microbatch_size` without batches, below 1, or one that does not
        divide them; batches of different sizes; parameters or, outside `jax.jit`, a
        rise that is not finite.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_sam.measure import worst_case_sharpness
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> sharpness = worst_case_sharpness(
      ...     loss, jnp.zeros(2), rho=0.5, key=jax.random.key(0))
      >>> round(float(sharpness), 4)
      0.5

    Reference: Andriushchenko et al. 2023 (arXiv:2302.07011), "A Modern Look at the
      Relationship between Sharpness and Generalization", section 2; Foret et al. 2021
      (arXiv:2010.01412), section 4.1. The ascent is simpler than the Auto-PGD of the
      former: no momentum, and the step is halved whenever it fails.
    """
    check_params(params)
    order = _check_ball(rho, ord, num_steps, num_restarts)
    point, unravel = flatten(params)
    scale = jnp.abs(point) if adaptive else jnp.ones_like(point)
    radius, draw = jnp.asarray(rho, point.dtype), _start_in(order)
    loss = scalar_loss(loss_fn)

    def rise(average: Average) -> jax.Array:
        def flat_loss(u: jax.Array, *batch: Any) -> jax.Array:
            return loss(unravel(point + scale * u), *batch)

        def value_and_grad(u: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = average(lambda *batch: jax.value_and_grad(flat_loss)(u, *batch))
            value, gradient = out
            return widen(value), gradient

        def from_start(i: jax.Array) -> jax.Array:
            random = radius * draw(jax.random.fold_in(key, i), point)
            start = jnp.where(i == 0, 0, random)
            return _highest(value_and_grad, start, radius, order, num_steps)

        highest = jax.lax.map(from_start, jnp.arange(num_restarts + 1))
        return jnp.max(highest) - widen(average(lambda *batch: loss(params, *batch)))

    sharpness = over_sub_batches(rise, batches, microbatch_size)
    check_result(sharpness, "The rise of the loss", TOO_FAR)
    return sharpness


def _highest(
    value_and_grad: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    start: jax.Array,
    radius: jax.Array,
    order: float,
    num_steps: int,
) -> jax.Array:
    """The highest loss on the way up from `start`.

    From the centre the first step, twice the radius, is projected on SAM's climb.
    """

    def step(_: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        u, value, gradient, length = state
        candidate = _project(u + length * dual_vector(gradient, order), radius, order)
        new_value, new_gradient = value_and_grad(candidate)
        higher = (new_value > value) | jnp.isnan(new_value)  # NaN is not hidden
        return (
            jnp.where(higher, candidate, u),
            jnp.where(higher, new_value, value),
            jnp.where(higher, new_gradient, gradient),
            jnp.where(higher, length, length / 2),
        )

    first = (start, *value_and_grad(start), 2 * radius)
    value: jax.Array = jax.lax.fori_loop(0, num_steps, step, first)[1]
    return value


def _project(u: jax.Array, radius: jax.Array, order: float) -> jax.Array:
    """The nearest point of the ball."""
    if math.isinf(order):
        return jnp.clip(u, -radius, radius)
    length = norm(u)
    return u * jnp.where(length > radius, radius / jnp.where(length > 0, length, 1), 1)


def _start_in(order: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return noise_of("uniform" if math.isinf(order) else "sphere")


def _check_ball(
    rho: Any, ord: float | None, num_steps: int, num_restarts: int
) -> float:
    check_rho(rho)
    order = check_ord(ord)
    if order not in (2, math.inf):
        raise ValueError(
            f"worst_case_sharpness projects on the balls of ord=2 and ord=jnp.inf "
            f"only, but was given ord={ord}. One climb has any order: "
            f"climb_sharpness(loss_fn, params, steepest_ascent(rho, ord={ord}))."
        )
    if num_steps < 1 or num_restarts < 0:
        raise ValueError(
            f"worst_case_sharpness was given num_steps={num_steps} and "
            f"num_restarts={num_restarts}, but it takes at least one step, from the "
            f"parameters and from each of 0 or more random points."
        )
    return order
