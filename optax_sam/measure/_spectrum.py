"""The whole spectrum of the curvature by random probes: its trace and its density."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam._checks import check_whole
from optax_sam._types import Tree
from optax_sam.measure._checks import (
    NO_CURVATURE,
    check_params,
    check_result,
    check_samples,
)
from optax_sam.measure._curvature import curvature
from optax_sam.measure._estimate import Estimate, estimate
from optax_sam.measure._lanczos import lanczos, ritz


def hessian_trace(
    loss_fn: Callable[..., Any],
    params: Tree,
    *,
    key: jax.Array,
    num_samples: int,
    batches: Any = None,
    model_fn: Callable[..., Tree] | None = None,
) -> Estimate:
    r"""The trace of the Hessian of a loss, the sum of its eigenvalues, by random signs.

    .. math:: \operatorname{tr} H = E_v [v^\top H v] \approx \frac1K \sum_{k=1}^K
              v_k^\top H v_k, \quad v_k \in \{-1, 1\}^n

    One sample has the variance :math:`2 (\|H\|_F^2 - \sum_i H_{ii}^2)`: the estimate
    is exact where the Hessian is diagonal. Needs matfree, the extra `measure`. Cost:
    one Hessian-vector product a sample, one after the other.

    Args:
      loss_fn, params, batches, model_fn: as for `hessian_eigenvalues`; with
        `model_fn` it is the trace of the Gauss-Newton matrix.
      key: a JAX random key for the signs.
      num_samples: how many vectors of signs, the K above; at least 2.

    Returns:
      The estimate and its standard error, a named tuple `(mean, standard_error)` of
      scalars in the widest dtype among the leaves, at least float32.

    Raises:
      ImportError: matfree is not installed.
      TypeError: a leaf that is not real floating-point; a loss that is not a scalar.
      ValueError: parameters without a single number; `num_samples` below 2;
        parameters or, outside `jax.jit`, a trace that is not finite.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_sam.measure import hessian_trace
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> trace = hessian_trace(
      ...     loss, jnp.ones(2), key=jax.random.key(0), num_samples=3)
      >>> float(trace.mean), float(trace.standard_error)
      (5.0, 0.0)

    Reference: Hutchinson 1990, "A stochastic estimator of the trace of the influence
      matrix for Laplacian smoothing splines".
    """
    stochtrace = _stochtrace()
    check_params(params)
    check_samples("hessian_trace", num_samples)
    matvec, point = curvature(loss_fn, params, batches, model_fn)
    # One sample at a time: matfree's own loop is a vmap, with the memory of them all.
    sample = stochtrace.estimator_monte_carlo(
        stochtrace.monte_carlo_trace(), stochtrace.sampler_signs(point, num=1)
    )
    trace = estimate(lambda key: sample(matvec, key), key, num_samples)
    check_result(trace, "The trace of the Hessian", NO_CURVATURE)
    return trace


class SpectralDensity(NamedTuple):
    r"""How many eigenvalues lie where, as a density, and the quadrature behind it.

    Attributes:
      grid: where the density is given, (num_points,), ascending.
      density: the density there, (num_points,); its integral is 1.
      nodes: the Ritz values of every sample, (num_samples, num_iters).
      weights: their weights, of the same shape; those of a sample add up to 1.
    """

    grid: jax.Array
    density: jax.Array
    nodes: jax.Array
    weights: jax.Array


def spectral_density(
    loss_fn: Callable[..., Any],
    params: Tree,
    *,
    key: jax.Array,
    num_samples: int = 10,
    num_iters: int = 64,
    num_points: int = 1024,
    width: float | None = None,
    batches: Any = None,
    model_fn: Callable[..., Tree] | None = None,
) -> SpectralDensity:
    r"""The density of all eigenvalues of the Hessian, by stochastic Lanczos quadrature.

    .. math:: \phi(t) = \frac1K \sum_{k=1}^K \sum_{i=1}^m \tau_{ki}^2 \,
              N(t;\, \theta_{ki}, \sigma^2)

    with the Ritz values theta of m Lanczos steps from a random vector and the first
    entries tau of their eigenvectors. Lanczos is re-orthogonalized, and goes on where
    the spectrum has fewer than m different values. Cost: K * m Hessian-vector
    products; memory: m vectors of the size of the parameters.

    A density says little of a single eigenvalue: of n, the largest has the weight 1/n.
    Take `hessian_eigenvalues` for the edge.

    Args:
      loss_fn, params, batches, model_fn: as for `hessian_eigenvalues`.
      key: a JAX random key for the start vectors.
      num_samples: how many start vectors, the K above.
      num_iters: how many Lanczos steps, the m above; never more than parameters.
      num_points: how many points the grid has.
      width: the standard deviation sigma of the peaks, in units of the eigenvalues;
        `None` is 1 % of the range of the Ritz values.

    Returns:
      A `SpectralDensity` in the widest dtype among the leaves, at least float32. The
      grid reaches five widths beyond the Ritz values.

    Raises:
      TypeError: a leaf that is not real floating-point; a loss that is not a scalar;
        counts that are no whole numbers.
      ValueError: parameters without a single number; counts below 1; a width that is
        not positive; parameters or, outside `jax.jit`, a density that is not finite.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_sam.measure import spectral_density
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 1.0, 1.0, 4.0]) * w**2)
      >>> spectrum = spectral_density(
      ...     loss, jnp.ones(4), key=jax.random.key(0), num_samples=1, num_iters=2)
      >>> jnp.round(spectrum.nodes, 4)
      Array([[1., 4.]], dtype=float32)

    Reference: Ghorbani et al. 2019 (arXiv:1901.10159), "An Investigation into Neural
      Net Optimization via Hessian Eigenvalue Density", algorithm 1.
    """
    size = check_params(params)
    check_whole("num_samples", num_samples)
    check_whole("num_iters", num_iters)
    check_whole("num_points", num_points)
    _check_width(width)
    matvec, point = curvature(loss_fn, params, batches, model_fn)
    num_iters = min(num_iters, size)

    def quadrature(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        random, none = jnp.zeros_like(point), jnp.zeros((0, size), point.dtype)
        _, diagonal, off = lanczos(matvec, random, none, num_iters, key)
        nodes, vectors = ritz(diagonal, off)
        return nodes, vectors[0] ** 2

    nodes, weights = jax.lax.map(quadrature, jax.random.split(key, num_samples))
    spectrum = _smooth(nodes, weights, num_points, width)
    check_result(spectrum, "The spectral density", NO_CURVATURE)
    return spectrum


def _check_width(width: Any) -> None:
    if width is None or isinstance(width, jax.core.Tracer):
        return
    if not float(width) > 0:
        raise ValueError(
            f"The width of the peaks of spectral_density is a standard deviation and "
            f"must be positive, got width = {width}. Write width=None for 1 % of the "
            f"range of the Ritz values."
        )


def _smooth(
    nodes: jax.Array, weights: jax.Array, num_points: int, width: float | None
) -> SpectralDensity:
    low, high = jnp.min(nodes), jnp.max(nodes)
    if width is None:
        # A range of rounding errors is that of a spectrum with one value.
        size = jnp.maximum(jnp.abs(low), jnp.abs(high))
        flat = high - low <= 1e-3 * size
        sigma = jnp.where(flat, jnp.where(size > 0, size, 1), high - low) / 100
    else:
        sigma = jnp.asarray(width, nodes.dtype)
    grid, step = jnp.linspace(
        low - 5 * sigma, high + 5 * sigma, num_points, retstep=True
    )

    def below(t: jax.Array) -> jax.Array:
        return jax.scipy.stats.norm.cdf(t, nodes, sigma)

    def at(t: jax.Array) -> jax.Array:
        peaks = jax.scipy.stats.norm.pdf(t, nodes, sigma)
        # A peak that is finer than the grid could fall between its points.
        cell = (below(t + step / 2) - below(t - step / 2)) / step
        peaks = jnp.where(sigma < step, cell, peaks)
        return jnp.mean(jnp.sum(weights * peaks, axis=1))

    return SpectralDensity(grid, jax.lax.map(at, grid), nodes, weights)


def _stochtrace() -> Any:
    try:
        return importlib.import_module("matfree.stochtrace")
    except ImportError as error:
        raise ImportError(
            "hessian_trace needs matfree, an optional dependency. Install it with "
            "pip install 'optax-sam[measure]'."
        ) from error
