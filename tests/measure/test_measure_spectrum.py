"""Eigenvectors, Gauss-Newton, trace and density against dense linear algebra."""

import sys
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from matfree import decomp

from optax_sam import measure
from optax_sam.measure import hessian_eigenvalues, hessian_trace, spectral_density
from optax_sam.measure._lanczos import lanczos, ritz

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
# Little to run, much to compile: for these programs LLVM's levels are not worth it.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random_tree(rng, size):
    """Leaves of random shapes in random containers, `size` numbers in all."""
    shapes = [(), (2,), (3, 2), (1, 2, 2), (0, 3)]
    leaves = [None, *(rng.normal(size=shapes[i]) for i in rng.permutation(5))]
    leaves.append(rng.normal(size=size - sum(np.size(x) for x in leaves[1:])))
    order = rng.permutation(len(leaves))
    shuffled = [leaves[i] for i in order]
    cut = rng.integers(1, len(leaves) - 1)
    return {"pair": tuple(shuffled[:cut]), "list": [{"deep": shuffled[cut:]}]}


class Net:
    """A model of a random tree, and a loss convex in its outputs: no closed form."""

    def __init__(self, seed, size):
        rng = np.random.default_rng(seed)
        self.params = random_tree(rng, size)
        self.weights = rng.normal(size=(8, size)) / np.sqrt(size)
        self.labels = rng.integers(0, 4, 2)

    def model(self, params):
        hidden = jnp.tanh(self.weights @ ravel_pytree(params)[0])
        return {"logits": hidden.reshape(2, 4) * (1 + hidden[0])}

    def loss_of(self, outputs):
        losses = optax.softmax_cross_entropy_with_integer_labels(
            outputs["logits"], self.labels
        )
        return 10 * jnp.mean(losses)

    def loss(self, params):
        return self.loss_of(self.model(params)) + jnp.mean(ravel_pytree(params)[0] ** 4)

    def dense(self, gauss_newton):
        flat, unravel = ravel_pytree(self.params)
        if not gauss_newton:
            return np.asarray(jit(jax.hessian(lambda x: self.loss(unravel(x))))(flat))
        logits, unravel_logits = ravel_pytree(self.model(self.params))
        inner = jax.hessian(lambda z: self.loss_of(unravel_logits(z)))(logits)
        jacobian = jit(jax.jacobian(lambda x: ravel_pytree(self.model(unravel(x)))[0]))(
            flat
        )
        return np.asarray(jacobian.T @ inner @ jacobian)


SLOW = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "size", "gauss_newton"),
    [
        (0, 40, False),
        (1, 300, True),
        pytest.param(2, 300, False, marks=SLOW),
        pytest.param(3, 40, True, marks=SLOW),
        pytest.param(4, 120, False, marks=SLOW),
        pytest.param(5, 500, False, marks=SLOW),
    ],
)
def test_random_trees_against_the_dense_matrix(seed, size, gauss_newton, x64):
    """Below 256 parameters dense, above by Lanczos; both to 1e-8."""
    net = Net(seed, size)
    if gauss_newton:
        loss, how = net.loss_of, {"model_fn": net.model}
    else:
        loss, how = net.loss, {}
    values, vectors = jit(
        lambda p: hessian_eigenvalues(loss, p, k=4, return_vectors=True, **how)
    )(net.params)
    matrix = net.dense(gauss_newton)
    expected = np.linalg.eigvalsh(matrix)[::-1]
    np.testing.assert_allclose(values, expected[:4], atol=1e-8 * expected[0])
    assert not gauss_newton or expected[-1] > -1e-12
    for i in range(4):
        leaf_by_leaf = jax.tree.map(lambda v, i=i: v[i], vectors)
        assert jax.tree.structure(leaf_by_leaf) == jax.tree.structure(net.params)
        v = np.asarray(ravel_pytree(leaf_by_leaf)[0])
        np.testing.assert_allclose(v @ v, 1, rtol=1e-10)
        residual = np.linalg.norm(matrix @ v - values[i] * v)
        assert residual < 1e-8 * expected[0]


