"""The sweep over radii against closed forms, NumPy and plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import adaptive_ascent, loss_equated_ascent, steepest_ascent
from optax_sam.measure import climb_sharpness, radius_sweep

RHOS = np.array([0.0, 0.01, 0.3, 2.0])
rng = np.random.default_rng(0)
HALF = rng.normal(size=(5, 5))
HESSIAN = (HALF + HALF.T) / 2  # indefinite: the cosine changes its sign too
W = rng.normal(size=5)
BATCHES = rng.normal(size=(3, 4, 5))  # three batches of four examples


def quadratic(w):
    return 0.5 * w @ jnp.asarray(HESSIAN, w.dtype) @ w


def of_batch(w, batch):
    """Not quadratic, so that every batch bends in another way."""
    return jnp.mean(jnp.tanh(batch @ w) ** 2)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_a_quadratic_in_closed_form(x64):
    sweep = radius_sweep(quadratic, jnp.asarray(W), steepest_ascent, RHOS)
    g = HESSIAN @ W
    size = np.linalg.norm(g)
    unit = g / size
    rise = RHOS * size + RHOS**2 / 2 * (unit @ HESSIAN @ unit)
    turned = [cosine(g, HESSIAN @ (W + rho * unit)) for rho in RHOS]
    clean = W @ HESSIAN @ W / 2
    np.testing.assert_array_equal(sweep.rhos, RHOS)
    np.testing.assert_allclose(sweep.loss.mean, clean)
    np.testing.assert_allclose(sweep.climbed_loss.mean, clean + rise, rtol=1e-12)
    np.testing.assert_allclose(sweep.rise.mean, rise, rtol=1e-10)
    np.testing.assert_allclose(sweep.predicted_rise.mean, RHOS * size)
    np.testing.assert_allclose(sweep.cosine.mean, turned)
    np.testing.assert_allclose(sweep.climb_norm.mean, RHOS, rtol=1e-12)
    for one in sweep[1:]:
        assert np.isnan(one.standard_error).all()  # one loss, so no spread


def test_asam_against_its_own_formula(x64):
    eta = 0.1
    sweep = radius_sweep(
        quadratic, jnp.asarray(W), lambda rho: adaptive_ascent(rho, eta=eta), RHOS
    )
    g, scale = HESSIAN @ W, np.abs(W) + eta
    climbs = RHOS[:, None] * scale**2 * g / np.linalg.norm(scale * g)
    points = W + climbs
    losses = np.einsum("ri,ij,rj->r", points, HESSIAN, points) / 2
    turned = [cosine(g, HESSIAN @ point) for point in points]
    np.testing.assert_allclose(sweep.climbed_loss.mean, losses)
    np.testing.assert_allclose(sweep.predicted_rise.mean, climbs @ g)
    np.testing.assert_allclose(sweep.cosine.mean, turned)
    norms = np.linalg.norm(climbs, axis=1)
    np.testing.assert_allclose(sweep.climb_norm.mean, norms, rtol=1e-12)


def by_hand(batch):
    """Loss, then for each radius the climbed loss, prediction, cosine and norm."""
    w = jnp.asarray(W)
    value, g = jax.value_and_grad(of_batch)(w, batch)
    rows = []
    for rho in RHOS:
        climb = rho * g / jnp.linalg.norm(g)
        climbed, h = jax.value_and_grad(of_batch)(w + climb, batch)
        rows.append((climbed, climbed - value, g @ climb, cosine(g, h), rho))
    return np.array(value), np.array(rows).T


@pytest.mark.parametrize("form", [list, iter, np.asarray])
def test_means_and_errors_over_batches(form, x64):
    w = jnp.asarray(W)
    sweep = radius_sweep(of_batch, w, steepest_ascent, RHOS, batches=form(BATCHES))
    losses, rows = zip(*map(by_hand, BATCHES), strict=True)
    for found, expected in zip(
        sweep[1:], [losses, *np.swapaxes(rows, 0, 1)], strict=True
    ):
        expected = np.array(expected)
        error = expected.std(axis=0, ddof=1) / 3**0.5
        np.testing.assert_allclose(found.mean, expected.mean(0), atol=1e-14)
        np.testing.assert_allclose(found.standard_error, error, atol=1e-14)


def test_one_batch_has_no_error():
    sweep = radius_sweep(
        of_batch, jnp.asarray(W), steepest_ascent, RHOS, batches=[BATCHES[0]]
    )
    assert np.isnan(sweep.rise.standard_error).all()
    assert np.isfinite(sweep.rise.mean).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_climb_changes_nothing(dtype):
    w = {"a": jnp.asarray(W, dtype), "none": None}
    sweep = radius_sweep(
        lambda p, x: of_batch(p["a"], jnp.asarray(x, p["a"].dtype)),
        w,
        steepest_ascent,
        [0.0],
        batches=BATCHES,
    )
    np.testing.assert_array_equal(sweep.rise.mean, 0)
    np.testing.assert_array_equal(sweep.climb_norm.mean, 0)
    np.testing.assert_allclose(sweep.cosine.mean, 1, rtol=1e-6)
    assert {x.dtype for x in jax.tree.leaves(sweep)} == {jnp.dtype("float32")}


def share_of_loss(rho):
    """LE-SAM's climb: the linear loss rises by a tenth of the loss, within rho."""
    return loss_equated_ascent(0.1, rho_max=rho, of_loss=True)


