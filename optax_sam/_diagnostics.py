"""Is SAM doing anything? What the two passes of a step say about it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam._ascent.dual import dot, dual_vector, two_norm, widen
from optax_sam._checks import matching
from optax_sam._passes import Evaluation
from optax_sam._types import Tree


class Diagnostics(NamedTuple):
    r"""What was seen in the two passes of a step; scalars in at least float32.

    Over sub-batches and devices each is the average. Norms are 2-norms of the whole
    tree (of this device's part where parameters are split by hand).

    Attributes:
      loss: L(w), the loss at the parameters. Door 1 knows it from `value=`, or where
        it computes the clean gradient itself; it is NaN otherwise, as is sharpness.
      climbed_loss: L(w + climb).
      sharpness: climbed_loss - loss. Negative: the climb was no climb.
      grad_norm: norm of the clean gradient.
      climbed_grad_norm: norm of the climbed gradient, before `combine`.
      climb_norm: norm of the climb as really applied, after rounding to the dtype of
        the parameters.
      cosine: of the angle between the clean and the climbed gradient; 0 where one is
        zero or not finite.
      num_gradients: how many gradients of the batch were taken so far: at door 1
        since `init`, at door 2 in this call (4 with `second_order`).
    """

    loss: jax.Array
    climbed_loss: jax.Array
    sharpness: jax.Array
    grad_norm: jax.Array
    climbed_grad_norm: jax.Array
    climb_norm: jax.Array
    cosine: jax.Array
    num_gradients: jax.Array


def no_diagnostics(params: Tree) -> Diagnostics:
    """Those of a training that has not begun: zeros."""
    seen = dict.fromkeys(Diagnostics._fields, no_loss(params))
    return Diagnostics(**seen | {"num_gradients": jnp.zeros([], jnp.int32)})


def no_loss(params: Tree) -> jax.Array:
    """The loss before any pass: 0, in at least float32."""
    return jnp.zeros([], _dtype(params))


def diagnose(
    clean: Evaluation, climbed: Evaluation, params: Tree, point: Tree, count: int
) -> Diagnostics:
    """What a clean pass at `params` and a climbed one at `point` show."""
    start = matching(params, clean.gradient)
    climb = jax.tree.map(lambda q, p: widen(q) - widen(p), point, start)
    dtype = _dtype(params)

    def scalar(x: Any) -> jax.Array:
        return jnp.asarray(x, dtype)

    return Diagnostics(
        loss=scalar(clean.value),
        climbed_loss=scalar(climbed.value),
        sharpness=scalar(climbed.value) - scalar(clean.value),
        grad_norm=scalar(two_norm(clean.gradient)),
        climbed_grad_norm=scalar(two_norm(climbed.gradient)),
        climb_norm=scalar(two_norm(climb)),
        cosine=scalar(dot(*map(dual_vector, (clean.gradient, climbed.gradient)))),
        num_gradients=jnp.asarray(count, jnp.int32),
    )


def _dtype(params: Tree) -> Any:
    return jnp.result_type(jnp.float32, *jax.tree.leaves(params))