def test_gauss_newton_is_the_hessian_of_a_linear_model(x64):
    rng = np.random.default_rng(0)
    inputs, params = rng.normal(size=(9, 5)), rng.normal(size=5)

    def loss_of(outputs):
        return jnp.mean(jnp.cosh(outputs))

    def model(w):
        return inputs @ w

    @jit
    def both(w):
        hessian = hessian_eigenvalues(lambda w: loss_of(model(w)), w, k=5)
        return hessian, hessian_eigenvalues(loss_of, w, k=5, model_fn=model)

    hessian, gauss_newton = both(params)
    np.testing.assert_allclose(gauss_newton, hessian, rtol=1e-10)


def test_eigenvectors_of_one_eigenvalue_are_orthonormal(x64):
    """Three copies of 5 in 300: any basis of their space will do, but a basis."""
    spectrum = jnp.r_[jnp.full(3, 5.0), jnp.linspace(-7, 1, 297)]
    values, vectors = jit(
        lambda w: hessian_eigenvalues(
            lambda w: 0.5 * jnp.sum(spectrum * w**2), w, k=3, return_vectors=True
        )
    )(jnp.ones(300))
    np.testing.assert_allclose(values, [5, 5, 5], rtol=1e-10)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(vectors[:, 3:], 0, atol=1e-7)


def test_vectors_are_wide_and_shaped_like_the_parameters():
    params = {"half": jnp.ones((2, 1), jnp.bfloat16), "none": None, "number": 2.0}

    def loss(p):
        return jnp.sum(jnp.float32(p["half"]) ** 2) + 3 * p["number"] ** 2

    values, vectors = hessian_eigenvalues(loss, params, k=2, return_vectors=True)
    assert values.dtype == vectors["half"].dtype == jnp.float32
    assert vectors["half"].shape == (2, 2, 1)
    np.testing.assert_allclose(np.abs(vectors["number"]), [1, 0], atol=1e-6)


# Lanczos and its quadrature


@partial(jit, static_argnums=2)
def of_diagonal(spectrum, start, num_iters):
    _, diagonal, off = lanczos(
        lambda v: spectrum * v, start, jnp.zeros((0, len(start))), num_iters, KEY
    )
    nodes, vectors = ritz(diagonal, off)
    return diagonal, off, nodes, vectors[0] ** 2


def test_lanczos_on_1_to_5(x64):
    """The numbers of papers.md: from (1, ..., 1) on diag(1, ..., 5)."""
    run = partial(of_diagonal, jnp.arange(1.0, 6), jnp.ones(5))
    diagonal, off, nodes, weights = run(5)
    np.testing.assert_allclose(diagonal, 3, rtol=1e-12)
    betas = [1.41421356, 1.18321596, 1.01418511, 0.75592895]
    np.testing.assert_allclose(off[:4], betas, rtol=1e-8)
    np.testing.assert_allclose(nodes, [1, 2, 3, 4, 5], rtol=1e-12)
    np.testing.assert_allclose(weights, 0.2, rtol=1e-10)
    _, _, nodes, weights = run(3)
    np.testing.assert_allclose(nodes, [1.15609111, 3, 4.84390889], rtol=1e-8)
    np.testing.assert_allclose(weights, [0.29411765, 0.41176471, 0.29411765], rtol=1e-7)


def test_lanczos_is_matfree_where_nothing_breaks_down(x64):
    half = np.random.default_rng(0).normal(size=(40, 40))
    matrix, start = half + half.T, half[0]

    @jit
    def both(matrix, start):
        none = jnp.zeros((0, 40))
        _, diagonal, off = lanczos(lambda v: matrix @ v, start, none, 12, KEY)
        theirs = decomp.tridiag_sym(12)(lambda v: matrix @ v, start).J_small
        return diagonal, off, theirs

    diagonal, off, theirs = both(matrix, start)
    np.testing.assert_allclose(diagonal, np.diag(theirs), rtol=1e-9)
    np.testing.assert_allclose(off[:-1], np.abs(np.diag(theirs, 1)), rtol=1e-9)


