"""In place of `jax.value_and_grad`, for every method: the loop carries its state."""

from collections.abc import Callable
from typing import Any

from optax_sam._checks import check_leaves
from optax_sam._core.transformation import Given, SharpnessAware, SharpnessAwareState
from optax_sam._once import boxed, unboxed
from optax_sam._types import Tree


def stateful_value_and_grad(
    loss_fn: Callable[..., Any],
    sam_transformation: SharpnessAware,
    *,
    has_aux: bool = False,
) -> tuple[Callable[[Tree], Any], Callable[..., Any]]:
    r"""The value of a loss, and the gradient that comes out of any method.

    .. math:: L(w), \quad g, \quad s_{t+1} = \mathrm{method}(L, w, s_t)

    `value_and_grad` with a state: for momentum SAM, LookSAM, F-SAM, schedules and
    conditions, in a training loop of your own that wants aux (BatchNorm statistics).

    Args:
      loss_fn: `loss_fn(params, *args, **kwargs)` returns a scalar (for `esam`: one loss
        for each example), or a pair of it and aux with `has_aux`.
      sam_transformation: a product of this library as it is, e.g. `momentum_sam(2.0)`
        or `sam(rho=schedule, when=every_k(5))`, not a chain. Its `has_aux` and
        `ignore_updates` play no part.
      has_aux: whether `loss_fn` returns auxiliary data.

    Returns:
      `(init, fn)`: `state = init(params)`, and
      `(value, aux), grads, state = fn(state, params, *args, **kwargs)`; without
      `has_aux` the value stands alone. Value and aux are those of the clean pass, of
      the only one where a method makes one (`momentum_sam`, `stale_sam`,
      `random_perturbation`), and of the last for `partial_climb`; `esam` has the value
      of the last. Where the product names sub-batches or takes a part of the batch,
      `args[0]` holds the examples, and all other arguments are passed whole, their
      random keys folded as in `m_sharpness`; aux is averaged.

    Raises:
      TypeError: what is no product of this library; a loss that is not a scalar; a
        tuple without `has_aux`; parameters that are not floating-point.
      ValueError: what the product refuses.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> def loss(w, x):
      ...     return jnp.sum(w**2 * x), {"seen": jnp.sum(x)}
      >>> init, grad_fn = optax_sam.stateful_value_and_grad(
      ...     loss, optax_sam.momentum_sam(rho=0.5), has_aux=True)
      >>> w = jnp.array([3.0])
      >>> (value, aux), grads, state = grad_fn(init(w), w, jnp.ones(1))
      >>> value, grads
      (Array(9., dtype=float32), Array([6.], dtype=float32))

    Reference: Foret et al. 2021, algorithm 1, arXiv:2010.01412; Becker et al. 2024,
      "Momentum-SAM: Sharpness Aware Minimization without Computational Overhead",
      arXiv:2401.12033.
    """
    if not isinstance(sam_transformation, SharpnessAware):
        raise TypeError(
            f"stateful_value_and_grad takes a step from a product of optax_sam, and "
            f"{type(sam_transformation).__name__} is none (a chain and "
            f"inject_hyperparams hide it). Give the product alone, "
            f"stateful_value_and_grad(loss_fn, momentum_sam(2.0)), and its gradients "
            f"to the optimizer."
        )
    step = sam_transformation.step

    def alone(loss_fn: Any, point: Tree, examples: None, rest: Any) -> Any:
        del examples
        args, kwargs = rest
        out = loss_fn(point, *args, **kwargs)
        # What is no array in aux goes through conditions and averages in a box.
        pair = has_aux and isinstance(out, tuple) and len(out) == 2
        return (out[0], boxed(out[1])) if pair else out

    def on_examples(loss_fn: Any, point: Tree, examples: Tree, rest: Any) -> Any:
        args, kwargs = rest
        return alone(loss_fn, point, None, ((examples, *args), kwargs))

    def fn(state: Any, params: Tree, /, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(state, SharpnessAwareState):
            raise TypeError(
                f"The first argument is the state that init(params) made, but it is a "
                f"{type(state).__name__}. Write grad_fn(state, params, *args)."
            )
        check_leaves(params, params)
        batch, call = (args[0], on_examples) if args else (None, alone)
        given = Given(params, batch, (args[1:], kwargs), None, call, has_aux)
        gradient, state, seen = step(loss_fn, given, state)
        value = (seen.value, unboxed(seen.aux)) if has_aux else seen.value
        return value, gradient, state

    return step.init, fn
