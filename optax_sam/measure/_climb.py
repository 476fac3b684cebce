"""How much the loss rises in one climb."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from optax_sam._trees import widen
from optax_sam._types import Ascent, Tree
from optax_sam.measure._checks import TOO_FAR, check_params, check_result, scalar_loss
from optax_sam.measure._landscape import moved
from optax_sam.measure._loss import Average, over_sub_batches


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
      TypeError: a leaf that is not real floating-point; a loss that is not a scalar;
        a `microbatch_size` that is no whole number.
      ValueError: parameters without a single number; a `microbatch_size` without
        batches, below 1, or one that does not divide them; batches of different sizes;
        parameters or, outside `jax.jit`, a rise that is not finite.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> from optax_sam.measure import climb_sharpness
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> ascent = optax_sam.steepest_ascent(rho=0.5)
      >>> round(float(climb_sharpness(loss, jnp.array([3.0, 1.0]), ascent)), 4)
      2.865

    Reference: Foret et al. 2021 (arXiv:2010.01412), equations 1 and 2; section 4.1 for
      m-sharpness.
    """
    check_params(params)
    loss = scalar_loss(loss_fn)
    climber = optax.with_extra_args_support(ascent)

    def rise(average: Average) -> jax.Array:
        def value_and_grad(*batch: Any) -> Tree:
            return jax.value_and_grad(loss)(params, *batch)

        value: jax.Array
        value, gradient = average(value_and_grad)
        wide = jax.tree.map(widen, gradient)
        climb, _ = climber.update(wide, climber.init(params), params, value=value)
        point = moved(params, 1, climb)
        climbed = widen(average(lambda *batch: loss(point, *batch)))
        return climbed - widen(value)

    sharpness = over_sub_batches(rise, batches, microbatch_size)
    check_result(sharpness, "The rise of the loss", TOO_FAR)
    return sharpness
