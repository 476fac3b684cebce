"""On which steps: one counter, clocks that follow every update, and Python's bools."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import HESSIAN, START, quadratic

import optax_sam
from optax_sam import every_k, from_step, look_sam, sam, value_and_grad

pytestmark = pytest.mark.usefixtures("x64")
RHO, STEPS = 0.3, 8
W = np.asarray(START)


def gradients(tx, steps=STEPS):
    """What comes out at the same point, step by step."""
    w, seen = jnp.asarray(W), []
    state = tx.init(w)
    update = jax.jit(lambda s: tx.update(None, s, w, value_fn=quadratic))
    for _ in range(steps):
        gradient, state = update(state)
        seen.append(np.asarray(gradient))
    return np.array(seen)


CLEAN = HESSIAN @ W


def climbed(rho):
    return HESSIAN @ (W + rho * CLEAN / np.linalg.norm(CLEAN))


def expected(climbs, rho_of=lambda t: RHO):
    return np.array([climbed(rho_of(t)) if climbs(t) else CLEAN for t in range(STEPS)])


def assert_same(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_the_order_of_two_conditions_does_not_matter():
    # Two counters, one inside of the other, never met: 0.1.0 did not climb at all.
    one, two = every_k(2), from_step(5)
    first = gradients(sam(RHO, when=lambda t: one(t) & two(t)))
    second = gradients(sam(RHO, when=lambda t: two(t) & one(t)))
    assert_same(first, expected(lambda t: t % 2 == 0 and t >= 5))
    assert_same(second, first)
    assert len(np.unique(first, axis=0)) == 2, "some steps climb, some do not"


def test_a_schedule_sees_every_update():
    tx = sam(lambda t: RHO / (1 + t), when=every_k(3))
    want = expected(lambda t: t % 3 == 0, lambda t: RHO / (1 + t))
    assert_same(gradients(tx), want)


def test_an_average_sees_every_update():
    tx = optax_sam.friendly_sam(RHO, sigma=0.5, decay=0.8, when=every_k(2))
    w, average = jnp.asarray(W), None
    state = tx.init(w)
    for t in range(STEPS):
        g = HESSIAN @ np.asarray(w)
        d = g if average is None else g - 0.5 * average
        climb = RHO * d / np.linalg.norm(d) if t % 2 == 0 else 0
        out, state = tx.update(None, state, w, value_fn=quadratic)
        assert_same(out, HESSIAN @ (np.asarray(w) + climb))
        average = g if average is None else 0.8 * average + 0.2 * g
        w = w - 0.1 * out


def test_a_random_stream_sees_every_update():
    ascent = optax_sam.random_ascent(RHO, key=jax.random.key(2))
    always = gradients(optax_sam.sharpness_aware(ascent))
    some = gradients(optax_sam.sharpness_aware(ascent, when=every_k(3)))
    assert_same(some[::3], always[::3])
    assert_same(some[1::3], np.broadcast_to(CLEAN, some[1::3].shape))


def test_look_sam_looks_where_both_say_so():
    tx = look_sam(RHO, k=2, alpha=0.5, when=from_step(3))
    got = gradients(tx)
    assert_same(got[:4], np.broadcast_to(CLEAN, (4, 2)))  # until the first look
    assert_same(got[4], climbed(RHO))
    assert np.abs(got[5] - CLEAN).max() > 0.01  # and then what it found


def test_in_front_of_multi_steps_the_condition_counts_its_updates():
    condition = every_k(2)
    tx = optax.chain(
        sam(RHO, when=lambda t: condition(t // 3)),
        optax.MultiSteps(optax.identity(), 3).gradient_transformation(),
    )
    w, seen = jnp.asarray(W), []
    state = tx.init(w)
    for _ in range(9):
        out, state = tx.update(None, state, w, value_fn=quadratic)
        seen.append(np.asarray(out))
    # Three updates are one step of the optimizer: it climbs, stays, and climbs.
    want = [climbed(RHO), CLEAN, climbed(RHO)]
    np.testing.assert_allclose(seen[2::3], want, rtol=1e-6)  # Optax sums in float32


@pytest.mark.parametrize("product", [sam, look_sam, optax_sam.momentum_sam])
def test_a_bool_of_python_leaves_no_condition(product):
    always, never = product(RHO, when=True), product(RHO, when=False)
    w = jnp.asarray(W)
    for tx in (always, never):
        step = functools.partial(tx.update, value_fn=quadratic)
        text = str(jax.make_jaxpr(step)(None, tx.init(w), w))
        assert ("cond" in text) == (product is look_sam and tx is always)
    # One structure of state, so that two compiled steps can share it.
    shapes = [jax.eval_shape(tx.init, w) for tx in (always, never)]
    chex.assert_trees_all_equal_structs(*shapes)
    assert_same(gradients(never), np.broadcast_to(CLEAN, (STEPS, 2)))


def test_true_is_the_default():
    assert_same(gradients(sam(RHO, when=True)), gradients(sam(RHO)))


@pytest.mark.parametrize("now", [True, False])
@pytest.mark.parametrize("second_order", [False, True])
def test_in_place_of_value_and_grad(now, second_order):
    ascent = optax_sam.steepest_ascent(RHO)

    def gradient(now):
        options = {"when": now, "second_order": second_order}
        return value_and_grad(quadratic, ascent, **options)(jnp.asarray(W))

    static, traced = gradient(now), jax.jit(gradient)(now)
    chex.assert_trees_all_close(static, traced, rtol=1e-12)
    assert (np.abs(static[1] - CLEAN).max() > 1e-3) == now


def test_diagnostics_count_what_was_made():
    tx = sam(RHO, when=every_k(2), diagnostics=True)
    w = jnp.asarray(W)
    state, seen = tx.init(w), []
    for _ in range(3):
        _, state = tx.update(None, state, w, value_fn=quadratic)
        seen.append(optax.tree.get(state, "diagnostics"))
    assert [int(d.num_gradients) for d in seen] == [2, 3, 5]
    assert [float(d.climb_norm) > 0 for d in seen] == [True, False, True]


@pytest.mark.parametrize(
    ("when", "words"),
    [
        (optax.sgd(0.1), "every_k"),
        (5, "function of the step"),
        (lambda step: step, "comparison"),
        (lambda step: step > jnp.zeros(2), "comparison"),
    ],
)
def test_refused(when, words):
    with pytest.raises(TypeError, match=words):
        gradients(sam(RHO, when=when))


def test_a_function_in_place_of_value_and_grad_is_refused():
    with pytest.raises(TypeError, match="stateful_value_and_grad"):
        value_and_grad(quadratic, optax_sam.steepest_ascent(), when=every_k(2))
