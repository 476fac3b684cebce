"""The measures against spectra, lines and filters whose answers are known."""

import inspect
import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.sparse.linalg import LinearOperator, eigsh

from optax_sam import measure
from optax_sam.measure import (
    filter_normalized_direction,
    hessian_eigenvalues,
    loss_along,
    loss_plane,
)

#: Lanczos takes over from the dense Hessian at 256 parameters.
SIZE = 300

MULTIPLE = np.array([5.0] * 3 + [1.0] * 8 + [-7.0] * (SIZE - 11))
SPECTRA = {
    "three values": MULTIPLE,
    "multiple above a bulk": np.r_[[5.0] * 3, [1.0] * 8, np.linspace(-7, 0.5, 289)],
    "largest magnitude negative": np.r_[2.0, 1.0, -np.linspace(1, 100, SIZE - 2)],
    "all negative": -np.linspace(1, 3, SIZE),
    "evenly spaced": np.linspace(0, 1, SIZE),
    "identity": np.full(SIZE, 3.0),
}


def of_quadratic(hessian, key=None, *, k=4, num_iters=None):
    """The eigenvalues at one point of a quadratic."""
    # Arguments that are left out would count as other arguments, and compile again.
    return _of_quadratic(hessian, key, k, num_iters)


@partial(jax.jit, static_argnums=(2, 3))
def _of_quadratic(hessian, key, k, num_iters):
    def loss(w):
        return 0.5 * w @ hessian @ w

    params = jnp.ones(len(hessian), hessian.dtype)
    return hessian_eigenvalues(loss, params, k=k, key=key, num_iters=num_iters)


@cache
def random_basis(size):
    return np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]


def rotated(spectrum):
    """A symmetric matrix of that spectrum, in a random orthonormal basis."""
    basis = random_basis(len(spectrum))
    return jnp.asarray((basis * spectrum) @ basis.T)


def network(sizes, num_examples):
    """A tanh network with random weights, its loss on random data."""
    rng = np.random.default_rng(0)
    params = [
        {"kernel": rng.normal(size=(a, b)) / np.sqrt(a), "bias": np.zeros(b)}
        for a, b in itertools.pairwise(sizes)
    ]
    inputs = rng.normal(size=(num_examples, sizes[0]))
    labels = rng.integers(0, sizes[-1], num_examples)

    def loss(params):
        x = jnp.asarray(inputs)
        for layer in params[:-1]:
            x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
        logits = x @ params[-1]["kernel"] + params[-1]["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss, jax.tree.map(jnp.asarray, params)


def largest(spectrum, k):
    return np.sort(spectrum)[::-1][:k]


# Eigenvalues


@pytest.mark.parametrize("name", SPECTRA)
def test_eigenvalues_of_a_rotated_quadratic(name, x64):
    values = of_quadratic(rotated(SPECTRA[name]))
    np.testing.assert_allclose(values, largest(SPECTRA[name], 4), rtol=1e-9, atol=1e-13)


def test_eigenvalues_in_float32():
    values = of_quadratic(rotated(SPECTRA["multiple above a bulk"]))
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, [5, 5, 5, 1], rtol=1e-5)


@pytest.mark.parametrize("num_iters", [6, None])
@pytest.mark.parametrize("hessian", [rotated, jnp.diag])
def test_no_depth_gives_values_that_are_none(hessian, num_iters):
    """Krylov spaces of three values end after three steps: nothing false may follow."""
    values = of_quadratic(hessian(jnp.asarray(MULTIPLE)), num_iters=num_iters)
    np.testing.assert_allclose(values, [5, 5, 5, 1], rtol=1e-5)


def test_flat_in_every_direction():
    np.testing.assert_array_equal(of_quadratic(jnp.zeros((SIZE, SIZE))), np.zeros(4))
    flat = hessian_eigenvalues(lambda w: jnp.sum(3 * w), jnp.ones(3), k=3)
    np.testing.assert_array_equal(flat, np.zeros(3))


def test_beyond_the_rank_come_zeros(x64):
    values = of_quadratic(rotated(np.r_[3.0, 2.0, np.zeros(SIZE - 2)]))
    np.testing.assert_allclose(values, [3, 2, 0, 0], atol=1e-14)


def test_curvature_whose_square_vanishes_in_float32():
    spectrum = 1e-25 * SPECTRA["largest magnitude negative"]
    values = of_quadratic(jnp.diag(jnp.asarray(spectrum)))
    np.testing.assert_allclose(values[:2], [2e-25, 1e-25], rtol=1e-5)


