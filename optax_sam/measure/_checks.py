"""What cannot be measured, and how to say so."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam._checks import check_floats
from optax_sam._trees import keystr
from optax_sam._types import Tree

TOO_FAR = (
    "The loss overflows within this distance, or at the parameters themselves: look "
    "at loss_fn(params), and choose a smaller rho."
)
NO_CURVATURE = (
    "The loss or a derivative of it is not finite at these parameters: look at "
    "jax.grad(loss_fn)(params)."
)


def scalar_loss(loss_fn: Callable[..., Any]) -> Callable[..., jax.Array]:
    """The same loss, which refuses to return anything but a scalar."""

    def loss(*args: Any) -> jax.Array:
        value = loss_fn(*args)
        if isinstance(value, tuple):
            raise TypeError(
                "The loss function returned a tuple, but only a scalar can be "
                "measured. Take the value: lambda p: loss_fn(p)[0]."
            )
        if jnp.shape(value) != ():
            raise TypeError(
                f"The loss function must return a scalar, but its value has shape "
                f"{jnp.shape(value)}. Average over the examples: jnp.mean(losses)."
            )
        return jnp.asarray(value)

    return loss


def check_params(params: Tree) -> int:
    """How many parameters there are; refuse what cannot move."""
    check_floats(params, "parameter")
    size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(params))
    if size == 0:
        raise ValueError(
            "The parameters hold no floating-point numbers, so there is nothing to "
            "measure. Pass the tree that the loss is differentiated in."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not _finite(leaf):
            raise ValueError(
                f"The parameter leaf {keystr(path) or '(the root)'} holds numbers that "
                f"are not finite: around such a point nothing can be measured. Take "
                f"the parameters of an earlier step."
            )
    return size


def check_samples(name: str, num_samples: int) -> None:
    """Refuse samples that are too few for a standard error."""
    if num_samples < 2:
        raise ValueError(
            f"{name} was given num_samples={num_samples}, but a standard error needs "
            f"at least 2 samples, and a small one needs many: it falls with their root."
        )


def check_result(result: Tree, name: str, advice: str) -> None:
    """Refuse numbers that are not finite, where they are known (not under jit)."""
    if not all(map(_finite, jax.tree.leaves(result))):
        raise ValueError(
            f"{name} is not finite: {result}. {advice} (Under jax.jit this is no "
            f"error: NaN or inf comes out.)"
        )


def _finite(x: Any) -> bool:
    # Under jit, or where other processes hold a part, the numbers cannot be seen.
    unseen = isinstance(x, jax.core.Tracer) or (
        isinstance(x, jax.Array) and not x.is_fully_addressable
    )
    return unseen or bool(np.isfinite(np.asarray(x)).all())
