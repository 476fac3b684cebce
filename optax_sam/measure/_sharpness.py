"""How much higher is the loss nearby? After one climb, at worst, on average."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_sam._ascent.dual import check_ord, dual_vector, widen
from optax_sam._ascent.radius import check_rho
from optax_sam._lanczos import norm
from optax_sam._types import Ascent, Scalar, Tree
from optax_sam.measure._checks import (
    check_params,
    check_result,
    check_samples,
    scalar_loss,
)
from optax_sam.measure._estimate import Estimate, estimate
from optax_sam.measure._flat import flatten
from optax_sam.measure._landscape import moved
from optax_sam.measure._loss import Average, averaging

_TOO_FAR = (
    "The loss overflows within this distance, or at the parameters themselves: look "
    "at loss_fn(params), and choose a smaller rho."
)


def climb_sharpness(
    loss_fn: Callable[..., Any],
    params: Tree,
    ascent: Ascent,
    *,
    batches: Any = None,
    microbatch_size: int | None = None,
) -> jax.Array:
    r"""How much the loss rises in one climb: the sharpness that SAM itself sees.

    .. math:: L(w + \epsilon) - L(w), \quad \epsilon = a(\nabla L(w))

    A lower bound of the worst case in the same ball, at the price of one gradient and
    one loss. With `microbatch_size` every sub-batch climbs by itself and its own rise
    is averaged: m-sharpness.

    Args:
      loss_fn: `loss_fn(params)` or, with `batches`, `loss_fn(params, batch)` returns
        a scalar.
      params: a tree of real floating-point leaves; `None` leaves are left alone.
      ascent: from a gradient to a climb, e.g. `optax_sam.steepest_ascent(rho)`; its
        state is the one that `init` gives.
      batches: the data, where one batch is too small for them: a list or an iterator
        of batches of one size, or one tree of them stacked along a new first axis.
        The loss is the mean over the batches; they are visited one at a time.
      microbatch_size: the paper's m, the number of examples that climb together; it
        divides the batches. `None`: all batches together climb once.

    Returns:
      The rise, a scalar in at least float32.

    Raises:
      TypeError: a leaf that is not real floating-point; a loss that is not a scalar.
      ValueError: parameters without a single number; a `microbatch_size` without
        batches, or one that does not divide them; batches of different sizes;
        parameters or, outside `jax.jit`, a rise that is not finite.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> from optax_sam.measure import climb_sharpness
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> ascent = optax_sam.steepest_ascent(rho=0.5)
      >>> round(float(climb_sharpness(loss, jnp.array([3.0, 1.0]), ascent)), 4)
      2.865

    Reference: Foret et al. 2021, equations 1 and 2; section 4.1 for m-sharpness.
    """
    check_params(params)
    loss = scalar_loss(loss_fn)

    def rise(average: Average) -> jax.Array:
        def value_and_grad(*batch: Any) -> Tree:
            return jax.value_and_grad(loss)(params, *batch)

        value: jax.Array
        value, gradient = average(value_and_grad)
        wide = jax.tree.map(widen, gradient)
        climb, _ = ascent.update(wide, ascent.init(params), params)
        point = moved(params, 1, climb)
        climbed = widen(average(lambda *batch: loss(point, *batch)))
        return climbed - value

    sharpness = _over_sub_batches(rise, batches, microbatch_size)
    check_result(sharpness, "The rise of the loss", _TOO_FAR)
    return sharpness


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

    The maximum is sought by projected gradient ascent, from SAM's climb and from
    random points of the ball. A step that does not raise the loss is taken back and
    halved, and what counts is the highest loss seen: never less than
    `climb_sharpness` with the ascent of the same ball, which is `steepest_ascent(rho,
    ord=ord)` or `adaptive_ascent(rho, ord=ord, eta=0, mask=True)`. It remains a lower
    bound: more steps and restarts find more, so report them with it.

    The adaptive form does not change when weights are scaled in a way that leaves the
    network's function as it was, the plain one does. Both grow with the logits:
    `normalize_logits` removes that scale. In none of these forms does a small value
    promise good accuracy: over modern networks the two hardly correlate.

    Cost: `(num_restarts + 1) * (num_steps + 1) + 1` gradients of all the batches.

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
      num_restarts: random starts beside SAM's climb; 0 is only that.

    Returns:
      The rise, a scalar in at least float32; never negative, for the ball holds w.

    Raises:
      TypeError: a leaf that is not real floating-point; a loss that is not a scalar.
      ValueError: a negative rho; an `ord` that is neither 2 nor infinity; negative
        counts; parameters without a single number; a `microbatch_size` without
        batches, or one that does not divide them; batches of different sizes;
        parameters or, outside `jax.jit`, a rise that is not finite.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_sam.measure import worst_case_sharpness
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> sharpness = worst_case_sharpness(
      ...     loss, jnp.zeros(2), rho=0.5, key=jax.random.key(0))
      >>> round(float(sharpness), 4)
      0.5

    Reference: Andriushchenko et al. 2023, "A Modern Look at the Relationship between
      Sharpness and Generalization", section 2; Foret et al. 2021, section 4.1. The
      ascent is simpler than the Auto-PGD of the former: no momentum, and the step is
      halved whenever it fails.
    """
    check_params(params)
    order = _check_ball(rho, ord, num_steps, num_restarts)
    point, unravel = flatten(params)
    scale = jnp.abs(point) if adaptive else jnp.ones_like(point)
    loss = scalar_loss(loss_fn)

    def rise(average: Average) -> jax.Array:
        def flat_loss(u: jax.Array, *batch: Any) -> jax.Array:
            return loss(unravel(point + scale * u), *batch)

        def value_and_grad(u: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = average(lambda *batch: jax.value_and_grad(flat_loss)(u, *batch))
            value, gradient = out
            return widen(value), gradient

        clean, gradient = value_and_grad(jnp.zeros_like(point))
        climb = rho * dual_vector(gradient, order)
        ascend = functools.partial(
            _ascend, value_and_grad, rho=rho, order=order, num_steps=num_steps
        )

        def from_start(i: jax.Array) -> jax.Array:
            random = _in_ball(jax.random.fold_in(key, i), point, rho, order)
            return ascend(jnp.where(i == 0, climb, random))

        worst = jax.lax.map(from_start, jnp.arange(num_restarts + 1))
        return jnp.maximum(jnp.max(worst), clean) - clean

    sharpness = _over_sub_batches(rise, batches, microbatch_size)
    check_result(sharpness, "The rise of the loss", _TOO_FAR)
    return sharpness


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

    Reference: Andriushchenko et al. 2023, "A Modern Look at the Relationship between
      Sharpness and Generalization", section 2.
    """
    check_params(params)
    check_rho(rho)
    check_samples("average_sharpness", num_samples)
    draw = _noise(noise)
    point, unravel = flatten(params)
    scale = jnp.abs(point) if adaptive else jnp.ones_like(point)
    average, loss = averaging(batches), scalar_loss(loss_fn)

    def value(u: jax.Array) -> jax.Array:
        at = unravel(point + scale * u)
        return widen(average(lambda *batch: loss(at, *batch)))

    clean = value(jnp.zeros_like(point))
    rise = estimate(lambda key: value(rho * draw(key, point)) - clean, key, num_samples)
    check_result(rise, "The rise of the loss", _TOO_FAR)
    return rise


def _over_sub_batches(
    measure: Callable[[Average], jax.Array], batches: Any, microbatch_size: int | None
) -> jax.Array:
    """Of the mean loss, or the mean over the losses of sub-batches."""
    average = averaging(batches, microbatch_size)
    if microbatch_size is None:
        return measure(average)
    value: jax.Array = average(lambda batch: measure(lambda f: f(batch)))
    return value


def _ascend(
    value_and_grad: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    start: jax.Array,
    *,
    rho: Scalar,
    order: float,
    num_steps: int,
) -> jax.Array:
    """The highest loss on the way up from `start`."""

    def step(_: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        u, value, gradient, length = state
        candidate = _project(u + length * dual_vector(gradient, order), rho, order)
        new_value, new_gradient = value_and_grad(candidate)
        higher = (new_value > value) | jnp.isnan(new_value)  # NaN is not hidden
        return (
            jnp.where(higher, candidate, u),
            jnp.where(higher, new_value, value),
            jnp.where(higher, new_gradient, gradient),
            jnp.where(higher, length, length / 2),
        )

    first = (start, *value_and_grad(start), jnp.asarray(2 * rho, start.dtype))
    value: jax.Array = jax.lax.fori_loop(0, num_steps, step, first)[1]
    return value


def _project(u: jax.Array, rho: Scalar, order: float) -> jax.Array:
    """The nearest point of the ball."""
    if math.isinf(order):
        return jnp.clip(u, -rho, rho)
    length = norm(u)
    return u * jnp.where(length > rho, rho / jnp.where(length > 0, length, 1), 1)


def _in_ball(key: jax.Array, like: jax.Array, rho: Scalar, order: float) -> jax.Array:
    return rho * _noise("uniform" if math.isinf(order) else "sphere")(key, like)


def _noise(noise: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    def normal(key: jax.Array, like: jax.Array) -> jax.Array:
        return jax.random.normal(key, like.shape, like.dtype)

    def uniform(key: jax.Array, like: jax.Array) -> jax.Array:
        return jax.random.uniform(key, like.shape, like.dtype, -1, 1)

    def sphere(key: jax.Array, like: jax.Array) -> jax.Array:
        z = normal(key, like)
        return z / norm(z)

    kinds = {"normal": normal, "uniform": uniform, "sphere": sphere}
    if noise not in kinds:
        raise ValueError(
            f"average_sharpness does not know noise={noise!r}. Choose one of "
            f"{', '.join(map(repr, kinds))}."
        )
    return kinds[noise]


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
    if num_steps < 0 or num_restarts < 0:
        raise ValueError(
            f"worst_case_sharpness was given num_steps={num_steps} and "
            f"num_restarts={num_restarts}. Both are counts: 0 or more."
        )
    return order
