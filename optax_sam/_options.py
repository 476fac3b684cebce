"""The options that products share: written once, known to type checkers and tools."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypedDict, TypeVar, get_args, get_type_hints

from jax.sharding import Mesh

from optax_sam._types import AxisName

P = ParamSpec("P")
T = TypeVar("T")


class SubBatchOptions(TypedDict, total=False):
    """What is a sub-batch, and what the loss returns; see `sharpness_aware`."""

    has_aux: bool
    microbatch_size: int | None
    axis_name: AxisName | None
    mesh: Mesh | None
    at_once: int | None


class ClimbOptions(SubBatchOptions, total=False):
    """Also how the climb is made, and whether it is watched; see `sharpness_aware`."""

    num_steps: int | None
    climb_dtype: Any
    diagnostics: bool


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
            default=False if kind is bool else None,
        )
        for name, kind in options.items()
    ]
    signature = own.replace(parameters=[*named, *shared])

    @functools.wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> T:
        signature.bind(*args, **kwargs)
        return factory(*args, **kwargs)

    make.__dict__["__signature__"] = signature
    return make
