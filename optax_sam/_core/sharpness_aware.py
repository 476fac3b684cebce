"""In the optimizer: SAM from its slots, an ascent and a combine."""

from typing import Any, Unpack

from optax_sam._core.method import climbing
from optax_sam._core.options import Options, product
from optax_sam._core.transformation import SharpnessAware, transformation
from optax_sam._types import Ascent, Combine


@product
def sharpness_aware(
    ascent: Ascent,
    *,
    combine: Combine | None = None,
    num_steps: int | None = None,
    climb_dtype: Any = None,
    scan_passes: bool = False,
    **options: Unpack[Options],
) -> SharpnessAware:
    r"""Replace the gradient by the one at the climbed parameters.

    .. math:: g \mapsto \nabla L(w + \epsilon), \quad \epsilon = a(g)

    It stands first in a chain: what stands behind it clips, scales and steps with
    the climbed gradient.

    Args:
      ascent: from a gradient to a climb, e.g. `steepest_ascent(rho)`. One that takes
        `value=` is told the clean loss of the sub-batch. It must climb: an
        optimizer (`optax.sgd(0.1)`), whose updates point downhill, descends here
        without a word, and diagnostics show a negative sharpness, as they do where an
        optimizer stands in front of SAM, `optax.chain(optax.adam(1e-3), sam(rho))`:
        SAM comes first.
      combine: a function of the clean and the climbed gradient that gives the one
        to return; `None` is the climbed one.
      num_steps: how many steps the climb takes, of rho / num_steps each (`None` is
        1); every one is a gradient.
      climb_dtype: the dtype of the climbed copy of the parameters, e.g. `jnp.float32`
        where half precision would round the climb away; `None` is their own.
      scan_passes: make the passes of a step in one loop, so that the model is in the
        program once, which is then hardly larger than that of plain training, and
        compiles as fast; also under `when`. Gradients are taken inside: `update(None,
        ...)`. For large models; "Large models" in the documentation has what it gains
        where. On a CPU never for convolutional networks, which XLA runs slowly inside
        of a loop. Not together with `climb_dtype`.
      when: on which steps to climb: a bool (of Python, which leaves no condition in the
        program, or traced), or a function that gives one from the number of `update`
        calls so far, e.g. `every_k(5)`; `None` is every step. On the others the
        averaged clean gradient comes out and no further pass is made. Schedules,
        averages and random streams go on with every step, whether it climbs or not.
        On a CPU, XLA is slow at convolutions inside a condition: there use two compiled
        steps, `when=True` and `when=False`, on one state.
      diagnostics: keep a `Diagnostics` of the last step in the state, found by
        `optax.tree.get(state, "diagnostics")`; no further pass is made.
      has_aux: whether `value_fn` returns `(value, aux)`. Aux is discarded: keep that of
        your own clean pass, or use `stateful_value_and_grad`.
      ignore_updates: drop the gradient that comes in where gradients are taken inside,
        for trainers that always pass one; it is refused otherwise.
      microbatch_size: the paper's m: the examples in each sub-batch that climbs by
        itself; see `m_sharpness`. Clean gradients are then computed inside.
      axis_name: the mapped axis whose devices climb by themselves. The average over
        them is taken here.
      mesh: the mesh of `axis_name`, to be used from plain `jit`.
      at_once: how many sub-batches are run side by side.
      unroll: how far the loop over sub-batches is unrolled (`None` is 1); on a CPU
        convolutional networks want `True`. See `m_sharpness`.

    Returns:
      A transformation with `update(updates, state, params, *, value_fn, batch=None,
      value=None, **extra_args)`. `updates` is the clean gradient at `params`, or
      `None`, and then it is computed inside; with `axis_name` alone it is this
      device's, taken at `per_device(params, axis_name)`; with `microbatch_size`, `mesh`
      or `scan_passes` it must be `None`. Where it is `None` for a leaf, that parameter
      stays where it is.
      `value_fn(params)` is the loss of this step's batch or, when `batch` is
      given, `value_fn(params, batch)`: a pure function; `obj_fn` is another name of
      it. `value` is the clean loss of the gradient that comes in, for `diagnostics` and
      for an ascent that takes `value=`. Other extra arguments are for the neighbours.

    Raises:
      TypeError: `update` without `value_fn`, or with another `obj_fn` beside it; a
        `value_fn` that is not a scalar, or returns a tuple without `has_aux`; leaves
        that are not floating-point; a `when` that gives no bool.
      ValueError: `update` without `params`; a gradient that would be dropped; gradient
        and parameters of different structure; holes left by `optax.masked` or
        `optax.partition` around it; what `m_sharpness` and `mean_over` refuse; an
        ascent whose state would come to differ between devices (name the axis here:
        `axis_name=`).

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

    Reference: Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently
      Improving Generalization", algorithm 1, arXiv:2010.01412.
    """
    method = climbing(ascent, combine, num_steps=num_steps, climb_dtype=climb_dtype)
    return transformation(method, scan_passes=scan_passes, **options)
