"""Sharpness in a ball, against closed forms, exact maximizers and plain loops."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import EXAMPLES, START, least_squares, quadratic
from scipy.optimize import brentq

import optax_sam
from optax_sam.measure import (
    average_sharpness,
    climb_sharpness,
    normalize_logits,
    pac_bayes_term,
    worst_case_sharpness,
)

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
# Little to run, much to compile: for these programs LLVM's levels are not worth it.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
worst_case = partial(worst_case_sharpness, key=KEY)
average_case = partial(average_sharpness, key=KEY)


def around_start(w):
    """A quadratic whose minimum is w* = (3, 1), with the Hessian diag(1, 4)."""
    return quadratic(jnp.asarray(w) - START)


# One climb


def test_climb_on_the_base_quadratic(x64):
    """L(3.3, 1.4) - L(3, 1) = 9.365 - 6.5, and with p=inf L(3.5, 1.5) - 6.5."""
    sam = optax_sam.steepest_ascent(0.5)
    np.testing.assert_allclose(climb_sharpness(quadratic, START, sam), 2.865)
    signs = optax_sam.steepest_ascent(0.5, ord=np.inf)
    np.testing.assert_allclose(climb_sharpness(quadratic, START, signs), 4.125)


def test_climb_of_each_example(x64):
    """Along its own axis each: ((3.5^2 - 3^2) / 2 + (2 * 1.5)^2 / 2 - 2) / 2."""
    ascent = optax_sam.steepest_ascent(0.5)
    sharpness = climb_sharpness(
        least_squares, START, ascent, batches=[EXAMPLES], microbatch_size=1
    )
    np.testing.assert_allclose(sharpness, (1.625 + 2.5) / 2, rtol=1e-14)


def test_climb_of_an_ascent_with_state():
    tree = {"w": jnp.ones(3), "none": None}
    ascent = optax_sam.random_ascent(0.5, key=KEY)
    rise = climb_sharpness(lambda p: jnp.sum(p["w"] ** 2), tree, ascent)
    climb, _ = ascent.update(tree, ascent.init(tree), tree)
    expected = np.sum((1 + climb["w"]) ** 2) - 3
    np.testing.assert_allclose(rise, expected, rtol=1e-5)


# The worst case


def test_worst_case_at_the_minimum(x64):
    """papers: H = diag(1, 4), rho = 0.5 at 0, and adaptive at w* = (3, 1)."""

    @jit
    def all_three(origin, start):
        return (
            worst_case(quadratic, origin, rho=0.5),
            worst_case(quadratic, origin, rho=0.5, ord=np.inf),
            worst_case(around_start, start, rho=0.5, adaptive=True),
        )

    values = all_three(np.zeros(2), START)
    np.testing.assert_allclose(values, [0.5, 0.625, 1.125])


def symmetric(rng, size):
    half = rng.normal(size=(size, size))
    return (half + half.T) / 2


@partial(jit, static_argnames=("ord",))
def worst_of_quadratic(hessian, gradient, rho, ord=None):
    def loss(u):
        return gradient @ u + 0.5 * u @ hessian @ u

    return worst_case_sharpness(
        loss,
        jnp.zeros_like(gradient),
        rho=rho,
        ord=ord,
        key=KEY,
        num_steps=300,
        num_restarts=4,
    )


def maximum_in_the_ball(hessian, gradient, rho):
    """The trust-region problem, by its secular equation."""
    values, basis = np.linalg.eigh(hessian)
    g = basis.T @ gradient

    def length(multiplier):
        return np.linalg.norm(g / (multiplier - values))

    top = max(values[-1], 0)
    if values[-1] < 0 and length(0) <= rho:
        u = -g / values  # Concave, and the peak lies inside.
    else:
        lowest = top + 1e-9 * abs(g[-1])
        multiplier = brentq(lambda m: length(m) - rho, lowest, 1e3, xtol=1e-14)
        u = g / (multiplier - values)
    return g @ u + 0.5 * u @ (values * u)


@pytest.mark.parametrize("shift", [-6, 0, 6])
def test_worst_case_of_quadratics_in_the_ball(shift, x64):
    """Concave, indefinite and convex, with a gradient, against an exact maximizer."""
    rng = np.random.default_rng(1)
    hessian = symmetric(rng, 6) + shift * np.eye(6)
    gradient = rng.normal(size=6)
    for rho in (0.1, 1.0, 3.0):
        expected = maximum_in_the_ball(hessian, gradient, rho)
        value = worst_of_quadratic(hessian, gradient, rho)
        np.testing.assert_allclose(value, expected, rtol=1e-8)


def test_worst_case_of_quadratics_in_the_box(x64):
    """A convex function is largest in a corner."""
    rng = np.random.default_rng(2)
    half = rng.normal(size=(6, 6))
    hessian, gradient = half @ half.T, rng.normal(size=6)
    corners = 0.5 * np.array(list(itertools.product([-1, 1], repeat=6)))
    heights = corners @ gradient + 0.5 * np.sum((corners @ hessian) * corners, 1)
    value = worst_of_quadratic(hessian, gradient, 0.5, ord=np.inf)
    np.testing.assert_allclose(value, heights.max(), rtol=1e-12)


def network_loss(params, batch):
    inputs, labels = batch
    logits = jnp.tanh(inputs @ params["in"]) @ params["out"]["kernel"]
    logits += params["out"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@pytest.fixture
def data():
    rng = np.random.default_rng(3)
    return rng.normal(size=(12, 4)), rng.integers(0, 3, 12)


@pytest.fixture
def net():
    rng = np.random.default_rng(4)
    out = {"kernel": rng.normal(size=(5, 3)), "bias": rng.normal(size=3)}
    return {"in": rng.normal(size=(4, 5)), "out": out}


@pytest.mark.parametrize("ord", [2, np.inf])
@pytest.mark.parametrize("adaptive", [False, True])
def test_worst_case_is_never_below_one_climb(ord, adaptive, net, data, x64):
    def loss(params):
        return network_loss(params, data)

    def ascent(rho):
        if adaptive:
            return optax_sam.adaptive_ascent(rho, eta=0, mask=True, ord=ord)
        return optax_sam.steepest_ascent(rho, ord=ord)

    @jit
    def both(rho):
        worst = worst_case(
            loss, net, rho=rho, ord=ord, adaptive=adaptive, num_steps=5, num_restarts=0
        )
        return climb_sharpness(loss, net, ascent(rho)), worst

    one, worst = np.array([both(rho) for rho in (1e-3, 0.3, 3.0, 30.0)]).T
    assert np.all(worst >= one * (1 - 1e-12))
    assert np.all(worst[1:3] > 1.001 * one[1:3])  # And usually more.
    # A tiny ball holds nothing but the slope.
    np.testing.assert_allclose(worst[0], one[0], rtol=1e-2)


def test_the_first_step_is_the_climb(x64):
    ascent = optax_sam.steepest_ascent(0.5)
    one = worst_case(quadratic, START, rho=0.5, num_steps=1, num_restarts=0)
    np.testing.assert_allclose(one, climb_sharpness(quadratic, START, ascent))


def test_worst_case_where_there_is_no_way_up():
    assert worst_case(lambda w: -jnp.sum(w**2), jnp.zeros(3), rho=0.5) == 0
    assert worst_case(quadratic, START, rho=0.0) == 0
    assert worst_case(lambda w: 7.0 + 0 * w, jnp.float32(1), rho=1.0) == 0


def cosh_loss(w, inputs):
    return jnp.mean(jnp.cosh(inputs @ w))


@pytest.mark.slow
def test_worst_case_of_each_sub_batch_is_the_loop(data, x64):
    rows, w = data[0], np.ones(4)

    @partial(jit, static_argnames="m")
    def worst(batches, m=None):
        cut = {"batches": batches, "microbatch_size": m}
        return worst_case(cosh_loss, w, rho=0.5, num_steps=4, **cut)

    stacked = rows.reshape(2, 6, 4)
    by_threes = worst(stacked, m=3)
    alone = [worst([rows[i : i + 3]]) for i in (0, 3, 6, 9)]
    np.testing.assert_allclose(by_threes, np.mean(alone), rtol=1e-9)
    together = worst(stacked)
    np.testing.assert_allclose(together, worst([rows]), rtol=1e-9)
    assert by_threes > 1.01 * together  # Smaller groups find more.


def test_adaptive_worst_case_does_not_see_a_rescaling(x64):
    """L = (ab - 1)^2 / 2 is the same function of (2a, b / 2)."""

    def loss(w):
        return 0.5 * (w[0] * w[1] - 1) ** 2

    @partial(jit, static_argnames="adaptive")
    def worst(w, adaptive):
        return worst_case(loss, w, rho=0.1, adaptive=adaptive)

    points = np.array([2.0, 0.7]), np.array([4.0, 0.35])
    np.testing.assert_allclose(*[worst(w, True) for w in points], rtol=1e-6)
    here, there = (worst(w, False) for w in points)
    assert there > 2 * here


def test_adaptive_leaves_zeros_where_they_are():
    loss = around_start
    assert worst_case(loss, jnp.zeros(2), rho=1.0, adaptive=True) == 0
    assert average_case(loss, jnp.zeros(2), rho=1.0, adaptive=True, num_samples=3) == (
        0,
        0,
    )


# The average


@pytest.mark.parametrize(
    ("noise", "adaptive", "mean", "variance"),
    [
        # sum_i h_i c_i^2 z_i^2 / 2 with the variances 2, 4/45 (z in a ball of rho)
        # of z_i^2; on the circle of d = 2 it is (5 - 3 cos) rho^2 / 4.
        ("normal", False, 0.625, 2 * (1 + 16) / 64),
        ("normal", True, 1.625, 2 * (81 + 16) / 64),
        ("uniform", False, 0.625 / 3, 4 / 45 * (1 + 16) / 64),
        ("sphere", False, 0.3125, 9 / 2 / 256),
    ],
)
def test_average_case_at_the_minimum(noise, adaptive, mean, variance):
    num_samples = 20_000
    rise = average_case(
        around_start,
        START,
        rho=0.5,
        noise=noise,
        adaptive=adaptive,
        num_samples=num_samples,
    )
    error = np.sqrt(variance / num_samples)
    np.testing.assert_allclose(rise.standard_error, error, rtol=0.05)
    assert abs(rise.mean - mean) < 4 * error


def test_average_case_of_batches_and_its_standard_error(data, x64):
    rows, w = data[0], np.ones(4)

    @jit
    def both(rows):
        few = {"rho": 0.3, "num_samples": 5}
        whole = average_case(lambda w: cosh_loss(w, rows), w, **few)
        stacked = rows.reshape(4, 3, 4)
        return whole, average_case(cosh_loss, w, batches=stacked, **few)

    whole, by_batches = both(rows)
    np.testing.assert_allclose(by_batches, whole, rtol=1e-12)
    # Each sample by itself: its draw is that of its own key.
    draws = [jax.random.normal(key, (4,)) for key in jax.random.split(KEY, 5)]
    losses = np.array([np.mean(np.cosh(rows @ (w + 0.3 * z))) for z in draws])
    rises = losses - np.mean(np.cosh(rows @ w))
    np.testing.assert_allclose(whole.mean, rises.mean(), rtol=1e-12)
    error = rises.std(ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(whole.standard_error, error, rtol=1e-12)


def test_dtypes_and_trees():
    params = {"half": jnp.ones(4, jnp.bfloat16), "none": None, "number": 2.0}

    def loss(p):
        assert p["none"] is None
        assert p["half"].dtype == jnp.bfloat16
        return jnp.sum(p["half"] ** 2) + jnp.asarray(p["number"], jnp.bfloat16)

    ascent = optax_sam.steepest_ascent(0.5)
    rises = jit(
        lambda p: (
            climb_sharpness(loss, p, ascent),
            worst_case(loss, p, rho=0.5, num_steps=2),
            average_case(loss, p, rho=0.5, num_samples=2).mean,
        )
    )(params)
    for rise in rises:
        assert rise.dtype == jnp.float32
        assert np.isfinite(rise)


# Logits and bounds


def test_normalized_logits_do_not_see_scale_and_shift(x64):
    logits = np.random.default_rng(0).normal(size=(5, 4))
    normal = normalize_logits(logits)
    np.testing.assert_allclose(normalize_logits(9 * logits + 2), normal, rtol=1e-12)
    np.testing.assert_allclose(np.sum(normal, -1), 0, atol=1e-14)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=-1), 1, rtol=1e-14)
    slope = jit(jax.grad(lambda z: normalize_logits(z)[0]))(jnp.ones(3))
    assert np.isfinite(slope).all()


def test_pac_bayes_term_of_the_paper():
    wide = pac_bayes_term(
        squared_norm=1e4, num_params=36_500_000, num_examples=50_000, rho=0.05
    )
    np.testing.assert_allclose(wide, 105.3, atol=0.05)
    small = pac_bayes_term(
        squared_norm=1.0, num_params=1000, num_examples=50_000, rho=0.05
    )
    np.testing.assert_allclose(small, 0.356, atol=5e-4)


def test_pac_bayes_term_where_every_part_counts(x64):
    """n = 3, k = 2, |w|^2 = 0.5, rho = 1, delta = 0.1, written out."""
    inside = 1 + 0.5 * (1 + math.sqrt(math.log(3) / 2)) ** 2
    parts = 2 * math.log(inside), 4 * math.log(30), 8 * math.log(18 + 6)
    term = pac_bayes_term(
        squared_norm=0.5, num_params=2, num_examples=3, rho=1, delta=0.1
    )
    np.testing.assert_allclose(term, math.sqrt(sum(parts) / 2), rtol=1e-14)


# Refusals


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rho": -1.0}, "rho must be non-negative"),
        ({"ord": 1}, r"ord=2 and ord=jnp\.inf only, .*steepest_ascent\(rho, ord=1\)"),
        ({"ord": 0.5}, "below 1 there is no norm"),
        ({"num_steps": 0}, "at least one step"),
        ({"num_restarts": -1}, "num_restarts=-1"),
        ({"microbatch_size": 2}, r"batches=\[batch\]"),
    ],
)
def test_refuses_no_ball(change, match):
    with pytest.raises(ValueError, match=match):
        worst_case(quadratic, START, **{"rho": 0.5} | change)


@pytest.mark.parametrize(
    ("size", "error", "match"),
    [
        (0, ValueError, "microbatch_size must be at least 1, got microbatch_size = 0"),
        (-2, ValueError, "microbatch_size must be at least 1"),
        (2.0, TypeError, "microbatch_size counts something and must be a whole number"),
        (True, TypeError, "microbatch_size counts something"),
    ],
)
def test_refuses_sub_batches_of_no_size(size, error, match):
    some = {"batches": [EXAMPLES], "microbatch_size": size}
    with pytest.raises(error, match=match):
        climb_sharpness(least_squares, START, optax_sam.steepest_ascent(0.5), **some)
    with pytest.raises(error, match=match):
        worst_case(least_squares, START, rho=0.5, **some)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_samples": 1}, "needs at least 2 samples"),
        ({"noise": "cauchy"}, "'normal', 'uniform', 'sphere'"),
        ({"rho": -0.1}, "rho must be non-negative"),
    ],
)
def test_refuses_no_average(change, match):
    with pytest.raises(ValueError, match=match):
        average_case(quadratic, START, **{"rho": 0.5, "num_samples": 3} | change)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_examples": 1}, "at least 2 examples"),
        ({"num_params": 0}, "num_params=0"),
        ({"rho": 0.0}, "positive rho"),
        ({"delta": 1.0}, "between 0 and 1"),
    ],
)
def test_refuses_no_bound(change, match):
    some = {"squared_norm": 1.0, "num_params": 9, "num_examples": 9, "rho": 0.1}
    with pytest.raises(ValueError, match=match):
        pac_bayes_term(**some | change)


def climb_of(loss, params, rho=0.5):
    return climb_sharpness(loss, params, optax_sam.steepest_ascent(rho))


def worst_of(loss, params, rho=0.5):
    return worst_case(loss, params, rho=rho, num_steps=2)


def average_of(loss, params, rho=0.5):
    return average_case(loss, params, rho=rho, num_samples=2).mean


each_sharpness = pytest.mark.parametrize("of", [climb_of, worst_of, average_of])


@each_sharpness
def test_refuses_what_cannot_be_measured(of):
    with pytest.raises(TypeError, match=r"\['n'\] has dtype int32"):
        of(lambda p: jnp.sum(p["w"]), {"w": jnp.ones(2), "n": jnp.arange(2)})
    with pytest.raises(ValueError, match="hold no floating-point numbers"):
        of(lambda p: 1.0, {"none": None})
    with pytest.raises(TypeError, match=r"has shape .*jnp\.mean"):
        of(lambda w: w**2, jnp.ones(3))
    with pytest.raises(ValueError, match=r"\['w'\] holds numbers that are not finite"):
        of(lambda p: jnp.sum(p["w"]), {"v": 1.0, "w": jnp.array([1.0, jnp.nan])})


@each_sharpness
def test_refuses_losses_that_are_not_finite(of):
    def cliff(w):
        return w + 0 * jnp.log(1.5 - w)

    with pytest.raises(ValueError, match=r"not finite.*choose a smaller rho"):
        of(cliff, 1.0, 5.0)
    assert np.isnan(jit(partial(of, cliff))(1.0, rho=5.0))
    assert np.isfinite(jit(partial(of, cliff))(1.0, rho=0.01))
