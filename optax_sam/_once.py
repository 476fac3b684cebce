"""Outside of `jit`: what has loops or conditions is compiled once for each loss."""

import numbers
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@jax.tree_util.register_static
@dataclass(frozen=True)
class Static:
    """What is no array: known to the trace, so that no program carries it."""

    value: Any


def is_array(x: Any) -> bool:
    """Whether a program can carry `x`."""
    return isinstance(x, (jax.Array, np.ndarray, np.generic))


def is_data(x: Any) -> bool:
    """Whether `x` is an array, or a number that can become one."""
    return is_array(x) or isinstance(x, numbers.Number)


def boxed(tree: Any) -> Any:
    """The tree, with what is no array in boxes without leaves."""
    return jax.tree.map(lambda x: x if is_array(x) else Static(x), tree)


def unboxed(tree: Any) -> Any:
    """The tree out of its boxes."""
    return jax.tree.map(
        lambda x: x.value if isinstance(x, Static) else x,
        tree,
        is_leaf=lambda x: isinstance(x, Static),
    )


class CompiledOnce:
    """`run(fn, *args)`; outside of `jit` it is compiled, once for each `fn`.

    An eager loop or condition is compiled at every call otherwise, since the functions
    in it are new ones. Programs are forgotten with the function that they were made of.
    """

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run
        self._programs: dict[int, tuple[Any, Any]] = {}

    def __call__(self, fn: Callable[..., Any], *args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        if any(isinstance(x, jax.core.Tracer) for x in leaves):
            return self._run(fn, *args)
        arrays = [x if is_array(x) else None for x in leaves]
        rest = tuple(None if is_array(x) else (type(x), x) for x in leaves)
        try:
            hash(rest)
            program = self._program(fn)
        except TypeError:  # no weak reference to it, or no way to tell it apart
            return self._run(fn, *args)
        return unboxed(program(structure, rest, arrays))

    def _program(self, fn: Callable[..., Any]) -> Any:
        known = self._programs.get(id(fn))
        if known is not None and known[0]() is fn:
            return known[1]
        number = id(fn)
        reference = weakref.ref(fn, lambda _: self._programs.pop(number, None))

        def program(structure: Any, rest: tuple[Any, ...], arrays: list[Any]) -> Any:
            pairs = zip(arrays, rest, strict=True)
            leaves = [x if other is None else other[1] for x, other in pairs]
            return boxed(self._run(reference(), *jax.tree.unflatten(structure, leaves)))

        compiled = jax.jit(program, static_argnums=(0, 1))
        self._programs[id(fn)] = reference, compiled
        return compiled