def test_the_ascent_is_told_the_clean_loss(x64):
    def positive(w):
        return quadratic(w) + 20

    sweep = radius_sweep(positive, jnp.asarray(W), share_of_loss, RHOS)
    loss, size = W @ HESSIAN @ W / 2 + 20, np.linalg.norm(HESSIAN @ W)
    assert RHOS[1] < 0.1 * loss / size < RHOS[-1]  # both the budget and the cap
    norms = np.minimum(0.1 * loss / size, RHOS)
    np.testing.assert_allclose(sweep.climb_norm.mean, norms, rtol=1e-12)
    np.testing.assert_allclose(sweep.predicted_rise.mean, norms * size, rtol=1e-12)


def test_the_ascent_is_told_the_loss_of_its_own_batch(x64):
    w = jnp.asarray(W)
    sweep = radius_sweep(of_batch, w, share_of_loss, [2.0], batches=BATCHES)
    rises = [
        climb_sharpness(lambda w, b=b: of_batch(w, b), w, share_of_loss(2.0))
        for b in BATCHES
    ]
    np.testing.assert_allclose(sweep.rise.mean, [np.mean(rises)], rtol=1e-12)


def test_the_clean_pass_is_at_the_parameters_whatever_the_ascent():
    """One that climbs at any rho, and of any gradient, by 1 in every entry."""

    def by_one(rho):
        return optax.stateless(lambda g, params: jax.tree.map(jnp.ones_like, g))

    w = jnp.arange(3.0)
    sweep = radius_sweep(lambda w: jnp.sum(w), w, by_one, [0.0, 5.0])
    assert sweep.loss.mean == 3
    np.testing.assert_array_equal(sweep.rise.mean, [3, 3])


def test_a_climb_lost_in_rounding_shows():
    """Steps of bfloat16 at 256 are 2 wide: of a climb of 0.5 nothing is left."""
    w = jnp.full(4, 256, jnp.bfloat16)
    sweep = radius_sweep(
        lambda w: jnp.sum(w.astype(jnp.float32)), w, steepest_ascent, [1.0, 8.0]
    )
    np.testing.assert_allclose(sweep.predicted_rise.mean, [2, 16], rtol=1e-6)
    np.testing.assert_array_equal(sweep.climb_norm.mean, [0, 8])
    np.testing.assert_array_equal(sweep.rise.mean, [0, 16])


