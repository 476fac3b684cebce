"""A mean of random samples, and how far it can be trusted."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Estimate(NamedTuple):
    """An estimate from random samples, or from batches.

    Attributes:
      mean: the mean of the samples, a scalar (of a `RadiusSweep` an array).
      standard_error: of this mean: the samples' standard deviation over the root of
        their number.
    """

    mean: jax.Array
    standard_error: jax.Array


def estimate(
    sample: Callable[[jax.Array], jax.Array], key: jax.Array, num_samples: int
) -> Estimate:
    """The mean of `sample(key)` over split keys, one after the other."""
    samples = jax.lax.map(sample, jax.random.split(key, num_samples))
    error = jnp.std(samples, ddof=1) / num_samples**0.5
    return Estimate(jnp.mean(samples), error)
