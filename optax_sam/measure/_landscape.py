"""The loss along lines and over planes, and directions to walk in."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_sam._trees import cast, keystr, widen, widest_dtype
from optax_sam._types import Tree
from optax_sam.measure._checks import check_params, scalar_loss
from optax_sam.measure._lanczos import norm
from optax_sam.measure._loss import averaging


def loss_along(
    loss_fn: Callable[..., Any],
    params: Tree,
    direction: Tree,
    distances: Any,
    *,
    batches: Any = None,
) -> jax.Array:
    r"""The loss along a straight line through the parameters.

    .. math:: t \mapsto L(w + t\, d)

    The points are evaluated one after the other, with the memory of one evaluation.

    Args:
      loss_fn: `loss_fn(params)` or, with `batches`, `loss_fn(params, batch)` returns
        a scalar.
      params: a tree of real floating-point leaves; `None` leaves are left alone.
      direction: a tree like `params`, leaf for leaf of the same shape: from
        `filter_normalized_direction`; an eigenvector; a SAM climb; or from one
        solution to another, `optax.tree.sub(other, params)` with t from 0 to 1.
      distances: the values of t, a sequence or an array of shape (n,), in units of
        `direction`. The sum is formed in at least float32; leaves keep their dtype.
      batches: the data, where one batch is too small for them: a list or an iterator
        of batches of one size, or one tree of them stacked along a new first axis.
        The loss is the mean over the batches; they are visited one at a time.

    Returns:
      The n losses, an array of shape (n,) in the loss's dtype; in at least float32
      with `batches`. They may be infinite far away.

    Raises:
      TypeError: a leaf that is not real floating-point; a loss that is not a scalar.
      ValueError: a direction of another structure or shape than the parameters;
        distances that are not one-dimensional; parameters without a single number,
        or with one that is not finite; batches of different sizes.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam.measure import loss_along
      >>> params, direction = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([1.0, 0.0])}
      >>> loss_along(lambda p: jnp.sum(p["w"]**2), params, direction, [-1.0, 0.0, 1.0])
      Array([4., 5., 8.], dtype=float32)

    Reference: Goodfellow et al. 2015 (arXiv:1412.6544), "Qualitatively characterizing
      neural network optimization problems", section 2; Li et al. 2018
      (arXiv:1712.09913), equation 1.
    """
    check_params(params)
    _check_direction("loss_along", params, direction)
    steps = _line("loss_along", "distances", distances)
    average, loss = averaging(batches), scalar_loss(loss_fn)

    def loss_at(t: jax.Array) -> jax.Array:
        point = moved(params, t, direction)
        value: jax.Array = average(lambda *batch: loss(point, *batch))
        return value

    losses: jax.Array = jax.lax.map(loss_at, steps)
    return losses


def loss_plane(
    loss_fn: Callable[..., Any],
    params: Tree,
    first: Tree,
    second: Tree,
    xs: Any,
    ys: Any,
    *,
    batches: Any = None,
) -> jax.Array:
    r"""The loss over a plane through the parameters.

    .. math:: (x, y) \mapsto L(w + x\, d_1 + y\, d_2)

    The points are evaluated one after the other, with the memory of one evaluation.
    The plane through three solutions a, b and c: `params=a` and the directions
    `optax.tree.sub(b, a)` and `optax.tree.sub(c, a)`; the three stand at (0, 0),
    (1, 0) and (0, 1).

    Args:
      loss_fn, params, batches: as for `loss_along`.
      first: the direction d1, a tree like `params`; see `loss_along`.
      second: the direction d2, likewise.
      xs: the distances along `first`, a sequence or an array of shape (n,).
      ys: the distances along `second`, of shape (m,).

    Returns:
      The losses, an array of shape (n, m): `losses[i, j]` stands at xs[i], ys[j].

    Raises:
      TypeError, ValueError: as `loss_along`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam.measure import loss_plane
      >>> east, north = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
      >>> loss_plane(
      ...     lambda w: w[0] + 10 * w[1], jnp.zeros(2), east, north, [0, 1], [0, 1, 2])
      Array([[ 0., 10., 20.],
             [ 1., 11., 21.]], dtype=float32)

    Reference: Li et al. 2018 (arXiv:1712.09913), "Visualizing the Loss Landscape of
      Neural Nets", equation 2.
    """
    check_params(params)
    _check_direction("loss_plane", params, first)
    _check_direction("loss_plane", params, second)
    xs, ys = _line("loss_plane", "xs", xs), _line("loss_plane", "ys", ys)
    average, loss = averaging(batches), scalar_loss(loss_fn)

    def loss_at(xy: tuple[jax.Array, jax.Array]) -> jax.Array:
        point = moved(params, xy[0], first, xy[1], second)
        value: jax.Array = average(lambda *batch: loss(point, *batch))
        return value

    grid = jnp.meshgrid(xs, ys, indexing="ij")
    losses = jax.lax.map(loss_at, tuple(jnp.ravel(axis) for axis in grid))
    return jnp.reshape(losses, (xs.size, ys.size))


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

    Reference: Li et al. 2018 (arXiv:1712.09913), "Visualizing the Loss Landscape of
      Neural Nets", section 4.
    """
    check_params(params)
    leaves: list[Any] = jax.tree.leaves(params)

    def draw(index: int, leaf: Any) -> jax.Array:
        dtype = jnp.result_type(leaf)
        if jnp.ndim(leaf) < 2:
            return jnp.zeros(jnp.shape(leaf), dtype)
        weight = widen(leaf)
        noise = jax.random.normal(
            jax.random.fold_in(key, index), weight.shape, weight.dtype
        )
        axes = tuple(range(weight.ndim - 1))
        return (norm(weight, axes) * noise / norm(noise, axes)).astype(dtype)

    filters = [draw(i, leaf) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(jax.tree.structure(params), filters)


def moved(params: Tree, *steps: Any) -> Tree:
    """`params + t1 * d1 + t2 * d2 + ...`, summed in at least float32."""
    lengths, directions = steps[::2], steps[1::2]

    def move(w: Any, *ds: Any) -> jax.Array:
        terms = w, list(zip(lengths, ds, strict=True))
        start, pairs = cast(terms, widest_dtype(terms))
        total = sum((t * d for t, d in pairs), start=start)
        return jnp.asarray(total, jnp.result_type(w))

    return jax.tree.map(move, params, *directions)


def _line(name: str, what: str, distances: Any) -> jax.Array:
    steps = jnp.asarray(distances, float)
    if steps.ndim != 1:
        raise ValueError(
            f"{name} was given {what} of shape {steps.shape}, but it walks "
            f"along one line. Give a sequence of numbers, e.g. jnp.linspace(-1, 1, 21)."
        )
    return steps


def _check_direction(name: str, params: Tree, direction: Tree) -> None:
    structure: Any = jax.tree.structure(params)
    ours, theirs = _shapes(params), _shapes(direction)
    if structure == jax.tree.structure(direction) and ours == theirs:
        return
    differ = [path for path in ours | theirs if ours.get(path) != theirs.get(path)]
    path = differ[0] if differ else "the types of their containers"
    raise ValueError(
        f"{name} was given a direction that cannot be added to the parameters; "
        f"they differ first at {path} (shape {theirs.get(path, 'missing')} against "
        f"{ours.get(path, 'missing')}). Give a tree like the parameters, with zeros "
        f"where nothing is to move."
    )


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {keystr(path) or "(the root)": jnp.shape(leaf) for path, leaf in leaves}
