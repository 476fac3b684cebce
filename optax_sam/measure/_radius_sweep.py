"""What a climb does to the loss and to its gradient, from radius to radius."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam._ascent.dual import norms_and_cosine, two_norm
from optax_sam._checks import check_ascent
from optax_sam._core.diagnostics import unknown
from optax_sam._core.method import has_state
from optax_sam._trees import add_scaled, dot, widen, zeros_in_float32
from optax_sam._types import Ascent, Scalar, Tree
from optax_sam.measure._checks import check_params, check_result, scalar_loss
from optax_sam.measure._estimate import Estimate
from optax_sam.measure._loss import stack


class RadiusSweep(NamedTuple):
    r"""What climbs of several radii do, each the mean over the batches.

    All but `rhos` are an `Estimate`: a mean and its standard error over the batches,
    which is NaN where there are fewer than two. Arrays have shape (number of radii,),
    in at least float32.

    Attributes:
      rhos: the radii.
      loss: L(w), the same for all radii: a scalar.
      climbed_loss: L(w + climb).
      rise: climbed_loss - loss, taken batch by batch.
      predicted_rise: inner product of gradient and climb, the rise of a linear loss.
      cosine: of the angle between the clean and the climbed gradient; 0 where one is
        zero or not finite.
      climb_norm: 2-norm of the climb as really applied, after rounding to the dtype of
        the parameters.
    """

    rhos: jax.Array
    loss: Estimate
    climbed_loss: Estimate
    rise: Estimate
    predicted_rise: Estimate
    cosine: Estimate
    climb_norm: Estimate


def radius_sweep(
    loss_fn: Callable[..., Any],
    params: Tree,
    ascent_of_rho: Callable[[Scalar], Ascent],
    rhos: Any,
    *,
    batches: Any = None,
) -> RadiusSweep:
    r"""What one climb does at every radius: how far it rises, how far it turns.

    .. math:: L(w + \epsilon_\rho) - L(w), \quad \langle g, \epsilon_\rho \rangle,
              \quad \cos(g, \nabla L(w + \epsilon_\rho)),
              \quad \epsilon_\rho = a_\rho(g), \ g = \nabla L(w)

    A check of rho, not a choice: where the rise is the predicted one and the cosine is
    1, the climb has changed nothing that SAM could use, and where the cosine is near 0
    or negative, the climbed gradient tells little about w. Every batch climbs by
    itself, so the size of a batch is the paper's m: for SAM hand over batches of the
    size trained with, for m-SAM batches of m examples. (Of *training* data, which is
    where SAM climbs.)

    Batches and radii are visited one after the other, in one program that is compiled
    once, with the memory of two gradients. Cost: len(batches) * (1 + len(rhos))
    gradients.

    Args:
      loss_fn: `loss_fn(params)` or, with `batches`, `loss_fn(params, batch)` returns
        a scalar.
      params: a tree of real floating-point leaves; `None` leaves are left alone.
      ascent_of_rho: from a radius, which is traced, to an ascent without a state:
        `optax_sam.steepest_ascent`, or `lambda rho: adaptive_ascent(rho, eta=0.01)`.
        One that takes `value=` is told the clean loss of its batch.
      rhos: the radii, non-negative, a sequence or an array of shape (n,).
      batches: a list or an iterator of batches of one size, or one tree of them
        stacked along a new first axis. What comes out is the mean over them.

    Returns:
      A `RadiusSweep`. Losses may be infinite, or NaN, at radii that are too large.

    Raises:
      TypeError: a leaf that is not real floating-point; a loss that is not a scalar;
        an `ascent_of_rho` that gives no ascent.
      ValueError: radii that are not one-dimensional, none at all, or negative; an
        ascent with a state; parameters without a single number; batches of different
        sizes; parameters or, outside `jax.jit`, a clean loss that is not finite.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> from optax_sam.measure import radius_sweep
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> w = jnp.array([3.0, 1.0])
      >>> sweep = radius_sweep(loss, w, optax_sam.steepest_ascent, [0.05, 0.5])
      >>> sweep.predicted_rise.mean
      Array([0.25, 2.5 ], dtype=float32)
      >>> jnp.round(sweep.rise.mean, 4)
      Array([0.2536, 2.865 ], dtype=float32)

    Reference: Foret et al. 2021 (arXiv:2010.01412), equations 1 and 2, of which
      `predicted_rise` is the first-order term.
    """
    check_params(params)
    radii = _check_radii(rhos)
    _check_ascent(ascent_of_rho, radii, params)
    loss = scalar_loss(loss_fn)

    def of_batch(*batch: Any) -> Tree:
        return _climbs(loss, params, ascent_of_rho, radii, batch)

    if batches is None:
        rows = jax.tree.map(lambda x: x[None], of_batch())
    else:
        rows = jax.lax.map(of_batch, stack(batches))
    sweep = _means(radii, *rows)
    check_result(sweep.loss.mean, "The loss", "Look at loss_fn(params).")
    return sweep


def _climbs(
    loss: Callable[..., jax.Array],
    params: Tree,
    ascent_of_rho: Callable[[Scalar], Ascent],
    radii: jax.Array,
    batch: tuple[Any, ...],
) -> Tree:
    """Values, predicted rises, cosines and norms: of no climb, then of each radius.

    The clean pass is the first trip of the same loop: so the loss is compiled once,
    and a climb that is zero gives the very same number.
    """

    def trip(clean: Tree, now: tuple[jax.Array, jax.Array]) -> tuple[Tree, Tree]:
        rho, first = now
        clean_loss, gradient = clean
        ascent = optax.with_extra_args_support(ascent_of_rho(rho))
        start = ascent.init(params)
        climb, _ = ascent.update(gradient, start, params, value=clean_loss)
        climb = jax.tree.map(lambda e: jnp.where(first, jnp.zeros_like(e), e), climb)
        point = add_scaled(params, climb, 1)
        value, climbed = jax.tree.map(widen, jax.value_and_grad(loss)(point, *batch))
        here = value.astype(clean_loss.dtype), climbed
        clean = jax.tree.map(lambda x, y: jnp.where(first, x, y), here, clean)
        cosine = norms_and_cosine(clean[1], climbed)[2]
        applied = jax.tree.map(lambda p, w: widen(p) - widen(w), point, params)
        return clean, (value, dot(clean[1], climb), cosine, two_norm(applied))

    first = jnp.arange(radii.size + 1) == 0
    steps = jnp.concatenate([jnp.zeros_like(radii[:1]), radii]), first
    nothing = jnp.zeros([], radii.dtype), zeros_in_float32(params)
    return jax.lax.scan(trip, nothing, steps)[1]


def _means(
    radii: jax.Array, values: Any, predicted: Any, cosines: Any, norms: Any
) -> RadiusSweep:
    """Rows are batches; columns are no climb, then the radii."""

    def estimate(rows: jax.Array) -> Estimate:
        count = rows.shape[0]
        mean = jnp.mean(rows, axis=0)
        if count < 2:
            return Estimate(mean, jnp.full_like(mean, unknown()))
        return Estimate(mean, jnp.std(rows, axis=0, ddof=1) / count**0.5)

    clean, climbed = values[:, 0], values[:, 1:]
    return RadiusSweep(
        rhos=radii,
        loss=estimate(clean),
        climbed_loss=estimate(climbed),
        rise=estimate(climbed - clean[:, None]),
        predicted_rise=estimate(predicted[:, 1:]),
        cosine=estimate(cosines[:, 1:]),
        climb_norm=estimate(norms[:, 1:]),
    )


def _check_radii(rhos: Any) -> jax.Array:
    radii = jnp.asarray(rhos, float)
    if radii.ndim != 1 or radii.size == 0:
        raise ValueError(
            f"radius_sweep was given rhos of shape {radii.shape}, but it visits one "
            f"radius after the other. Give a sequence of numbers, e.g. "
            f"jnp.geomspace(0.01, 1, 9); one radius is [0.05]."
        )
    if not isinstance(radii, jax.core.Tracer) and not bool(np.all(radii >= 0)):
        raise ValueError(
            f"radius_sweep was given rhos that are negative or undefined: {rhos}. A "
            f"radius is a distance, 0 or more: jnp.geomspace(0.01, 1, 9)."
        )
    return radii


def _check_ascent(
    ascent_of_rho: Callable[[Scalar], Ascent], radii: jax.Array, params: Tree
) -> None:
    if not callable(ascent_of_rho):
        raise TypeError(
            f"radius_sweep makes an ascent for every radius, but ascent_of_rho is "
            f"{type(ascent_of_rho).__name__}, which cannot be called. Give the "
            f"function itself: optax_sam.steepest_ascent, or "
            f"lambda rho: adaptive_ascent(rho, eta=0.01)."
        )
    ascent = ascent_of_rho(radii[0])
    check_ascent(ascent)
    if has_state(jax.eval_shape(ascent.init, params)):
        raise ValueError(
            "This ascent keeps a state (a schedule, a random key or an average), but "
            "radius_sweep looks at one step, without those before it. Give the ascent "
            "behind it: steepest_ascent for friendly_ascent, and for a schedule "
            "steepest_ascent too, with the schedule's values among the rhos."
        )
