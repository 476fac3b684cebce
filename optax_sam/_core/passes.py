"""One sub-batch as a method sees it: a loss that can be differentiated anywhere."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam._ascent.dual import two_norm
from optax_sam._checks import check_pair, check_scalar
from optax_sam._core.diagnostics import Diagnostics, diagnose, unknown
from optax_sam._devices import vary_like, vary_with, warn_of_sums
from optax_sam._trees import (
    cast,
    cast_like,
    fill,
    matching,
    wide_dtype,
    widest_dtype,
)
from optax_sam._types import Tree
from optax_sam._warn import warn
from optax_sam._when import choose

#: `loss(params, examples)`: a scalar, or `(scalar, aux)`.
Loss = Callable[[Tree, Tree], Any]

#: `climb_of(gradient, params, value) -> climb`: the next step of a climb. The value is
#: the clean loss of the sub-batch, or `None` where nobody has told it.
ClimbOf = Callable[[Tree, Tree, Any], Tree]


class Evaluation(NamedTuple):
    """What one pass gives: the value of the loss, its gradient, and aux.

    `told`: what the clean pass tells the further ones, where they are not alike.
    """

    value: Any
    gradient: Tree
    aux: Any = None
    told: Any = None


class Walk(NamedTuple):
    """The passes of a step.

    Attributes:
      clean: the pass at the parameters.
      gradient: that of the last pass, the clean one where no climb was made.
      report: what the passes show, where diagnostics are asked for; else `None`.
    """

    clean: Evaluation
    gradient: Tree
    report: Diagnostics | None


@dataclass(frozen=True)
class Passes:
    """The passes that can be made over one sub-batch.

    Attributes:
      loss: `loss(params, examples)` returns a scalar, or a pair with `has_aux`.
      params: where the clean pass is made. A parameter that has no gradient (`None` in
        a point) stays where it is.
      examples: the sub-batch; `None` where the loss knows it.
      has_aux: whether the loss returns `(value, aux)`.
      given: the clean pass where the caller has made it already; its value is `None`
        where that is not known.
      watched: whether diagnostics are asked for.
    """

    loss: Loss
    params: Tree
    examples: Tree = None
    has_aux: bool = False
    given: Evaluation | None = None
    watched: bool = False

    def clean(self) -> Evaluation:
        """The clean pass, at the parameters."""
        if self.given is None:
            return self.at(self.params)
        if self.given.value is None:
            return self.given._replace(value=unknown())
        return self.given

    def at(self, point: Tree, like: Tree = None) -> Evaluation:
        """The pass at another point, its gradient in the dtypes of `like`, if given."""
        (value, aux), gradient = jax.value_and_grad(self.out, has_aux=True)(point)
        warn_of_sums(value, gradient)
        if like is not None:
            gradient = cast_like(gradient, like)
        return Evaluation(value, gradient, aux)

    def out(self, point: Tree) -> tuple[Any, Any]:
        """The value of the loss at a point, and aux."""
        out = self.loss(fill(point, self.params), self.examples)
        value, aux = check_pair(out, self.has_aux)
        check_scalar(value)
        return value, aux

    def after(self, told: Any, first: Any = False) -> "Passes":
        """The passes that follow a clean one: of a loss, they are like it.

        `first` (a traced bool, in a loop): that this is the clean one all the same.
        """
        del told, first
        return self

    def over(self, examples: Tree) -> "Passes":
        """The passes over other examples."""
        return replace(self, examples=examples, given=None)

    def walk(
        self,
        climb_of: ClimbOf,
        climbs: Any = True,
        *,
        num_steps: int = 1,
        climb_dtype: Any = None,
        keep_clean: bool = True,
    ) -> Walk:
        """The clean pass, and those at the points that the climb leads to.

        The further passes are made where `climbs` says so, a bool of Python or a
        traced one. `keep_clean`: whether anyone asks for the clean gradient; it costs
        nothing here, but a loop would have to carry it.
        """
        del keep_clean
        clean = self.clean()
        here = matching(self.params, clean.gradient)
        further = self.after(clean.told)

        def onward() -> Any:
            point = further.climb(climb_of, clean, num_steps, climb_dtype)
            last = further.at(point, clean.gradient)
            return last.gradient, self.show(clean, last, point, 1 + num_steps)

        def stay() -> Any:
            return clean.gradient, self.show(clean, clean, here, 1)

        return Walk(clean, *choose(climbs, onward, stay))

    def known_loss(self, clean: Evaluation) -> Any:
        """The clean loss; `None` where a gradient came in without it."""
        known = self.given is None or self.given.value is not None
        return clean.value if known else None

    def climb(
        self, climb_of: ClimbOf, clean: Evaluation, num_steps: int, climb_dtype: Any
    ) -> Tree:
        """The climbed parameters, after `num_steps` steps from the clean gradient on.

        Each is found by `climb_of` from the gradient at the end of the one before, held
        in `climb_dtype`.
        """
        gradient, value = clean.gradient, self.known_loss(clean)
        start = matching(self.params, gradient)
        climb = climb_of(cast(gradient, climb_dtype), start, value)
        for _ in range(num_steps - 1):
            so_far = add_climb(start, climb, gradient, climb_dtype)
            there = cast(self.at(so_far, gradient).gradient, climb_dtype)
            climb = jax.tree.map(jnp.add, climb, climb_of(there, start, value))
        return add_climb(start, climb, gradient, climb_dtype)

    def show(
        self, clean: Evaluation | None, last: Evaluation, point: Tree, count: Any
    ) -> Diagnostics | None:
        """What a step shows whose last pass was made at this point.

        `clean` is the pass that the climb was made of, where there was one, and `count`
        the number of gradients. `None` where nobody asks.
        """
        if not self.watched:
            return None
        return self.report(clean, last, self.distance(point), count)

    def distance(self, point: Tree) -> jax.Array:
        """How far from the parameters a point is."""
        here = matching(self.params, point)
        dtype = widest_dtype((point, here))
        point, here = cast((point, here), dtype)
        return two_norm(jax.tree.map(jnp.subtract, point, here))

    def report(
        self, clean: Evaluation | None, last: Evaluation, distance: Any, count: Any
    ) -> Diagnostics:
        """What a step shows whose last pass was made so far away."""
        report = diagnose(self.params, clean, last, distance, count)
        varying: Diagnostics = vary_with(report, last.gradient)
        return varying


def add_climb(params: Tree, climb: Tree, like: Tree, climb_dtype: Any = None) -> Tree:
    """The climbed parameters, in `climb_dtype` or their own.

    They vary over devices as `like` does.
    """
    if climb_dtype is None:
        _warn_of_half_precision(params)
    start = cast(params, climb_dtype)
    moved = jax.tree.map(_add, start, climb)
    return vary_like(moved, like)


def _add(p: Any, e: Any) -> jax.Array:
    """The sum, rounded once."""
    dtype = widest_dtype((p, e))
    total = jnp.asarray(p, dtype) + jnp.asarray(e, dtype)
    return total.astype(jnp.result_type(p))


def _warn_of_half_precision(params: Tree) -> None:
    if any(wide_dtype(x) != jnp.result_type(x) for x in jax.tree.leaves(params)):
        warn(
            "SAM climbs from parameters stored in half precision, where most of a "
            "small climb is rounded away: SAM then does little or nothing. Hold the "
            "climbed copy in float32 with climb_dtype=jnp.float32, or keep the "
            "parameters in float32 and cast them inside the loss."
        )
