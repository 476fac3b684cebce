"""Friendly SAM's climb: along what is particular to this batch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam._checks import check_decay, check_weight
from optax_sam._old_spellings import respelt
from optax_sam._trees import accumulate, fill, matching, widen, zeros_in_float32
from optax_sam._types import Ascent, AxisName, Scalar, Tree


class FriendlyAscentState(NamedTuple):
    """The average of the gradients seen, how many, and the state of the climb."""

    average: Tree
    step: jax.Array
    ascent: Any


@respelt
def friendly_ascent(
    ascent: Ascent,
    *,
    sigma: Scalar = 1.0,
    decay: Scalar = 0.9,
    params_axis_name: AxisName | None = None,
) -> Ascent:
    r"""F-SAM's ascent: climb along the gradient less its moving average.

    .. math:: d_t = g_t - \sigma m_{t-1}, \quad \epsilon_t = a(d_t),
              \quad m_t = \lambda m_{t-1} + (1 - \lambda) g_t

    The average stands for the gradient of all data, so the climb keeps to the noise
    of the batch. The first climb is SAM's, and m_1 = g_1.

    Args:
      ascent: from d to a climb: SAM's `steepest_ascent(rho)`, or any other.
      sigma: how much of the average is taken away; 0 is SAM.
      decay: lambda, the decay of the average, in [0, 1).
      params_axis_name: as for `steepest_ascent`; give it to `ascent` as well.

    Returns:
      An ascent with one copy of the parameters as state (so in the optimizer, or with
      `stateful_value_and_grad`), in at least float32. With sub-batches the average is
      that of all of them; a gradient that is not finite is left out.

    Raises:
      ValueError: `decay` outside [0, 1) or a negative `sigma`, given as numbers.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> ascent = optax_sam.friendly_ascent(optax_sam.steepest_ascent(rho=1.0))
      >>> state = ascent.init(jnp.zeros(2))
      >>> climb, state = ascent.update(jnp.array([1.0, 0.0]), state)
      >>> ascent.update(jnp.array([1.0, 2.0]), state)[0]
      Array([0., 1.], dtype=float32)

    Reference: Li et al. 2024 (arXiv:2403.12350), "Friendly Sharpness-Aware
      Minimization", algorithm 1; the first step as in its code.
    """
    ascent = optax.with_extra_args_support(ascent)
    check_weight("sigma", sigma)
    check_decay("decay", decay)

    def init(params: Tree) -> FriendlyAscentState:
        count = jnp.zeros([], jnp.int32)
        return FriendlyAscentState(zeros_in_float32(params), count, ascent.init(params))

    def update(
        updates: Tree,
        state: FriendlyAscentState,
        params: Tree | None = None,
        **extra_args: Any,
    ) -> tuple[Tree, FriendlyAscentState]:
        average = matching(state.average, updates)
        noise = jax.tree.map(
            lambda g, m: (widen(g) - sigma * m).astype(g.dtype), updates, average
        )
        climb, inner = ascent.update(noise, state.ascent, params, **extra_args)
        kept = jnp.where(state.step == 0, 0, decay)
        new, finite = accumulate(average, updates, kept, 1 - kept, params_axis_name)
        step = jnp.where(finite, optax.safe_increment(state.step), state.step)
        return climb, FriendlyAscentState(fill(new, state.average), step, inner)

    return optax.GradientTransformationExtraArgs(init, update)
