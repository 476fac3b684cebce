"""LookSAM: SAM on every k-th step, and what it found reused in between."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam._ascent.dual import dot, dual_vector, two_norm, widen
from optax_sam._checks import fill, matching
from optax_sam._climb import Climber
from optax_sam._combine import orthogonal_part
from optax_sam._devices import refuse_diverging
from optax_sam._local import Averaged, Given, SubBatches, clean_only, transformation
from optax_sam._passes import Passes
from optax_sam._types import Scalar, SharpnessAware, Tree


class LookSAMState(NamedTuple):
    """The step, the part of the climbed gradient to reuse, the state of the ascent."""

    step: jax.Array
    reused: Tree
    ascent: Any


def look_and_reuse(
    climber: Climber, k: int, alpha: Scalar, per_leaf: bool, sub_batches: SubBatches
) -> SharpnessAware:
    """The climbed gradient at t = 0, k, ..., and what it added in between."""
    over = _leaf_by_leaf if per_leaf else _whole_tree
    # Published code that works leaf by leaf adds this to the norm of the stored part;
    # a leaf where next to nothing is stored is then hardly pushed.
    as_long_as = partial(_as_long_as, epsilon=1e-8 if per_leaf else 0.0)

    def both(passes: Passes, state: Any) -> Averaged:
        out = climber.climb(passes, state)
        return (out.clean.value, None), (out.gradient, out.clean.gradient)

    def init(params: Tree) -> LookSAMState:
        nothing = jax.tree.map(jnp.zeros_like, params)
        inner = climber.ascent.init(params)
        return LookSAMState(jnp.zeros([], jnp.int32), nothing, inner)

    def look(given: Given, state: LookSAMState) -> tuple[Tree, LookSAMState]:
        _, (climbed, clean) = sub_batches.average(both, given, state.ascent)
        found = fill(state.reused, over(_what_it_lacks, climbed, clean))
        inner = climber.next_state(state.ascent, clean, given.params)
        return climbed, state._replace(reused=found, ascent=inner)

    def reuse(given: Given, state: LookSAMState) -> tuple[Tree, LookSAMState]:
        _, clean = sub_batches.average(clean_only, given, None)
        push = over(as_long_as, matching(state.reused, clean), clean)
        out = jax.tree.map(
            lambda g, v: (widen(g) + alpha * v).astype(g.dtype), clean, push
        )
        return out, state

    def step(given: Given, state: LookSAMState) -> tuple[Tree, LookSAMState]:
        sub_batches.check_clean(given)
        if not given.climb:
            return sub_batches.average(clean_only, given, None)[1], state
        if sub_batches.local_alone:
            # The stored part would be made from each device's own gradients.
            refuse_diverging(matching(state.reused, given.updates), given.updates)
        now = state.step % k == 0
        gradient, new = jax.lax.cond(
            now, partial(look, given), partial(reuse, given), state
        )
        return gradient, new._replace(step=optax.safe_increment(state.step))

    return transformation(init, step)


def _whole_tree(function: Any, a: Tree, b: Tree) -> Tree:
    return function(a, b)


def _leaf_by_leaf(function: Any, a: Tree, b: Tree) -> Tree:
    return jax.tree.map(function, a, b)


def _what_it_lacks(climbed: Tree, clean: Tree) -> Tree:
    """The part of the climbed gradient orthogonal to the clean one.

    What is left of parallel gradients is rounding, which reuse would blow up to
    alpha * |g|: it counts as zero.
    """
    part = orthogonal_part(climbed, clean)

    def keep(v: jax.Array, s: jax.Array) -> jax.Array:
        rounding = 64 * jnp.finfo(s.dtype).eps
        real = dot(part, part) > rounding**2 * dot(climbed, climbed)
        return jnp.where(real, v, 0).astype(s.dtype)

    return jax.tree.map(keep, part, climbed)


def _as_long_as(tree: Tree, other: Tree, *, epsilon: float) -> Tree:
    """The tree, rescaled to the norm of the other; zero stays zero."""
    unit, norm, length = dual_vector(tree), two_norm(tree), two_norm(other)
    length = length / (1 + epsilon / jnp.where(norm > 0, norm, 1))
    return jax.tree.map(lambda u: length.astype(u.dtype) * u, unit)
