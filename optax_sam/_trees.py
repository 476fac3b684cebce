"""What is done to whole trees; `None` stands for a leaf that is not there."""

from typing import Any

import jax
import jax.numpy as jnp

from optax_sam._devices import max_over, sum_over, zeros_like
from optax_sam._types import AxisName, Tree

keystr = jax.tree_util.keystr


def path_name(path: tuple[Any, ...]) -> str:
    """The path of a leaf, as `dense/bias`; the box that it may lie in is not named."""
    *_, last = (None, *path)
    if getattr(last, "name", None) == "value":  # of nnx.split, nn.with_partitioning
        path = path[:-1]
    return keystr(path, simple=True, separator="/")


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


def wide_dtype(x: Any) -> Any:
    """The dtype of an array or a number, in at least float32."""
    dtype = jnp.result_type(x)
    wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
    return dtype if wide else jnp.dtype(jnp.float32)


def widest_dtype(tree: Tree) -> Any:
    """The dtype in which whole-tree numbers are computed: that of the widest leaf."""
    dtypes = [jnp.dtype(jnp.float32), *map(wide_dtype, jax.tree.leaves(tree))]
    return max(dtypes, key=lambda dtype: int(jnp.finfo(dtype).bits))


def widen(x: Any) -> jax.Array:
    """The array in at least float32: norms of half precision overflow."""
    return jnp.asarray(x, wide_dtype(x))


def cast(tree: Tree, dtype: Any) -> Tree:
    """The tree with all leaves in one dtype; in their own where that is `None`."""
    return (
        tree if dtype is None else jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)
    )


def cast_like(tree: Tree, like: Tree) -> Tree:
    """The tree with every leaf in the dtype of the other's."""
    return jax.tree.map(lambda x, y: jnp.asarray(x, jnp.result_type(y)), tree, like)


def add_scaled(tree: Tree, other: Tree, factor: Any) -> Tree:
    """`tree + factor * other`, in at least float32 and then in the tree's dtypes."""

    def add(x: Any, y: Any) -> jax.Array:
        dtype = widest_dtype((x, y))
        total = jnp.asarray(x, dtype) + jnp.asarray(factor, dtype) * y.astype(dtype)
        return jnp.asarray(total, jnp.result_type(x))

    return jax.tree.map(add, tree, other)


def dot(a: Tree, b: Tree, axis_name: AxisName | None = None) -> jax.Array:
    """The inner product of two trees, in at least float32.

    `axis_name`: mesh axes over which the leaves are split by hand.
    """
    dtype = widest_dtype((a, b))
    a, b = cast((a, b), dtype)
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    products = [sum_over(jnp.sum(x * y), axis_name) for x, y in pairs]
    total: jax.Array = once(sum(products, jnp.zeros([], dtype)))
    return total


def once(x: Any) -> Any:
    """The same number, computed once.

    XLA would compute the sum over all leaves anew inside the loop of every leaf that
    it is multiplied with, and compile for a time that grows with their square.
    """
    return jax.lax.optimization_barrier(x)


def all_finite(tree: Tree, axis_name: AxisName | None = None) -> jax.Array:
    """Whether every entry of the tree is finite, on all devices that share it."""
    bad = [jnp.any(~jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    bad = [max_over(x.astype(jnp.int32), axis_name) for x in bad]
    return sum(bad, jnp.zeros([], jnp.int32)) == 0


def zeros_in_float32(tree: Tree) -> Tree:
    """Zeros like the tree, in at least float32: a running sum of nothing yet."""
    return jax.tree.map(widen, zeros_of_gradient(tree))


def zeros_of_gradient(params: Tree) -> Tree:
    """Zeros like the parameters; a leaf that has no gradient has one, never read."""
    return jax.tree.map(
        lambda x: zeros_like(x) if is_inexact(x) else jnp.zeros([]), params
    )


def is_inexact(x: Any) -> bool:
    """Whether JAX can differentiate in `x`: a floating-point number, or many."""
    try:
        return bool(jnp.issubdtype(jax.typeof(x).dtype, jnp.inexact))
    except TypeError:  # no array at all
        return False


def accumulate(
    total: Tree,
    gradient: Tree,
    decay: Any,
    share: Any,
    axis_name: AxisName | None = None,
) -> tuple[Tree, jax.Array]:
    """`decay * total + share * gradient`, and whether the gradient is finite.

    One that is not is left out, and so is what would overflow the sum. A sum that has
    once seen NaN or infinity holds it for ever, and every climb along it would be zero.
    """
    finite = once(all_finite(gradient, axis_name))
    kept = jnp.where(finite, decay, 1)

    def add(old: Any, g: Any) -> Any:
        dtype = widest_dtype((old, g))
        factor, part = jnp.asarray(kept, dtype), jnp.asarray(share, dtype)
        new = jnp.where(finite, jnp.asarray(g, dtype), 0)
        added = (factor * old.astype(dtype) + part * new).astype(old.dtype)
        return jnp.where(jnp.isfinite(added), added, old)

    return jax.tree.map(add, total, gradient), finite
