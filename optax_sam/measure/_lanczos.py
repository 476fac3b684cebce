"""The largest eigenvalues of a symmetric map that is known by its products."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

Matvec: TypeAlias = Callable[[jax.Array], jax.Array]
#: Of the runs of Lanczos: how many, the best vector, its value, whether to go on.
_Runs: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

_MAX_RUNS = 16

# Reduced precision (the default of TPUs, TF32) would undo every orthogonalization.
_matmul = partial(jnp.matmul, precision="highest")


def largest_eigenpairs(
    matvec: Matvec, like: jax.Array, k: int, num_iters: int, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues (k,) and eigenvectors (k, n) of a symmetric map of vectors `like`.

    One at a time, each from a start of its own: a Krylov space holds one vector of each
    eigenspace, so the other copies of a multiple eigenvalue are not in it.
    """

    def find(i: Any, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        values, vectors = found
        value, vector = _largest_eigenpair(
            matvec, vectors, num_iters, jax.random.fold_in(key, i)
        )
        return values.at[i].set(value), vectors.at[i].set(vector)

    none = jnp.zeros(k, like.dtype), jnp.zeros((k, like.size), like.dtype)
    pairs: tuple[jax.Array, jax.Array] = jax.lax.fori_loop(0, k, find, none)
    return pairs


def _largest_eigenpair(
    matvec: Matvec, found: jax.Array, num_iters: int, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The largest eigenvalue on the complement of `found`, and its eigenvector."""
    eps = jnp.finfo(found.dtype).eps

    def unconverged(state: _Runs) -> jax.Array:
        return (state[0] < _MAX_RUNS) & state[3]

    def run(state: _Runs) -> _Runs:
        count, start, _, _ = state
        basis, diagonal, off = lanczos(
            matvec, start, found, num_iters, jax.random.fold_in(key, count)
        )
        thetas, weights = ritz(diagonal, off)
        residual = off[-1] * jnp.abs(weights[-1, -1])
        # The second term ends the search where theta is zero up to rounding.
        noise = eps * jnp.max(jnp.abs(thetas))
        more = residual > 0.1 * eps**0.5 * jnp.abs(thetas[-1]) + noise
        return count + 1, _matmul(weights[:, -1], basis), thetas[-1], more

    start = jnp.zeros(found.shape[1], found.dtype)
    state = (jnp.zeros([], int), start, jnp.zeros([], found.dtype), jnp.array(True))
    _, vector, value, _ = jax.lax.while_loop(unconverged, run, state)
    return value, vector


def ritz(diagonal: jax.Array, off: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues, ascending, and eigenvectors (columns) of the tridiagonal matrix."""
    beside = off[:-1]
    pairs: tuple[jax.Array, jax.Array] = jnp.linalg.eigh(
        jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)
    )
    return pairs


def lanczos(
    matvec: Matvec, start: jax.Array, found: jax.Array, num_iters: int, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Lanczos from `start` (zero: a random one) on the complement of `found`'s rows.

    Returns the basis (num_iters, n), the diagonal of the tridiagonal matrix and the
    entries beside it, (num_iters,) each; the last of these couples to the vector that
    would come next, so that a Ritz vector with last weight y has residual off[-1] * y.
    """
    eps = jnp.finfo(start.dtype).eps
    first = found.shape[0]

    def step(i: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        rows, diagonal, off, rest = state
        # Where the Krylov space is exhausted go on from a random vector, coupled by no
        # more than rounding, so that every Ritz value stays one of the map itself.
        new = jax.random.normal(jax.random.fold_in(key, i), rest.shape, rest.dtype)
        v = _unit(jnp.where(jnp.all(rest == 0), new, rest), rows)
        rows = rows.at[first + i].set(v)
        hv = matvec(v)
        rest = _reject(hv, rows)
        length = norm(rest)
        rest = jnp.where(length > 10 * eps * norm(hv), rest / length, 0)
        return (
            rows,
            diagonal.at[i].set(_matmul(v, hv)),
            off.at[i].set(length),
            rest,
        )

    rows = jnp.concatenate([found, jnp.zeros((num_iters, start.size), start.dtype)])
    zeros = jnp.zeros(num_iters, start.dtype)
    state = jax.lax.fori_loop(0, num_iters, step, (rows, zeros, zeros, start))
    return state[0][first:], state[1], state[2]


def _reject(x: jax.Array, rows: jax.Array) -> jax.Array:
    return x - _matmul(_matmul(rows, x), rows)


def _unit(x: jax.Array, rows: jax.Array) -> jax.Array:
    """Of length one, what is left of x beside orthonormal (or zero) rows."""
    for _ in range(2):  # The second time removes what cancellation left.
        x = _reject(x, rows)
        x = x / norm(x)
    return x


def norm(x: jax.Array, axis: tuple[int, ...] | None = None) -> jax.Array:
    """The 2-norm; scaled first, as squares of 1e-25 vanish in float32."""
    keep = axis is not None
    peak = jnp.max(jnp.abs(x), axis=axis, keepdims=keep, initial=0)
    scale = jnp.where(peak > 0, peak, 1)
    return scale * jnp.sqrt(jnp.sum((x / scale) ** 2, axis=axis, keepdims=keep))
