"""Door 1: SAM as an Optax transformation, for who owns the optimizer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from optax_sam import _devices
from optax_sam._checks import check_leaves, checked_loss
from optax_sam._climb import Climber
from optax_sam._m_sharpness import m_sharpness
from optax_sam._sub_batches import fold_keys
from optax_sam._types import Ascent, AxisName, Combine, Tree

Update = Callable[[Tree, Any, Tree, Any, Callable[..., Any]], tuple[Tree, Any]]


def sharpness_aware(
    ascent: Ascent,
    *,
    combine: Combine | None = None,
    has_aux: bool = False,
    num_steps: int | None = None,
    climb_dtype: Any = None,
    microbatch_size: int | None = None,
    axis_name: AxisName | None = None,
    mesh: Mesh | None = None,
    at_once: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Replace the gradient by the one at the climbed parameters.

    .. math:: g \mapsto \nabla L(w + \epsilon), \quad \epsilon = a(g)

    It stands first in a chain: what stands behind it clips, scales and steps with
    the climbed gradient. Its state is the ascent's own.

    Args:
      ascent: from a gradient to a climb, e.g. `steepest_ascent(rho)`.
      combine: a function of the clean and the climbed gradient that gives the one
        to return; `None` is the climbed one.
      has_aux: whether `value_fn` returns `(value, aux)`. The climbed aux is
        discarded: keep that of your own clean pass.
      num_steps: how many steps the climb takes, of rho / num_steps each (`None` is
        1); every one is a gradient.
      climb_dtype: the dtype of the climbed copy of the parameters, e.g. `jnp.float32`
        where half precision would round the climb away; `None` is their own.
      microbatch_size: the paper's m: the examples in each sub-batch that climbs by
        itself; see `m_sharpness`. Clean gradients are then computed inside.
      axis_name: the mapped axis whose devices climb by themselves. The average over
        them is taken here.
      mesh: the mesh of `axis_name`, to be used from plain `jit`.
      at_once: how many sub-batches are run side by side.

    Returns:
      A transformation with `update(updates, state, params, *, value_fn, batch=None,
      **extra_args)`. `updates` is the clean gradient at `params`; with `axis_name`
      alone it is this device's, taken at `per_device(params, axis_name)`; with
      `microbatch_size` or `mesh` it is ignored, and `None` will do. `value_fn(params)`
      is the loss of this step's batch or, when `batch` is given,
      `value_fn(params, batch)`. Other extra arguments are for the neighbours. Where
      `updates` is `None` for a leaf, that parameter stays where it is.

    Raises:
      TypeError: `update` without `value_fn`; a `value_fn` that is not a scalar, or
        returns a tuple without `has_aux`; leaves that are not floating-point.
      ValueError: `update` without `params`; gradient and parameters of different
        structure; holes left by `optax.masked` or `optax.partition` around it; what
        `m_sharpness` and `mean_over` refuse; an ascent whose state would come to
        differ between devices (name the axis here: `axis_name=`).

    Example:
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> tx = optax.chain(
      ...     optax_sam.sharpness_aware(optax_sam.steepest_ascent(rho=0.5)),
      ...     optax.sgd(0.1))
      >>> params = jnp.array([3.0, 1.0])
      >>> updates, state = tx.update(
      ...     jax.grad(loss)(params), tx.init(params), params, value_fn=loss)
      >>> optax.apply_updates(params, updates)
      Array([2.67, 0.44], dtype=float32)

    Reference: Foret et al. 2021, algorithm 1.
    """
    climber = Climber(ascent, combine, has_aux, num_steps, climb_dtype)
    if microbatch_size is None and mesh is None:
        evaluate = _from_gradient(climber, axis_name)
    else:
        evaluate = _from_batch(climber, microbatch_size, axis_name, mesh, at_once)

    def update(
        updates: Tree,
        state: Any,
        params: Tree | None = None,
        *,
        value_fn: Callable[..., Any] | None = None,
        batch: Any = None,
        **extra_args: Any,
    ) -> tuple[Tree, Any]:
        del extra_args  # for the neighbours in the chain
        if value_fn is None:
            raise TypeError(
                "SAM takes a second gradient, so `update` needs the loss of this step: "
                "update(grads, state, params, value_fn=lambda p: loss_fn(p, batch))."
            )
        if params is None:
            raise ValueError(
                "SAM climbs from the parameters, so `update` needs them; got "
                "params=None. Write update(grads, state, params, value_fn=...)."
            )
        return evaluate(updates, state, params, batch, checked_loss(value_fn, has_aux))

    return optax.GradientTransformationExtraArgs(ascent.init, update)


