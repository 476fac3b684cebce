"""Half precision, loss scaling, and norms of very small, long and many leaves.

The oracle of every climb is NumPy, which rounds as the hardware does (ml_dtypes).
"""

import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import quick_jit
from table import flat

import optax_sam
from benchmarks.accuracy import half_precision
from optax_sam import adaptive_ascent, asam, m_sam, sam, steepest_ascent

ROOT = Path(__file__).parents[2]
RHO = 0.05
HALF = pytest.mark.filterwarnings("ignore:.*half precision")
rng = np.random.default_rng(0)
WEIGHTS = 0.02 * rng.standard_normal(1000, np.float32)
GRADIENT = rng.standard_normal(1000, np.float32)


def rounded(x, dtype):
    return np.asarray(x).astype(jnp.dtype(dtype)).astype(np.float64)


# --- The climb that is really applied ------------------------------------------------


@HALF
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_climb_in_half_precision_is_numpys(dtype):
    params, grads = rounded(WEIGHTS, dtype), rounded(GRADIENT, dtype)
    applied = half_precision.applied_climb(
        jnp.asarray(params, dtype), jnp.asarray(grads, dtype), RHO
    )
    climb = rounded(np.float32(RHO * grads / np.linalg.norm(grads)), dtype)
    expected = rounded(np.float32(params + climb), dtype) - params
    # Where the exact result lies between two numbers, float32's last bit may decide.
    assert np.mean(applied != expected) < 0.005
    np.testing.assert_allclose(applied, expected, rtol=0.01, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rho", [1e-4, RHO])
def test_climb_dtype_holds_the_climbed_copy(dtype, rho):
    params, grads = (jnp.asarray(x, dtype) for x in (WEIGHTS, GRADIENT))
    applied = half_precision.applied_climb(params, grads, rho, climb_dtype="float32")
    grads = np.asarray(grads, np.float64)
    # To the last bit of float32 numbers of that size, so not to that of the climb.
    expected = rho * grads / np.linalg.norm(grads)
    np.testing.assert_allclose(applied, expected, atol=np.spacing(np.float32(0.05)))
    np.testing.assert_allclose(np.linalg.norm(applied), rho, rtol=1e-4)


@pytest.mark.parametrize(
    "make",
    [sam, asam, lambda rho, **options: m_sam(rho, microbatch_size=1, **options)],
    ids=["sam", "asam", "m_sam"],
)
def test_the_warning_names_the_cure(make):
    params = {"w": jnp.asarray(WEIGHTS, jnp.bfloat16)}

    def loss(params, batch):
        return jnp.sum(params["w"].astype(jnp.float32) ** 2) * jnp.mean(batch)

    def update(tx):
        batch = jnp.ones(2)
        grads = None if make not in (sam, asam) else jax.grad(loss)(params, batch)
        return tx.update(grads, tx.init(params), params, value_fn=loss, batch=batch)

    with pytest.warns(UserWarning, match=r"climb_dtype=jnp\.float32"):
        jax.eval_shape(lambda: update(make(RHO)))
    # With the cure there is no warning (an error in these tests), and dtypes are kept.
    cured, _ = jax.eval_shape(lambda: update(make(RHO, climb_dtype=jnp.float32)))
    assert cured["w"].dtype == jnp.bfloat16


# Parameters and rho: length and cosine with a float32 master and a bfloat16 loss, and
# the rise that is left with weights stored in bfloat16 (a simulation that shares no
# code with this one).
PUBLISHED = {
    (10**5, 0.05): (1.04, 0.96, 1.00),
    (10**6, 0.05): (1.32, 0.76, 0.88),
    (10**7, 0.05): (2.15, 0.46, 0.43),
    (5 * 10**7, 0.05): (3.20, 0.31, 0.20),
    (5 * 10**7, 0.5): (1.19, 0.84, 0.95),
}
MASTER, STORED, CURED = (
    "float32 parameters, bfloat16 loss",
    "bfloat16 parameters",
    "bfloat16 parameters, climb_dtype=float32",
)


def check_table(size, rho, row_of):
    master, stored = row_of(MASTER, size, rho), row_of(STORED, size, rho)
    length, cosine, rise = PUBLISHED[size, rho]
    assert master["length"] == pytest.approx(length, abs=0.011)
    assert master["cosine"] == pytest.approx(cosine, abs=0.011)
    assert master["rise"] == pytest.approx(1, abs=0.011)
    assert stored["rise"] == pytest.approx(rise, abs=0.011)
    cured = row_of(CURED, size, rho)
    for figure in ("length", "cosine", "rise"):
        assert cured[figure] == pytest.approx(1, abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "rho"), list(PUBLISHED)[:2])
