"""Parameters as one vector, in at least float32."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from optax_sam._trees import cast, cast_like, widest_dtype
from optax_sam._types import Tree


def flatten(params: Tree) -> tuple[jax.Array, Callable[[jax.Array], Tree]]:
    """The vector, and the way back: to the leaves' own dtypes."""
    # Leaf by leaf: JAX does not promote eight bits, nor anything where it is strict.
    point, unravel = ravel_pytree(cast(params, widest_dtype(params)))

    def back(x: jax.Array) -> Tree:
        return cast_like(unravel(x), params)

    return point, back


def unflatten_like(params: Tree, x: jax.Array) -> Tree:
    """The tree of a vector, its leaves in the vector's dtype."""
    wide = jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), x.dtype), params)
    tree: Tree = ravel_pytree(wide)[1](x)
    return tree
