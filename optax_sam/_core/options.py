"""The options that products share: written once, known to type checkers and tools."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypedDict, TypeVar, get_args, get_type_hints

from jax.sharding import Mesh

from optax_sam._old_spellings import bind
from optax_sam._types import AxisName, When

P = ParamSpec("P")
T = TypeVar("T")


class Options(TypedDict, total=False):
    """On which steps and over which examples; see `sharpness_aware`."""

    when: When
    diagnostics: bool
    has_aux: bool
    ignore_updates: bool
    microbatch_size: int | None
    axis_name: AxisName | None
    mesh: Mesh | None
    at_once: int | None
    unroll: int | bool | None


class ClimbOptions(Options, total=False):
    """Also how the climb is made; see `sharpness_aware`."""

    num_steps: int | None
    climb_dtype: Any
    scan_passes: bool


def product(factory: Callable[P, T]) -> Callable[P, T]:
    """The factory, with the names and defaults of its `**options` in its signature.

    `optax.inject_hyperparams` and `help` read the signature, and calls are bound to
    it, so that a misspelt option is refused under the product's own name.
    """
    own = inspect.signature(factory)
    *named, rest = own.parameters.values()
    options = get_type_hints(get_args(get_type_hints(factory)[rest.name])[0])
    shared = [
        rest.replace(
            name=name,
            kind=inspect.Parameter.KEYWORD_ONLY,
            annotation=kind,
            # Never a number: optax.inject_hyperparams would make an array of it.
            default=False if kind is bool else None,
        )
        for name, kind in options.items()
    ]
    signature = own.replace(parameters=[*named, *shared])

    @functools.wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> T:
        if "scan_passes" in kwargs and "scan_passes" not in signature.parameters:
            raise TypeError(
                f"{factory.__name__} takes no scan_passes: a loop needs several passes "
                f"that are alike, and this method makes only one, or makes them over "
                f"different numbers of examples. Leave scan_passes out."
            )
        bind(signature, factory.__name__, args, kwargs)
        return factory(*args, **kwargs)

    make.__dict__["__signature__"] = signature
    return make