def test_one_program_for_all_radii_and_batches(caplog):
    seen = {}
    for radii, count in ((2, 1), (9, 3)):
        traced = []

        def loss(w, batch, traced=traced):
            traced.append(1)
            return of_batch(w, batch)

        def sweep(rhos, w, batches, loss=loss):
            return radius_sweep(loss, w, steepest_ascent, rhos, batches=batches)

        compiled = jax.jit(sweep)
        for top in (1.0, 2.0):
            compiled(jnp.linspace(0, top, radii), jnp.asarray(W), BATCHES[:count])
        assert compiled._cache_size() == 1
        seen[radii] = len(traced)
    assert seen[2] == seen[9] == 1
    # Without jax.jit around it, too.
    with jax.log_compiles(), caplog.at_level("WARNING"):
        w = jnp.asarray(W)
        radius_sweep(of_batch, w, steepest_ascent, RHOS, batches=jnp.asarray(BATCHES))
    names = [r.getMessage() for r in caplog.records if "Compiling" in r.getMessage()]
    assert len([name for name in names if "scan" in name]) == 1, names


def test_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        w = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2)}

        def loss(p):
            return jnp.sum(p["a"].astype(jnp.float32)) + jnp.sum(p["b"] ** 2)

        radius_sweep(loss, w, steepest_ascent, [0.1, 1.0])


def test_too_large_a_radius_is_shown_and_no_error():
    sweep = radius_sweep(
        lambda w: jnp.sum(jnp.exp(w)), jnp.ones(2), steepest_ascent, [0.1, 1e4]
    )
    assert np.isfinite(sweep.rise.mean[0])
    assert np.isinf(sweep.rise.mean[1])
    assert sweep.cosine.mean[1] == 0


# Refusals


@pytest.mark.parametrize("rhos", [0.1, [], [[0.1]]])
def test_refuses_radii_that_are_no_line(rhos):
    with pytest.raises(ValueError, match=r"rhos of shape .*jnp\.geomspace"):
        radius_sweep(quadratic, jnp.asarray(W), steepest_ascent, rhos)


@pytest.mark.parametrize("rhos", [[0.1, -0.1], [np.nan]])
def test_refuses_radii_that_are_no_distance(rhos):
    with pytest.raises(ValueError, match="negative or undefined"):
        radius_sweep(quadratic, jnp.asarray(W), steepest_ascent, rhos)


@pytest.mark.parametrize(
    "stateful",
    [
        lambda rho: optax_sam.friendly_ascent(steepest_ascent(rho)),
        lambda rho: steepest_ascent(lambda step: rho),
        lambda rho: optax_sam.random_ascent(rho, key=jax.random.key(0)),
    ],
)
def test_refuses_an_ascent_with_a_state(stateful):
    with pytest.raises(ValueError, match=r"keeps a state.*steepest_ascent for frien"):
        radius_sweep(quadratic, jnp.asarray(W), stateful, RHOS)


def test_refuses_what_makes_no_ascent():
    w = jnp.asarray(W)
    with pytest.raises(TypeError, match="cannot be called"):
        radius_sweep(quadratic, w, steepest_ascent(0.1), RHOS)
    with pytest.raises(TypeError, match="An ascent is wanted"):
        radius_sweep(quadratic, w, lambda rho: optax_sam.sam(rho), RHOS)


def test_refuses_what_the_other_measures_refuse():
    w = jnp.asarray(W)
    with pytest.raises(TypeError, match=r"tuple.*lambda p: loss_fn\(p\)\[0\]"):
        radius_sweep(lambda w: (quadratic(w), 1), w, steepest_ascent, RHOS)
    with pytest.raises(ValueError, match="not finite"):
        radius_sweep(lambda w: jnp.sum(w) / 0, w, steepest_ascent, RHOS)
    with pytest.raises(ValueError, match="Batch 1 has shapes"):
        radius_sweep(
            of_batch, w, steepest_ascent, RHOS, batches=[BATCHES[0], BATCHES[0][:2]]
        )
    with pytest.raises(TypeError, match="floating-point"):
        radius_sweep(optax.global_norm, jnp.arange(3), steepest_ascent, RHOS)