@pytest.mark.parametrize("size", [4, SIZE])
def test_the_whole_spectrum(size, x64):
    spectrum = np.linspace(-2, 3, size)
    values = of_quadratic(rotated(spectrum), k=size)
    np.testing.assert_allclose(values, largest(spectrum, size), rtol=0, atol=1e-13)


def test_a_network_against_the_dense_hessian(x64):
    loss, params = network((8, 16, 10), num_examples=40)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    assert flat.size == 314
    hessian = jax.jit(jax.hessian(lambda w: loss(unravel(w))))(flat)
    expected = np.linalg.eigvalsh(hessian)[::-1][:5]
    values = jax.jit(lambda p: hessian_eigenvalues(loss, p, k=5))(params)
    np.testing.assert_allclose(values, expected, rtol=1e-8)


@pytest.mark.slow
def test_a_network_of_43_018_parameters_in_float32():
    """Against ARPACK, implicitly restarted Lanczos, in float64."""
    sizes, num_examples = (196, 128, 128, 10), 64
    loss, params = network(sizes, num_examples)
    value = jax.jit(lambda p: hessian_eigenvalues(loss, p))(params)
    assert value.dtype == jnp.float32
    with jax.enable_x64(True):
        loss, params = network(sizes, num_examples)
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        gradient = jax.grad(lambda w: loss(unravel(w)))
        product = jax.jit(lambda v: jax.jvp(gradient, (flat,), (v,))[1])
        operator = LinearOperator((flat.size,) * 2, product, dtype=float)
        expected = eigsh(
            operator, 1, which="LA", v0=np.ones(flat.size), return_eigenvectors=False
        )
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_cost_in_products():
    """One run an eigenvalue where that is enough, sixteen where it never is."""
    calls = []

    @jax.jit
    def values_of(spectrum):
        def loss(w):
            jax.debug.callback(lambda: calls.append(1))
            return 0.5 * jnp.sum(spectrum * w**2)

        return hessian_eigenvalues(loss, jnp.ones(len(spectrum)), k=3, num_iters=8)

    def count(spectrum):
        calls.clear()
        jax.block_until_ready(values_of(jnp.asarray(spectrum)))
        jax.effects_barrier()
        return len(calls)

    assert count(MULTIPLE) == 3 * 8
    assert count(SPECTRA["evenly spaced"]) == 16 * 3 * 8
    assert count(np.ones(20)) == 20


def test_the_same_key_gives_the_same_value_and_any_key_the_same_answer(x64):
    hessian = rotated(SPECTRA["evenly spaced"])
    first, again, other = (of_quadratic(hessian, jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)  # The start is random; what it finds is not.
    np.testing.assert_allclose(first, other, rtol=1e-9)
    np.testing.assert_allclose(first, of_quadratic(hessian), rtol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, SIZE])
def test_any_tree_of_floats(size):
    params = {
        "none": None,
        "number": 2.0,
        "half": jnp.ones((2, 2), jnp.bfloat16),
        "empty": (),
        "single": [jnp.ones(size)],
        "nothing": jnp.ones((0, 3)),
    }

    def loss(p):
        assert p["none"] is None
        assert p["half"].dtype == jnp.bfloat16
        halves = jnp.sum(jnp.asarray(p["half"] ** 2, jnp.float32))
        return 4 * p["number"] ** 2 + halves - jnp.sum(p["single"][0] ** 2)

    values = hessian_eigenvalues(loss, params, k=6)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, [8, 2, 2, 2, 2, -2], rtol=1e-2)


def test_half_precision_alone_is_computed_in_float32():
    params = jnp.ones(3, jnp.bfloat16)
    values = hessian_eigenvalues(lambda w: jnp.sum(w**2), params, k=2)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, [2, 2], rtol=1e-2)


@pytest.mark.parametrize("size", [3, SIZE])
def test_a_hessian_that_is_not_finite_is_nan(size):
    hessian = jnp.full((size, size), jnp.nan, float)
    assert np.isnan(of_quadratic(hessian, k=min(size, 4))).all()


# Lines


