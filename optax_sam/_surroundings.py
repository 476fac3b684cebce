"""What a function reads beside its arguments, to tell whether that has changed."""

import argparse
import collections
import functools
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import jax
import numpy as np

#: What lies here is taken as fixed: to follow it would take long, and caches change.
_PYTHON = Path(sysconfig.get_path("stdlib"))
_INSTALLED = {"site-packages", "dist-packages"}
#: With these an attribute is named by a word: getattr(self, "scale").
_BY_WORDS = {"getattr", "hasattr", "attrgetter", "vars", "__dict__"}
#: What is called without being named.
_BY_SYNTAX = {"__call__", "__getattr__", "__getitem__"}


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
    functions and the attributes of objects that are no library's, as far as a function
    on the way names them; and containers. NumPy arrays are compared by their bytes,
    numbers by their digits, words and sets by what they hold, all else by identity.
    """
    walk = _Walk(roots)
    try:
        while walk.left:
            walk.visit(walk.left.popleft())
            if not walk.left:
                walk.read_attributes()
    except Exception:  # of a list in itself, or a stranger's attribute
        return (object(),)  # what cannot be looked through counts as changed
    return tuple(walk.found)


class _Walk:
    """From object to object, each visited once."""

    def __init__(self, roots: tuple[Any, ...]) -> None:
        self.found: list[Any] = []  # the marks of all that was met
        self.left = collections.deque(roots)
        self._own = {id(root) for root in roots}  # not marked: that would hold them
        self._seen = set(self._own)
        self._names: set[str] = set()  # of all attributes that the functions name
        self._holders: list[dict[str, Any]] = []  # attributes that were not read yet

    def visit(self, one: Any) -> None:
        for value in _inside(one):
            self._meet(value)
        if isinstance(one, FunctionType):
            if not _of_a_library(one.__module__):
                self._names.update(_names(one.__code__))
        elif attributes := _attributes(one):
            self._holders.append(attributes)

    def read_attributes(self) -> None:
        """Those that a function names; what no function names may change."""
        for holder in self._holders:
            for name in [x for x in holder if x in self._names or x in _BY_SYNTAX]:
                self._meet(holder.pop(name))

    def _meet(self, value: Any) -> None:
        leaves, structure = _flat(value)
        marks = [None if id(x) in self._own else _mark(x) for x in leaves]
        self.found += [structure, *marks]
        self.left += [x for x in leaves if id(x) not in self._seen]
        self._seen.update(map(id, leaves))


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
    elif isinstance(one, type):
        yield one.__bases__
    elif hasattr(one, "__dict__"):
        yield type(one)


def _attributes(one: Any) -> dict[str, Any]:
    """Of an object, a class or a module that is no library's."""
    if isinstance(one, (SimpleNamespace, argparse.Namespace)):
        return dict(vars(one))
    kind = one if isinstance(one, type) else type(one)
    module = one.__name__ if isinstance(one, ModuleType) else kind.__module__
    if hasattr(one, "__dict__") and not _of_a_library(module):
        return dict(vars(one))
    return {}


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is filled later
        return None


def _names(code: CodeType) -> Iterator[str]:
    """All that may be globals or attributes, in the functions inside of it too."""
    yield from code.co_names
    by_words = not _BY_WORDS.isdisjoint(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
        elif by_words and isinstance(constant, str):
            yield constant


@functools.cache
def _of_a_library(module: str | None) -> bool:
    """Whether it is Python's, an installed package's, or this library's."""
    if module is None:
        return False
    first = module.split(".")[0]
    file = getattr(sys.modules.get(module), "__file__", None)
    if first == __name__.split(".")[0] or file is None:
        return first == __name__.split(".")[0] or first in sys.stdlib_module_names
    path = Path(file)
    return path.is_relative_to(_PYTHON) or not _INSTALLED.isdisjoint(path.parts)
