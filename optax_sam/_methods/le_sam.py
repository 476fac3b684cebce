"""LE-SAM: climb as far as a budget of loss allows."""

from typing import Unpack

from optax_sam._ascent import loss_equated_ascent
from optax_sam._core.options import ClimbOptions, product
from optax_sam._core.sharpness_aware import sharpness_aware
from optax_sam._core.transformation import SharpnessAware
from optax_sam._types import Rho


@product
def le_sam(
    budget: Rho,
    *,
    rho_max: Rho,
    ord: float | None = None,
    of_loss: bool = False,
    **options: Unpack[ClimbOptions],
) -> SharpnessAware:
    r"""LE-SAM: SAM with a budget of loss instead of a radius.

    .. math:: g \mapsto \nabla L\!\left(w + \rho \frac{g}{\|g\|_2}\right), \quad
              \rho = \min\left(\frac{b}{\|g\|_2}, \rho_{\max}\right)

    SAM's climb raises the linearized loss by rho times the norm of the gradient, which
    falls in the course of training; this one raises it by b.

    Only the abstract of the paper could be verified; see `loss_equated_ascent`.

    Args:
      budget: b, how much the linearized loss is to rise (with `of_loss` a share of
        the loss). A number, a traced scalar or a schedule of the step.
      rho_max: the largest radius: as `budget`, a number or a schedule. `jnp.inf` is no
        cap.
      ord: the order p of the norm in [1, inf], a Python number; `None` is 2. The
        gradient is then measured in the dual norm.
      of_loss: whether the budget is a share of the clean loss, each sub-batch's of its
        own. With a gradient that comes in, `update` needs that loss, too: `value=`.
      when, diagnostics, has_aux, num_steps, climb_dtype, scan_passes, ignore_updates,
        microbatch_size, axis_name, mesh, at_once, unroll: as for `sharpness_aware`.
        With `num_steps` each step has its share of the budget, and of `rho_max`.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`.

    Raises:
      ValueError: a negative budget or `rho_max`, or an `ord` below 1, given as a
        number; `of_loss` with a gradient that comes in without `value=`; `update`
        raises as `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> w = jnp.array([3.0, 1.0])
      >>> tx = optax_sam.le_sam(budget=2.5, rho_max=1.0)
      >>> tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)[0]
      Array([3.3, 5.6], dtype=float32)

    Reference: LE-SAM (ICML 2026), arXiv:2605.10183, abstract.
    """
    ascent = loss_equated_ascent(budget, rho_max=rho_max, ord=ord, of_loss=of_loss)
    return sharpness_aware(ascent, **options)
