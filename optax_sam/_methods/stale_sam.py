"""Stale SAM: climb along the previous step's gradient, with one gradient a step."""

from typing import Any, NamedTuple, Unpack

from optax_sam._ascent.steepest import steepest_unless
from optax_sam._core.method import Method, Seen, advance, one_pass, reporting
from optax_sam._core.options import Options, product
from optax_sam._core.passes import Passes
from optax_sam._core.transformation import SharpnessAware, transformation
from optax_sam._trees import accumulate, zeros_in_float32
from optax_sam._types import Ascent, AxisName, Rho, Tree


class StaleSAMState(NamedTuple):
    """The gradient that came out last, and the state of the ascent."""

    previous: Tree
    ascent: Any


@product
def stale_sam(
    rho: Rho | None = None,
    *,
    ascent: Ascent | None = None,
    params_axis_name: AxisName | None = None,
    climb_dtype: Any = None,
    **options: Unpack[Options],
) -> SharpnessAware:
    r"""AsyncSAM with a delay of one: climb along the gradient of the step before.

    .. math:: \tilde g_t = \nabla L\!\left(
              w_t + \rho \frac{\tilde g_{t-1}}{\|\tilde g_{t-1}\|}\right)

    One gradient a step. The one that is climbed along came out of the step before: it
    was taken on that step's batch, at that step's climbed point, and averaged over
    all its sub-batches. Plus: up that gradient, where `momentum_sam(decay=0)` climbs
    down it. The first step climbs nowhere, and its gradient is the clean one.

    A caution: the authors of momentum SAM tried the last gradient for the climb, and
    never found it to act like SAM (Becker et al. 2024, arXiv:2401.12033, appendix A.7).
    Of the paper below only the abstract could be verified, and accounts by others:
    there the stale gradient is a clean one, taken by itself at the same time as the
    descent's, on a batch of its own; here no such pass is made.

    Args:
      rho: radius of the climb; `None` is 0.05.
      ascent: climb along the previous gradient by this ascent instead of SAM's; then
        leave `rho` out.
      params_axis_name: as for `steepest_ascent`: for parameters split by hand.
      climb_dtype, when, diagnostics, has_aux, ignore_updates, microbatch_size,
        axis_name, mesh, at_once, unroll: as for `sharpness_aware`. The climb is the
        same for all sub-batches and devices; where `when` says no, the one pass is
        clean, and its gradient is kept for the next step.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`. The gradient
      is taken inside: `update(None, state, params, value_fn=...)`. State: the
      previous gradient, a copy of the parameters in at least float32 (one that is not
      finite is not kept, and the one before it stays); the loss of the one pass, at
      the climbed point, is `optax.tree.get(state, "last_loss")`.

    Raises:
      ValueError: both `rho` and `ascent`; `update` raises as `sharpness_aware` says.

    Example:
      >>> import jax.numpy as jnp, optax, optax_sam
      >>> tx = optax.chain(optax_sam.stale_sam(rho=0.5), optax.sgd(0.1))
      >>> w = jnp.array([1.0])
      >>> state = tx.init(w)
      >>> for _ in range(2):
      ...     updates, state = tx.update(
      ...         None, state, w, value_fn=lambda w: 0.5 * jnp.sum(w**2))
      ...     w = optax.apply_updates(w, updates)
      >>> round(float(w[0]), 6)
      0.76

    Reference: Jo et al. 2025, AsyncSAM (tau = 1), arXiv:2503.11147, abstract.
    """
    ascent = steepest_unless(ascent, rho, params_axis_name)

    def init(params: Tree) -> StaleSAMState:
        return StaleSAMState(zeros_in_float32(params), ascent.init(params))

    def local(passes: Passes, state: StaleSAMState, climbs: Any) -> Seen:
        def climb() -> Tree:
            return ascent.update(state.previous, state.ascent, passes.params)[0]

        return one_pass(passes, climb, climbs, climb_dtype)

    def finish(
        state: StaleSAMState, seen: Seen, climbs: Any, params: Tree
    ) -> tuple[Tree, StaleSAMState]:
        del climbs
        previous, _ = accumulate(state.previous, seen.gradient, 0, 1, params_axis_name)
        inner = advance(ascent, state.ascent, seen.gradient, params)
        return seen.gradient, StaleSAMState(previous, inner)

    method = reporting(Method(init, local, finish))
    return transformation(method, takes_updates=False, **options)