def test_loss_along_a_line_on_a_quadratic(x64):
    """L(w + td) = L(w) + t <Hw, d> + t^2 <d, Hd> / 2."""
    hessian, w, d = np.diag([1.0, 4.0]), np.array([3.0, 1.0]), np.array([1.0, -2.0])
    t = np.linspace(-2, 3, 11)
    losses = loss_along(lambda w: 0.5 * w @ hessian @ w, w, d, t)
    expected = 6.5 + t * (3 - 8) + t**2 * (1 + 16) / 2
    np.testing.assert_allclose(losses, expected, rtol=1e-14)


def test_loss_along_is_the_loss_at_each_point():
    loss, params = network((8, 16, 10), num_examples=40)
    direction = jax.jit(filter_normalized_direction)(jax.random.key(0), params)
    distances = [-1, 0, 0.5]
    losses = jax.jit(lambda p: loss_along(loss, p, direction, distances))(params)
    at = jax.jit(lambda t: loss(optax.tree.add_scale(params, t, direction)))
    expected = [at(jnp.float32(t)) for t in distances]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert losses.dtype == jnp.float32
    assert loss_along(loss, params, direction, []).shape == (0,)


def test_loss_along_moves_in_float32_and_keeps_dtypes():
    """In bfloat16 the step 0.75 * 0.0104 would round up, and with it the sum."""
    params = {"none": None, "number": 1.0, "half": jnp.ones((), jnp.bfloat16)}
    moves = {"none": None, "number": 0.5, "half": jnp.asarray(0.0104, jnp.bfloat16)}
    seen = {}

    def loss(p):
        seen.update(jax.tree.map(jnp.result_type, p))
        return jnp.asarray(p["half"], jnp.float32) + p["number"]

    losses = loss_along(loss, params, moves, np.array([0.0, 0.75]))
    exact = jnp.float32(1) + jnp.float32(0.75) * jnp.float32(moves["half"])
    rounded = jnp.asarray(exact, jnp.bfloat16)
    np.testing.assert_array_equal(losses, [2, float(rounded) + 1.375])
    assert seen == {"none": None, "number": jnp.float32, "half": jnp.bfloat16}


def test_loss_along_evaluates_one_point_at_a_time():
    traced = jax.make_jaxpr(lambda w: loss_along(jnp.sum, w, w, jnp.arange(5.0)))
    loops = [e for e in traced(jnp.ones(3)).eqns if e.primitive.name == "scan"]
    assert [e.params["length"] for e in loops] == [5]


def test_loss_along_to_another_solution(x64):
    """From one end to the other, and on the way."""
    loss, ours = network((3, 4, 2), num_examples=6)
    theirs = jax.tree.map(lambda x: x[::-1] + 1, ours)
    way = optax.tree.sub(theirs, ours)
    losses = jax.jit(lambda p, d: loss_along(loss, p, d, [0, 0.5, 1]))(ours, way)
    middle = jax.tree.map(lambda a, b: (a + b) / 2, ours, theirs)
    expected = [jax.jit(loss)(p) for p in (ours, middle, theirs)]
    np.testing.assert_allclose(losses, expected, rtol=1e-12)


def test_loss_along_an_eigenvector_is_its_eigenvalue(x64):
    """The second difference of the loss along v is v H v."""
    loss, params = network((3, 4, 2), num_examples=6)
    h = 1e-3

    @jax.jit
    def along_the_second(params):
        values, vectors = hessian_eigenvalues(loss, params, k=2, return_vectors=True)
        second = jax.tree.map(lambda v: v[1], vectors)
        return values[1], loss_along(loss, params, second, [-h, 0, h])

    value, (left, middle, right) = along_the_second(params)
    np.testing.assert_allclose((left - 2 * middle + right) / h**2, value, rtol=1e-4)


def test_loss_plane_on_a_quadratic(x64):
    """Rows are steps along the first direction, columns along the second."""
    hessian = np.array([[1.0, 0.5], [0.5, 4.0]])
    w, first, second = np.array([[3.0, 1.0], [1.0, -2.0], [0.5, 0.25]])
    xs, ys = np.linspace(-2, 3, 4), np.linspace(0, 1, 3)
    losses = loss_plane(lambda w: 0.5 * w @ hessian @ w, w, first, second, xs, ys)
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            at = w + x * first + y * second
            np.testing.assert_allclose(losses[i, j], 0.5 * at @ hessian @ at)


