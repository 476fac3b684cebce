"""Random points of a ball around zero."""

from collections.abc import Callable

import jax

from optax_sam.measure._lanczos import norm


def noise_of(noise: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`draw(key, like)` for one kind of noise."""

    def normal(key: jax.Array, like: jax.Array) -> jax.Array:
        return jax.random.normal(key, like.shape, like.dtype)

    def uniform(key: jax.Array, like: jax.Array) -> jax.Array:
        return jax.random.uniform(key, like.shape, like.dtype, -1, 1)

    def sphere(key: jax.Array, like: jax.Array) -> jax.Array:
        z = normal(key, like)
        return z / norm(z)

    kinds = {"normal": normal, "uniform": uniform, "sphere": sphere}
    if noise not in kinds:
        raise ValueError(
            f"average_sharpness does not know noise={noise!r}. Choose one of "
            f"{', '.join(map(repr, kinds))}."
        )
    return kinds[noise]