def weighted(spectrum):
    """Nodes, and the weights averaged over the samples, of all that carry any."""
    nodes = np.asarray(spectrum.nodes).ravel()
    weights = np.asarray(spectrum.weights).ravel() / len(spectrum.nodes)
    return nodes[weights > 1e-12], weights[weights > 1e-12]


@partial(jit, static_argnames=("num_samples", "num_iters"))
def density_of(eigenvalues, num_samples=4, num_iters=16, **options):
    return spectral_density(
        lambda w: 0.5 * jnp.sum(eigenvalues * w**2),
        jnp.ones(len(eigenvalues)),
        key=KEY,
        num_samples=num_samples,
        num_iters=num_iters,
        num_points=400,
        **options,
    )


@pytest.mark.slow
def test_density_where_lanczos_breaks_down(x64):
    """5 three times, 1 eight times, -7 nine times: no value but these has weight."""
    spectrum = density_of(jnp.repeat(jnp.array([5.0, 1, -7]), jnp.array([3, 8, 9])))
    nodes, weights = weighted(spectrum)
    nearest = np.array([5, 1, -7])[np.abs(nodes[:, None] - [5, 1, -7]).argmin(1)]
    np.testing.assert_allclose(nodes, nearest, rtol=1e-9)
    shares = [weights[nearest == value].sum() for value in (5, 1, -7)]
    np.testing.assert_allclose(sum(shares), 1, rtol=1e-9)
    np.testing.assert_allclose(shares, np.array([3, 8, 9]) / 20, atol=0.15)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_density_of_a_single_value(value):
    """Of a Hessian c I (c = 0 too) matfree's Lanczos gives NaN."""
    spectrum = density_of(jnp.full(20, value))
    nodes, weights = weighted(spectrum)
    np.testing.assert_allclose(nodes, value, atol=1e-5)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    peak = spectrum.grid[np.argmax(spectrum.density)]
    np.testing.assert_allclose(peak, value, atol=1e-2)


@pytest.mark.parametrize("width", [1e-6, 1e-3, 0.3])
def test_density_finer_than_its_grid_has_the_mass_of_one(width, x64):
    spectrum = density_of(jnp.linspace(0.0, 1.0, 20), width=width)
    step = spectrum.grid[1] - spectrum.grid[0]
    np.testing.assert_allclose(np.sum(spectrum.density) * step, 1, rtol=2e-3)


@pytest.mark.slow
def test_density_against_all_eigenvalues(x64):
    """Moments, the mass, and the smoothed density itself."""
    eigenvalues = np.concatenate([np.linspace(-1, 2, 200), [5.0] * 20])
    spectrum = density_of(jnp.asarray(eigenvalues), num_samples=200, num_iters=20)
    nodes, weights = weighted(spectrum)
    for power in (1, 2, 3):
        exact = np.mean(eigenvalues**power)
        # One sample has the variance 2 mean(h^2p) / n; two hundred were taken.
        error = np.sqrt(2 * np.mean(eigenvalues ** (2 * power)) / 220 / 200)
        assert abs(np.sum(weights * nodes**power) - exact) < 4 * error
    step = spectrum.grid[1] - spectrum.grid[0]
    np.testing.assert_allclose(np.sum(spectrum.density) * step, 1, rtol=1e-3)
    near_five = np.sum(spectrum.density[spectrum.grid > 3.5]) * step
    np.testing.assert_allclose(near_five, 20 / 220, rtol=0.1)


# The trace


def test_trace_of_two_by_two(x64):
    """On [[1, .5], [.5, 4]] every sample is 6 or 4: mean 5, variance 1."""
    matrix = np.array([[1, 0.5], [0.5, 4]])
    trace = hessian_trace(
        lambda w: 0.5 * w @ matrix @ w, np.ones(2), key=KEY, num_samples=400
    )
    np.testing.assert_allclose(trace.standard_error, 1 / 20, rtol=0.02)
    assert abs(trace.mean - 5) < 4 / 20


