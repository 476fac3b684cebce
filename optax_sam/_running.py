"""Running sums of gradients, from step to step."""

from typing import Any

import jax
import jax.numpy as jnp

from optax_sam._ascent.dual import widen
from optax_sam._types import Tree


def nothing_yet(params: Tree) -> Tree:
    """Zeros like the parameters, in at least float32."""
    return jax.tree.map(lambda p: jnp.zeros_like(widen(p)), params)


def accumulate(
    total: Tree, gradient: Tree, decay: Any, share: Any
) -> tuple[Tree, jax.Array]:
    """`decay * total + share * gradient`, and whether the gradient is finite.

    One that is not is left out. A sum that has once seen NaN holds it for ever, and
    every climb along it would be zero.
    """
    leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(gradient)]
    finite = jnp.all(jnp.asarray([True, *leaves]))
    kept = jnp.where(finite, decay, 1)

    def add(old: Any, g: Any) -> Any:
        return (kept * old + share * jnp.where(finite, widen(g), 0)).astype(old.dtype)

    return jax.tree.map(add, total, gradient), finite
