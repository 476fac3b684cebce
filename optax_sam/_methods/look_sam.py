"""LookSAM: SAM on every k-th step, and what it found reused in between."""

from functools import partial
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from optax_sam._ascent.dual import dual_vector, two_norm
from optax_sam._ascent.steepest import steepest_unless
from optax_sam._combine import orthogonal_part
from optax_sam._core.method import Method, Seen, advance, climbing
from optax_sam._core.options import Options, product
from optax_sam._core.passes import Passes
from optax_sam._core.transformation import SharpnessAware, transformation
from optax_sam._devices import refuse_diverging
from optax_sam._trees import add_scaled, cast_like, fill, matching, zeros_of_gradient
from optax_sam._types import Ascent, AxisName, Rho, Scalar, Tree
from optax_sam._when import both, choose, every_k


class LookSAMState(NamedTuple):
    """The part of the climbed gradient to reuse, and the state of the ascent."""

    reused: Tree
    ascent: Any


@product
def look_sam(
    rho: Rho | None = None,
    k: int = 5,
    alpha: Scalar = 0.3,
    *,
    ascent: Ascent | None = None,
    params_axis_name: AxisName | None = None,
    per_leaf: bool = False,
    num_steps: int | None = None,
    climb_dtype: Any = None,
    scan_passes: bool = False,
    **options: Unpack[Options],
) -> SharpnessAware:
    r"""LookSAM: climb on every k-th step only, and reuse what the climb found.

    .. math::
       t \bmod k = 0:&\quad g_s = \nabla L(w + \epsilon), \quad
         g_v = g_s - \frac{\langle g_s, g \rangle}{\|g\|^2} g, \quad
         \text{out } g_s \\
       \text{else}:&\quad \text{out } g + \alpha \frac{\|g\|}{\|g_v\|} g_v

    g_v, the part of the climbed gradient that the clean one lacks, changes slowly; on
    the steps between there is one gradient, and the second pass is really skipped
    (not under `jax.vmap` over seeds with a state each, where a `lax.cond` computes both
    branches).

    Args:
      rho: radius of the climb; `None` is 0.05.
      k: climb at t = 0, k, 2k, ...; 1 is SAM. With a `when` of your own: where both
        say so, and until the first climb the clean gradient comes out.
      alpha: the size of the reused part against the clean gradient, whatever rho is.
        The paper's 0.7 is unsafe: with it a network with BatchNorm did not train at
        all (others report the same). Of 0.1, 0.3 and 0.7 the middle one was the best
        on validation images there, and within 0.3 points of the best on the other
        task of `benchmarks/accuracy/which_method_small.py`.
      ascent: climb by this ascent instead of SAM's; then leave `rho` out.
      params_axis_name: as for `steepest_ascent`: for parameters split by hand.
      per_leaf: project and rescale leaf by leaf, as most published code does; the
        paper's formula takes the whole tree at once. With it 1e-8 is added to the
        norm of g_v, as there.
      num_steps, climb_dtype, scan_passes, when, diagnostics, has_aux, ignore_updates,
        microbatch_size, axis_name, mesh, at_once, unroll: as for `sharpness_aware`.
        Over sub-batches g_v is made from the averages of both gradients: the same on
        every device.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`. Its state holds
      g_v, a copy of the parameters. Where g_v is zero (up to rounding) the clean
      gradient comes out.

    Raises:
      ValueError: `k` below 1; both `rho` and `ascent`; `update` as `sharpness_aware`.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> tx = optax_sam.look_sam(rho=0.5, k=2, alpha=0.5)
      >>> w = jnp.array([3.0, 1.0])
      >>> state = tx.init(w)
      >>> climbed, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss)
      >>> reused, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss)
      >>> [[round(float(x), 4) for x in out] for out in (climbed, reused)]
      [[3.3, 5.6], [1.0, 5.5]]

    Reference: Liu et al. 2022 (arXiv:2203.02714), "Towards Efficient and Scalable
      Sharpness-Aware Minimization", algorithm 1.
    """
    ascent, axes = steepest_unless(ascent, rho, params_axis_name), params_axis_name
    sam = climbing(
        ascent, num_steps=num_steps, climb_dtype=climb_dtype, keep_clean=True
    )
    what_it_lacks, as_long_as = _parts(per_leaf, axes)

    def init(params: Tree) -> LookSAMState:
        return LookSAMState(zeros_of_gradient(params), sam.init(params))

    def local(passes: Passes, state: LookSAMState, climbs: Any) -> Seen:
        return sam.local(passes, state.ascent, climbs)

    def finish(
        state: LookSAMState, seen: Seen, climbs: Any, params: Tree
    ) -> tuple[Tree, LookSAMState]:
        reused = matching(state.reused, seen.gradient)
        # In a bare chain it would be made from each device's own gradients.
        refuse_diverging(reused, seen.gradient)

        def look() -> tuple[Tree, Tree]:
            found = what_it_lacks(seen.gradient, seen.clean)
            return seen.gradient, cast_like(found, reused)

        def reuse() -> tuple[Tree, Tree]:
            push = as_long_as(reused, seen.gradient)
            return add_scaled(seen.gradient, push, alpha), reused

        gradient, kept = choose(climbs, look, reuse)
        inner = advance(ascent, state.ascent, seen.clean, params, seen.told)
        return gradient, LookSAMState(fill(kept, state.reused), inner)

    options["when"] = both(options.get("when"), every_k(k))
    method = Method(init, local, finish)
    return transformation(method, scan_passes=scan_passes, **options)


def _parts(per_leaf: bool, axis_name: AxisName | None) -> tuple[Any, Any]:
    """What is kept of a climb, and how long it is when reused: of all, or each leaf."""
    what_it_lacks = partial(_what_it_lacks, axis_name=axis_name)
    # Published code that works leaf by leaf adds this to the norm of the stored part;
    # a leaf where next to nothing is stored is then hardly pushed.
    epsilon = 1e-8 if per_leaf else 0.0
    as_long_as = partial(_as_long_as, epsilon=epsilon, axis_name=axis_name)
    if not per_leaf:
        return what_it_lacks, as_long_as
    return partial(jax.tree.map, what_it_lacks), partial(jax.tree.map, as_long_as)


def _what_it_lacks(
    climbed: Tree, clean: Tree, *, axis_name: AxisName | None = None
) -> Tree:
    """The part of the climbed gradient orthogonal to the clean one.

    What is left of parallel gradients is rounding, which reuse would blow up to
    alpha * |g|: it counts as zero.
    """
    part = orthogonal_part(climbed, clean, axis_name)
    length, whole = two_norm(part, axis_name), two_norm(climbed, axis_name)

    def keep(v: jax.Array, s: jax.Array) -> jax.Array:
        rounding = jnp.asarray(64 * jnp.finfo(s.dtype).eps, whole.dtype)
        return jnp.where(length > rounding * whole, v, 0)

    return jax.tree.map(keep, part, climbed)


def _as_long_as(
    tree: Tree, other: Tree, *, epsilon: float, axis_name: AxisName | None = None
) -> Tree:
    """The tree, rescaled to the norm of the other; zero stays zero."""
    unit = dual_vector(tree, axis_name=axis_name)
    length = two_norm(other, axis_name)
    if epsilon:
        norm = two_norm(tree, axis_name)
        length = length / (1 + epsilon / jnp.where(norm > 0, norm, 1))
    return jax.tree.map(lambda u: length.astype(u.dtype) * u, unit)