def _from_gradient(climber: Climber, axis_name: AxisName | None) -> Update:
    """Climb from the clean gradient that comes in."""

    def update(
        updates: Tree,
        state: Any,
        params: Tree,
        batch: Any,
        value_fn: Callable[..., Any],
    ) -> tuple[Tree, Any]:
        if updates is None:
            raise ValueError(
                "SAM climbs from the clean gradient, and updates=None holds none: "
                "write update(jax.grad(value_fn)(params), state, params, "
                "value_fn=value_fn). "
                "With microbatch_size= or mesh= it is computed inside."
            )
        check_leaves(params, updates)

        def loss(point: Tree) -> Any:
            out = value_fn(point) if batch is None else value_fn(point, batch)
            if axis_name is not None:
                value = out[0] if climber.has_aux else out
                _devices.refuse_averaged_value(value, axis_name)
            return out

        if axis_name is None:
            gradient, new_state = climber.gradient(loss, updates, state, params)
            _devices.refuse_diverging(state, new_state)
            return gradient, new_state
        names = _devices.axis_names(axis_name)
        _devices.refuse_unvarying(updates, names, "gradient")
        # A random ascent draws a climb for each sub-batch.
        local_state = fold_keys(state, jax.lax.axis_index(names))
        gradient, _ = climber.gradient(loss, updates, local_state, params)
        gradient, clean = _devices.mean((gradient, updates), names)
        return gradient, _next_state(climber.ascent, clean, state, params)

    return update


def _from_batch(
    climber: Climber,
    microbatch_size: int | None,
    axis_name: AxisName | None,
    mesh: Mesh | None,
    at_once: int | None,
) -> Update:
    """Compute the clean gradients inside, sub-batch by sub-batch."""
    averaged = m_sharpness(
        partial(_clean_and_climbed, climber),
        microbatch_size=microbatch_size,
        axis_name=axis_name,
        mesh=mesh,
        at_once=at_once,
    )

    def update(
        updates: Tree,
        state: Any,
        params: Tree,
        batch: Any,
        value_fn: Callable[..., Any],
    ) -> tuple[Tree, Any]:
        del updates
        check_leaves(params, params)
        if batch is None:
            raise ValueError(
                "With microbatch_size= or mesh= SAM splits the batch itself, so it "
                "must see it: update(None, state, params, value_fn=loss_fn, "
                "batch=batch), with loss_fn(params, batch)."
            )
        _, (gradient, clean) = averaged(params, batch, value_fn, state)
        return gradient, _next_state(climber.ascent, clean, state, params)

    return update


def _clean_and_climbed(
    climber: Climber, params: Tree, batch: Any, value_fn: Callable[..., Any], state: Any
) -> tuple[Any, Tree]:
    """Both gradients of one sub-batch, in the form that `m_sharpness` averages."""

    def loss(point: Tree) -> Any:
        return value_fn(point, batch)

    out, clean = jax.value_and_grad(loss, has_aux=climber.has_aux)(params)
    value = out[0] if climber.has_aux else out
    return value, (climber.gradient(loss, clean, state, params)[0], clean)


def _next_state(ascent: Ascent, clean: Tree, state: Any, params: Tree) -> Any:
    # From averaged quantities: the same on every device, however examples are placed.
    # For a stateless ascent this is dead code, and so is the average of `clean`.
    return ascent.update(clean, state, params)[1]
