"""LE-SAM: a budget of loss in place of a radius, and the loss an ascent may ask for.

Everything is compared with NumPy in float64, whose norms share no code with ours.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from problems import HESSIAN, START, climb_of, quadratic, quick_jit
from table import dual_norm, flat, norm

import optax_sam
from optax_sam import le_sam, loss_equated_ascent, sharpness_aware, steepest_ascent

ORDS = (1, 1.5, 2, 3, np.inf)
GRADS = {"w": np.array([[3.0, -0.5], [0.25, 1.5]]), "b": np.array([-2.0, 0.0])}
x64 = pytest.mark.usefixtures("x64")
every_ord = pytest.mark.parametrize("ord", ORDS)
random = np.random.default_rng(5)
ROWS = random.normal(size=(8, 2))  # outside x64: jnp.float32(ROWS), see conftest.py


def inner(a, b):
    return flat(a) @ flat(b)


def close(got, want, rtol=1e-12):
    np.testing.assert_allclose(flat(got), flat(want), rtol=rtol, atol=1e-15)


# --- The formula ---------------------------------------------------------------------


@x64
@every_ord
@pytest.mark.parametrize("rho_max", [0.02, 0.2, 10.0, np.inf])
def test_the_radius(ord, rho_max):
    budget, length = 0.3, dual_norm(ord)(GRADS)
    rho = min(budget / length, rho_max)
    ascent = loss_equated_ascent(budget, rho_max=rho_max, ord=ord)
    climb = climb_of(ascent, GRADS, GRADS)
    close(climb, climb_of(steepest_ascent(rho, ord=ord), GRADS, GRADS))
    np.testing.assert_allclose(norm(ord)(climb), rho, rtol=1e-12)
    within = budget / length <= rho_max
    np.testing.assert_allclose(
        inner(GRADS, climb), budget if within else rho_max * length, rtol=1e-12
    )


@x64
@every_ord
def test_both_sides_of_the_cap_are_met(ord):
    """The case above has both, for every order."""
    within = [0.3 / dual_norm(ord)(GRADS) <= rho_max for rho_max in (0.02, np.inf)]
    assert within == [False, True]


@x64
@every_ord
@pytest.mark.parametrize("size", [1e-300, 1e-150, 1e150, 1e300])
def test_the_rise_is_the_budget_whatever_the_size(ord, size):
    grads = jax.tree.map(lambda g: size * g, GRADS)
    ascent = loss_equated_ascent(0.3, rho_max=np.inf, ord=ord)
    np.testing.assert_allclose(
        inner(grads, climb_of(ascent, grads, grads)), 0.3, rtol=1e-9
    )


@x64
def test_a_share_of_the_loss_on_the_quadratic():
    """L = 6.5 and the norm is 5, so a tenth is a radius of 0.13."""
    tx = le_sam(0.1, rho_max=1.0, of_loss=True)
    w = jnp.asarray(START)
    gradient, _ = tx.update(None, tx.init(w), w, value_fn=quadratic)
    close(gradient, HESSIAN @ (START + 0.13 * np.array([0.6, 0.8])))
    ascent = loss_equated_ascent(0.1, rho_max=1.0, of_loss=True)
    value, again = optax_sam.value_and_grad(quadratic, ascent)(w)
    assert value == 6.5
    close(again, gradient)


@x64
def test_a_schedule_counts_the_steps():
    schedule = optax.linear_schedule(1.0, 0.0, 4)
    tx = optax.chain(le_sam(schedule, rho_max=0.15), optax.sgd(0.1))
    w, expected = jnp.asarray(START), START
    state = tx.init(w)
    for t in range(4):
        clean = jax.grad(quadratic)(w)
        updates, state = tx.update(clean, state, w, value_fn=quadratic)
        w = optax.apply_updates(w, updates)
        g = HESSIAN @ expected
        length = np.linalg.norm(g)
        rho = min((1 - t / 4) / length, 0.15)
        expected = expected - 0.1 * HESSIAN @ (expected + rho * g / length)
        close(w, expected)


# --- What has no share ---------------------------------------------------------------

NOTHING = {
    "zero gradient": (0.0, 1.0),
    "zero gradient and loss": (0.0, 0.0),
    "NaN in the gradient": (np.nan, 1.0),
    "infinite gradient": (np.inf, 1.0),
    "negative loss": (1.0, -1.0),
    "no loss left": (1.0, 0.0),
    "NaN loss": (1.0, np.nan),
    "infinite loss": (1.0, np.inf),
    "all of it is NaN": (np.nan, np.nan),
}


@every_ord
@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("rho_max", [0.5, np.inf])
def test_no_climb(name, ord, rho_max):
    factor, value = NOTHING[name]
    grads = jax.tree.map(lambda g: factor * jnp.float32(g), GRADS)
    ascent = loss_equated_ascent(0.1, rho_max=rho_max, ord=ord, of_loss=True)
    climb, _ = ascent.update(grads, ascent.init(grads), value=jnp.float32(value))
    np.testing.assert_array_equal(flat(climb), 0)
    if np.isfinite([factor, value]).all():
        with jax.debug_nans(True):
            ascent.update(grads, ascent.init(grads), value=jnp.float32(value))


@x64
@pytest.mark.parametrize("scale", [1.0, 1e-200, 0.0])
@pytest.mark.parametrize("of_loss", [False, True])
def test_second_order_through_the_radius(scale, of_loss):
    """Also where a square of the norm underflows: the cap has no slope."""

    def loss(w):
        return quadratic(w) + 1.0

    w = scale * jnp.asarray(START)
    ascent = loss_equated_ascent(0.1, rho_max=0.5, of_loss=of_loss)
    gradient = optax_sam.value_and_grad(loss, ascent, second_order=True)(w)[1]

    def climbed(w):
        g = HESSIAN @ w
        rise = 0.1 * (loss(w) if of_loss else 1)
        norm = jnp.sqrt(g @ g)
        return loss(w + jnp.minimum(rise / norm, 0.5) * g / norm)

    if scale == 1:
        close(gradient, jax.grad(climbed)(w), 1e-10)
    assert np.isfinite(gradient).all()


REFUSED = {
    "budget=-1": (ValueError, "budget must be non-negative"),
    "rho_max=-1": (ValueError, "rho_max must be non-negative"),
    "rho_max=[1, 2]": (ValueError, "rho_max is one number for the whole tree"),
    "ord=0.5": (ValueError, "ord must lie in"),
}


@pytest.mark.parametrize("make", [loss_equated_ascent, le_sam])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(make, name):
    option, value = name.split("=")
    value = [1, 2] if value == "[1, 2]" else float(value)
    error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        make(**{"budget": 1.0, "rho_max": 1.0} | {option: value})


# --- The loss that is handed over ----------------------------------------------------


def row_loss(w, rows):
    return jnp.mean((rows @ w - 1.0) ** 2)


def by_hand(w, rows, budget, rho_max, steps=1):
    """One sub-batch in NumPy: its gradient at the climbed point."""

    def value_and_grad(w):
        rest = rows @ w - 1
        return np.mean(rest**2), 2 * rows.T @ rest / len(rows)

    value, g = value_and_grad(w)
    climb = 0 * w
    for _ in range(steps):
        length = np.linalg.norm(g)
        climb = climb + min(budget * value / length, rho_max) * g / length / steps
        _, g = value_and_grad(w + climb)
    return g


SAME = {
    "straight": {},
    "scanned": {"scan_passes": True},
    "in steps": {"num_steps": 3},
    "scanned, in steps": {"num_steps": 3, "scan_passes": True},
    "condition": {"when": lambda t: t >= 0},
    "scanned under a condition": {"when": lambda t: t >= 0, "scan_passes": True},
    "watched": {"diagnostics": True},
    "in a wider type": {"climb_dtype": jnp.float64},
}
BUDGET, RHO_MAX = 0.3, 0.35


def on_devices(size):
    mesh = Mesh(np.array(jax.devices()[:size]), ("data",))
    return {"axis_name": "data", "mesh": mesh}


@x64
@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("m", [8, 4, 2])
@pytest.mark.parametrize("where", ["one device", "devices"])
def test_every_sub_batch_has_its_own_loss_and_radius(name, m, where):
    w, steps = np.array([0.5, -1.0]), SAME[name].get("num_steps", 1)
    parts = ROWS.reshape(-1, m, 2)
    each = [by_hand(w, rows, BUDGET, RHO_MAX, steps) for rows in parts]
    options = {"microbatch_size": m}
    if where == "devices":
        options |= on_devices(len(parts))
    tx = le_sam(BUDGET, rho_max=RHO_MAX, of_loss=True, **SAME[name], **options)
    start = jnp.asarray(w)
    update = quick_jit(
        lambda w: tx.update(None, tx.init(w), w, value_fn=row_loss, batch=ROWS)[0]
    )
    close(update(start), np.mean(each, axis=0), 1e-10)


def test_the_radii_of_those_sub_batches_differ_and_one_is_capped():
    w, radii = np.array([0.5, -1.0]), []
    for rows in ROWS.reshape(-1, 2, 2):
        rest = rows @ w - 1
        length = np.linalg.norm(rows.T @ rest)
        radii.append(BUDGET * np.mean(rest**2) / length)
    assert min(radii) < 0.9 * RHO_MAX
    assert max(radii) > 1.1 * RHO_MAX


def share(**options):
    return loss_equated_ascent(BUDGET, rho_max=RHO_MAX, of_loss=True, **options)


AROUND = {
    "chain": lambda ascent: optax.chain(optax.identity(), ascent),
    "masked": lambda ascent: optax.masked(ascent, mask=True),
    "selective": lambda ascent: optax.selective_transform(ascent, freeze_mask=False),
    "climb_only": lambda ascent: optax_sam.climb_only(ascent, lambda tree: True),
    "friendly": optax_sam.friendly_ascent,  # the first climb is the ascent's own
}


@x64
@pytest.mark.parametrize("name", AROUND)
def test_the_loss_reaches_an_ascent_inside_of_another(name):
    w = jnp.array([0.5, -1.0])
    expected = by_hand(np.asarray(w), ROWS, BUDGET, RHO_MAX)
    tx = sharpness_aware(AROUND[name](share()))
    got, _ = tx.update(None, tx.init(w), w, value_fn=row_loss, batch=ROWS)
    close(got, expected)


METHODS = {
    "gsam": lambda a: optax_sam.gsam(alpha=0.0, ascent=a),
    "wsam": lambda a: optax_sam.wsam(gamma=0.5, ascent=a),
    "look_sam": lambda a: optax_sam.look_sam(ascent=a),
    "m_sam": lambda a: optax_sam.m_sam(ascent=a, microbatch_size=8),
    "partial_climb": lambda a: optax_sam.partial_climb(fraction=1.0, ascent=a),
}


@x64
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("budget", ["a number", "a schedule"])
def test_the_loss_reaches_the_ascent_of_a_method(name, budget):
    given = BUDGET if budget == "a number" else optax.constant_schedule(BUDGET)
    w = jnp.array([0.5, -1.0])
    ascent = loss_equated_ascent(given, rho_max=RHO_MAX, of_loss=True)
    tx = METHODS[name](ascent)
    got, _ = tx.update(None, tx.init(w), w, value_fn=row_loss, batch=ROWS)
    close(got, by_hand(np.asarray(w), ROWS, BUDGET, RHO_MAX), 1e-10)


@x64
def test_esam_hands_over_the_mean_of_its_losses():
    w = jnp.array([0.5, -1.0])
    options = {"beta": 1.0, "gamma": 1.0, "key": jax.random.key(0)}
    tx = optax_sam.esam(ascent=share(), **options)
    got, _ = tx.update(
        None,
        tx.init(w),
        w,
        value_fn=lambda w, rows: (rows @ w - 1.0) ** 2,
        batch=ROWS,
    )
    close(got, by_hand(np.asarray(w), ROWS, BUDGET, RHO_MAX))


@x64
def test_the_rise_of_the_loss_is_measured_with_its_loss():
    from optax_sam.measure import climb_sharpness

    w = jnp.asarray(START)
    ascent = loss_equated_ascent(0.1, rho_max=1.0, of_loss=True)
    moved = START + 0.13 * np.array([0.6, 0.8])
    expected = 0.5 * moved @ HESSIAN @ moved - 6.5
    np.testing.assert_allclose(climb_sharpness(quadratic, w, ascent), expected)


@x64
def test_a_part_of_the_batch_climbs_by_its_own_loss():
    w = np.array([0.5, -1.0])
    few = ROWS[:4]
    rest = few @ w - 1
    g = 2 * few.T @ rest / 4
    length = np.linalg.norm(g)
    climbed = w + min(BUDGET * np.mean(rest**2) / length, RHO_MAX) * g / length
    expected = 2 * ROWS.T @ (ROWS @ climbed - 1) / 8
    tx = optax_sam.partial_climb(fraction=0.5, ascent=share())
    start = jnp.asarray(w)
    got, _ = tx.update(None, tx.init(start), start, value_fn=row_loss, batch=ROWS)
    close(got, expected)


@x64
@pytest.mark.parametrize("when", [True, lambda t: t >= 0], ids=["always", "condition"])
def test_a_gradient_that_comes_in_needs_its_loss(when):
    w = jnp.array([0.5, -1.0])
    tx = le_sam(BUDGET, rho_max=RHO_MAX, of_loss=True, when=when)
    value, grads = jax.value_and_grad(row_loss)(w, ROWS)
    call = {"value_fn": lambda w: row_loss(w, ROWS)}
    with pytest.raises(ValueError, match=r"update\(None, state.*value_fn"):
        tx.update(grads, tx.init(w), w, **call)
    got, _ = tx.update(grads, tx.init(w), w, value=value, **call)
    close(got, by_hand(np.asarray(w), ROWS, BUDGET, RHO_MAX))
    # The loss that is told is the one that is used.
    half, _ = tx.update(grads, tx.init(w), w, value=value / 2, **call)
    close(half, by_hand(np.asarray(w), ROWS, BUDGET / 2, RHO_MAX))


@x64
@every_ord
def test_parameters_split_by_hand_have_one_norm(ord):
    mesh = Mesh(np.array(jax.devices()[:4]), ("model",))
    grads = jnp.asarray(random.normal(size=8))
    p = jax.sharding.PartitionSpec("model")

    def climb(**options):
        ascent = loss_equated_ascent(0.3, rho_max=np.inf, ord=ord, **options)
        return lambda g: climb_of(ascent, g, g)

    split = jax.shard_map(
        climb(params_axis_name="model"), mesh=mesh, in_specs=p, out_specs=p
    )
    close(jax.jit(split)(grads), climb()(grads))


def test_a_model_of_nnx_hands_over_its_loss():
    nnx = pytest.importorskip("flax.nnx")
    from optax_sam.nnx import value_and_grad

    model = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
    w = np.float32([0.5, -1.0])
    model.kernel[...] = jnp.asarray(w)[:, None]

    def loss(model, rows):
        return jnp.mean((model(rows)[:, 0] - 1.0) ** 2)

    _, grads = value_and_grad(loss, share())(model, jnp.float32(ROWS))
    expected = by_hand(w, ROWS, BUDGET, RHO_MAX)
    close(grads["kernel"][...], expected, 1e-5)


@pytest.mark.parametrize("product", ["momentum_sam", "stale_sam"])
def test_a_method_without_a_clean_pass_has_no_share(product):
    w, rows = jnp.array([0.5, -1.0]), jnp.float32(ROWS)
    make = getattr(optax_sam, product)
    tx = make(ascent=share())
    with pytest.raises(ValueError, match="leave of_loss out"):
        tx.update(None, tx.init(w), w, value_fn=row_loss, batch=rows)
    tx = make(ascent=loss_equated_ascent(BUDGET, rho_max=RHO_MAX))
    tx.update(None, tx.init(w), w, value_fn=row_loss, batch=rows)


def test_a_loss_for_each_example_is_refused():
    ascent = share()
    with pytest.raises(TypeError, match="scalar"):
        ascent.update(jnp.ones(2), ascent.init(None), value=jnp.ones(8))


def test_diagnostics_without_a_loss_know_none_as_before():
    w, rows = jnp.array([0.5, -1.0]), jnp.float32(ROWS)
    tx = optax_sam.sam(0.1, diagnostics=True)
    grads = jax.grad(row_loss)(w, rows)
    _, state = tx.update(grads, tx.init(w), w, value_fn=lambda w: row_loss(w, rows))
    assert np.isnan(state.diagnostics.loss)


# --- Numbers in the state, and their types -------------------------------------------


def test_budget_and_cap_in_the_state():
    make = optax.inject_hyperparams(le_sam, static_args=("ord",))
    tx = make(budget=2.5, rho_max=1.0)
    w = jnp.float32(START)
    state = tx.init(w)
    update = jax.jit(lambda s: tx.update(None, s, w, value_fn=quadratic)[0])
    for budget, rho_max, rho in ((2.5, 1.0, 0.5), (1.0, 1.0, 0.2), (2.5, 0.1, 0.1)):
        state.hyperparams["budget"] = jnp.float32(budget)
        state.hyperparams["rho_max"] = jnp.float32(rho_max)
        expected = HESSIAN @ (START + rho * np.array([0.6, 0.8]))
        close(update(state), expected, 1e-6)
    assert update._cache_size() == 1
    share = make(budget=0.1, rho_max=1.0, of_loss=True)
    got, _ = share.update(None, share.init(w), w, value_fn=quadratic)
    close(got, HESSIAN @ (START + 0.13 * np.array([0.6, 0.8])), 1e-6)


def test_traced_numbers():
    w = jnp.float32(START)

    def gradient(budget, rho_max):
        ascent = loss_equated_ascent(budget, rho_max=rho_max)
        return optax_sam.value_and_grad(quadratic, ascent)(w)[1]

    both = jax.vmap(gradient)(jnp.array([2.5, 2.5]), jnp.array([1.0, 0.1]))
    for got, rho in zip(both, (0.5, 0.1), strict=True):
        close(got, HESSIAN @ (START + rho * np.array([0.6, 0.8])), 1e-6)


@every_ord
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(ord, dtype):
    """The norm is taken in float32: in float16 it would overflow."""
    grads = {"w": jnp.full((300, 300), 200, dtype), "b": jnp.full(3, -200, dtype)}
    ascent = loss_equated_ascent(50.0, rho_max=np.inf, ord=ord)
    with jax.numpy_dtype_promotion("strict"):
        climb = climb_of(ascent, grads, grads)
    assert {x.dtype for x in climb.values()} == {jnp.dtype(dtype)}
    np.testing.assert_allclose(inner(grads, climb), 50.0, rtol=0.02)


@pytest.mark.parametrize("of_loss", [False, True])
@pytest.mark.parametrize("loss_dtype", [jnp.bfloat16, jnp.float32])
def test_strict_promotion(of_loss, loss_dtype):
    w = {"half": jnp.ones(2, jnp.bfloat16), "whole": jnp.ones(2, jnp.float32)}

    def loss(w):
        return jnp.sum(w["half"]).astype(loss_dtype) + jnp.sum(w["whole"] ** 2).astype(
            loss_dtype
        )

    tx = le_sam(jnp.float32(0.1), rho_max=0.5, of_loss=of_loss, climb_dtype=jnp.float32)
    with jax.numpy_dtype_promotion("strict"):
        got, _ = tx.update(None, tx.init(w), w, value_fn=loss)
    rho = 0.1 * (4 if of_loss else 1) / np.sqrt(2 + 8)
    close(got["whole"], 2 * (1 + rho * 2 / np.sqrt(10)) * np.ones(2), 1e-2)
