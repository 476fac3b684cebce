"""What SAM refuses: losses and trees of which no climb can be made."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam._trees import is_none, keystr, matching
from optax_sam._types import Tree


def _is_hole(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def known(value: Any) -> bool:
    """Whether a number is known in Python, so that it can be judged now."""
    return isinstance(value, numbers.Real)


def check_ascent(ascent: Any) -> None:
    """Refuse what gives no climb."""
    is_product = hasattr(ascent, "step")
    if is_product or not (hasattr(ascent, "init") and hasattr(ascent, "update")):
        what = "a whole step in the optimizer" if is_product else repr(ascent)
        raise TypeError(
            f"An ascent is wanted, which turns a gradient into a climb, but what was "
            f"given is {what}. Write steepest_ascent(rho=0.05) for SAM, "
            f"adaptive_ascent(rho=0.5) for ASAM. (sam(rho) stands in an optax.chain, "
            f"or in stateful_value_and_grad(loss_fn, sam(rho)).)"
        )


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Refuse what counts nothing: it must be a whole number of Python."""
    if isinstance(value, jax.Array):
        raise TypeError(
            f"{name} was given as an array, but it changes the program and must be "
            f"known in Python. Under optax.inject_hyperparams name it in "
            f"static_args=({name!r}, ...)."
        )
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"{name} counts something and must be a whole number, got {name} = "
            f"{value!r}. Write {name}={least}, or more."
        )
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {name} = {value}.")


def check_decay(name: str, value: Any) -> None:
    """Refuse the decay of an average that would never forget, where it is known."""
    if known(value) and not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {name} = {value}.")


def check_weight(name: str, value: Any) -> None:
    """Refuse a negative weight, where it is known."""
    if known(value) and not value >= 0:
        raise ValueError(f"{name} is a weight and not negative, got {name} = {value}.")


def check_pair(out: Any, has_aux: bool) -> tuple[Any, Any]:
    """Value and aux of what a loss function returned; refused when it is no such."""
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
    value, aux = out if has_aux else (out, None)
    return value, aux


def check_scalar(value: Any) -> None:
    """Refuse a loss that is more than one number."""
    if jnp.shape(value) != ():
        raise TypeError(
            f"The loss function must return a scalar, but its value has shape "
            f"{jnp.shape(value)}. Average over the examples: jnp.mean(losses)."
        )


def check_leaves(params: Tree, updates: Tree) -> None:
    """Refuse trees of which no climb can be made; holes (`None`) are fine."""
    check_holes(params, updates)
    _check_structure(params, updates)
    check_floats(matching(params, updates), "parameter")
    check_floats(updates, "gradient")


def check_holes(params: Tree, updates: Tree) -> None:
    """Refuse trees out of which Optax took leaves."""
    for tree in (updates, params):
        if any(map(_is_hole, jax.tree.leaves(tree, is_leaf=_is_hole))):
            raise ValueError(
                "SAM received a tree with holes, as optax.masked or optax.partition "
                "leave them, so the loss cannot be evaluated. Put the mask on the "
                "ascent instead: optax_sam.sharpness_aware("
                "optax.selective_transform(ascent, freeze_mask=...))."
            )


def check_floats(tree: Tree, what: str) -> None:
    """Refuse leaves that cannot be climbed, and name the first."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"The {what} leaf {keystr(path) or '(the root)'} has dtype {dtype}: "
                f"only real floating-point leaves can be moved. Leave it out of the "
                f"tree that is differentiated (None in its place will do, as "
                f"equinox.partition writes it), pass it to the loss as an argument, or "
                f"say allow_int=True in value_and_grad."
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


def check_combined(combined: Tree, climbed: Tree) -> Tree:
    """What `combine` returned, if it is a gradient like the two that it was given."""

    def form(tree: Tree) -> tuple[Any, list[Any]]:
        return jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)]

    if form(combined) != form(climbed):
        raise ValueError(
            f"combine(clean, climbed) must return a gradient, a tree like both, and it "
            f"returned {jax.eval_shape(lambda: combined)} for "
            f"{jax.eval_shape(lambda: climbed)}. Write it with jax.tree.map over both."
        )
    return combined


def _first_difference(params: Tree, updates: Tree) -> str:
    def paths(tree: Tree) -> list[str]:
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_none)
        return [keystr(path) or "(the root)" for path, _ in leaves]

    ours, theirs = paths(updates), paths(params)
    for a, b in zip(ours, theirs, strict=False):
        if a != b:
            return f"{a} (gradient) against {b} (parameters)"
    only = ours[len(theirs) :] + theirs[len(ours) :]
    return only[0] if only else "the types of their containers"
