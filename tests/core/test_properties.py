"""Random trees, dtypes, shapes, holes and options, against NumPy in a few lines."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import optax_sam

few = settings(max_examples=25, deadline=None, derandomize=True)

#: bfloat16 has 8 bits: what is compared is rounded to them once, or not at all.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2**-7}


def leaves(dtype):
    entries = st.floats(-8, 8, width=16)
    shapes = st.sampled_from([(), (0,), (1,), (3,), (2, 3)])  # few: each is compiled
    arrays = shapes.flatmap(
        lambda shape: hnp.arrays(np.float32, shape, elements=entries)
    )
    return arrays.map(lambda x: jnp.asarray(x, dtype))


@st.composite
def trees(draw):
    """Parameters, and a gradient of the same form with some leaves `None`."""
    names = draw(st.lists(st.sampled_from("abcdefbias"), unique=True, max_size=4))
    params, grads = {}, {}
    for name in names:
        dtype = draw(st.sampled_from(["float32", "bfloat16"]))
        leaf = draw(leaves(dtype))
        key = "bias" if name == "b" else name
        params[key] = leaf
        if draw(st.integers(0, 4)) == 0:
            grads[key] = None
        else:
            scale = draw(st.sampled_from([1e-6, 1.0, 1e6]))
            noise = draw(st.floats(0.5, 2))
            grads[key] = (leaf * noise - 1).astype(dtype) * jnp.asarray(scale, dtype)
    return params, grads


def wide(x):
    return np.asarray(x, np.float64)


def dual(vector, ord):
    """argmax of <g, e> over norm(e, ord) <= 1, by the formula of the paper."""
    if not vector.any():
        return vector
    vector = vector / np.abs(vector).max()
    if np.isinf(ord):
        return np.sign(vector)
    if ord == 1:  # the largest entries share it
        top = np.abs(vector) > 1 - 1e-7
        return np.sign(vector) * top / top.sum()
    e = np.sign(vector) * np.abs(vector) ** (1 / (ord - 1))
    return e / np.linalg.norm(e, ord)


def climb_by_numpy(params, grads, rho, ord, eta):
    """SAM's climb; ASAM's where eta is a number."""
    names = [name for name in grads if grads[name] is not None]
    if not names:
        return {}

    def size(name):
        plain = eta is None or name == "bias"
        return (
            np.ones(params[name].shape) if plain else np.abs(wide(params[name])) + eta
        )

    scaled = [np.ravel(size(n) * wide(grads[n])) for n in names]
    unit = dual(np.concatenate(scaled), ord)
    ends = np.cumsum([x.size for x in scaled])[:-1]
    pieces = zip(names, np.split(unit, ends), strict=True)
    return {n: rho * size(n) * x.reshape(params[n].shape) for n, x in pieces}


options = {
    "rho": st.sampled_from([0.0, 0.01, 0.5]),
    "ord": st.sampled_from([None, 1, 1.5, 2, 3, np.inf]),
    "eta": st.sampled_from([None, 0.01, 0.5]),
}


def ascent_of(rho, ord, eta):
    if eta is None:
        return optax_sam.steepest_ascent(rho, ord=ord)
    return optax_sam.adaptive_ascent(rho, ord=ord, eta=eta)


@few
@given(tree=trees(), **options)
def test_climbs(tree, rho, ord, eta):
    params, grads = tree
    ascent = ascent_of(rho, ord, eta)
    matching = {n: p if grads[n] is not None else None for n, p in params.items()}
    climb, _ = ascent.update(grads, ascent.init(params), matching)
    expected = climb_by_numpy(params, grads, rho, 2 if ord is None else ord, eta)
    assert climb.keys() == grads.keys()
    for name, want in expected.items():
        assert climb[name].dtype == grads[name].dtype
        tolerance = TOLERANCE[str(climb[name].dtype)]
        np.testing.assert_allclose(
            wide(climb[name]), want, rtol=tolerance, atol=tolerance * rho * 1e-2
        )
    assert all(climb[name] is None for name in grads if name not in expected)


@few
@given(tree=trees(), **options)
def test_the_loss_is_asked_at_the_climbed_point(tree, rho, ord, eta):
    """Which parameters the second pass sees, and which gradient comes out of it."""
    params, grads = tree
    tx = optax_sam.sharpness_aware(ascent_of(rho, ord, eta), climb_dtype=jnp.float32)
    moved = climb_by_numpy(params, grads, rho, 2 if ord is None else ord, eta)

    def loss(point):  # its gradient is the point itself
        squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in point.values()]
        return sum(squares, jnp.zeros([])) / 2

    out, state = tx.update(grads, tx.init(params), params, value_fn=loss)
    for name, climb in moved.items():
        point = wide(params[name]) + climb
        tolerance = TOLERANCE[str(out[name].dtype)]
        np.testing.assert_allclose(wide(out[name]), point, rtol=tolerance, atol=1e-5)
        assert out[name].dtype == grads[name].dtype
    assert all(out[name] is None for name in grads if name not in moved)
    assert not jax.tree.leaves(state)


@few
@given(
    rows=st.integers(1, 4),
    size=st.integers(1, 3),
    width=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_micro_batches(rows, size, width, seed):
    """The mean over contiguous sub-batches, each with its own climb."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows * size, width)).astype(np.float32)
    w = random.normal(size=width).astype(np.float32)

    def gradient(w, x):
        return wide(x).T @ (wide(x) @ w) / len(x)

    def sam(x):
        g = gradient(wide(w), x)
        return gradient(wide(w) + 0.1 * g / np.linalg.norm(g), x)

    expected = np.mean([sam(part) for part in np.split(x, rows)], 0)
    tx = optax_sam.m_sam(0.1, microbatch_size=size)
    got, _ = tx.update(
        None,
        tx.init(jnp.asarray(w)),
        jnp.asarray(w),
        value_fn=lambda w, x: jnp.mean((x @ w) ** 2) / 2,
        batch=jnp.asarray(x),
    )
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-5)