def test_published_table(size, rho):
    check_table(size, rho, half_precision.measure)


@pytest.mark.parametrize(("size", "rho"), PUBLISHED)
def test_reported_table(size, rho):
    path = ROOT / "benchmarks" / "results" / "half_precision.json"
    rows = json.loads(path.read_text())["rows"]
    found = {(row["kind"], row["size"], row["rho"]): row for row in rows}
    check_table(size, rho, lambda *which: found[which])


# --- Half precision inside the loss -------------------------------------------------

X = rng.standard_normal((16, 8), np.float32)
Y = rng.standard_normal(16, np.float32)
NETWORK = {
    "hidden": 0.5 * rng.standard_normal((8, 4), np.float32),
    "out": 0.5 * rng.standard_normal(4, np.float32),
}


def network_loss(params, dtype=jnp.float32, scale=1.0):
    """The loss, computed in `dtype` and scaled before it is differentiated."""
    inside = jax.tree.map(lambda w: w.astype(dtype), params)
    hidden = jnp.tanh(X.astype(dtype) @ inside["hidden"])
    error = hidden @ inside["out"] - Y.astype(dtype)
    return jnp.mean(error.astype(jnp.float32) ** 2) * scale


@pytest.mark.slow
@pytest.mark.parametrize("door", [1, 2])
def test_bfloat16_compute_with_float32_parameters(door):
    # The climb is in float32, from the gradient that bfloat16 gave.
    def loss(params):
        return network_loss(params, jnp.bfloat16)

    params = jax.tree.map(jnp.asarray, NETWORK)
    clean = jax.grad(loss)(params)
    if door == 1:
        tx = sam(RHO)
        grads, _ = tx.update(clean, tx.init(params), params, value_fn=loss)
    else:
        _, grads = optax_sam.value_and_grad(loss, steepest_ascent(RHO))(params)
    size = np.linalg.norm(flat(clean))
    moved = jax.tree.map(
        lambda w, g: jnp.float32(w + RHO * np.float64(g) / size), NETWORK, clean
    )
    # One bit of the climb can move a bit of bfloat16 inside: 1 part in 256.
    expected = jax.grad(loss)(moved)
    np.testing.assert_allclose(flat(grads), flat(expected), rtol=0.02, atol=5e-3)
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def scaled_gradient(scale, factor=1.0):
    """SAM's gradient by way of a scaled loss in float16, unscaled behind."""
    tx = optax.chain(sam(RHO), optax.scale(1 / scale))

    def loss(params):
        return network_loss(params, jnp.float16, scale * factor)

    params = jax.tree.map(jnp.asarray, NETWORK)
    updates, _ = tx.update(
        jax.grad(loss)(params), tx.init(params), params, value_fn=loss
    )
    return flat(updates) / factor


def test_climb_does_not_see_the_loss_scale():
    # A power of two changes no digit of a gradient, so none of the climb.
    expected = scaled_gradient(1.0)
    for scale in (2.0, 256.0, 2.0**10):
        np.testing.assert_allclose(scaled_gradient(scale), expected, rtol=1e-3)


def test_loss_scale_saves_a_climb_that_underflows():
    # Losses of 1e-9 have gradients that are zero in float16, and with them the climb.
    factor = 1e-9
    assert not scaled_gradient(1.0, factor).any()
    saved = scaled_gradient(2.0**27, factor)
    np.testing.assert_allclose(saved, scaled_gradient(1.0), rtol=0.02, atol=2e-3)


