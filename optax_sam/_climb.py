"""Climb, then differentiate: the one room behind both doors."""

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam._checks import matching
from optax_sam._devices import vary_like
from optax_sam._diagnostics import Diagnostics, diagnose
from optax_sam._passes import Evaluation, Passes
from optax_sam._types import Ascent, Combine, Tree


class Climbed(NamedTuple):
    """What comes out of one sub-batch: a gradient, its clean pass, and a report."""

    gradient: Tree
    clean: Evaluation
    diagnostics: Diagnostics | None


@dataclass(frozen=True)
class Climber:
    """The static answers to "where to climb" and "which gradient comes out"."""

    ascent: Ascent
    combine: Combine | None = None
    num_steps: int | None = None
    climb_dtype: Any = None
    diagnostics: bool = False

    def __post_init__(self) -> None:
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(
                f"num_steps must be at least 1, got num_steps = {self.num_steps}. For "
                f"no climb at all leave SAM out, or give rho=0."
            )

    @property
    def num_gradients(self) -> int:
        """How many gradients a step takes, the clean one included."""
        return 1 + (self.num_steps or 1)

    def climb(self, passes: Passes, state: Any) -> Climbed:
        """The gradient that comes out of one sub-batch.

        Where the clean gradient is `None` a parameter stays where it is.
        """
        clean = passes.clean()
        point = self.point(passes, clean.gradient, state)
        climbed = _evaluate(passes, point, clean.gradient)
        return self.come_out(passes, clean, climbed, point, self.num_gradients)

    def come_out(
        self,
        passes: Passes,
        clean: Evaluation,
        climbed: Evaluation,
        point: Tree,
        num_gradients: int,
    ) -> Climbed:
        """Which gradient comes out of the two passes, and what they show."""
        gradient = (
            self.combine(clean.gradient, climbed.gradient)
            if self.combine
            else climbed.gradient
        )
        if not self.diagnostics:
            return Climbed(gradient, clean, None)
        report = diagnose(clean, climbed, passes.params, point, num_gradients)
        return Climbed(gradient, clean, report)

    def stay(self, passes: Passes) -> Climbed:
        """The clean gradient, as after a climb of length zero: one pass less."""
        clean = passes.clean()
        if not self.diagnostics:
            return Climbed(clean.gradient, clean, None)
        here = matching(passes.params, clean.gradient)
        report = diagnose(clean, clean, passes.params, here, 1)
        return Climbed(clean.gradient, clean, report)

    def point(self, passes: Passes, clean: Tree, state: Any) -> Tree:
        """The climbed parameters: n steps of rho / n, each from the last one's end."""
        start = matching(passes.params, clean)
        climb = self._step(clean, state, start)
        for _ in range((self.num_steps or 1) - 1):
            so_far = add_climb(start, climb, clean, self.climb_dtype)
            gradient = _evaluate(passes, so_far, clean).gradient
            climb = jax.tree.map(jnp.add, climb, self._step(gradient, state, start))
        return add_climb(start, climb, clean, self.climb_dtype)

    def _step(self, gradient: Tree, state: Any, params: Tree) -> Tree:
        if self.climb_dtype is not None:
            gradient = cast(gradient, self.climb_dtype)
        climb, _ = self.ascent.update(gradient, state, params)
        steps = self.num_steps or 1
        return jax.tree.map(lambda e: e / steps, climb)

    def next_state(self, state: Any, clean: Tree, params: Tree) -> Any:
        """The ascent's new state, from a clean gradient averaged over sub-batches.

        So it is the same on every device, however the examples are placed.
        """
        if not has_state(state):
            return state
        return self.ascent.update(clean, state, matching(params, clean))[1]


def has_state(state: Any) -> bool:
    """Whether there is anything to carry from step to step."""
    return bool(jax.tree.leaves(state))


def add_climb(params: Tree, climb: Tree, like: Tree, climb_dtype: Any) -> Tree:
    """The climbed parameters, in `climb_dtype` or their own.

    They vary over devices as `like` does.
    """
    if climb_dtype is None:
        _warn_of_half_precision(params)
    else:
        params = cast(params, climb_dtype)
    moved = jax.tree.map(lambda p, e: (p + e).astype(p.dtype), params, climb)
    return vary_like(moved, like)


def _evaluate(passes: Passes, point: Tree, clean: Tree) -> Evaluation:
    """The pass at a point, its gradient in the dtypes of the clean one."""
    there = passes.at(point)
    return there._replace(gradient=cast_like(there.gradient, clean))


def cast(tree: Tree, dtype: Any) -> Tree:
    """The tree with all leaves in one dtype."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def cast_like(tree: Tree, like: Tree) -> Tree:
    """The tree with every leaf in the dtype of the other's."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)


def _warn_of_half_precision(params: Tree) -> None:
    half = (jnp.bfloat16, jnp.float16)
    if any(jnp.result_type(x) in half for x in jax.tree.leaves(params)):
        warnings.warn(
            "SAM climbs from parameters stored in half precision, where most of a "
            "small climb is rounded away: SAM then does little or nothing. Hold the "
            "climbed copy in float32 with climb_dtype=jnp.float32, or keep the "
            "parameters in float32 and cast them inside the loss.",
            UserWarning,
            stacklevel=2,
        )
