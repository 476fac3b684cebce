"""What was spelt otherwise in version 0.1.0: refused, and the new spelling shown."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: A function, and an argument that it no longer takes there, by name or position.
ARGUMENTS: dict[tuple[str, str | int], str] = {
    ("every_k", 1): "sam(rho, when=every_k(5))",
    ("every_k", "k"): "sam(rho, when=every_k(5))",
    ("with_probability", 1): "sam(rho, when=with_probability(0.5, key=key))",
    ("with_probability", "p"): "sam(rho, when=with_probability(0.5, key=key))",
    ("steepest_ascent", "axis_name"): "steepest_ascent(rho, params_axis_name=axes)",
    ("adaptive_ascent", "axis_name"): "adaptive_ascent(rho, params_axis_name=axes)",
    ("random_ascent", 1): "random_ascent(rho, key=key)",
    ("random_perturbation", 1): "random_perturbation(rho, key=key)",
    ("friendly_ascent", "lmbda"): "friendly_ascent(ascent, decay=0.9)",
    ("friendly_sam", "lmbda"): "friendly_sam(rho, decay=0.9)",
    ("update", "climb"): "sam(rho, when=False)",
    ("climb_only", "where"): "climb_only(ascent, mask)",
    (
        "proportional_rho",
        "highest",
    ): "proportional_rho(schedule, lr_max=0.1, rho_max=1)",
    ("proportional_rho", "lowest"): "proportional_rho(schedule, ..., lr_min=0.01)",
}

#: Public names that are gone.
NAMES = {
    "only_last": "sam(rho, when=from_step(start))",
    "coarse_uniform": "random_perturbation(rho, key=key), which draws so by default",
}


def respelt(function: Callable[P, T]) -> Callable[P, T]:
    """The function; called as it once was, it shows how it is called now."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        bind(signature, function.__name__, args, kwargs)
        return function(*args, **kwargs)

    return call


def bind(
    signature: inspect.Signature, name: str, args: tuple[Any, ...], kwargs: Any
) -> None:
    """Refuse arguments that the function does not take."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        for argument in (*kwargs, *range(len(args))):
            if (name, argument) in ARGUMENTS:
                refuse(name, argument, f"{name}: {error}")
        raise TypeError(f"{name}: {error}") from None


def refuse(name: str, argument: str | int, what: str) -> NoReturn:
    """Refuse an argument, and show how it is spelt now."""
    raise TypeError(f"{what}. It is now spelt {ARGUMENTS[name, argument]}.") from None


def __getattr__(name: str) -> NoReturn:
    """Refuse a name of the package that is gone, or never was."""
    if name in NAMES:
        # An AttributeError would lose its words in `from optax_sam import ...`.
        raise ImportError(f"optax_sam.{name} is gone. Write {NAMES[name]}.")
    raise AttributeError(f"module 'optax_sam' has no attribute {name!r}")
