"""Is SAM doing anything? What the two passes of a step say about it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam._arguments import split_inexact
from optax_sam._ascent.dual import norms_and_cosine, two_norm
from optax_sam._trees import widest_dtype
from optax_sam._types import Tree


class Diagnostics(NamedTuple):
    r"""What was seen in the two passes of a step; scalars in at least float32.

    Over sub-batches and devices each is the average. Norms are 2-norms of the whole
    tree (of this device's part where parameters are split by hand).

    Attributes:
      loss: L(w), the loss at the parameters, where the step made that pass or was
        given `value=`; it is NaN otherwise, as is sharpness. (Under `jax.debug_nans`,
        which stops at every NaN, an infinity stands for what is not known.)
      climbed_loss: L(w + climb).
      sharpness: climbed_loss - loss. Negative: the climb was no climb.
      grad_norm: norm of the clean gradient; NaN where none was taken, as is cosine.
      climbed_grad_norm: norm of the climbed gradient, before `combine`.
      climb_norm: norm of the climb as really applied, after rounding to the dtype of
        the parameters.
      cosine: of the angle between the clean and the climbed gradient; 0 where one is
        zero or not finite.
      num_gradients: how many gradients were taken, of the batch or of a part of it: in
        the optimizer since `init`, in place of `jax.value_and_grad` in this call (by
        `second_order` 1 + 3 for each step of the climb).
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
    # An array for each, since a state may be donated.
    seen = {name: no_loss(params) for name in Diagnostics._fields}
    return Diagnostics(**seen | {"num_gradients": jnp.zeros([], jnp.int32)})


def no_loss(params: Tree) -> jax.Array:
    """The loss before any pass: 0, in at least float32."""
    return jnp.zeros([], loss_dtype(params))


def diagnose(
    params: Tree, clean: Any, last: Any, climb_norm: Any, count: Any
) -> Diagnostics:
    """What two passes and the climb between them show.

    `clean` is `None` where the one pass that was made is the climbed one.
    """

    def scalar(x: Any) -> jax.Array:
        return jnp.asarray(x, loss_dtype(params))

    loss: Any = unknown() if clean is None else clean.value
    seen: Any = unknown(), two_norm(last.gradient), unknown()
    if clean is not None:
        seen = norms_and_cosine(clean.gradient, last.gradient)
    grad_norm, climbed_grad_norm, cosine = seen
    return Diagnostics(
        loss=scalar(loss),
        climbed_loss=scalar(last.value),
        sharpness=scalar(last.value) - scalar(loss),
        grad_norm=scalar(grad_norm),
        climbed_grad_norm=scalar(climbed_grad_norm),
        climb_norm=scalar(climb_norm),
        cosine=scalar(cosine),
        num_gradients=jnp.asarray(count, jnp.int32),
    )


def unknown() -> float:
    """What stands for a number that no pass has shown."""
    # jax.debug_nans stops at every NaN, also at one that says so on purpose.
    return jnp.inf if jax.config.jax_debug_nans else jnp.nan


def loss_dtype(params: Tree) -> Any:
    """The dtype that losses are kept in: that of the parameters, or float32."""
    return widest_dtype(split_inexact(params)[0])
