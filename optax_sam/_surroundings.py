"""What a function reads beside its arguments, to tell whether that has changed."""

import functools
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

import jax
import numpy as np

_LIBRARIES = tuple(
    {
        sysconfig.get_path(name)
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    }
)


class Same:
    """Equal to what holds the same object, which it keeps from being replaced."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def surroundings(*roots: Any) -> tuple[Any, ...]:
    """Equal as long as nothing has changed that the roots read; they are not held.

    It follows closures, defaults, bound objects and partial arguments; the globals of
    functions and the attributes of objects that are no library's; and containers. NumPy
    arrays are compared by their bytes, numbers by their digits, words and sets by what
    they hold, all else by identity.
    """
    own = {id(root) for root in roots}
    seen, left, found = set(own), list(roots), []
    for one in left:
        for value in _inside(one):
            leaves, structure = _flat(value)
            found += [structure, *(None if id(x) in own else _mark(x) for x in leaves)]
            left += [x for x in leaves if id(x) not in seen]
            seen |= set(map(id, leaves))
    return tuple(found)


def unchanged(before: tuple[Any, ...] | None, now: tuple[Any, ...]) -> bool:
    """What cannot be compared counts as changed."""
    try:
        return before == now
    except Exception:  # of a stranger's static field
        return False


def _flat(value: Any) -> tuple[list[Any], Any]:
    try:
        return jax.tree.flatten(value)
    except (TypeError, ValueError):  # no tree for JAX, such as a dict of mixed keys
        return [value], None


def _mark(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray) and not leaf.dtype.hasobject:
        content = hashlib.blake2b(np.ascontiguousarray(leaf).view(np.uint8))
        return leaf.dtype, leaf.shape, content.digest()
    if isinstance(leaf, (bool, int, float, complex, np.generic)):
        return type(leaf), repr(leaf)
    if isinstance(leaf, (str, bytes)):
        return leaf
    if isinstance(leaf, (set, frozenset)):
        return frozenset(leaf)
    return Same(leaf)


def _inside(one: Any) -> Iterator[Any]:
    """What can be read through it."""
    if isinstance(one, functools.partial):
        yield from (one.func, one.args, one.keywords)
    elif isinstance(one, MethodType):
        yield from (one.__func__, one.__self__)
    elif isinstance(one, FunctionType):
        yield from (_contents(cell) for cell in one.__closure__ or ())
        yield from (one.__defaults__, one.__kwdefaults__)
        if not _of_a_library(one.__module__):
            names = set(_names(one.__code__))
            yield {n: x for n, x in one.__globals__.items() if n in names}
    elif isinstance(one, (staticmethod, classmethod)):
        yield one.__func__
    elif isinstance(one, property):
        yield one.fget
    elif hasattr(one, "__dict__"):
        kind = one if isinstance(one, type) else type(one)
        if not _of_a_library(kind.__module__):
            yield (dict(vars(one)), kind)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is filled later
        return None


def _names(code: CodeType) -> Iterator[str]:
    """All that may be globals, in the functions inside of it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


@functools.cache
def _of_a_library(module: str | None) -> bool:
    """Whether it is installed, or a part of this library: what does not change."""
    if module is None or module.split(".")[0] == __name__.split(".")[0]:
        return module is not None
    file = getattr(sys.modules.get(module), "__file__", None)
    return module == "builtins" or (file or "").startswith(_LIBRARIES)
