"""Climb, then differentiate: the one room behind both doors."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from optax_sam._checks import fill, matching
from optax_sam._devices import vary_like
from optax_sam._types import Ascent, Combine, Tree

Loss = Callable[[Tree], Any]


@dataclass(frozen=True)
class Climber:
    """The static answers to "where to climb" and "which gradient comes out"."""

    ascent: Ascent
    combine: Combine | None = None
    has_aux: bool = False
    num_steps: int | None = None
    climb_dtype: Any = None

    def __post_init__(self) -> None:
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(
                f"num_steps must be at least 1, got num_steps = {self.num_steps}. For "
                f"no climb at all leave SAM out, or give rho=0."
            )

    def gradient(
        self, loss: Loss, clean: Tree, state: Any, params: Tree
    ) -> tuple[Tree, Any]:
        """The gradient that comes out, and the ascent's new state.

        `clean` is the gradient of `loss` at `params`. Where it is `None` a parameter
        stays where it is.
        """
        point, state = self.point(loss, clean, state, params)
        climbed = self._gradient_at(loss, point, clean, params)
        return (self.combine(clean, climbed) if self.combine else climbed), state

    def point(
        self, loss: Loss, clean: Tree, state: Any, params: Tree
    ) -> tuple[Tree, Any]:
        """The climbed parameters: n steps of rho / n, each from the last one's end."""
        start = matching(params, clean)
        climb, new_state = self._step(clean, state, start)
        for _ in range((self.num_steps or 1) - 1):
            so_far = self._add(start, climb, clean)
            gradient = self._gradient_at(loss, so_far, clean, params)
            climb = jax.tree.map(jnp.add, climb, self._step(gradient, state, start)[0])
        return self._add(start, climb, clean), new_state

    def _step(self, gradient: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
        if self.climb_dtype is not None:
            gradient = _cast(gradient, self.climb_dtype)
        climb, state = self.ascent.update(gradient, state, params)
        steps = self.num_steps or 1
        return jax.tree.map(lambda e: e / steps, climb), state

    def _add(self, params: Tree, climb: Tree, clean: Tree) -> Tree:
        if self.climb_dtype is None:
            _warn_of_half_precision(params)
        else:
            params = _cast(params, self.climb_dtype)
        moved = jax.tree.map(lambda p, e: (p + e).astype(p.dtype), params, climb)
        return vary_like(moved, clean)

    def _gradient_at(self, loss: Loss, point: Tree, clean: Tree, params: Tree) -> Tree:
        def at(moved: Tree) -> Any:
            return loss(fill(params, moved))

        gradient = jax.grad(at, has_aux=self.has_aux)(point)
        gradient = gradient[0] if self.has_aux else gradient
        return jax.tree.map(lambda g, c: g.astype(c.dtype), gradient, clean)


def _cast(tree: Tree, dtype: Any) -> Tree:
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


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
