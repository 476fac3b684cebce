"""Sub-batches: cut the batch, tell their random keys apart, loop, average."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam._devices import zeros
from optax_sam._keys import fresh_keys
from optax_sam._once import is_data
from optax_sam._trees import keystr, widen
from optax_sam._types import Tree


class Parts(NamedTuple):
    """What comes back from a sub-batch: leaves to average, and leaves kept as rows."""

    averaged: Tree
    rows: Tree


#: `part(index, examples) -> Parts`: the work on the sub-batch of that global index.
Part = Callable[[Any, Tree], Parts]


def spread(prefix: Any, aux: list[Any]) -> Tree:
    """A bool for every leaf of aux, from one bool or from a prefix tree of them."""
    if isinstance(prefix, bool):
        return jax.tree.map(lambda _: prefix, aux)
    return [jax.tree.broadcast(prefix, x) for x in aux]


def batch_size(examples: Tree) -> int:
    """The leading size that all leaves of the batch share."""
    leaves = jax.tree_util.tree_leaves_with_path(examples)
    for path, x in leaves:
        _refuse_no_array(path, x)
    sizes = {keystr(path): jnp.shape(x)[:1] for path, x in leaves}
    if not sizes:
        raise ValueError(
            "The batch has no leaf to split. Name the arguments that hold the "
            "examples: batch_argnums=1, or a tuple of positions."
        )
    if len(set(sizes.values())) > 1 or () in sizes.values():
        listed = ", ".join(f"{k or '(the root)'}: {v}" for k, v in sizes.items())
        raise ValueError(
            f"All leaves of the batch must have the same leading size, the number of "
            f"examples, but they have {listed}. What belongs to no single example "
            f"goes into an argument outside batch_argnums."
        )
    (size,) = next(iter(sizes.values()))
    if size == 0:
        raise ValueError(
            "The batch has no examples, so there is no loss to climb. Leave empty "
            "batches out of the training."
        )
    return size


def _refuse_no_array(path: Any, x: Any) -> None:
    if not is_data(x):
        raise TypeError(
            f"The batch leaf {keystr(path) or '(the root)'} is a {type(x).__name__}, "
            f"which has no examples to take a part of. Pass it to the loss outside of "
            f"the batch (another argument, or a closure); a class of your own becomes "
            f"a tree of arrays by jax.tree_util.register_dataclass."
        )


def count_sub_batches(size: int, microbatch_size: int | None, at_once: int) -> int:
    """How many sub-batches of `microbatch_size` examples are in `size` of them."""
    if microbatch_size is None:
        return 1
    _require_divisor("microbatch_size", microbatch_size, size, "examples of the batch")
    count = size // microbatch_size
    _require_divisor("at_once", at_once, count, "sub-batches")
    return count


def _require_divisor(name: str, value: int, size: int, what: str) -> None:
    if size % value:
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        nearest = [d for d in divisors if d < value][-1:]
        nearest += [d for d in divisors if d > value][:1]
        raise ValueError(
            f"{name} = {value} does not divide the {size} {what} (on each device). "
            f"The nearest that do: {' and '.join(map(str, nearest))}."
        )


def average_over(
    part: Part,
    examples: Tree,
    count: int,
    first: Any,
    at_once: int,
    unroll: int | bool = 1,
) -> Parts:
    """Averages of `part` over `count` contiguous sub-batches.

    A loop with the memory of `at_once` of them; `first` is the global index of the
    first. Rows come back in the order of the batch. `unroll` is that of `lax.scan`.
    """
    if count == 1:
        parts = part(first, examples)
        return parts._replace(
            averaged=_narrow(jax.tree.map(widen, parts.averaged), parts.averaged)
        )
    # Under jit the shapes of the carry and the loop's body share one trace, given that
    # the index has the loop's own type.
    part, first = jax.jit(part), jnp.asarray(first, jnp.int32)
    cut = _cut(examples, count)
    some = jax.eval_shape(part, first, _one_of(cut))
    several = _one_sum(part) if at_once == 1 else _sum_side_by_side(part, at_once)
    if at_once == count:
        sums, rows = several(first, cut)
    else:
        rounds = count // at_once
        starts = first + at_once * jnp.arange(rounds, dtype=jnp.int32)
        cut = cut if at_once == 1 else _cut(cut, rounds)
        sums, rows = _loop(several, starts, cut, unroll)
        rows = jax.tree.map(_flatten_rows, rows)
    averaged = jax.tree.map(lambda x: x / count, sums)
    return Parts(_narrow(averaged, some.averaged), rows)


def _loop(several: Part, starts: jax.Array, cut: Tree, unroll: int | bool) -> Parts:
    shapes = jax.eval_shape(several, *_one_of((starts, cut)))

    def add(total: Tree, now: Tree) -> tuple[Tree, Tree]:
        sums, rows = several(*now)
        return jax.tree.map(jnp.add, total, sums), rows

    start = zeros(shapes.averaged)
    total, rows = jax.lax.scan(add, start, (starts, cut), unroll=unroll)
    return Parts(total, rows)


def _one_of(cut: Tree) -> Tree:
    """A sub-batch, for its shapes alone: the keys in it are not used up."""
    return jax.tree.map(lambda x: x[0], fresh_keys(cut))


def _one_sum(part: Part) -> Part:
    def one(index: Any, examples: Tree) -> Parts:
        parts = part(index, examples)
        return Parts(jax.tree.map(widen, parts.averaged), parts.rows)

    return one


def _sum_side_by_side(part: Part, at_once: int) -> Part:
    def several(index: Any, examples: Tree) -> Parts:
        parts = jax.vmap(part)(index + jnp.arange(at_once, dtype=jnp.int32), examples)
        sums = jax.tree.map(
            lambda x: jnp.sum(x, 0), jax.tree.map(widen, parts.averaged)
        )
        return Parts(sums, jax.tree.map(_flatten_rows, parts.rows))

    return several


def _cut(tree: Tree, count: int) -> Tree:
    return jax.tree.map(
        lambda x: jnp.reshape(x, (count, x.shape[0] // count, *x.shape[1:])), tree
    )


def _flatten_rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, *x.shape[2:])


def _narrow(tree: Tree, like: Tree) -> Tree:
    # Back to the dtype it came in; averages of integers and booleans stay float32.
    def back(x: jax.Array, was: Any) -> jax.Array:
        dtype = jnp.result_type(was)
        return x.astype(dtype) if jnp.issubdtype(dtype, jnp.inexact) else x

    return jax.tree.map(back, tree, like)
