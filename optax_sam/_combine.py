"""Which gradient comes out: functions of the clean and the climbed one."""

import jax
import jax.numpy as jnp

from optax_sam._ascent.dual import dual_vector
from optax_sam._checks import check_weight
from optax_sam._trees import add_scaled, dot, widest_dtype
from optax_sam._types import AxisName, Combine, Scalar, Tree


def surrogate_gap(
    alpha: Scalar, *, params_axis_name: AxisName | None = None
) -> Combine:
    r"""GSAM's gradient: the climbed one, and down the surrogate gap as well.

    .. math:: g_s - \alpha\, g_\perp, \quad
              g_\perp = g - \frac{\langle g, g_s \rangle}{\|g_s\|^2} g_s

    The step along g_perp, the part of the clean gradient g that is orthogonal to the
    climbed one g_s, lowers the gap L(w + climb) - L(w) and to first order leaves the
    climbed loss alone.

    Args:
      alpha: how much of it; 0 is SAM. May be traced.
      params_axis_name: as for `steepest_ascent`.

    Returns:
      A function for `combine=`: of two trees (the clean and the climbed gradient),
      to one.

    Raises:
      ValueError: a negative alpha, given as a number.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> optax_sam.surrogate_gap(0.5)(jnp.array([1.0, 1.0]), jnp.array([2.0, 0.0]))
      Array([ 2. , -0.5], dtype=float32)

    Reference: Zhuang et al. 2022 (arXiv:2203.08065), "Surrogate Gap Minimization
      Improves Sharpness-Aware Training", algorithm 1.
    """
    check_weight("alpha", alpha)

    def combine(clean: Tree, climbed: Tree) -> Tree:
        gap = orthogonal_part(clean, climbed, params_axis_name)
        return add_scaled(climbed, gap, -alpha)

    return combine


def gradient_norm_penalty(alpha: Scalar) -> Combine:
    r"""A mixture of both gradients.

    .. math:: (1 - \alpha)\, g + \alpha\, g_s

    It penalizes the norm of the gradient by lambda = alpha * rho, to first order.
    With alpha = gamma / (1 - gamma), so above 1, it is the coupled WSAM: `wsam`.

    Args:
      alpha: the weight of the climbed gradient g_s; 1 is SAM and 0 the base
        optimizer. May be traced.

    Returns:
      A function for `combine=`: of two trees (the clean and the climbed gradient),
      to one.

    Raises:
      ValueError: a negative alpha, given as a number.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> optax_sam.gradient_norm_penalty(0.75)(jnp.array([0.0]), jnp.array([4.0]))
      Array([3.], dtype=float32)

    Reference: Zhao et al. 2022 (arXiv:2202.03599), "Penalizing Gradient Norm for
      Efficiently Improving Generalization in Deep Learning", equation 10; Yue et al.
      2023 (arXiv:2305.15817), "Sharpness-Aware Minimization Revisited: Weighted
      Sharpness as a Regularization Term".
    """
    check_weight("alpha", alpha)

    def combine(clean: Tree, climbed: Tree) -> Tree:
        def mix(g: jax.Array, s: jax.Array) -> jax.Array:
            dtype = widest_dtype((g, s))
            weight = jnp.asarray(alpha, dtype)
            mixed = (1 - weight) * g.astype(dtype) + weight * s.astype(dtype)
            return mixed.astype(s.dtype)

        return jax.tree.map(mix, clean, climbed)

    return combine


def orthogonal_part(tree: Tree, to: Tree, axis_name: AxisName | None = None) -> Tree:
    """The part of a tree that is orthogonal to another; all of it if that is zero.

    Leaves are in at least float32.
    """
    unit = dual_vector(to, axis_name=axis_name)
    length = dot(tree, unit, axis_name)

    def without(x: jax.Array, u: jax.Array) -> jax.Array:
        dtype = widest_dtype((x, u))
        return x.astype(dtype) - length.astype(dtype) * u.astype(dtype)

    return jax.tree.map(without, tree, unit)
