"""All measures with parameters of eight bits, and of several dtypes without promotion.

The loss is |w|^2, in float32, at weights of 2 and 1: so the Hessian is 2 everywhere.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam import measure

KEY = jax.random.key(0)
RHO = 0.5
START = np.array([2, 2, 2, 1, 1], np.float32)
NARROW = [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.bfloat16, jnp.float16]


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def tree(dtype):
    return {"a": jnp.full(3, 2, dtype), "b": jnp.ones(2), "none": None}


def loss_fn(params):
    return jnp.sum(params["a"].astype(jnp.float32) ** 2) + jnp.sum(params["b"] ** 2)


def loss_at(w, dtype):
    """The loss where the first three weights are rounded."""
    w = np.asarray(w, np.float32)
    return np.sum(w[:3].astype(dtype).astype(np.float32) ** 2) + np.sum(w[3:] ** 2)


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def climbed(dtype):
    return loss_at(START + RHO * START / np.sqrt(14), dtype) - 14


each_dtype = pytest.mark.parametrize("dtype", NARROW, ids=lambda d: d.__name__)


@each_dtype
def test_one_climb(dtype):
    ascent = optax_sam.steepest_ascent(RHO)
    rise = measure.climb_sharpness(loss_fn, tree(dtype), ascent)
    np.testing.assert_allclose(rise, climbed(dtype), rtol=1e-5)
    assert rise.dtype == jnp.float32


@each_dtype
def test_the_worst_case_is_never_below_one_climb(dtype):
    rise = measure.worst_case_sharpness(
        loss_fn, tree(dtype), rho=RHO, key=KEY, num_steps=3
    )
    assert rise >= climbed(dtype) - 1e-5
    furthest = (np.sqrt(14) + RHO) * (1 + eps(dtype))  # as rounding may lead outwards
    assert rise <= furthest**2 - 14


@pytest.mark.parametrize("rho", [RHO, jnp.float32(RHO)])
@each_dtype
def test_the_average_case(dtype, rho):
    rise = measure.average_sharpness(
        loss_fn, tree(dtype), rho=rho, key=KEY, num_samples=4
    )
    draws = [jax.random.normal(key, (5,)) for key in jax.random.split(KEY, 4)]
    rises = [loss_at(START + RHO * np.asarray(z), dtype) - 14 for z in draws]
    np.testing.assert_allclose(rise.mean, np.mean(rises), rtol=1e-5)


@each_dtype
def test_curvature(dtype):
    params = tree(dtype)
    values, vectors = measure.hessian_eigenvalues(
        loss_fn, params, k=5, return_vectors=True
    )
    np.testing.assert_allclose(values, np.full(5, 2), rtol=1e-5)
    assert vectors["a"].dtype == jnp.float32
    spectrum = measure.spectral_density(loss_fn, params, key=KEY, num_samples=2)
    mean = np.sum(spectrum.nodes * spectrum.weights) / 2
    np.testing.assert_allclose(mean, 2, rtol=eps(dtype))


def test_lanczos():
    params = {"a": jnp.ones(298, jnp.float8_e4m3fn), "b": jnp.ones(2)}

    def loss(params):
        return loss_fn(params) + jnp.sum(params["b"] ** 2)

    values = measure.hessian_eigenvalues(loss, params, k=3)
    np.testing.assert_allclose(values, [4, 4, 2], rtol=eps(jnp.float8_e4m3fn))


@each_dtype
def test_the_trace(dtype):
    pytest.importorskip("matfree")
    trace = measure.hessian_trace(loss_fn, tree(dtype), key=KEY, num_samples=2)
    np.testing.assert_allclose(trace.mean, 10, rtol=1e-5)


@each_dtype
def test_lines_and_planes(dtype):
    params = tree(dtype)
    east = jax.tree.map(jnp.ones_like, params)
    north = {"a": jnp.zeros(3), "b": jnp.ones(2), "none": None}
    line = measure.loss_along(loss_fn, params, east, [0.0, 1.0])
    np.testing.assert_allclose(line, [14, 35])
    plane = measure.loss_plane(loss_fn, params, east, north, [0, 1], [0, 1.1])
    b = np.array([[1, 2.1], [2, 3.1]])
    np.testing.assert_allclose(plane, [[12], [27]] + 2 * b**2, rtol=1e-6)


@each_dtype
def test_filters(dtype):
    params = {"kernel": jnp.full((64, 2), 2, dtype), "bias": jnp.ones(2)}
    direction = measure.filter_normalized_direction(KEY, params)
    assert direction["kernel"].dtype == dtype
    kernel = np.asarray(direction["kernel"], np.float32)
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 16, rtol=0.05)


@each_dtype
def test_a_loss_of_few_bits(dtype):
    """Its value is taken to float32 before a difference is formed."""

    def loss(params):
        return loss_fn(params).astype(dtype)

    ascent, params = optax_sam.steepest_ascent(RHO), tree(jnp.float32)
    before, after = (
        np.asarray(x, dtype).astype(float) for x in (14, 14 + climbed(float))
    )
    rise = measure.climb_sharpness(loss, params, ascent)
    np.testing.assert_allclose(rise, after - before)
    worst = measure.worst_case_sharpness(loss, params, rho=RHO, key=KEY, num_steps=1)
    assert worst >= rise
    average = measure.average_sharpness(loss, params, rho=RHO, key=KEY, num_samples=2)
    assert np.isfinite(average.mean)


def test_several_dtypes_in_batches():
    def loss(params, batch):
        return loss_fn(params) * jnp.mean(batch)

    rise = measure.climb_sharpness(
        loss,
        tree(jnp.float8_e4m3fn),
        optax_sam.steepest_ascent(RHO),
        batches=[jnp.ones(4)],
        microbatch_size=2,
    )
    np.testing.assert_allclose(rise, climbed(jnp.float8_e4m3fn), rtol=1e-5)
