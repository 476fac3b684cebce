"""How sharp is it here? Curvature and slices of the loss, as pure functions.

Everything here measures one loss function at one set of parameters: close it over the
data (`lambda p: loss_fn(p, batch)`), in evaluation mode. Flat or sharp is a property
of the parametrization as much as of the solution; the numbers compare runs of one
network, not networks.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from optax_sam._checks import check_floats, keystr
from optax_sam._lanczos import Matvec, largest_eigenpairs, norm
from optax_sam._types import Tree

#: Below this many parameters the whole Hessian is cheaper than Lanczos.
_DENSE_BELOW = 256
_NUM_ITERS = 32


def hessian_eigenvalues(
    loss_fn: Callable[[Tree], Any],
    params: Tree,
    *,
    k: int = 1,
    key: jax.Array | None = None,
    num_iters: int | None = None,
) -> jax.Array:
    r"""The k largest eigenvalues of the Hessian of a loss, with their multiplicities.

    .. math:: H = \nabla^2 L(w), \quad \lambda_1 \ge \lambda_2 \ge \dots \ge \lambda_k

    Largest is meant algebraically: 1 comes before -7. Below 256 parameters (or where
    `k + num_iters` reaches their number) the whole Hessian is built, one column at a
    time. Above, each eigenvalue is found by Lanczos with full re-orthogonalization,
    on the complement of the eigenvectors already found. Lanczos is run until the
    residual |H v - theta v|, which bounds the distance from theta to an eigenvalue,
    is 3e-5 |theta| (float32) or 1e-9 |theta| (float64), at most 16 times, each run
    from the best vector of the one before.

    Cost: `num_iters` Hessian-vector products a run, so k * num_iters of them where
    one run each is enough and never more than 16 * k * num_iters. Memory: about
    `num_iters + 2 * k` vectors of the size of the parameters.

    Args:
      loss_fn: from the parameters to a scalar, twice differentiable.
      params: a tree of real floating-point leaves, of any shapes and dtypes; `None`
        leaves are left alone. Vectors are float32 or wider, but the loss sees every
        leaf in its own dtype: half-precision leaves give half-precision eigenvalues.
      k: how many eigenvalues, a Python int in [1, number of parameters].
      key: a JAX random key for the start vectors; `None` is `jax.random.key(0)`, so
        that two calls agree.
      num_iters: Lanczos steps in one run, a Python int of at least 2; `None` is 32.

    Returns:
      The eigenvalues in descending order: an array of shape (k,) in the widest dtype
      among the leaves, at least float32. NaN where the Hessian is not finite.

    Raises:
      TypeError: a leaf that is not real floating-point; a loss that is not a scalar.
      ValueError: parameters without a single number; `k` outside [1, number of
        parameters]; `num_iters` below 2.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam.measure import hessian_eigenvalues
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, -7.0, 5.0]) * w**2)
      >>> hessian_eigenvalues(loss, jnp.ones(3), k=2)
      Array([5., 1.], dtype=float32)

    Reference: Lanczos 1950, "An iteration method for the solution of the eigenvalue
      problem"; Ghorbani et al. 2019, "An Investigation into Neural Net Optimization
      via Hessian Eigenvalue Density", algorithm 1 (the re-orthogonalization).
    """
    size = _check_params(params)
    num_iters = _NUM_ITERS if num_iters is None else num_iters
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
    matvec, point = _hvp(loss_fn, params)
    if size < _DENSE_BELOW or size <= k + num_iters:
        # Column by column: the memory of one Hessian-vector product.
        hessian: jax.Array = jax.lax.map(matvec, jnp.eye(size, dtype=point.dtype))
        values: jax.Array = jnp.linalg.eigvalsh(hessian)[-k:]
    else:
        key = jax.random.key(0) if key is None else key
        values, _ = largest_eigenpairs(matvec, point, k, num_iters, key)
    return jnp.sort(values, descending=True)


def loss_along(
    loss_fn: Callable[[Tree], Any], params: Tree, direction: Tree, distances: Any
) -> jax.Array:
    r"""The loss along a straight line through the parameters.

    .. math:: t \mapsto L(w + t\, d)

    The points are evaluated one after the other, with the memory of one evaluation.

    Args:
      loss_fn: from the parameters to a scalar.
      params: a tree of real floating-point leaves; `None` leaves are left alone.
      direction: a tree like `params`, leaf for leaf of the same shape, e.g. from
        `filter_normalized_direction`; or a SAM climb, an eigenvector, a difference
        of two solutions.
      distances: the values of t, a sequence or an array of shape (n,), in units of
        `direction`. The sum is formed in at least float32; leaves keep their dtype.

    Returns:
      The n losses, an array of shape (n,) in the loss's dtype.

    Raises:
      TypeError: a leaf that is not real floating-point; a loss that is not a scalar.
      ValueError: a direction of another structure or shape than the parameters;
        distances that are not one-dimensional; parameters without a single number.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam.measure import loss_along
      >>> params, direction = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([1.0, 0.0])}
      >>> loss_along(lambda p: jnp.sum(p["w"]**2), params, direction, [-1.0, 0.0, 1.0])
      Array([4., 5., 8.], dtype=float32)

    Reference: Goodfellow et al. 2015, "Qualitatively characterizing neural network
      optimization problems", section 2; Li et al. 2018, equation 1.
    """
    _check_params(params)
    _check_direction(params, direction)
    steps = jnp.asarray(distances, float)
    if steps.ndim != 1:
        raise ValueError(
            f"loss_along was given distances of shape {steps.shape}, but it walks "
            f"along one line. Give a sequence of numbers, e.g. jnp.linspace(-1, 1, 21)."
        )

    def loss_at(t: jax.Array) -> jax.Array:
        def move(w: Any, d: Any) -> jax.Array:
            return jnp.asarray(w + t * d, jnp.result_type(w))

        return _scalar(loss_fn(jax.tree.map(move, params, direction)))

    losses: jax.Array = jax.lax.map(loss_at, steps)
    return losses


def filter_normalized_direction(key: jax.Array, params: Tree) -> Tree:
    r"""A random direction in which every filter is as long as the filter it moves.

    .. math:: d_i \leftarrow d_i \frac{\|w_i\|_2}{\|d_i\|_2}, \quad d_i \sim N(0, I)

    A filter is what makes one output feature: the slice of a kernel along its *last*
    axis, as JAX and Flax lay kernels out, (..., in, out). Leaves with one axis or none
    (biases, scales of norms) do not move, and neither do filters that are zero. The
    unit is thus the weights' own scale, and slices of networks that differ by a
    rescaling of their filters can be compared. Kernels laid out in another way (output
    features first; several layers stacked in one leaf) need `jnp.moveaxis` or
    `jax.vmap` around this.

    Args:
      key: a JAX random key; leaf i draws from `fold_in(key, i)`.
      params: a tree of real floating-point leaves; `None` leaves stay `None`.

    Returns:
      A tree of the structure, shapes and dtypes of `params`.

    Raises:
      TypeError: a leaf that is not real floating-point.
      ValueError: parameters without a single number.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_sam.measure import filter_normalized_direction
      >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 0.0]]), "bias": jnp.ones(2)}
      >>> direction = filter_normalized_direction(jax.random.key(0), params)
      >>> jnp.round(jnp.linalg.norm(direction["kernel"], axis=0), 5)
      Array([5., 0.], dtype=float32)
      >>> direction["bias"]
      Array([0., 0.], dtype=float32)

    Reference: Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets",
      section 4.
    """
    _check_params(params)
    leaves: list[Any] = jax.tree.leaves(params)

    def draw(index: int, leaf: Any) -> jax.Array:
        dtype = jnp.result_type(leaf)
        if jnp.ndim(leaf) < 2:
            return jnp.zeros(jnp.shape(leaf), dtype)
        weight = jnp.asarray(leaf, jnp.promote_types(dtype, jnp.float32))
        noise = jax.random.normal(
            jax.random.fold_in(key, index), weight.shape, weight.dtype
        )
        axes = tuple(range(weight.ndim - 1))
        return (norm(weight, axes) * noise / norm(noise, axes)).astype(dtype)

    filters = [draw(i, leaf) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(jax.tree.structure(params), filters)


def _hvp(loss_fn: Callable[[Tree], Any], params: Tree) -> tuple[Matvec, jax.Array]:
    """`v -> H v` (forward over reverse) on the ravelled parameters, and these."""
    flat, unravel = ravel_pytree(params)
    point = flat.astype(jnp.promote_types(flat.dtype, jnp.float32))

    def loss(x: jax.Array) -> jax.Array:
        return _scalar(loss_fn(unravel(x.astype(flat.dtype))))

    def matvec(v: jax.Array) -> jax.Array:
        product: jax.Array = jax.jvp(jax.grad(loss), (point,), (v,))[1]
        return product

    return matvec, point


def _scalar(value: Any) -> jax.Array:
    if isinstance(value, tuple):
        raise TypeError(
            "The loss function returned a tuple, but only a scalar can be measured. "
            "Take the value: lambda p: loss_fn(p)[0]."
        )
    if jnp.shape(value) != ():
        raise TypeError(
            f"The loss function must return a scalar, but its value has shape "
            f"{jnp.shape(value)}. Average over the examples: jnp.mean(losses)."
        )
    return jnp.asarray(value)


def _check_params(params: Tree) -> int:
    """How many parameters there are; refuse what cannot move."""
    check_floats(params, "parameter")
    size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(params))
    if size == 0:
        raise ValueError(
            "The parameters hold no floating-point numbers, so there is nothing to "
            "measure. Pass the tree that the loss is differentiated in."
        )
    return size


def _check_direction(params: Tree, direction: Tree) -> None:
    structure: Any = jax.tree.structure(params)
    ours, theirs = _shapes(params), _shapes(direction)
    if structure == jax.tree.structure(direction) and ours == theirs:
        return
    differ = [path for path in ours | theirs if ours.get(path) != theirs.get(path)]
    path = differ[0] if differ else "the types of their containers"
    raise ValueError(
        f"loss_along was given a direction that cannot be added to the parameters; "
        f"they differ first at {path} (shape {theirs.get(path, 'missing')} against "
        f"{ours.get(path, 'missing')}). Give a tree like the parameters, with zeros "
        f"where nothing is to move."
    )


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {keystr(path) or "(the root)": jnp.shape(leaf) for path, leaf in leaves}
