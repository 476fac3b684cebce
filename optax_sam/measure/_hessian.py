"""The largest eigenvalues of the curvature: how sharp is it, and where?"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_sam._types import Tree
from optax_sam.measure._checks import NO_CURVATURE, check_params, check_result
from optax_sam.measure._curvature import curvature
from optax_sam.measure._flat import unflatten_like
from optax_sam.measure._lanczos import largest_eigenpairs

#: Below this many parameters the whole Hessian is cheaper than Lanczos.
_DENSE_BELOW = 256
_NUM_ITERS = 32


def hessian_eigenvalues(
    loss_fn: Callable[..., Any],
    params: Tree,
    *,
    k: int = 1,
    key: jax.Array | None = None,
    num_iters: int | None = None,
    batches: Any = None,
    model_fn: Callable[..., Tree] | None = None,
    return_vectors: bool = False,
) -> Any:
    r"""The k largest eigenvalues of the Hessian of a loss, with their multiplicities.

    .. math:: H = \nabla^2 L(w), \quad \lambda_1 \ge \lambda_2 \ge \dots \ge \lambda_k

    Largest is meant algebraically: 1 comes before -7. With `model_fn` it is those of
    the Gauss-Newton matrix instead, the Hessian without the curvature of the model
    and never negative for a loss that is convex in the outputs f:

    .. math:: G = J^\top \, \nabla_f^2 \ell \, J, \quad J = \partial f / \partial w

    Below 256 parameters (or where `k + num_iters` reaches their number) the whole
    matrix is built, one column at a time. Above, each eigenvalue is found by Lanczos
    with full re-orthogonalization, on the complement of the eigenvectors already
    found. Lanczos is run until the residual |H v - theta v|, which bounds the
    distance from theta to an eigenvalue, is 3e-5 |theta| (float32) or 1e-9 |theta|
    (float64), at most 16 times, each run from the best vector of the one before.

    Measure on held-out data: the Hessian of a training loss vanishes with the loss.
    A network whose filters are followed by a normalization has large eigenvalues
    where its weights are small (shrunk by weight decay, say), whatever it computes:
    compare networks of one kind and one decay, or by an adaptive sharpness.

    Cost: `num_iters` Hessian-vector products a run, so k * num_iters of them where
    one run each is enough and never more than 16 * k * num_iters. Memory: about
    `num_iters + 2 * k` vectors of the size of the parameters.

    Args:
      loss_fn: `loss_fn(params)` or, with `batches`, `loss_fn(params, batch)` returns
        a scalar, twice differentiable. With `model_fn`: `loss_fn(outputs)` or
        `loss_fn(outputs, batch)`.
      params: a tree of real floating-point leaves, of any shapes and dtypes; `None`
        leaves are left alone. Vectors are float32 or wider, but the loss sees every
        leaf in its own dtype: half-precision leaves give half-precision eigenvalues.
      k: how many eigenvalues, a Python int in [1, number of parameters].
      key: a JAX random key for the start vectors; `None` is `jax.random.key(0)`, so
        that two calls agree.
      num_iters: Lanczos steps in one run, a Python int of at least 2; `None` is 32.
      batches: the data, where one batch is too small for them: a list or an iterator
        of batches of one size, or one tree of them stacked along a new first axis.
        The loss is the mean over the batches; they are visited one at a time.
      model_fn: `model_fn(params)` or `model_fn(params, batch)` returns the outputs, a
        tree of floats that the loss is taken of; `None` is the Hessian.
      return_vectors: whether the eigenvectors are wanted too.

    Returns:
      The eigenvalues in descending order: an array of shape (k,) in the widest dtype
      among the leaves, at least float32. With `return_vectors` a pair: these, and the
      orthonormal eigenvectors as a tree like `params` with a new first axis of size k,
      in the dtype of the eigenvalues. Under `jax.jit` NaN where the Hessian is not
      finite.

    Raises:
      TypeError: a leaf that is not real floating-point; a loss that is not a scalar.
      ValueError: parameters without a single number; `k` outside [1, number of
        parameters]; `num_iters` below 2; batches of different sizes; parameters or,
        outside `jax.jit`, eigenvalues that are not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam.measure import hessian_eigenvalues
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, -7.0, 5.0]) * w**2)
      >>> hessian_eigenvalues(loss, jnp.ones(3), k=2)
      Array([5., 1.], dtype=float32)

    Reference: Lanczos 1950, "An iteration method for the solution of the eigenvalue
      problem"; Ghorbani et al. 2019 (arXiv:1901.10159), "An Investigation into Neural
      Net Optimization via Hessian Eigenvalue Density", algorithm 1 (the
      re-orthogonalization); Foret et al. 2021 (arXiv:2010.01412), figure 3, shows the
      first value and its ratio to the fifth.
    """
    size = check_params(params)
    num_iters = _NUM_ITERS if num_iters is None else num_iters
    _check_counts(size, k, num_iters)
    matvec, point = curvature(loss_fn, params, batches, model_fn)
    if size < _DENSE_BELOW or size <= k + num_iters:
        # Column by column: the memory of one Hessian-vector product.
        hessian: jax.Array = jax.lax.map(matvec, jnp.eye(size, dtype=point.dtype))
        values, columns = jnp.linalg.eigh(hessian)
        vectors = columns.T
    else:
        key = jax.random.key(0) if key is None else key
        values, vectors = largest_eigenpairs(matvec, point, k, num_iters, key)
    order = jnp.argsort(values, descending=True)[:k]
    values = values[order]
    check_result(values, "The largest eigenvalue", NO_CURVATURE)
    if not return_vectors:
        return values
    return values, jax.vmap(lambda v: unflatten_like(params, v))(vectors[order])


def _check_counts(size: int, k: int, num_iters: int) -> None:
    if not 1 <= k <= size:
        raise ValueError(
            f"hessian_eigenvalues was asked for k={k} eigenvalues, but a Hessian of "
            f"{size} parameters has {size}. Choose k between 1 and {size}."
        )
    if num_iters < 2:
        raise ValueError(
            f"hessian_eigenvalues was given num_iters={num_iters}, but one step of "
            f"Lanczos does not move its start vector. Choose 2 or more, or leave it "
            f"out for {_NUM_ITERS}."
        )
