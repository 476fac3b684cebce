"""A climb in a random direction: the control experiment."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam._ascent.dual import dual_vector
from optax_sam._ascent.radius import check_rho, scale_to
from optax_sam._devices import split_axes
from optax_sam._keys import own_key
from optax_sam._old_spellings import respelt
from optax_sam._trees import once, wide_dtype
from optax_sam._types import Ascent, AxisName, Rho, Sampler, Tree


class RandomAscentState(NamedTuple):
    """The key, and how many climbs were drawn from it."""

    key: jax.Array
    step: jax.Array


def coarse_uniform(
    key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32
) -> jax.Array:
    r"""Uniform random numbers between -1 and 1, of one random byte each; never zero.

    .. math:: z_i \in \{-255, -253, \dots, 255\} / 255

    Their directions have the mean and the covariance of normal ones, and cost a
    fraction: `jax.random.normal` draws four bytes and inverts a distribution.

    Args:
      key: a JAX random key.
      shape: of the array.
      dtype: of the array, a float.

    Returns:
      An array of `shape` and `dtype`.

    Raises:
      TypeError: `key` is no random key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_sam._ascent.random import coarse_uniform
      >>> z = coarse_uniform(jax.random.key(0), (3,))
      >>> jnp.round(255 * z)
      Array([ 79., -97.,  53.], dtype=float32)

    Reference: none; a sampler as those of `jax.random`.
    """
    *rows, columns = shape or (1,)
    words = jax.random.bits(key, (*rows, -(-columns // 4)), jnp.uint32)
    octets = words.view(jnp.uint8)[..., :columns].astype(jnp.int32)
    return (2 * octets - 255).astype(dtype).reshape(shape) / 255


@respelt
def random_ascent(
    rho: Rho,
    *,
    key: jax.Array,
    sampler: Sampler | None = None,
    params_axis_name: AxisName | None = None,
) -> Ascent:
    r"""A climb of norm rho in a random direction of the whole tree.

    .. math:: \epsilon = \rho \frac{z}{\|z\|_2}, \quad
              z_i \text{ independent, symmetric about } 0

    The control experiment: what SAM gains over this it owes to *where* it climbs.
    The climb does not depend on the gradient. Where the product names sub-batches,
    each of them draws its own.

    Args:
      rho: radius of the climb, in the 2-norm of the whole tree. A number, a traced
        scalar or a schedule of the step.
      key: a JAX random key; step t draws from `fold_in(key, t)`.
      sampler: draws z, leaf by leaf, from (key, shape, dtype). `None` is one random
        byte for each weight. Published is `jax.random.normal`, with which all
        directions are equally likely: the climb has the same norm, mean and
        covariance, and takes longer to draw. (Under `optax.inject_hyperparams` name it
        in `static_args`.)
      params_axis_name: as for `steepest_ascent`: each device draws its own part.

    Returns:
      An ascent whose state holds the key and a counter (so in the optimizer, or with
      `stateful_value_and_grad`). The climb
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

    Reference: Foret et al. 2021 (arXiv:2010.01412), appendix C.5 (adversarial against
      random).
    """
    check_rho(rho)
    draw = coarse_uniform if sampler is None else sampler

    def init(params: Tree) -> RandomAscentState:
        del params
        return RandomAscentState(own_key(key), jnp.zeros([], jnp.int32))

    def update(
        updates: Tree, state: RandomAscentState, params: Tree | None = None
    ) -> tuple[Tree, RandomAscentState]:
        like = params if updates is None else updates
        now = jax.random.fold_in(state.key, state.step)
        noise = _noise_like(like, draw, now, params_axis_name)
        radius = rho(state.step) if callable(rho) else rho
        unit = dual_vector(noise, axis_name=params_axis_name)
        climb = scale_to(unit, radius, like)
        return climb, state._replace(step=optax.safe_increment(state.step))

    return optax.GradientTransformation(init, update)


def _noise_like(
    tree: Tree, draw: Sampler, key: jax.Array, axis_name: AxisName | None
) -> Tree:
    """Noise for every leaf, from the key folded with the leaf's number.

    A part of a leaf that is split has a key of its own.
    """
    leaves, structure = jax.tree.flatten(tree)
    alike: dict[Any, list[int]] = {}
    for i, x in enumerate(leaves):
        kind = jnp.shape(x), wide_dtype(x), split_axes(x, axis_name)
        alike.setdefault(kind, []).append(i)
    drawn: list[Any] = [None] * len(leaves)
    # Leaves of one shape side by side: a generator for each takes long to compile.
    for (shape, dtype, axes), numbers in alike.items():
        own = jax.random.fold_in(key, jax.lax.axis_index(axes)) if axes else key
        keys = jax.vmap(partial(jax.random.fold_in, own))(jnp.asarray(numbers))
        # Drawn once: XLA would draw anew for the norm, and again for the climb.
        rows = once(jax.vmap(lambda k, s=shape, d=dtype: draw(k, s, d))(keys))
        for i, row in zip(numbers, rows, strict=True):
            drawn[i] = row
    return jax.tree.unflatten(structure, [once(x) for x in drawn])
