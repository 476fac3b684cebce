"""Products with the Hessian or the Gauss-Newton matrix of a mean loss."""

from collections.abc import Callable
from typing import Any

import jax

from optax_sam._types import Tree
from optax_sam.measure._checks import scalar_loss
from optax_sam.measure._flat import flatten
from optax_sam.measure._lanczos import Matvec
from optax_sam.measure._loss import averaging


def curvature(
    loss_fn: Callable[..., Any],
    params: Tree,
    batches: Any,
    model_fn: Callable[..., Tree] | None,
) -> tuple[Matvec, jax.Array]:
    """`v -> C v` on the parameters as one vector, and this vector."""
    point, unravel = flatten(params)
    average, loss = averaging(batches), scalar_loss(loss_fn)

    def hessian_product(v: jax.Array, *batch: Any) -> Any:
        def flat_loss(x: jax.Array) -> jax.Array:
            return loss(unravel(x), *batch)

        return jax.jvp(jax.grad(flat_loss), (point,), (v,))[1]  # forward over reverse

    def gauss_newton_product(v: jax.Array, *batch: Any) -> Any:
        assert model_fn is not None

        def model(x: jax.Array) -> Tree:
            return model_fn(unravel(x), *batch)

        outputs, pull_back = jax.vjp(model, point)
        moved = jax.jvp(model, (point,), (v,))[1]
        gradient = jax.grad(lambda z: loss(z, *batch))
        return pull_back(jax.jvp(gradient, (outputs,), (moved,))[1])[0]

    product = hessian_product if model_fn is None else gauss_newton_product

    def matvec(v: jax.Array) -> jax.Array:
        out: jax.Array = average(lambda *batch: product(v, *batch))
        return out

    return matvec, point
