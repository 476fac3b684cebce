"""The p-norm maths of a climb: where does a linear function rise fastest?"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam._checks import known
from optax_sam._devices import max_over, sum_over
from optax_sam._trees import cast, dot, once, widest_dtype
from optax_sam._types import AxisName, Tree


def check_ord(ord: float | None) -> float:
    """The order of the norm as a float; `None` is 2."""
    if isinstance(ord, jax.Array):
        raise TypeError(
            "ord was given as an array, but it changes the program and must be known "
            "in Python. Write ord=2; under optax.inject_hyperparams name it: "
            'static_args=("ord", "mask", "combine").'
        )
    if not (ord is None or known(ord)):
        raise TypeError(f"ord is the order of a norm, a number: ord=2, not {ord!r}.")
    order = 2.0 if ord is None else float(ord)
    if not order >= 1:
        raise ValueError(
            f"ord must lie in [1, inf], got ord = {ord}: below 1 there is no norm, "
            f"so no ball to climb in. Write ord=2 for SAM, 1 or jnp.inf for the ends."
        )
    return order


def _total(tree: Tree, axis_name: AxisName | None) -> Any:
    return sum(sum_over(jnp.sum(x), axis_name) for x in jax.tree.leaves(tree))


def _largest(tree: Tree, axis_name: AxisName | None) -> Any:
    # The scale cancels in the result, so its derivative is not needed.
    largest = [jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(tree)]
    tops = [max_over(jax.lax.stop_gradient(x), axis_name) for x in largest]
    return jnp.max(jnp.stack(tops)) if tops else jnp.zeros(())


def _power(x: jax.Array, exponent: float) -> jax.Array:
    # sign(x) |x|^exponent, with derivative 0 at 0 where that of the root is infinite
    size = jnp.where(x == 0, 1, jnp.abs(x))
    return jnp.where(x == 0, 0, jnp.sign(x) * size**exponent)


def _ones_at_largest(x: jax.Array) -> jax.Array:
    # The scaled largest entry is 1, but for the rounding of an accelerator's division.
    one = 1 - 4 * jnp.finfo(x.dtype).eps
    return jnp.where(jnp.abs(x) >= one, jnp.sign(x), 0)


def _profile(order: float) -> Callable[[jax.Array], jax.Array]:
    """The unnormalized maximizer, entry by entry, for entries scaled to at most 1.

    For 1/p + 1/q = 1 it is v = sign(g) |g|^(q-1), with norm(v, p)^p = sum |g|^q.
    Both ends are limits: q = 1 gives the signs, q = inf the largest entries alone
    (equal ones share the climb equally, which is a maximizer too).
    """
    if order == 1:
        return _ones_at_largest
    if math.isinf(order):
        return jnp.sign
    if order == 2:
        return lambda g: g
    return lambda g: _power(g, 1 / (order - 1))  # q - 1 = 1 / (p - 1)


def _norm(tree: Tree, order: float, usable: Any, axis_name: AxisName | None) -> Any:
    if math.isinf(order):
        return jnp.ones(())
    square = order == 2
    power = jnp.square if square else lambda v: jnp.abs(_power(v, order))
    # Guard before the root: its derivative at 0 is infinite.
    total = jnp.where(usable, _total(jax.tree.map(power, tree), axis_name), 1)
    return jnp.sqrt(total) if square else total ** (1 / order)


def dual_vector(
    tree: Tree, ord: float | None = None, axis_name: AxisName | None = None
) -> Tree:
    r"""The unit vector of the whole tree along which <tree, v> is largest.

    .. math:: \arg\max_{\|v\|_p \le 1} \langle g, v \rangle
              = \frac{\mathrm{sign}(g) |g|^{q-1}}{\|g\|_q^{q-1}},
              \quad \frac1p + \frac1q = 1

    Args:
      tree: a gradient; leaves of any float dtype.
      ord: the order p of the norm, a Python number in [1, inf]; `None` is 2.
      axis_name: mesh axes over which the leaves themselves are split by hand inside
        `jax.shard_map`, so that the norm is the norm of the whole.

    Returns:
      The unit vector, leaves in at least float32. Exactly zero where the tree is
      zero or not finite: a climb cannot start from there.

    Raises:
      ValueError: `ord` is below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam._ascent.dual import dual_vector
      >>> dual_vector({"w": jnp.array([3.0, 4.0])})["w"]
      Array([0.6, 0.8], dtype=float32)

    Reference: Foret et al. 2021 (arXiv:2010.01412), equation 2.
    """
    return _unit(_scaled(tree, axis_name), check_ord(ord), axis_name)


def dual_vector_and_norm(
    tree: Tree, ord: float | None = None, axis_name: AxisName | None = None
) -> tuple[Tree, jax.Array]:
    """The dual vector v, and <tree, v>: the norm of the tree of order q.

    The norm is 0 where the vector is zero.
    """
    scaled = _scaled(tree, axis_name)
    unit = _unit(scaled, check_ord(ord), axis_name)
    rise = dot(scaled.tree, unit, axis_name)
    norm = jnp.where(scaled.usable, scaled.scale * rise, 0)
    return unit, once(norm)


def _unit(scaled: "_Scaled", order: float, axis_name: AxisName | None) -> Tree:
    shape, usable = jax.tree.map(_profile(order), scaled.tree), scaled.usable
    norm = once(_norm(shape, order, usable, axis_name))
    # Chosen at the end only: XLA would store the entries for the norm to read.
    return jax.tree.map(lambda v: jnp.where(usable, v / norm.astype(v.dtype), 0), shape)


class _Scaled(NamedTuple):
    """A tree with entries between -1 and 1: it is `scale * tree`, if that is usable.

    No square overflows, and none that matters vanishes. (Entries up to 4 at the very
    end of the range, where the inverse of the scale would be no normal number.)
    """

    tree: Tree
    scale: jax.Array
    usable: jax.Array
    largest: jax.Array

    def norm(self, axis_name: AxisName | None = None) -> jax.Array:
        """The 2-norm of the scaled tree."""
        norm: jax.Array = once(_norm(self.tree, 2.0, self.usable, axis_name))
        return norm

    def unscaled(self, norm: jax.Array) -> jax.Array:
        """The norm of the tree itself; NaN where it is not finite."""
        size = jnp.where(self.usable, self.scale * norm, 0 * self.largest)
        whole: jax.Array = once(size)
        return whole


def _scaled(tree: Tree, axis_name: AxisName | None = None) -> _Scaled:
    wide = cast(tree, widest_dtype(tree))
    largest = _largest(wide, axis_name)
    smallest = jnp.finfo(largest.dtype).tiny  # what is below may be zero, or not
    usable = (largest >= smallest) & jnp.isfinite(largest)
    scale = jnp.where(usable, jnp.minimum(largest, 1 / smallest), 1)
    scale, usable = once((scale, usable))
    scaled = jax.tree.map(lambda g: g / scale, wide)
    return _Scaled(scaled, scale, usable, largest)


def two_norm(tree: Tree, axis_name: AxisName | None = None) -> jax.Array:
    """The 2-norm of the whole tree, in at least float32; NaN where it is not finite.

    `axis_name`: mesh axes over which the leaves are split by hand.
    """
    scaled = _scaled(tree, axis_name)
    return scaled.unscaled(scaled.norm(axis_name))


def norms_and_cosine(a: Tree, b: Tree) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The 2-norms of two trees, and the cosine of the angle between them.

    That is 0 where one is zero or not finite.
    """
    first, second = _scaled(a), _scaled(b)
    lengths = first.norm(), second.norm()
    product = dot(first.tree, second.tree) / (lengths[0] * lengths[1])
    cosine = jnp.where(first.usable & second.usable, product, 0)
    return first.unscaled(lengths[0]), second.unscaled(lengths[1]), cosine
