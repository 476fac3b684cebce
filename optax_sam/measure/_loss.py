"""The mean of anything over the batches of a data set, with the memory of one."""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from optax_sam._checks import check_whole
from optax_sam._devices import zeros
from optax_sam._examples.sub_batches import count_sub_batches
from optax_sam._trees import widen
from optax_sam._types import Tree

#: `average(f)`: the mean of the trees `f(batch)`, or `f()` where there are no batches.
Average: TypeAlias = Callable[[Callable[..., Tree]], Tree]

keystr = jax.tree_util.keystr


def averaging(batches: Any, microbatch_size: int | None = None) -> Average:
    """The average over batches; over all their sub-batches where a size is given."""
    if microbatch_size is not None:
        check_whole("microbatch_size", microbatch_size)
    if batches is None:
        if microbatch_size is not None:
            raise ValueError(
                f"microbatch_size={microbatch_size} examples are to be cut out of "
                f"batches, but there are none. Give loss_fn(params, batch) and "
                f"batches=[batch]."
            )
        return lambda f: f()
    rows = stack(batches)
    if microbatch_size is not None:
        rows = _cut(rows, microbatch_size)
    return lambda f: _mean_over(rows, f)


def over_sub_batches(
    measure: Callable[[Average], jax.Array], batches: Any, microbatch_size: int | None
) -> jax.Array:
    """Of the mean loss, or the mean over the losses of sub-batches."""
    average = averaging(batches, microbatch_size)
    if microbatch_size is None:
        return measure(average)
    value: jax.Array = average(lambda batch: measure(lambda f: f(batch)))
    return value


def _mean_over(rows: Tree, f: Callable[[Tree], Tree]) -> Tree:
    # Whatever is averaged is linear in the loss: values, gradients, products. So no
    # derivative goes through this loop, and it stores nothing but the sum.
    def wide(row: Tree) -> Tree:
        return jax.tree.map(widen, f(row))

    def add(total: Tree, row: Tree) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, wide(row)), None

    shapes = jax.eval_shape(wide, jax.tree.map(lambda x: x[0], rows))
    total, _ = jax.lax.scan(add, zeros(shapes), rows)
    return jax.tree.map(lambda x: x / _count(rows), total)


def stack(batches: Any) -> Tree:
    """Batches as one tree with a new first axis: from a list, an iterator, or as is."""
    if _is_sequence(batches):
        rows = _stack_all(list(batches))
    else:
        rows = jax.tree.map(jnp.asarray, batches)
    leaves = jax.tree_util.tree_leaves_with_path(rows)
    sizes = {keystr(path) or "(the root)": jnp.shape(x)[:1] for path, x in leaves}
    if len(set(sizes.values())) != 1 or not all(
        size and size[0] for size in sizes.values()
    ):
        raise ValueError(
            f"Stacked batches must share a first axis with one entry for each batch, "
            f"but theirs are {sizes}. Give a list of batches, or a tree whose leaves "
            f"have shape (number of batches, examples, ...); one batch is [batch]."
        )
    return rows


def _is_sequence(batches: Any) -> bool:
    # Tuples, dicts and arrays are the batches themselves, stacked.
    lone = jax.tree_util.all_leaves([batches]) and not hasattr(batches, "shape")
    return isinstance(batches, list) or (lone and isinstance(batches, Iterable))


def _stack_all(batches: list[Tree]) -> Tree:
    shapes = [jax.tree.map(jnp.shape, batch) for batch in batches]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f"Batch {i} has shapes {shape} and batch 0 has {shapes[0]}: an average "
                f"over batches counts each of them once. Give batches of one size, and "
                f"leave out the last if it is smaller."
            )
    if not batches:
        raise ValueError("There is no batch to measure the loss on: batches is empty.")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)


def _cut(rows: Tree, microbatch_size: int) -> Tree:
    """Contiguous sub-batches of each batch, as more and smaller batches."""
    sizes = {jnp.shape(x)[1:2] for x in jax.tree.leaves(rows)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"microbatch_size cuts every leaf of a batch along its first axis, the "
            f"examples, but the leaves have {sorted(sizes)} of them."
        )
    (size,) = sizes.pop()
    count = _count(rows) * count_sub_batches(size, microbatch_size, 1)

    def cut(x: jax.Array) -> jax.Array:
        return jnp.reshape(x, (count, microbatch_size, *x.shape[2:]))

    return jax.tree.map(cut, rows)


def _count(rows: Tree) -> int:
    count: int = jax.tree.leaves(rows)[0].shape[0]
    return count
