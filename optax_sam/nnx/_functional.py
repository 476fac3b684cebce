"""Functional SAM in place of `nnx.value_and_grad`."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from optax_sam._core.functional import check_outputs
from optax_sam._core.functional import functional_value_and_grad as functional
from optax_sam._examples.m_sharpness import GradFn, m_sharpness
from optax_sam._types import Ascent, Tree
from optax_sam.nnx._call import Call, of_arrays
from optax_sam.nnx._value_and_grad import drop_in

#: The options that say over which examples: the others are the core's.
_SUB_BATCHES = inspect.signature(m_sharpness).parameters.keys() - {"grad_fn", "argnums"}


def functional_value_and_grad(
    net: Callable[..., Any],
    head: Callable[..., Any],
    ascent: Ascent,
    *,
    argnums: Any = 0,
    wrt: Any = None,
    has_aux: bool = False,
    **options: Any,
) -> GradFn:
    r"""The value of a loss of an NNX model, and Functional SAM's gradient.

    .. math:: g = J(w + \epsilon)^\top u, \quad u = \nabla \ell(f(w))

    `optax_sam.functional_value_and_grad`, with the model left as after the clean pass
    alone, as by `optax_sam.nnx.value_and_grad`.

    Args:
      net: `net(model, *args, **kwargs)` returns the outputs, or `(outputs, aux)` with
        `has_aux`.
      head: `head(outputs, *args, **kwargs)` returns the loss. It is given the arguments
        that are not differentiated, with `None` in the place of an NNX object.
      ascent: from a gradient to a climb; stateless.
      argnums: what to differentiate, as for `value_and_grad`.
      wrt: an NNX filter, likewise.
      has_aux: whether `net` returns auxiliary data.
      **options: `microbatch_size`, `axis_name`, `mesh`, `batch_argnums`, `concat_aux`,
        `at_once` and `unroll` as for `value_and_grad`; those of
        `optax_sam.functional_value_and_grad`.

    Returns:
      A function with the arguments of `net` and the results of `value_and_grad`.

    Raises:
      TypeError, ValueError: what `value_and_grad` refuses, and what
        `optax_sam.functional_value_and_grad` does.

    Example:
      >>> import jax.numpy as jnp, optax_sam, optax_sam.nnx
      >>> from flax import nnx
      >>> model = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
      >>> model.kernel[...] = jnp.array([[3.0], [1.0]])
      >>> def net(model, x):
      ...     return model(x) ** 2
      >>> def head(outputs, x):
      ...     return 0.5 * jnp.sum((outputs - 8) ** 2)
      >>> grad_fn = optax_sam.nnx.functional_value_and_grad(
      ...     net, head, optax_sam.steepest_ascent(rho=0.5))
      >>> loss, grads = grad_fn(model, jnp.array([[1.0, 0.0]]))
      >>> loss, grads["kernel"][...].ravel()
      (Array(0.5, dtype=float32), Array([7., 0.], dtype=float32))

    Reference: Singh et al. 2025, "Avoiding spurious sharpness minimization broadens
      applicability of SAM", arXiv:2502.02407.
    """
    named = _SUB_BATCHES & options.keys()
    sub_batches = {name: options.pop(name) for name in named}

    def climbed(call: Call, **options: Any) -> GradFn:
        def loss(outputs: Tree, *args: Any, kwargs: dict[str, Any], state: Tree) -> Any:
            del state
            return head(outputs, *args, **kwargs)

        check = functools.partial(check_outputs, has_aux=has_aux)
        return functional(of_arrays(net, check, call), loss, ascent, **options)

    return drop_in(climbed, argnums, wrt, has_aux, sub_batches, options)
