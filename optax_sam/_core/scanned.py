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
      point: where the next pass is made; after the last pass, its gradient.
      climb: the climb so far, where more steps than one are added up.
      value: the latest loss, where diagnostics are asked for.
      distance: how far away it was seen, likewise.
    """

    clean: Evaluation
    point: Tree
    climb: Tree
    value: Any
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
            "Passes.walk, but this method makes a pass of its own. Leave scan_passes "
            "out."
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
        """The passes of a step in a `lax.scan`: the first, and others where asked.

        A trip ends with the climb to where the next one begins. So the first is made
        exactly at the parameters, and each climb from a gradient that was taken.
        """
        self._refuse(climb_dtype)
        straight = self.straight()
        if climbs is False:
            return straight.walk(climb_of, False)
        loop = _Loop(straight, climb_of, num_steps > 1, keep_clean or self.watched)

        def body(carry: Carry, trip: Any) -> tuple[Carry, None]:
            runs, more = True, trip < num_steps
            if climbs is not True:
                runs, more = (trip == 0) | climbs, more & climbs
            new = choose(runs, lambda: loop.trip(carry, trip, more), lambda: carry)
            return new, None

        end, _ = jax.lax.scan(body, loop.start(), jnp.arange(1 + num_steps))
        report = None
        if self.watched:
            last = Evaluation(end.value, end.point)
            count = 1 + num_steps * jnp.asarray(climbs, int)
            report = self.report(end.clean, last, end.distance, count)
        clean = end.clean._replace(aux=loop.whole(end.clean.aux))
        return Walk(clean, end.point, report)

    def straight(self) -> Passes:
        """The same passes, one by one: what a trip makes."""
        return Passes(**vars(self))

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
        self.evaluate: Callable[..., Evaluation] = jax.jit(self._evaluate)

    def _evaluate(self, point: Tree, told: Any, first: Any) -> Evaluation:
        """The pass at a point, of whose aux no loop can carry what is no array."""
        passes = self.passes.after(told, first)
        there = passes.at(point, passes.params)
        leaves, structure = jax.tree.flatten(there.aux)
        self.plain = [structure, [None if is_array(x) else (x,) for x in leaves]]
        return there._replace(aux=[x if is_array(x) else None for x in leaves])

    def whole(self, arrays: list[Any]) -> Any:
        """Aux, with what is no array."""
        structure, plain = self.plain
        pairs = zip(arrays, plain, strict=True)
        leaves = [x if other is None else other[0] for x, other in pairs]
        return jax.tree.unflatten(structure, leaves)

    def start(self) -> Carry:
        """The parameters, and zeros for what the first trip finds."""
        there = zeros(jax.eval_shape(self.evaluate, self.passes.params, None, True))
        here = vary_like(self.passes.params, there.gradient)
        climb = distance = None
        if self.several:
            shapes = there.gradient, here, there.value
            climb = zeros(jax.eval_shape(self.climb_of, *shapes))
        if self.passes.watched:
            distance = zeros(jax.eval_shape(self.passes.distance, here))
        return Carry(self.kept(there), here, climb, self.shown(there.value), distance)

    def trip(self, carry: Carry, trip: Any, more: Any) -> Carry:
        """The pass at the point, and the climb to the next one, if there is more."""
        there = self.evaluate(carry.point, carry.clean.told, trip == 0)
        clean = choose(trip == 0, lambda: self.kept(there), lambda: carry.clean)

        def onward() -> tuple[Tree, Tree, Any, Any]:
            climb = self.climb_of(there.gradient, self.passes.params, clean.value)
            if self.several:
                climb = jax.tree.map(jnp.add, carry.climb, climb)
            point = add_climb(self.passes.params, climb, there.gradient)
            kept = climb if self.several else None
            distance = self.passes.distance(point) if self.passes.watched else None
            return point, kept, self.shown(there.value), distance

        def stay() -> tuple[Tree, Tree, Any, Any]:
            return there.gradient, carry.climb, self.shown(there.value), carry.distance

        return Carry(clean, *choose(more, onward, stay))

    def kept(self, clean: Evaluation) -> Evaluation:
        """Of the first pass, what is asked for."""
        return clean if self.keep_clean else clean._replace(gradient=None)

    def shown(self, value: Any) -> Any:
        """The loss, where diagnostics are asked for."""
        return value if self.passes.watched else None
