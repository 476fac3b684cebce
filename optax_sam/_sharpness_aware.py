"""Door 1: SAM as an Optax transformation, for who owns the optimizer."""

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from optax_sam._climb import Climber, has_state
from optax_sam._diagnostics import Diagnostics, no_diagnostics
from optax_sam._local import Averaged, Given, SubBatches, transformation
from optax_sam._passes import Passes
from optax_sam._types import Ascent, AxisName, Combine, SharpnessAware, Tree


class SharpnessAwareState(NamedTuple):
    """The ascent's own state, and what was seen in the last step."""

    ascent: Any
    diagnostics: Diagnostics


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
    diagnostics: bool = False,
) -> SharpnessAware:
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
      diagnostics: keep a `Diagnostics` of the last step in the state, found by
        `optax.tree.get(state, "diagnostics")`; no further pass is made.

    Returns:
      A transformation with `update(updates, state, params, *, value_fn, batch=None,
      value=None, climb=True, **extra_args)`. `updates` is the clean gradient at
      `params`; with `axis_name` alone it is this device's, taken at
      `per_device(params, axis_name)`; with `microbatch_size` or `mesh` it is ignored,
      and `None` will do. Where it is `None` for a leaf, that parameter stays where it
      is. `value_fn(params)` is the loss of this step's batch or, when `batch` is
      given, `value_fn(params, batch)`. `value` is the clean loss, for `diagnostics`
      alone. With `climb=False`, which is what the policies say (`every_k`, ...), the
      averaged clean gradient comes out and the ascent's state stays. Other extra
      arguments are for the neighbours.

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
    climber = Climber(ascent, combine, num_steps, climb_dtype, diagnostics)
    sub_batches = SubBatches(has_aux, microbatch_size, axis_name, mesh, at_once)

    def init(params: Tree) -> Any:
        state = ascent.init(params)
        if not diagnostics:
            return state
        return SharpnessAwareState(state, no_diagnostics(params))

    def step(given: Given, state: Any) -> tuple[Tree, Any]:
        sub_batches.check_clean(given)
        old = state.ascent if diagnostics else state
        local = (
            partial(_both_passes, climber)
            if given.climb
            else partial(_clean_pass, climber)
        )
        (_, report), (gradient, clean) = sub_batches.average(local, given, old)
        new = climber.next_state(old, clean, given.params) if given.climb else old
        if not diagnostics:
            return gradient, new
        seen = report.num_gradients + state.diagnostics.num_gradients
        count = jnp.asarray(seen, jnp.int32)
        return gradient, SharpnessAwareState(new, report._replace(num_gradients=count))

    return transformation(init, step)


def _both_passes(climber: Climber, passes: Passes, state: Any) -> Averaged:
    out = climber.climb(passes, state)
    # The next state needs the average of the clean gradients, if there is a state.
    clean = out.clean.gradient if has_state(state) else None
    return (out.clean.value, out.diagnostics), (out.gradient, clean)


def _clean_pass(climber: Climber, passes: Passes, state: Any) -> Averaged:
    del state
    out = climber.stay(passes)
    return (out.clean.value, out.diagnostics), (out.gradient, None)
