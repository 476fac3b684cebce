"""The passes of a step as one loop: the model is in the program once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam._core.passes import ClimbOf, Evaluation, Passes, Walk, add_climb
from optax_sam._devices import vary_like, zeros
from optax_sam._once import is_array
from optax_sam._types import Tree
from optax_sam._when import choose


class Carry(NamedTuple):
    """What goes from one trip of the loop to the next: as little as there can be.

    Attributes:
      clean: the first pass, its gradient only where anyone asks for it.
      last: the latest pass.
      climb: the climb so far, where more steps than one are added up.
      distance: how far the latest pass was made, where diagnostics are asked for.
    """

    clean: Evaluation
    last: Evaluation
    climb: Tree
    distance: Any


@dataclass(frozen=True)
class ScannedPasses(Passes):
    """The passes over one sub-batch, made in one loop by `walk`, and only there.

    A pass outside of the loop would be the model in the program once more.
    """

    def at(self, point: Tree, like: Tree = None) -> Evaluation:
        """Refuse a pass outside of the loop."""
        raise ValueError(
            "With scan_passes=True the passes of a step are one loop, the one in "
            "Passes.walk, but this method makes a pass of its own, or takes a gradient "
            "that was given. Leave scan_passes out."
        )

    def walk(
        self,
        climb_of: ClimbOf,
        climbs: Any = True,
        *,
        num_steps: int = 1,
        climb_dtype: Any = None,
        keep_clean: bool = True,
    ) -> Walk:
        """The passes of a step in a `lax.scan`, its trips after the first where asked.

        A trip climbs from the gradient of the one before, and so the first, which does
        not, is exactly at the parameters.
        """
        self._refuse(climb_dtype)
        straight = Passes(**vars(self))
        if climbs is False:
            return straight.walk(climb_of, False)
        loop = _Loop(straight, climb_of, num_steps > 1, keep_clean or self.watched)

        def body(carry: Carry, trip: Any) -> tuple[Carry, None]:
            first = trip == 0
            runs = True if climbs is True else first | climbs
            return choose(runs, lambda: loop.trip(first, carry), lambda: carry), None

        start, trips = loop.start(), jnp.arange(1 + num_steps)
        (clean, last, _, distance), _ = jax.lax.scan(body, start, trips)
        report = None
        if self.watched:
            count = 1 + num_steps * jnp.asarray(climbs, int)
            report = self.report(clean, last, distance, count)
        return Walk(clean._replace(aux=loop.whole(clean.aux)), last.gradient, report)

    def _refuse(self, climb_dtype: Any) -> None:
        if self.given is not None:
            raise ValueError(
                "A gradient was given, and with scan_passes=True the clean pass is one "
                "of the loop's: with the given one the model would be in the program "
                "twice. Write update(None, state, params, value_fn=...)."
            )
        if climb_dtype is not None:
            raise ValueError(
                "With scan_passes=True all passes of a step have one dtype, so with "
                "climb_dtype= the clean pass, too, would be made at other parameters "
                "than the ones given. Use one of the two options."
            )


class _Loop:
    """One trip of the loop, and what the first begins with."""

    def __init__(
        self, passes: Passes, climb_of: ClimbOf, several: bool, keep_clean: bool
    ) -> None:
        self.passes, self.climb_of = passes, climb_of
        self.several, self.keep_clean = several, keep_clean
        self.plain: list[Any] = []
        # So that the shapes of the carry and the loop's body share one trace.
        self.evaluate: Callable[[Tree], Evaluation] = jax.jit(self._evaluate)

    def _evaluate(self, point: Tree) -> Evaluation:
        """The pass at a point, of whose aux no loop can carry what is no array."""
        there = self.passes.at(point, self.passes.params)
        leaves, structure = jax.tree.flatten(there.aux)
        self.plain = [structure, [None if is_array(x) else (x,) for x in leaves]]
        return there._replace(aux=[x if is_array(x) else None for x in leaves])

    def whole(self, arrays: list[Any]) -> Any:
        """Aux with what is no array."""
        structure, plain = self.plain
        leaves = [x if y is None else y[0] for x, y in zip(arrays, plain, strict=True)]
        return jax.tree.unflatten(structure, leaves)

    def start(self) -> Carry:
        """Zeros, which the first trip replaces."""
        here = self.passes.params
        last = zeros(jax.eval_shape(self.evaluate, here))
        climb = jax.eval_shape(self.climb_of, last.gradient, here)
        distance = jax.eval_shape(self.far, vary_like(here, last.gradient))
        return Carry(
            self.kept(last),
            last._replace(aux=None),
            zeros(climb) if self.several else None,
            zeros(distance) if self.passes.watched else None,
        )

    def trip(self, first: Any, carry: Carry) -> Carry:
        """Climb on, or on the first trip do not; and the pass there."""
        here, gradient = self.passes.params, carry.last.gradient

        def stay() -> tuple[Tree, Tree]:
            return carry.climb, vary_like(here, gradient)

        def onward() -> tuple[Tree, Tree]:
            climb = self.climb_of(gradient, here)
            if self.several:
                climb = jax.tree.map(jnp.add, carry.climb, climb)
            point = add_climb(here, climb, gradient)
            return climb if self.several else None, point

        climb, point = choose(first, stay, onward)
        there = self.evaluate(point)
        clean = choose(first, lambda: self.kept(there), lambda: carry.clean)
        return Carry(clean, there._replace(aux=None), climb, self.far(point))

    def kept(self, clean: Evaluation) -> Evaluation:
        """Of the first pass, what is asked for."""
        return clean if self.keep_clean else clean._replace(gradient=None)

    def far(self, point: Tree) -> Any:
        """How far a point is, where anyone asks."""
        return self.passes.distance(point) if self.passes.watched else None