def test_dynamic_loss_scaling():
    """Too large a scale: the step is skipped, the scale halved, training goes on."""
    first, steps = 2.0**24, 24
    optimizer = optax.apply_if_finite(optax.adam(0.05), max_consecutive_errors=steps)

    @quick_jit
    def step(params, state, scale):
        def loss(params):
            return network_loss(params, jnp.float16, scale)

        grads = jax.grad(loss)(params)
        tx = optax.chain(sam(RHO), optax.scale(1 / scale), optimizer)
        updates, state = tx.update(grads, state, params, value_fn=loss)
        finite = state[-1].last_finite
        return optax.apply_updates(params, updates), state, finite

    params = jax.tree.map(jnp.asarray, NETWORK)
    start = optax.chain(sam(RHO), optax.scale(1.0), optimizer).init(params)
    state, scale, skipped = start, first, 0
    for _ in range(steps):
        params, state, finite = step(params, state, scale)
        skipped += not finite
        scale = scale if finite else scale / 2
    assert 0 < skipped < steps / 2
    assert scale == first / 2**skipped
    # The steps that were not skipped are those of a run that had this scale at once.
    expected, state = jax.tree.map(jnp.asarray, NETWORK), start
    for _ in range(steps - skipped):
        expected, state, _ = step(expected, state, scale)
    np.testing.assert_array_equal(flat(params), flat(expected))
    assert network_loss(params) < 0.5 * network_loss(NETWORK)


# --- Norms ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("make", [steepest_ascent, adaptive_ascent])
def test_thousand_leaves_are_one_vector(make):
    ascent = make(RHO)
    many, _ = ascent.update(
        np.split(GRADIENT, 1000), optax.EmptyState(), np.split(WEIGHTS, 1000)
    )
    one, _ = ascent.update(GRADIENT, optax.EmptyState(), WEIGHTS)
    # The sum is taken in another order.
    np.testing.assert_allclose(np.concatenate(many), one, rtol=1e-5)


@pytest.mark.slow
def test_many_small_leaves_compile():
    # XLA once computed the largest entry of all leaves inside of each of them:
    # 50 leaves took 6 s, 100 took a minute.
    def seconds(count):
        leaves, ascent = [np.ones(1, np.float32)] * count, steepest_ascent(RHO)
        lowered = jax.jit(lambda g: ascent.update(g, optax.EmptyState())[0]).lower(
            leaves
        )
        start = time.process_time()
        lowered.compile()
        return time.process_time() - start

    assert seconds(100) < 15


TINY = float(np.finfo(np.float32).tiny)


@pytest.mark.parametrize("make", [steepest_ascent, adaptive_ascent])
@pytest.mark.parametrize("scale", [TINY, 1e-30, 1e-20, 1.0, 1e18, 1e30, 3e37, 1.1e38])
def test_no_overflow_or_underflow(make, scale):
    # To both ends of float32's normal numbers; weights of 0.99 make ASAM's T be 1.
    grads = np.float32(scale) * np.float32([3, -2, 1, 0])
    params = np.float32([0.99] * 4)
    climb, _ = make(RHO).update(jnp.asarray(grads), optax.EmptyState(), params)
    grads = grads.astype(np.float64)
    expected = RHO * grads / np.linalg.norm(grads)
    np.testing.assert_allclose(climb, expected, rtol=1e-6)


def test_subnormal_gradients_are_zero():
    # Half of the hardware reads them so; the other half would divide by them.
    grads = jnp.float32([TINY / 8, -TINY / 4])
    climb, _ = steepest_ascent(RHO).update(grads, optax.EmptyState())
    np.testing.assert_array_equal(climb, 0)


LONG = 10**8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "equal", "lognormal"])
def test_norm_of_a_hundred_million(kind):
    normal = np.random.default_rng(1).standard_normal(LONG, np.float32)
    grads = {
        "normal": lambda: normal,
        "equal": lambda: np.full(LONG, 0.1, np.float32),
        "lognormal": lambda: np.exp(3 * normal),
    }[kind]()
    ascent = steepest_ascent(1.0)
    climb = np.asarray(
        jax.jit(lambda g: ascent.update(g, optax.EmptyState())[0])(grads)
    )
    squares = dot = own = 0.0
    for e, g in zip(np.split(climb, 100), np.split(grads, 100), strict=True):
        e, g = e.astype(np.float64), g.astype(np.float64)
        squares, dot, own = squares + e @ e, dot + e @ g, own + g @ g
    assert abs(np.sqrt(squares) - 1) < 1e-6
    assert abs(dot / np.sqrt(own) - 1) < 1e-6  # the norm that it was divided by
