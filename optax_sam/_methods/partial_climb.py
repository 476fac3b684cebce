"""Partial climb: by the gradient of a part of the batch."""

from typing import Any, Unpack

import jax
import jax.numpy as jnp

from optax_sam._ascent.steepest import steepest_unless
from optax_sam._core.diagnostics import loss_dtype, no_loss, unknown
from optax_sam._core.method import (
    Method,
    Seen,
    finish_by,
    has_state,
    number_of,
    reporting,
    step_by,
)
from optax_sam._core.options import Options, product
from optax_sam._core.passes import Evaluation, Passes
from optax_sam._core.transformation import SharpnessAware, transformation
from optax_sam._examples.part_of_batch import check_fraction, part_of, take
from optax_sam._trees import cast
from optax_sam._types import Ascent, Rho, Tree
from optax_sam._when import choose


@product
def partial_climb(
    rho: Rho | None = None,
    fraction: float = 0.25,
    *,
    ascent: Ascent | None = None,
    num_steps: int | None = None,
    climb_dtype: Any = None,
    **options: Unpack[Options],
) -> SharpnessAware:
    r"""Climb by the gradient of a part of the batch, descend by all of it.

    .. math:: \epsilon = \rho \frac{\nabla L_{B'}(w)}{\|\nabla L_{B'}(w)\|}, \quad
              g = \nabla L_B(w + \epsilon), \quad B' \subset B

    Costs 1 + `fraction` gradients. It also lowers m: B' climbs for all.

    Args:
      rho: radius of the climb; `None` is 0.05.
      fraction: the first `ceil(fraction * m)` examples of every sub-batch make its
        climb; a Python number in (0, 1]; 1 is SAM. Shuffle the batches.
      ascent: climb by this ascent instead of SAM's; then leave `rho` out.
      num_steps, climb_dtype, when, diagnostics, has_aux, ignore_updates,
        microbatch_size, axis_name, mesh, at_once, unroll: as for `sharpness_aware`. The
        diagnostics' clean gradient is that of B', and `loss` is not known.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`. Gradients are
      taken inside: `update(None, state, params, value_fn=loss_fn, batch=batch)`. The
      loss of the whole batch, at the climbed point, is
      `optax.tree.get(state, "last_loss")`.

    Raises:
      ValueError: a `fraction` outside (0, 1]; both `rho` and `ascent`; `update`
        without `batch=`.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> def loss(w, x):
      ...     return jnp.mean(0.5 * (x @ w) ** 2)
      >>> tx = optax_sam.partial_climb(rho=0.5, fraction=0.5)
      >>> w, batch = jnp.array([3.0, 1.0]), jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> tx.update(None, tx.init(w), w, value_fn=loss, batch=batch)[0]
      Array([1.75, 2.  ], dtype=float32)

    Reference: Bahri et al. 2022 (arXiv:2110.08529), "Sharpness-Aware Minimization
      Improves Language Model Generalization", section 3; Brock et al. 2021
      (arXiv:2102.06171).
    """
    check_fraction("fraction", fraction)
    ascent, steps = steepest_unless(ascent, rho), number_of(num_steps)

    def local(passes: Passes, state: Any, climbs: Any) -> Seen:
        part = slice(part_of(passes.examples, fraction))
        some = passes.over(take(passes.examples, part))

        def climb() -> tuple[jax.Array, Tree, Tree]:
            few = some.clean()
            point = some.climb(step_by(ascent, state, steps), few, steps, climb_dtype)
            return as_loss(few.value), few.gradient, point

        def stay() -> tuple[jax.Array, Tree, Tree]:
            here = passes.params
            nothing = jax.tree.map(jnp.zeros_like, here)
            return no_loss(here), nothing, cast(here, climb_dtype)

        def as_loss(value: Any) -> jax.Array:
            return jnp.asarray(value, loss_dtype(passes.params))

        value, few, point = choose(climbs, climb, stay)
        last = passes.at(point, few)
        clean = choose(climbs, lambda: few, lambda: last.gradient)
        told = choose(climbs, lambda: value, lambda: as_loss(last.value))
        seen = Evaluation(unknown(), clean)
        report = passes.show(seen, last, point, 1 + jnp.asarray(climbs, int))
        kept, told = (clean, told) if has_state(state) else (None, None)
        return Seen(last.value, last.gradient, kept, last.aux, report, told)

    method = reporting(Method(ascent.init, local, finish_by(ascent)))
    return transformation(method, takes_updates=False, **options)
