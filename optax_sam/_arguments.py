"""Which arguments are differentiated, and which of their leaves have a gradient.

Both are said as to `jax.value_and_grad`: `argnums`, and `allow_int` for leaves that are
no floating-point numbers. Such leaves are `None` for all who climb, combine or average;
their `float0` gradients come back last.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam._checks import known
from optax_sam._trees import fill, is_inexact, partition
from optax_sam._types import Tree

Argnums: TypeAlias = int | Sequence[int]


def check_argnums(name: str, argnums: Any) -> int | tuple[int, ...]:
    """Positions of arguments: one, or a tuple of them."""
    several = isinstance(argnums, (tuple, list))
    try:
        if not several:
            return operator.index(argnums)
        places = tuple(map(operator.index, argnums))
    except TypeError:
        raise TypeError(
            f"{name} = {argnums!r}: this is the position of an argument, or a tuple "
            f"of them. Write {name}=1 or {name}=(0, 2)."
        ) from None
    if not places:
        raise ValueError(
            f"{name} = {argnums!r} names no argument. Write {name}=1 or {name}=(0, 2)."
        )
    return places


def positions(name: str, argnums: int | tuple[int, ...], count: int) -> tuple[int, ...]:
    """These positions among `count` arguments, negative ones counted from the end."""
    given = (argnums,) if isinstance(argnums, int) else argnums
    for i in given:
        if not -count <= i < count:
            raise TypeError(
                f"{name} = {argnums}, but only {count} positional arguments were "
                f"given. Pass argument {i} by position, not by name."
            )
    places = tuple(i % count for i in given)
    if len(set(places)) < len(places):
        raise ValueError(
            f"{name} = {argnums} names one of {count} arguments twice. Name each once."
        )
    return places


def pick(args: Sequence[Any], argnums: int | tuple[int, ...]) -> Tree:
    """What is differentiated: an argument, or the tuple of several."""
    if isinstance(argnums, int):
        return args[argnums]
    return tuple(args[i] for i in argnums)


def put(args: Sequence[Any], argnums: int | tuple[int, ...], new: Tree) -> list[Any]:
    """The arguments, with something else in the place of what `pick` takes."""
    filled = list(args)
    if isinstance(argnums, int):
        filled[argnums] = new
        return filled
    for place, value in zip(argnums, new, strict=True):
        filled[place] = value
    return filled


def split_inexact(tree: Tree) -> tuple[Tree, Tree]:
    """What has a gradient, and what has none; `fill` puts them together again."""
    moving, still = partition(tree, jax.tree.map(lambda x: not is_inexact(x), tree))
    return jax.tree.map(lambda x: jnp.asarray(x) if known(x) else x, moving), still


def with_float0(gradient: Tree, still: Tree) -> Tree:
    """The gradient, with what JAX gives for the leaves that have none."""
    if not jax.tree.leaves(still):
        return gradient
    return fill(gradient, jax.grad(lambda _: 0.0, allow_int=True)(still))


@jax.tree_util.register_static
@dataclass(frozen=True)
class NoGradient:
    """A `float0` gradient: nothing that a loop, an average or a device could hold."""

    shape: tuple[int, ...]


def without_float0(gradient: Tree) -> Tree:
    """The gradient without leaves of `float0`."""

    def hide(x: Any) -> Any:
        none = getattr(x, "dtype", None) == jax.dtypes.float0
        return NoGradient(tuple(x.shape)) if none else x

    return jax.tree.map(hide, gradient)


def float0_again(gradient: Tree) -> Tree:
    """The gradient with its leaves of `float0`."""

    def is_hidden(x: Any) -> bool:
        return isinstance(x, NoGradient)

    def show(x: Any) -> Any:
        if not is_hidden(x):
            return x
        return with_float0(None, np.zeros(x.shape, bool))

    return jax.tree.map(show, gradient, is_leaf=is_hidden)
