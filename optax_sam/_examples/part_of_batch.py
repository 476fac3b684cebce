"""A part of each sub-batch: for the climb, or for the descent."""

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from optax_sam._checks import known
from optax_sam._devices import refuse_explicit
from optax_sam._examples.sub_batches import batch_size
from optax_sam._keys import is_lone_key
from optax_sam._trees import partition
from optax_sam._types import Tree


def check_fraction(name: str, value: Any) -> None:
    """Refuse what is no share of a whole, or not known in Python."""
    if not known(value):
        raise TypeError(
            f"{name} was given as {type(value).__name__}, but it sets the size of "
            f"arrays and must be a Python number. Under optax.inject_hyperparams name "
            f"it in static_args=({name!r}, ...)."
        )
    if not 0 < float(value) <= 1:
        raise ValueError(f"{name} must lie in (0, 1], got {name} = {value}.")


def part_of(examples: Tree, fraction: float) -> int:
    """How many examples a share of the sub-batch is, rounded up."""
    if examples is None:
        raise ValueError(
            "This method takes a part of the batch, so it must see it: update(None, "
            "state, params, value_fn=loss_fn, batch=batch), with loss_fn(params, "
            "batch)."
        )
    size = count(examples)
    if fraction < 1:
        refuse_explicit(examples, "taking a part of it")
    # As it is written: 0.07 of 100 examples are 7, though 0.07 * 100 is a little more.
    return math.ceil(Fraction(str(float(fraction))) * size)


def count(batch: Tree) -> int:
    """How many examples; a single random key is none of them."""
    return batch_size(partition(batch, jax.tree.map(is_lone_key, batch))[0])


def take(batch: Tree, rows: Any) -> Tree:
    """These rows of every leaf of the batch; single random keys stay."""
    return jax.tree.map(lambda x: x if is_lone_key(x) else jnp.asarray(x)[rows], batch)
