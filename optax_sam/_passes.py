"""One sub-batch as a method sees it: a loss that can be differentiated anywhere."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax

from optax_sam._checks import fill
from optax_sam._types import Tree

#: `loss(params, examples)`: a scalar, or `(scalar, aux)`.
Loss = Callable[[Tree, Tree], Any]


class Evaluation(NamedTuple):
    """What one pass gives: the value of the loss, its gradient, and aux."""

    value: Any
    gradient: Tree
    aux: Any = None


@dataclass(frozen=True)
class Passes:
    """The passes that can be made over one sub-batch.

    `loss(params, examples)` returns `(value, aux)` with `has_aux`. Parameters that
    have no gradient (`None` in a point) stay where they are. `given` is the clean
    pass where the caller has made it already.
    """

    loss: Loss
    params: Tree
    examples: Tree = None
    has_aux: bool = False
    given: Evaluation | None = None

    def clean(self) -> Evaluation:
        """The clean pass, at the parameters."""
        return self.at(self.params) if self.given is None else self.given

    def at(self, point: Tree) -> Evaluation:
        """The pass at another point."""
        (value, aux), gradient = jax.value_and_grad(self.out, has_aux=True)(point)
        return Evaluation(value, gradient, aux)

    def out(self, point: Tree) -> tuple[Any, Any]:
        """The value of the loss at a point, and aux."""
        out = self.loss(fill(self.params, point), self.examples)
        return out if self.has_aux else (out, None)

    def over(self, examples: Tree) -> "Passes":
        """The passes over other examples."""
        return replace(self, examples=examples, given=None)
