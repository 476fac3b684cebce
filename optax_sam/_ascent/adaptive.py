"""ASAM's climb: each parameter moves in proportion to its own size."""

from typing import Any

import jax
import jax.numpy as jnp

from optax_sam._ascent.dual import check_ord, dual_vector
from optax_sam._ascent.radius import climb_by
from optax_sam._checks import known
from optax_sam._old_spellings import respelt
from optax_sam._trees import cast, matching, path_name, widen, widest_dtype
from optax_sam._types import Ascent, AxisName, Mask, Rho, Scalar, Tree


@respelt
def adaptive_ascent(
    rho: Rho = 0.5,
    *,
    eta: Scalar = 0.01,
    ord: float | None = None,
    mask: Mask | None = None,
    params_axis_name: AxisName | None = None,
) -> Ascent:
    r"""ASAM's ascent: the climb in a ball that is scaled by the parameters' size.

    .. math:: \epsilon = T \cdot \mathrm{steepest}(T g), \quad T = |w| + \eta,
              \quad \text{for } p = 2:\ \epsilon = \rho \frac{T^2 g}{\|T g\|_2}

    It is the maximizer of `<g, e>` over `norm(e / T) <= rho`. With eta = 0 the climbed
    loss does not change when weights are rescaled without changing the network.

    Args:
      rho: radius of the climb, in the norm `ord` of climb / T over the whole tree;
        10 to 20 times SAM's. A number, a traced scalar or, in the optimizer, a
        schedule.
      eta: added to abs(w), so that small weights can climb too. May be traced.
      ord: the order p of the norm in [1, inf], a Python number; `None` is 2.
      mask: where T = abs(w) + eta; elsewhere T = 1. A tree of booleans (or a prefix
        of one), or a function of the parameters that gives one. `None` is the
        published rule (SamsungLabs' code): every leaf whose last path key is not
        `bias` or `b`.
        `True` is every leaf; with `eta=0` that is davda54/sam's `adaptive=True`.
        The mask moves the best rho: 0.5 without the biases, 2.0 with them (Kwon).
      params_axis_name: as for `steepest_ascent`.

    Returns:
      An ascent. The climb has the gradient's structure and dtypes. Stateless unless
      rho is a schedule.

    Raises:
      ValueError: a negative rho or eta or an `ord` below 1, given as a number;
        `update` without `params`.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> ascent = optax_sam.adaptive_ascent(rho=0.5, eta=0.0)
      >>> params, gradient = jnp.array([3.0, 1.0]), jnp.array([3.0, 4.0])
      >>> climb, _ = ascent.update(gradient, ascent.init(params), params)
      >>> jnp.round(climb, 4)
      Array([1.3707, 0.2031], dtype=float32)

    Reference: Kwon et al. 2021 (arXiv:2102.11600), "ASAM: Adaptive Sharpness-Aware
      Minimization for Scale-Invariant Learning of Deep Neural Networks", equation 5 and
      algorithm 1.
    """
    check_ord(ord)
    _check_eta(eta)

    def direction(g: Tree, params: Tree | None) -> Tree:
        if params is None:
            raise ValueError(
                "adaptive_ascent scales the climb by the size of each parameter, so "
                "`update` needs them; got params=None. Write "
                "update(gradient, state, params)."
            )
        scale = _sizes(params, eta, mask)
        scale, wide = cast((scale, g), widest_dtype((scale, g)))
        scaled = jax.tree.map(jnp.multiply, scale, wide)
        unit = dual_vector(scaled, ord, params_axis_name)
        return jax.tree.map(jnp.multiply, scale, unit)

    return climb_by(rho, direction)


def _check_eta(eta: Any) -> None:
    if known(eta) and not eta >= 0:
        raise ValueError(
            f"eta is added to abs(w), the size of each weight, and not negative, got "
            f"eta = {eta}. Write eta=0.01, or eta=0 for the size alone."
        )


def _sizes(params: Tree, eta: Scalar, mask: Mask | None) -> Tree:
    """T: abs(w) + eta where the mask says so, 1 elsewhere."""
    mask = _all_but_biases if mask is None else mask
    chosen = mask(params) if callable(mask) else mask
    chosen = jax.tree.broadcast(chosen, params)  # only where there is a parameter

    def size(adapt: Any, w: Any) -> jax.Array:
        wide = widen(w)
        return jnp.where(adapt, jnp.abs(wide) + jnp.asarray(eta, wide.dtype), 1)

    return jax.tree.map(size, matching(chosen, params), params)


def _all_but_biases(params: Tree) -> Tree:
    def adapt(path: tuple[Any, ...], _: Any) -> bool:
        return path_name(path).rpartition("/")[2] not in ("bias", "b")

    return jax.tree_util.tree_map_with_path(adapt, params)
