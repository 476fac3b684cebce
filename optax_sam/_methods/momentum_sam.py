"""Momentum SAM: climb against the momentum, with one gradient a step."""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from optax_sam._ascent.steepest import steepest_unless
from optax_sam._checks import check_decay
from optax_sam._core.method import Method, Seen, advance, one_pass, reporting
from optax_sam._core.options import Options, product
from optax_sam._core.passes import Passes
from optax_sam._core.transformation import SharpnessAware, transformation
from optax_sam._trees import accumulate, zeros_in_float32
from optax_sam._types import Ascent, AxisName, Rho, Scalar, Tree


class MomentumSAMState(NamedTuple):
    """The sum of the gradients that came out, and the state of the ascent."""

    momentum: Tree
    ascent: Any


@product
def momentum_sam(
    rho: Rho | None = None,
    *,
    decay: Scalar = 0.9,
    ascent: Ascent | None = None,
    params_axis_name: AxisName | None = None,
    climb_dtype: Any = None,
    **options: Unpack[Options],
) -> SharpnessAware:
    r"""MSAM: climb against the momentum of the gradients, with one gradient a step.

    .. math:: \tilde g_t = \nabla L\!\left(w_t - \rho \frac{v_t}{\|v_t\|}\right), \quad
              v_{t+1} = \mu v_t + \tilde g_t

    Minus: the point lies where the momentum is about to go. It exists inside the step
    only; the parameters are never moved there, so there is nothing to move back
    before evaluation. At the start v = 0, and the first gradient is the clean one.

    Args:
      rho: radius of the climb; `None` is 0.05 (the paper's best were 2 to 3 for
        networks trained on CIFAR, far above SAM's, and 0 during warm-up).
      decay: mu; with SGD as the optimizer, its momentum.
      ascent: climb along -v by this ascent instead of SAM's; then leave `rho` out.
      params_axis_name: as for `steepest_ascent`: for parameters split by hand.
      climb_dtype, when, diagnostics, has_aux, ignore_updates, microbatch_size,
        axis_name, mesh, at_once, unroll: as for `sharpness_aware`. The climb is the
        same for all sub-batches and devices; where `when` says no, the one pass is
        clean.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`. The gradient
      is taken inside: `update(None, state, params, value_fn=...)`. State:
      v, a copy of the parameters in at least float32; the loss of the one pass, at
      the climbed point, is `optax.tree.get(state, "last_loss")`.

    Raises:
      ValueError: a `decay` outside [0, 1); both `rho` and `ascent`; `update` raises as
        `sharpness_aware` says.

    Example:
      >>> import jax.numpy as jnp, optax, optax_sam
      >>> tx = optax.chain(
      ...     optax_sam.momentum_sam(rho=0.3), optax.sgd(0.1, momentum=0.9))
      >>> w = jnp.array([1.0])
      >>> state = tx.init(w)
      >>> for _ in range(3):
      ...     updates, state = tx.update(
      ...         None, state, w, value_fn=lambda w: 0.5 * jnp.sum(w**2))
      ...     w = optax.apply_updates(w, updates)
      >>> round(float(w[0]), 6)
      0.57

    Reference: Becker et al. 2024 (arXiv:2401.12033), "Momentum-SAM: Sharpness Aware
      Minimization without Computational Overhead", algorithm 1.
    """
    check_decay("decay", decay)
    ascent = steepest_unless(ascent, rho, params_axis_name)

    def init(params: Tree) -> MomentumSAMState:
        return MomentumSAMState(zeros_in_float32(params), ascent.init(params))

    def local(passes: Passes, state: MomentumSAMState, climbs: Any) -> Seen:
        def climb() -> Tree:
            against = jax.tree.map(jnp.negative, state.momentum)
            return ascent.update(against, state.ascent, passes.params)[0]

        return one_pass(passes, climb, climbs, climb_dtype)

    def finish(
        state: MomentumSAMState, seen: Seen, climbs: Any, params: Tree
    ) -> tuple[Tree, MomentumSAMState]:
        del climbs
        momentum, _ = accumulate(
            state.momentum, seen.gradient, decay, 1, params_axis_name
        )
        inner = advance(ascent, state.ascent, seen.gradient, params)
        return seen.gradient, MomentumSAMState(momentum, inner)

    method = reporting(Method(init, local, finish))
    return transformation(method, takes_updates=False, **options)