def test_loss_plane_holds_its_lines(x64):
    loss, params = network((3, 4, 2), num_examples=6)
    t = np.array([-1.0, 0.0, 0.5])

    @jax.jit
    def plane_and_lines(params):
        first, second = params, jax.tree.map(jnp.cos, params)
        lines = [loss_along(loss, params, d, t) for d in (first, second)]
        return loss_plane(loss, params, first, second, t, t), lines

    plane, (first, second) = plane_and_lines(params)
    np.testing.assert_allclose(plane[:, 1], first, rtol=1e-12)
    np.testing.assert_allclose(plane[1], second, rtol=1e-12)


# Directions


@pytest.fixture
def kernels():
    rng = np.random.default_rng(0)
    return {
        "conv": {"kernel": rng.normal(size=(3, 3, 4, 8)), "bias": np.ones(8)},
        "dense": {"kernel": 10 * rng.normal(size=(5, 7)), "bias": np.ones(7)},
        "twin": {"kernel": rng.normal(size=(5, 7)), "bias": None},
        "scale": np.ones(7),
        "temperature": 2.0,
    }


def filters(kernel):
    """Output features as rows."""
    return np.reshape(np.asarray(kernel, float), (-1, np.shape(kernel)[-1])).T


@pytest.mark.slow
def test_each_filter_is_as_long_as_the_one_it_moves(kernels):
    direction = jax.jit(filter_normalized_direction)(jax.random.key(0), kernels)
    assert jax.tree.structure(direction) == jax.tree.structure(kernels)
    for name in ("conv", "dense", "twin"):
        d, w = direction[name]["kernel"], kernels[name]["kernel"]
        lengths = np.linalg.norm(filters(d), axis=1)
        expected = np.linalg.norm(filters(w), axis=1)
        np.testing.assert_allclose(lengths, expected, rtol=1e-6)
    unmoved = direction["conv"]["bias"], direction["scale"], direction["temperature"]
    for leaf in unmoved:
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


@pytest.mark.slow
def test_filters_point_where_the_noise_does(kernels):
    """Leaf i draws from fold_in(key, i), and only its filters' lengths are changed."""
    key, normal = jax.random.key(0), jax.jit(jax.random.normal, static_argnums=1)
    direction = jax.jit(filter_normalized_direction)(key, kernels)
    for index, (d, w) in enumerate(
        zip(jax.tree.leaves(direction), jax.tree.leaves(kernels), strict=True)
    ):
        if np.ndim(w) < 2:
            continue
        noise = filters(normal(jax.random.fold_in(key, index), w.shape))
        unit = noise / np.linalg.norm(noise, axis=1, keepdims=True)
        lengths = np.linalg.norm(filters(w), axis=1, keepdims=True)
        np.testing.assert_allclose(filters(d), unit * lengths, rtol=1e-5)
    twins = direction["dense"]["kernel"] / 10, direction["twin"]["kernel"]
    assert not np.allclose(*twins, atol=0.1)


def test_filters_of_extreme_size():
    sizes = np.array([0.0, 1e-25, 1.0, 1e25], np.float32)
    params = {"kernel": sizes * np.ones((3, 4), np.float32), "none": np.ones((0, 4))}
    direction = jax.jit(filter_normalized_direction)(jax.random.key(0), params)
    lengths = np.linalg.norm(np.asarray(direction["kernel"], float), axis=0)
    np.testing.assert_allclose(lengths, np.sqrt(3) * sizes, rtol=1e-6)
    assert direction["none"].shape == (0, 4)


def test_directions_keep_dtypes():
    params = {"a": jnp.ones((64, 2), jnp.bfloat16), "b": jnp.ones(2, jnp.float16)}
    direction = filter_normalized_direction(jax.random.key(0), params)
    assert direction["a"].dtype == jnp.bfloat16
    assert direction["b"].dtype == jnp.float16
    lengths = np.linalg.norm(filters(direction["a"]), axis=1)
    np.testing.assert_allclose(lengths, 8, rtol=1e-2)


# Refusals


def total(p):
    return sum(jnp.sum(x) for x in jax.tree.leaves(p))


def eigenvalues_of(params):
    return hessian_eigenvalues(total, params)


def line_of(params):
    return loss_along(total, params, params, [0.0])


def direction_of(params):
    return filter_normalized_direction(jax.random.key(0), params)


