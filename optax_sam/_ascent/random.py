"""A climb in a random direction: the control experiment."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam._ascent.dual import dual_vector, widen
from optax_sam._ascent.radius import check_rho, scale_to
from optax_sam._sub_batches import own_key
from optax_sam._types import Ascent, Rho, Tree


class RandomAscentState(NamedTuple):
    """The key, and how many climbs were drawn from it."""

    key: jax.Array
    step: jax.Array


def random_ascent(rho: Rho, key: jax.Array) -> Ascent:
    r"""A climb of norm rho in a uniformly random direction of the whole tree.

    .. math:: \epsilon = \rho \frac{z}{\|z\|_2}, \quad z \sim N(0, I)

    The control experiment: what SAM gains over this it owes to *where* it climbs.
    The climb does not depend on the gradient. Where the product names sub-batches,
    each of them draws its own.

    Args:
      rho: radius of the climb, in the 2-norm of the whole tree. A number, a traced
        scalar or a schedule of the step.
      key: a JAX random key; step t draws from `fold_in(key, t)`.

    Returns:
      An ascent whose state holds the key and a counter (so door 1 only). The climb
      has the structure and dtypes of the gradient, or of the parameters where the
      gradient is `None`.

    Raises:
      ValueError: a negative rho, given as a number.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> ascent = optax_sam.random_ascent(rho=0.1, key=jax.random.key(0))
      >>> gradient = {"w": jnp.ones(3)}
      >>> climb, _ = ascent.update(gradient, ascent.init(gradient))
      >>> jnp.round(optax.tree.norm(climb), 6)
      Array(0.1, dtype=float32)

    Reference: Foret et al. 2021, appendix C.5 (adversarial against random).
    """
    check_rho(rho)

    def init(params: Tree) -> RandomAscentState:
        del params
        return RandomAscentState(own_key(key), jnp.zeros([], jnp.int32))

    def update(
        updates: Tree, state: RandomAscentState, params: Tree | None = None
    ) -> tuple[Tree, RandomAscentState]:
        like = params if updates is None else updates
        noise = _normal_like(jax.random.fold_in(state.key, state.step), like)
        radius = rho(state.step) if callable(rho) else rho
        climb = scale_to(dual_vector(noise), radius, like)
        return climb, state._replace(step=optax.safe_increment(state.step))

    return optax.GradientTransformation(init, update)


def _normal_like(key: jax.Array, tree: Tree) -> Tree:
    leaves, structure = jax.tree.flatten(tree)

    def normal(index: int, x: Any) -> jax.Array:
        return jax.random.normal(
            jax.random.fold_in(key, index), jnp.shape(x), widen(x).dtype
        )

    return jax.tree.unflatten(structure, [normal(i, x) for i, x in enumerate(leaves)])