@pytest.mark.slow
def test_trace_of_random_trees(x64):
    net = Net(2, 40)

    @jit
    def traced(p):
        many = {"key": KEY, "num_samples": 300}
        newton = hessian_trace(net.loss_of, p, model_fn=net.model, **many)
        return hessian_trace(net.loss, p, **many), newton

    for trace, gauss_newton in zip(traced(net.params), (False, True), strict=True):
        matrix = net.dense(gauss_newton)
        off_diagonal = np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)
        error = np.sqrt(2 * off_diagonal / 300)
        np.testing.assert_allclose(trace.standard_error, error, rtol=0.25)
        assert abs(trace.mean - np.trace(matrix)) < 4 * error


def test_trace_takes_the_memory_of_one_sample():
    traced = jax.make_jaxpr(
        lambda w: hessian_trace(lambda w: jnp.sum(w**3), w, key=KEY, num_samples=7)
    )
    shapes = [v.aval.shape for e in traced(jnp.ones(11)).eqns for v in e.outvars]
    assert not [shape for shape in shapes if 7 in shape and 11 in shape]


def test_trace_without_matfree(monkeypatch):
    monkeypatch.setitem(sys.modules, "matfree.stochtrace", None)
    with pytest.raises(ImportError, match=r"pip install 'optax-sam\[measure\]'"):
        hessian_trace(jnp.sum, jnp.ones(2), key=KEY, num_samples=2)


# Batches


@cache
def problem():
    rng = np.random.default_rng(5)
    params = {"in": rng.normal(size=(3, 4)), "out": rng.normal(size=4)}
    return params, (rng.normal(size=(12, 3)), rng.normal(size=12))


def regression(params, batch):
    inputs, targets = batch
    outputs = jnp.tanh(inputs @ params["in"]) @ params["out"]
    return jnp.mean((outputs - targets) ** 2)


def outputs_of(params, batch):
    return jnp.tanh(batch[0] @ params["in"]) @ params["out"]


MEASURES = {
    "eigenvalues": partial(hessian_eigenvalues, k=3),
    "trace": partial(hessian_trace, key=KEY, num_samples=3),
    "density": partial(spectral_density, key=KEY, num_samples=2, num_iters=4),
    "line": lambda f, p, **data: measure.loss_along(f, p, p, [0, 1.0], **data),
    "plane": lambda f, p, **data: measure.loss_plane(f, p, p, p, [0, 1], [2], **data),
}


@pytest.mark.parametrize("name", MEASURES)
def test_batches_are_the_whole_data_set(name, x64):
    params, data = problem()

    @jit
    def both(params, data):
        stacked = jax.tree.map(lambda x: x.reshape(3, 4, *x.shape[1:]), data)
        by_batches = MEASURES[name](regression, params, batches=stacked)
        return MEASURES[name](lambda p: regression(p, data), params), by_batches

    whole, by_batches = both(params, data)
    for a, b in zip(whole, by_batches, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-8, atol=1e-10)


def test_batches_of_gauss_newton(x64):
    params, data = problem()

    def loss_of(outputs, batch):
        return jnp.mean((outputs - batch[1]) ** 2)

    def values(model, loss, **batches):
        how = {"k": 3, "model_fn": model, **batches}
        return jit(lambda p: hessian_eigenvalues(loss, p, **how))(params)

    whole = values(lambda p: outputs_of(p, data), lambda z: loss_of(z, data))
    thirds = [jax.tree.map(lambda x, i=i: x[i::3], data) for i in range(3)]
    np.testing.assert_allclose(
        values(outputs_of, loss_of, batches=thirds), whole, rtol=1e-10
    )