@pytest.mark.parametrize("of", [eigenvalues_of, line_of, direction_of])
def test_refuses_what_cannot_move(of):
    with pytest.raises(TypeError, match=r"\['steps'\] has dtype int32"):
        of({"w": jnp.ones(2), "steps": jnp.arange(3)})
    with pytest.raises(TypeError, match=r"\(the root\) has dtype bool"):
        of(jnp.array([True]))
    with pytest.raises(TypeError, match="has dtype complex64"):
        of(jnp.ones(2, jnp.complex64))
    for nothing in (None, {}, {"w": None}, jnp.ones((0, 3))):
        with pytest.raises(ValueError, match="hold no floating-point numbers"):
            of(nothing)


@pytest.mark.parametrize(
    "of", [hessian_eigenvalues, lambda f, p: loss_along(f, p, p, [0.0])]
)
def test_refuses_losses_that_are_no_scalars(of):
    for size in (3, SIZE):
        with pytest.raises(TypeError, match=r"has shape .*jnp\.mean"):
            of(lambda w: w**2, jnp.ones(size))
        with pytest.raises(TypeError, match=r"tuple.*lambda p: loss_fn\(p\)\[0\]"):
            of(lambda w: (jnp.sum(w), w), jnp.ones(size))


@pytest.mark.parametrize("k", [-1, 0, 4])
def test_refuses_more_eigenvalues_than_there_are(k):
    with pytest.raises(ValueError, match=rf"k={k} .*Choose k between 1 and 3"):
        hessian_eigenvalues(total, jnp.ones(3), k=k)


def test_refuses_a_single_step_of_lanczos():
    with pytest.raises(ValueError, match=r"num_iters=1, .*Choose 2 or more"):
        hessian_eigenvalues(total, jnp.ones(SIZE), num_iters=1)


@pytest.mark.parametrize(
    ("direction", "match"),
    [
        ({"w": np.ones(2)}, r"\['b'\] \(shape missing against \(1,\)\)"),
        ({"w": np.ones(2), "b": None}, r"\['b'\] \(shape missing against \(1,\)\)"),
        ({"w": np.ones(1), "b": np.ones(1)}, r"\['w'\] \(shape \(1,\) against \(2,"),
        ({"w": np.ones(2), "b": np.ones(1), "c": 1.0}, r"\['c'\] \(shape \(\) against"),
        (np.ones(3), r"\(shape"),
    ],
)
def test_refuses_a_direction_for_other_parameters(direction, match):
    params = {"w": jnp.ones(2), "b": jnp.ones(1)}
    with pytest.raises(ValueError, match=match):
        loss_along(total, params, direction, [0.0])


def test_refuses_a_direction_in_other_containers():
    with pytest.raises(ValueError, match="the types of their containers"):
        loss_along(total, [jnp.ones(2)], (jnp.ones(2),), [0.0])


@pytest.mark.parametrize("distances", [0.5, np.ones((2, 2))])
def test_refuses_distances_that_are_no_line(distances):
    one = jnp.ones(2)
    with pytest.raises(ValueError, match=r"distances of shape .*one line"):
        loss_along(total, one, one, distances)
    with pytest.raises(ValueError, match=r"loss_plane was given ys of shape"):
        loss_plane(total, one, one, one, [0.0], distances)


def test_refuses_a_plane_of_other_parameters():
    one, two = jnp.ones(1), jnp.ones(2)
    for first, second in ((one, two), (two, one)):
        with pytest.raises(ValueError, match=r"loss_plane .*cannot be added"):
            loss_plane(total, two, first, second, [0.0], [0.0])


def public_names():
    return sorted(n for n in vars(measure) if n[0].isalpha())


@pytest.mark.parametrize("name", public_names())
def test_public_name_is_explained(name):
    thing = getattr(measure, name)
    text = inspect.getdoc(thing) or ""
    if inspect.isclass(thing):
        assert all(field in text for field in thing._fields)
        return
    sections = ["Args:", "Returns:", "Raises:", "Example:", "Reference:"]
    places = [text.find(f"\n{section}") for section in sections]
    assert -1 not in places
    assert places == sorted(places)
    assert f"{name}(" in text[places[3] : places[4]]
    described = text[places[0] : places[1]]
    assert [p for p in inspect.signature(thing).parameters if p not in described] == []


def test_public_names():
    assert public_names() == [
        "Estimate",
        "RadiusSweep",
        "SpectralDensity",
        "average_sharpness",
        "climb_sharpness",
        "filter_normalized_direction",
        "hessian_eigenvalues",
        "hessian_trace",
        "loss_along",
        "loss_plane",
        "normalize_logits",
        "pac_bayes_term",
        "radius_sweep",
        "spectral_density",
        "worst_case_sharpness",
    ]
