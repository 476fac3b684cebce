"""ESAM's stochastic weight perturbation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam._sub_batches import own_key
from optax_sam._types import Ascent, Tree


class SomeLeavesState(NamedTuple):
    """The key, the number of climbs drawn from it, the ascent's state."""

    key: jax.Array
    step: jax.Array
    ascent: Any


def some_leaves(ascent: Ascent, beta: float, key: jax.Array) -> Ascent:
    """ESAM's stochastic weight perturbation: every leaf climbs with probability beta.

    Those that do climb 1 / beta as far, so that the mean is the ascent's own.
    """

    def init(params: Tree) -> SomeLeavesState:
        count = jnp.zeros([], jnp.int32)
        return SomeLeavesState(own_key(key), count, ascent.init(params))

    def update(
        updates: Tree, state: SomeLeavesState, params: Tree | None = None
    ) -> tuple[Tree, SomeLeavesState]:
        climb, inner = ascent.update(updates, state.ascent, params)
        leaves, structure = jax.tree.flatten(climb)
        now = jax.random.fold_in(state.key, state.step)
        kept = jax.random.bernoulli(now, beta, [len(leaves)])
        pairs = zip(kept, leaves, strict=True)
        some = [jnp.where(a, x / beta, 0) for a, x in pairs]
        step = optax.safe_increment(state.step)
        new = SomeLeavesState(state.key, step, inner)
        return jax.tree.unflatten(structure, some), new

    return optax.GradientTransformation(init, update)