def test_the_ways_to_give_batches(x64):
    """A list, an iterator, any other iterable, arrays, a tree: the same mean."""
    rows = np.arange(12.0).reshape(3, 4)

    def line(batches, loss=lambda w, x: jnp.mean(w * x)):
        return measure.loss_along(loss, 1.0, 0.0, [0.0], batches=batches)

    class Loader:
        def __iter__(self):
            return iter(rows)

    for batches in (list(rows), iter(rows), (row for row in rows), Loader(), rows):
        np.testing.assert_allclose(line(batches), rows.mean())
    both = {"x": rows, "y": (rows,)}
    tree = line(both, lambda w, b: jnp.mean(w * b["x"] * b["y"][0]))
    np.testing.assert_allclose(tree, np.mean(rows**2))


def test_a_mean_over_batches_has_the_memory_of_one():
    """The loop keeps a sum and nothing of the batches, whatever is measured."""
    rows = jnp.ones((5, 7, 3))

    def product(w, batch):
        return jnp.mean(jnp.tanh(batch @ w) ** 2)

    traced = jax.make_jaxpr(
        lambda w: hessian_eigenvalues(product, w, k=1, batches=rows)
    )(jnp.ones(3))
    assert "f32[7]" in str(traced)  # One batch's outputs were seen,
    assert "f32[5,7]" not in str(traced)  # never those of all.


@pytest.mark.parametrize(
    ("batches", "match"),
    [
        ([], "batches is empty"),
        ([np.ones((4, 2)), np.ones((3, 2))], r"Batch 1 has shapes \(3, 2\)"),
        ({"x": np.ones((2, 3)), "y": np.ones(3)}, "must share a first axis"),
        (np.ones(()), "must share a first axis"),
        (np.ones((0, 3)), "must share a first axis"),
        ((), "must share a first axis"),
    ],
)
def test_refuses_what_are_no_batches(batches, match):
    with pytest.raises(ValueError, match=match):
        hessian_eigenvalues(lambda w, x: jnp.sum(w), jnp.ones(2), batches=batches)


# Refusals


@pytest.mark.parametrize("of", [MEASURES["trace"], MEASURES["density"]])
def test_refuses_what_cannot_be_measured(of):
    with pytest.raises(TypeError, match=r"has dtype int32"):
        of(jnp.sum, jnp.arange(2))
    with pytest.raises(ValueError, match="hold no floating-point numbers"):
        of(jnp.sum, None)
    with pytest.raises(TypeError, match=r"has shape .*jnp\.mean"):
        of(lambda w: w**2, jnp.ones(3))
    with pytest.raises(ValueError, match=r"\(the root\) holds numbers that are no"):
        of(jnp.sum, jnp.array([jnp.inf]))


@pytest.mark.parametrize("name", ["eigenvalues", "trace", "density"])
def test_refuses_a_hessian_that_is_not_finite(name):
    of, ones = MEASURES[name], jnp.ones(4)
    with pytest.raises(ValueError, match=r"is not finite.*jax\.grad"):
        of(lambda w: jnp.nan * jnp.sum(w**2), ones)
    if name == "eigenvalues":
        under_jit = jit(lambda w: of(lambda w: jnp.nan * jnp.sum(w**2), w))(ones)
        assert np.isnan(under_jit).all()


def test_refuses_counts_that_are_none():
    with pytest.raises(ValueError, match="at least 2 samples"):
        hessian_trace(jnp.sum, jnp.ones(2), key=KEY, num_samples=1)
    for name in ("num_samples", "num_iters", "num_points"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            spectral_density(jnp.sum, jnp.ones(2), key=KEY, **{name: 0})
        with pytest.raises(TypeError, match=f"{name} counts something"):
            spectral_density(jnp.sum, jnp.ones(2), key=KEY, **{name: 2.0})


@pytest.mark.parametrize("width", [-1.0, 0, np.float32(-1), np.nan])
def test_refuses_a_width_that_is_none(width):
    """A negative one turned the density over: it summed to -102."""
    with pytest.raises(ValueError, match=r"width.* must be positive, got .*None"):
        spectral_density(jnp.sum, jnp.ones(2), key=KEY, width=width)
