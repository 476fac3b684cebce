"""The words of the library, and the one sign convention.

An *ascent* is an Optax gradient transformation that turns a gradient into a
*climb*: the vector that is **added** to the parameters. Optax's own convention, by
which an optimizer's updates already point downhill, is not touched: a SAM
transformation replaces the gradient, and whatever stands behind it descends.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import optax

#: A tree of arrays: parameters, gradients, climbs, batches.
Tree: TypeAlias = Any

#: `update(gradient, state, params) -> (climb, state)`; the climb is added. With extra
#: arguments it is told `value`, the clean loss of the sub-batch, where that is known.
Ascent: TypeAlias = optax.GradientTransformation | optax.GradientTransformationExtraArgs

#: A number that may be traced. Never branch on it in Python.
Scalar: TypeAlias = float | jax.Array

#: The radius of a climb: a number or, in the optimizer, a schedule of the step.
Rho: TypeAlias = Scalar | Callable[[Any], Any]

#: `sampler(key, shape, dtype) -> array` of random numbers, as those of `jax.random`.
Sampler: TypeAlias = Callable[[jax.Array, Sequence[int], Any], jax.Array]

#: `combine(clean, climbed) -> gradient`: which gradient comes out.
Combine: TypeAlias = Callable[[Tree, Tree], Tree]

#: On which steps: a bool of Python, a traced one, or a function of the step.
When: TypeAlias = bool | jax.Array | Callable[[Any], Any] | None

#: Names of mapped axes: those of a mesh, of `pmap` or of `vmap`.
AxisName: TypeAlias = str | tuple[str, ...]

#: Which leaves: a tree of booleans or a function of the parameters that gives one.
Mask: TypeAlias = Tree | Callable[[Tree], Tree]
