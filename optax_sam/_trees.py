"""What is done to whole trees; `None` stands for a leaf that is not there."""

from typing import Any

import jax
import jax.numpy as jnp

from optax_sam._types import Tree

keystr = jax.tree_util.keystr


def is_none(x: Any) -> bool:
    """Whether a leaf is not there."""
    return x is None


def matching(params: Tree, updates: Tree) -> Tree:
    """The parameters that have a gradient, in the gradient's structure."""
    return jax.tree.map(
        lambda g, p: None if g is None else p, updates, params, is_leaf=is_none
    )


def fill(tree: Tree, rest: Tree) -> Tree:
    """The tree, with the leaves of `rest` where it has none."""
    return jax.tree.map(lambda x, y: y if x is None else x, tree, rest, is_leaf=is_none)


def partition(tree: Tree, second: Tree) -> tuple[Tree, Tree]:
    """The tree cut in two by a tree of booleans; `fill` puts it together again."""
    first = jax.tree.map(lambda x, there: None if there else x, tree, second)
    return first, jax.tree.map(lambda x, there: x if there else None, tree, second)


def widen(x: Any) -> jax.Array:
    """The array in at least float32: norms of half precision overflow."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def cast(tree: Tree, dtype: Any) -> Tree:
    """The tree with all leaves in one dtype; in their own where that is `None`."""
    return (
        tree if dtype is None else jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)
    )


def cast_like(tree: Tree, like: Tree) -> Tree:
    """The tree with every leaf in the dtype of the other's."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)


def add_scaled(tree: Tree, other: Tree, factor: Any) -> Tree:
    """`tree + factor * other`, in at least float32 and then in the tree's dtypes."""
    return jax.tree.map(
        lambda x, y: (widen(x) + factor * y).astype(x.dtype), tree, other
    )


def dot(a: Tree, b: Tree) -> jax.Array:
    """The inner product of two trees, in at least float32."""
    products = jax.tree.map(lambda x, y: jnp.sum(widen(x) * widen(y)), a, b)
    total: jax.Array = once(jnp.asarray(sum(jax.tree.leaves(products), jnp.zeros([]))))
    return total


def once(x: Any) -> Any:
    """The same number, computed once.

    XLA would compute the sum over all leaves anew inside the loop of every leaf that
    it is multiplied with, and compile for a time that grows with their square.
    """
    return jax.lax.optimization_barrier(x)


def all_finite(tree: Tree) -> jax.Array:
    """Whether every entry of the tree is finite."""
    leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.asarray([True, *leaves]))


def zeros_in_float32(tree: Tree) -> Tree:
    """Zeros like the tree, in at least float32: a running sum of nothing yet."""
    return jax.tree.map(lambda x: jnp.zeros_like(widen(x)), tree)


def accumulate(
    total: Tree, gradient: Tree, decay: Any, share: Any
) -> tuple[Tree, jax.Array]:
    """`decay * total + share * gradient`, and whether the gradient is finite.

    One that is not is left out. A sum that has once seen NaN holds it for ever, and
    every climb along it would be zero.
    """
    finite = once(all_finite(gradient))
    kept = jnp.where(finite, decay, 1)

    def add(old: Any, g: Any) -> Any:
        return (kept * old + share * jnp.where(finite, widen(g), 0)).astype(old.dtype)

    return jax.tree.map(add, total, gradient), finite
