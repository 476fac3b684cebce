"""Outside of `jit`: what has loops or conditions is compiled once for each loss."""

import numbers
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from optax_sam._surroundings import surroundings, unchanged


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
    in it are new ones. Programs are forgotten with the function that they were made of,
    and when something has changed that it reads beside its arguments: an eager loss
    sees its surroundings as they are now.
    """

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run
        self._programs: dict[int, Program] = {}

    def __call__(self, fn: Callable[..., Any], *args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        if any(isinstance(x, jax.core.Tracer) for x in leaves):
            return self._run(fn, *args)
        arrays = [x if is_array(x) else None for x in leaves]
        rest = tuple(None if is_array(x) else static(x) for x in leaves)
        try:
            hash(rest)
            program = self._program(fn, objects_among(rest))
        except TypeError:  # no weak reference to it, or no way to tell it apart
            return self._run(fn, *args)
        return program(structure, rest, arrays)

    def __reduce__(self) -> Any:
        """A copy compiles for itself: programs can be neither copied nor stored."""
        return CompiledOnce, (self._run,)

    def _program(self, fn: Callable[..., Any], objects: list[Any]) -> "Program":
        number, known = id(fn), self._programs.get(id(fn))
        if known is None or not known.is_of(fn, objects):
            reference = weakref.ref(fn, lambda _: self._programs.pop(number, None))
            known = self._programs[number] = Program(self._run, reference)
        return known


def objects_among(rest: tuple[Any, ...]) -> list[Any]:
    """The arguments that may change in place."""
    values = [x[-1] for x in rest if x is not None]
    return [x for x in values if not isinstance(x, (numbers.Number, str, bytes))]


def static(x: Any) -> tuple[Any, ...]:
    """What tells an argument from all others; by `==`, 0.0 is -0.0, and False."""
    digits = repr(x) if isinstance(x, numbers.Number) else None
    return type(x), digits, x


class Program:
    """`run` of one function, compiled, and what that read when it was traced."""

    def __init__(self, run: Callable[..., Any], reference: weakref.ref[Any]) -> None:
        self._reference = reference
        self._surroundings: Any = None

        def traced(structure: Any, rest: tuple[Any, ...], arrays: list[Any]) -> Any:
            pairs = zip(arrays, rest, strict=True)
            leaves = [x if other is None else other[-1] for x, other in pairs]
            fn = reference()
            out = boxed(run(fn, *jax.tree.unflatten(structure, leaves)))
            # Looked at now, as a trace may leave notes there.
            self._surroundings = surroundings(fn, *objects_among(rest))
            return out

        self._compiled = jax.jit(traced, static_argnums=(0, 1))

    def is_of(self, fn: Callable[..., Any], objects: list[Any]) -> bool:
        """And nothing has changed around it, and in the objects it is given."""
        return self._reference() is fn and unchanged(
            self._surroundings, surroundings(fn, *objects)
        )

    def __call__(self, structure: Any, rest: tuple[Any, ...], arrays: list[Any]) -> Any:
        return unboxed(self._compiled(structure, rest, arrays))
