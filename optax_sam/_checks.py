"""What SAM refuses: losses and trees of which no climb can be made."""

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam._types import Tree

keystr = jax.tree_util.keystr


def _is_none(x: Any) -> bool:
    return x is None


def _is_hole(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def known(value: Any) -> bool:
    """Whether a number is known in Python, so that it can be judged now."""
    return isinstance(value, numbers.Real)


def check_k(k: Any) -> None:
    """Refuse an interval of steps that is none."""
    if known(k) and k < 1:
        raise ValueError(f"k must be at least 1, got k = {k}. k=1 is SAM.")


def checked_loss(loss_fn: Callable[..., Any], has_aux: bool) -> Callable[..., Any]:
    """The same function, which refuses to return what cannot be differentiated."""

    def loss(*args: Any, **kwargs: Any) -> Any:
        out = loss_fn(*args, **kwargs)
        if has_aux and not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(
                f"With has_aux=True the loss function must return (value, aux), but it "
                f"returned {type(out).__name__}. Return a pair, or drop has_aux."
            )
        if isinstance(out, tuple) and not has_aux:
            raise TypeError(
                "The loss function returned a tuple, but only a scalar can be "
                "differentiated. For (value, aux) say has_aux=True."
            )
        value = out[0] if has_aux else out
        if jnp.shape(value) != ():
            raise TypeError(
                f"The loss function must return a scalar, but its value has shape "
                f"{jnp.shape(value)}. Average over the examples: jnp.mean(losses)."
            )
        return out

    return loss


def check_leaves(params: Tree, updates: Tree) -> None:
    """Refuse trees of which no climb can be made; holes (`None`) are fine."""
    for tree in (updates, params):
        if any(map(_is_hole, jax.tree.leaves(tree, is_leaf=_is_hole))):
            raise ValueError(
                "SAM received a tree with holes, as optax.masked or optax.partition "
                "leave them, so the loss cannot be evaluated. Put the mask on the "
                "ascent instead: optax_sam.sharpness_aware("
                "optax.selective_transform(ascent, freeze_mask=...))."
            )
    _check_structure(params, updates)
    check_floats(updates, "gradient")
    check_floats(matching(params, updates), "parameter")


def check_floats(tree: Tree, what: str) -> None:
    """Refuse leaves that cannot be climbed, and name the first."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"The {what} leaf {keystr(path) or '(the root)'} has dtype {dtype}: "
                f"only real floating-point leaves can be moved. Leave it out of the "
                f"tree that is differentiated (None in its place will do, as "
                f"equinox.partition writes it), or pass it to the loss as an argument."
            )


def _check_structure(params: Tree, updates: Tree) -> None:
    try:
        theirs: Any = jax.tree.structure(matching(params, updates))
        same = theirs == jax.tree.structure(updates)
    except (ValueError, TypeError):
        same = False
    if not same:
        raise ValueError(
            f"The gradient and the parameters have different structures; they differ "
            f"first at {_first_difference(params, updates)}. Give `update` the "
            f"gradient of the loss at these parameters (None for what has none)."
        )
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(updates),
        jax.tree.leaves(matching(params, updates)),
        strict=True,
    )
    for (path, g), p in pairs:
        if jnp.shape(g) != jnp.shape(p):
            raise ValueError(
                f"At {keystr(path) or '(the root)'} the gradient has shape "
                f"{jnp.shape(g)} and the parameter {jnp.shape(p)}: give `update` the "
                f"gradient of the loss at these parameters."
            )


def _first_difference(params: Tree, updates: Tree) -> str:
    def paths(tree: Tree) -> list[str]:
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_none)
        return [keystr(path) or "(the root)" for path, _ in leaves]

    ours, theirs = paths(updates), paths(params)
    for a, b in zip(ours, theirs, strict=False):
        if a != b:
            return f"{a} (gradient) against {b} (parameters)"
    only = ours[len(theirs) :] + theirs[len(ours) :]
    return only[0] if only else "the types of their containers"


def matching(params: Tree, updates: Tree) -> Tree:
    """The parameters that have a gradient, in the gradient's structure."""
    return jax.tree.map(
        lambda g, p: None if g is None else p, updates, params, is_leaf=_is_none
    )


def fill(params: Tree, point: Tree) -> Tree:
    """All parameters, with those that were moved in their places."""
    return jax.tree.map(
        lambda x, p: p if x is None else x, point, params, is_leaf=_is_none
    )
