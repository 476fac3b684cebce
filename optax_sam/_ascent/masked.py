"""A climb of some leaves only."""

import re
from typing import Any

import jax
import optax

from optax_sam._old_spellings import respelt
from optax_sam._trees import path_name
from optax_sam._types import Ascent, Mask, Tree


@respelt
def climb_only(ascent: Ascent, mask: Mask | str) -> Ascent:
    r"""Climb by an ascent, with some of the leaves alone.

    .. math:: \epsilon_S = a(g_S), \quad \epsilon_i = 0 \text{ for } i \notin S

    The norm is then that of the chosen leaves, which climb by the whole radius. To
    take the norm over all leaves and drop the climb of the others, mask what comes
    out: `optax.chain(ascent, climb_only(optax.identity(), mask))`.

    Args:
      ascent: any ascent.
      mask: which leaves climb: a tree of booleans, a function that makes one from a
        tree like the parameters (of its paths and shapes), or a regular expression
        that is searched in the path of each leaf ("encoder/norm/scale"). Linen's
        normalization layers, if not named otherwise, are
        `"BatchNorm|LayerNorm|GroupNorm"`, those of NNX have their attribute's name;
        LoRA's leaves are often `"lora"`.

    Returns:
      An ascent, whose state is that of `ascent` for the chosen leaves.

    Raises:
      ValueError: in `init` and `update`, when the expression matches no leaf.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> gradient = {"dense": jnp.array(3.0), "norm": jnp.array(4.0)}
      >>> ascent = optax_sam.climb_only(optax_sam.steepest_ascent(rho=0.5), "norm")
      >>> climb, _ = ascent.update(gradient, ascent.init(gradient), gradient)
      >>> float(climb["dense"]), float(climb["norm"])
      (0.0, 0.5)

    Reference: Mueller et al. 2023 (arXiv:2306.04226), "Normalization Layers Are All
      That Sharpness-Aware Minimization Needs" (norm of the chosen leaves); Mi et al.
      2022 (arXiv:2210.05177), "Make Sharpness-Aware Minimization Stronger: A Sparsified
      Perturbation Approach" (of all).
    """
    chosen = _matching_paths(mask) if isinstance(mask, str) else mask

    def labels(tree: Tree) -> Tree:
        some = chosen(tree) if callable(chosen) else chosen
        return jax.tree.map(lambda here: "climb" if here else "stay", some)

    return optax.partition({"climb": ascent, "stay": optax.set_to_zero()}, labels)


def _matching_paths(pattern: str) -> Any:
    def mask(params: Tree) -> Tree:
        def found(path: tuple[Any, ...], _: Any) -> bool:
            return re.search(pattern, path_name(path)) is not None

        tree = jax.tree_util.tree_map_with_path(found, params)
        if not any(jax.tree.leaves(tree)):
            paths = [p for p, _ in jax.tree_util.tree_leaves_with_path(params)]
            names = [path_name(path) for path in paths]
            raise ValueError(
                f"No leaf of the parameters matches {pattern!r}, so nothing would "
                f"climb. Their paths are: {', '.join(names[:20])}"
                f"{', ...' if len(names) > 20 else ''}."
            )
        return tree

    return mask
