"""Random keys: told apart from data, copied, and folded for each sub-batch."""

from typing import Any

import jax
import jax.numpy as jnp

from optax_sam._trees import keystr
from optax_sam._types import Tree
from optax_sam._warn import warn


def is_key(x: Any) -> bool:
    """Whether `x` is a typed random key, or an array of them."""
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def own_key(key: jax.Array) -> jax.Array:
    """A copy of the key, for a state that may be donated.

    It is typed (a raw one is wrapped): only typed ones are told from data.
    """
    typed = key if is_key(key) else jax.random.wrap_key_data(key)
    if typed.ndim:
        raise ValueError(
            f"One random key is wanted, which is folded with the step, and key= is an "
            f"array of them, of shape {typed.shape}. Write key=keys[0], or "
            f"key=jax.random.key(0)."
        )
    return jax.random.clone(typed)


def is_lone_key(x: Any) -> bool:
    """Whether `x` is one random key: it has no axis to cut."""
    return is_key(x) and jnp.ndim(x) == 0


def fresh_keys(tree: Tree) -> Tree:
    """The tree with copies of its typed keys.

    The passes share them on purpose, which JAX's checker for reuse must be told.
    """
    return jax.tree.map(lambda x: jax.random.clone(x) if is_key(x) else x, tree)


def refuse_keys(*aux: Tree) -> None:
    """Refuse aux that cannot be averaged over sub-batches."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(aux):
        if is_key(leaf):
            raise TypeError(
                f"The aux leaf {keystr(path[1:]) or '(the root)'} is a "
                f"random key, and keys of several sub-batches have no average. Split "
                f"keys outside, and pass one as an argument: it is folded with the "
                f"index of the sub-batch."
            )


def warn_of_raw_keys(tree: Tree) -> None:
    """Warn of what may be a random key that cannot be told from data."""
    for x in jax.tree.leaves(tree):
        raw = isinstance(x, jax.Array) and x.dtype == jnp.uint32
        if raw and x.shape in ((2,), (4,)):
            warn(
                "An argument looks like a raw random key (uint32), which cannot be "
                "told from data, so all sub-batches would draw the same numbers from "
                "it. Pass a typed one, jax.random.key(seed) or "
                "jax.random.wrap_key_data(key): it is folded with the index of each "
                "sub-batch."
            )
            return


def fold_keys(tree: Tree, index: Any) -> Tree:
    """The tree with every typed random key folded with the sub-batch's index."""

    def fold(x: Any) -> Any:
        if not is_key(x):
            return x
        keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(x.reshape(-1))
        return keys.reshape(x.shape)

    return jax.tree.map(fold, tree)
