"""What a broken batch does, and does not do: every line of docs/faults.md is a test.

`docs/write_faults.py` writes the page, and names the tests.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import write_faults
from problems import quick_jit
from table import flat

import optax_sam
from optax_sam import steepest_ascent

RHO, RATE, EXAMPLES, M = 0.1, 0.1, 8, 4
rng = np.random.default_rng(0)
PARAMS = {"w": np.float32([0.5, -1.0, 0.25]), "b": np.float32(0.1)}


def batch(seed):
    x = np.random.default_rng(seed).normal(size=(EXAMPLES, 4))
    return {"x": np.float32(x[:, :3]), "y": np.float32(x[:, 3])}


GOOD = [batch(seed) for seed in range(4)]
WITH_NAN = batch(9) | {"y": np.float32([np.nan, *[1] * (EXAMPLES - 1)])}


def loss(params, batch):
    return jnp.mean(losses(params, batch))


def losses(params, batch):
    return (jnp.tanh(batch["x"] @ params["w"]) + params["b"] - batch["y"]) ** 2


# Where a product takes an ascent with a state of its own, and where it is the state.
PRODUCTS = {
    "sam": lambda: optax_sam.sam(RHO),
    "sam, a schedule": lambda: optax_sam.sam(optax.linear_schedule(0.0, RHO, 3)),
    "asam": lambda: optax_sam.asam(RHO),
    "m_sam": lambda: optax_sam.m_sam(RHO, microbatch_size=M),
    "gsam": lambda: optax_sam.gsam(RHO),
    "look_sam": lambda: optax_sam.look_sam(RHO, k=2),
    "friendly_sam": lambda: optax_sam.friendly_sam(RHO),
    "momentum_sam": lambda: optax_sam.momentum_sam(RHO),
    "esam": lambda: optax_sam.esam(RHO, beta=1.0, key=jax.random.key(0)),
    "random_perturbation": lambda: optax_sam.random_perturbation(
        RHO, key=jax.random.key(0)
    ),
}
#: These take their gradients themselves.
INSIDE = ("m_sam", "momentum_sam", "esam", "random_perturbation")


@functools.cache
def step_of(name):
    """One step of the product, with `apply_if_finite` behind it."""
    tx = optax.chain(
        PRODUCTS[name](), optax.apply_if_finite(optax.sgd(RATE, momentum=0.9), 3)
    )

    @quick_jit
    def step(params, state, batch, fault):
        def value_fn(p, batch):
            far = optax.tree.norm(jax.tree.map(jnp.subtract, p, params)) > 0
            of_each = losses if name == "esam" else loss
            return of_each(p, batch) * jnp.where(far, fault, 1.0)

        grads = jax.grad(lambda p: jnp.mean(value_fn(p, batch)))(params)
        grads = None if name in INSIDE else grads
        updates, state = tx.update(grads, state, params, value_fn=value_fn, batch=batch)
        return optax.apply_updates(params, updates), state

    return tx, step


def train(name, steps):
    """The parameters after all `(batch, fault)`, and the state."""
    tx, step = step_of(name)
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = tx.init(params)
    for examples, fault in steps:
        params, state = step(params, state, examples, fault)
    return params, state


def plain(batches):
    return [(examples, 1.0) for examples in batches]


def survives(name, bad):
    """Skipped, and the training goes on; what is learnt after it is finite and new."""
    before, after = plain(GOOD[:2]), plain(GOOD[2:])
    good, state = train(name, before)
    kept, broken = train(name, [*before, bad])
    chex.assert_trees_all_equal(kept, good)
    assert broken[-1].total_notfinite == 1
    chex.assert_trees_all_equal(broken[-1].inner_state, state[-1].inner_state)
    for leaf in jax.tree.leaves(broken):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim:
            assert np.isfinite(leaf).all(), "a state that NaN would never leave"
    last, _ = train(name, [*before, bad, *after])
    assert np.isfinite(flat(last)).all()
    return last, train(name, before + after)[0]


#: Products whose state does not count steps: as if the batch had never been.
UNMOVED = ("sam", "asam", "m_sam", "gsam")


@pytest.mark.parametrize("name", PRODUCTS)
def test_batch_with_nan(name):
    last, without = survives(name, (WITH_NAN, 1.0))
    if name in UNMOVED:
        chex.assert_trees_all_equal(last, without)


@pytest.mark.parametrize("name", PRODUCTS)
def test_loss_that_is_infinite_at_the_climbed_point_only(name):
    last, without = survives(name, (GOOD[0], jnp.inf))
    if name in UNMOVED:
        chex.assert_trees_all_equal(last, without)


REMEMBERS = ("friendly_sam", "momentum_sam", "look_sam")


@pytest.mark.parametrize("name", REMEMBERS)
def test_sam_is_still_on_after_a_batch_with_nan(name):
    # A gradient average that held NaN would turn every climb to zero, without a word.
    _, state = train(name, [*plain(GOOD[:2]), (WITH_NAN, 1.0)])
    assert longest_climb(PRODUCTS[name](), state[0], name in INSIDE) == pytest.approx(
        RHO, rel=1e-4
    )


def longest_climb(tx, state, inside=False):
    """How far from the parameters the loss is evaluated, in two steps."""
    seen = []

    def value_fn(p, batch):
        jax.debug.callback(lambda p: seen.append(jax.tree.map(np.asarray, p)), p)
        return loss(p, batch)

    grads = None if inside else jax.grad(loss)(PARAMS, GOOD[3])
    for _ in range(2):  # LookSAM looks at every second step
        _, state = tx.update(grads, state, PARAMS, value_fn=value_fn, batch=GOOD[3])
    jax.effects_barrier()
    return max(np.linalg.norm(flat(p) - flat(PARAMS)) for p in seen)


@pytest.mark.parametrize(("guarded", "climb"), [(False, 0.0), (True, RHO)])
def test_an_average_of_ones_own_wants_a_guard(guarded, climb):
    ascent = optax.chain(optax.ema(0.9), steepest_ascent(RHO))
    tx = optax_sam.sharpness_aware(
        optax.apply_if_finite(ascent, 5) if guarded else ascent
    )
    grads = jax.grad(loss)(PARAMS, WITH_NAN)
    value_fn = functools.partial(loss, batch=WITH_NAN)
    _, state = tx.update(grads, tx.init(PARAMS), PARAMS, value_fn=value_fn)
    assert longest_climb(tx, state) == pytest.approx(climb, rel=1e-4)


def gradient_of_parts(mean_of_part, parts, params=PARAMS):
    """The plain loop over sub-batches, each with a climb of its own."""
    grad_fn = jax.grad(mean_of_part)
    total = jax.tree.map(np.zeros_like, params)
    for part in parts:
        grads = grad_fn(params, part)
        size = np.linalg.norm(flat(grads))
        climbed = params
        if size > 0:
            climbed = jax.tree.map(lambda w, g, s=size: w + RHO * g / s, params, grads)
        total = jax.tree.map(
            lambda t, g: t + g / len(parts), total, grad_fn(climbed, part)
        )
    return total


def split(batch, count):
    return [
        jax.tree.map(lambda x, i=i: np.split(np.asarray(x), count)[i], batch)
        for i in range(count)
    ]


def padded():
    """Five true examples, cut in four: the last part is all padding."""
    return batch(3) | {"mask": np.float32([1, 1, 1, 1, 1, 0, 0, 0])}


def m_sam_of(loss, batch, **where):
    grad_fn = optax_sam.value_and_grad(loss, steepest_ascent(RHO))
    _, grads = jax.jit(optax_sam.m_sharpness(grad_fn, **where))(PARAMS, batch)
    return grads


def four_devices():
    mesh = jax.make_mesh(
        (4,),
        ("data",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:4],
    )
    return {"axis_name": "data", "mesh": mesh}


PLACES = {
    "one device": lambda: {"microbatch_size": 2},
    "four devices": four_devices,
}


@pytest.mark.parametrize("place", PLACES)
def test_mean_over_the_true_examples_of_a_part_without_any(place):
    def masked_mean(params, part):
        return jnp.sum(part["mask"] * losses(params, part)) / jnp.sum(part["mask"])

    grads = m_sam_of(masked_mean, padded(), **PLACES[place]())
    assert not np.isfinite(flat(grads)).any()  # for `apply_if_finite` to see


@pytest.mark.parametrize("place", PLACES)
def test_guarded_mean_counts_a_part_without_examples_as_zero(place):
    def guarded_mean(params, part):
        count = jnp.maximum(jnp.sum(part["mask"]), 1)
        return jnp.sum(part["mask"] * losses(params, part)) / count

    grads = m_sam_of(guarded_mean, padded(), **PLACES[place]())
    parts = split(padded(), 4)
    chex.assert_trees_all_close(
        grads, gradient_of_parts(guarded_mean, parts), rtol=1e-5
    )
    # A quarter of the weight is lost on nothing.
    true_parts = gradient_of_parts(guarded_mean, parts[:3])
    chex.assert_trees_all_close(
        grads, jax.tree.map(lambda g: 3 / 4 * g, true_parts), rtol=1e-5
    )


@pytest.mark.parametrize("place", PLACES)
def test_weights_of_the_whole_batch_give_every_example_its_share(place):
    examples = padded()
    weights = examples["mask"] * (EXAMPLES / examples["mask"].sum())

    def weighted_mean(params, part):
        return jnp.mean(part["weights"] * losses(params, part))

    grads = m_sam_of(weighted_mean, examples | {"weights": weights}, **PLACES[place]())
    # By hand: the sum over true examples, each at its part's climb, over their count.
    expected = jax.tree.map(np.zeros_like, PARAMS)
    for part, count in zip(split(examples, 4), (2, 2, 1), strict=False):
        true = jax.tree.map(lambda x, n=count: x[:n], part)
        one = gradient_of_parts(loss, [true])
        expected = jax.tree.map(lambda t, g, n=count: t + n * g / 5, expected, one)
    chex.assert_trees_all_close(grads, expected, rtol=1e-5)


def test_fall_back_to_the_clean_gradient():
    def finite_or_clean(clean, climbed):
        finite = jnp.isfinite(optax.tree.norm(climbed))
        return jax.tree.map(lambda c, g: jnp.where(finite, g, c), clean, climbed)

    def breaks(params):
        moved = jnp.any(params["w"] != PARAMS["w"])
        return loss(params, GOOD[0]) * jnp.where(moved, jnp.inf, 1.0)

    tx = optax_sam.sharpness_aware(steepest_ascent(RHO), combine=finite_or_clean)
    grads = jax.grad(loss)(PARAMS, GOOD[0])
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS, value_fn=breaks)
    chex.assert_trees_all_equal(updates, grads)
    fine = functools.partial(loss, batch=GOOD[0])
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS, value_fn=fine)
    expected = gradient_of_parts(loss, [GOOD[0]])
    chex.assert_trees_all_close(updates, expected, rtol=1e-5)


def test_without_a_guard_the_fault_is_in_the_open():
    # SAM does not hide it: what comes out is not finite, so that someone can judge.
    for name in ("sam", "m_sam"):
        tx = PRODUCTS[name]()
        grads = None if name in INSIDE else jax.grad(loss)(PARAMS, WITH_NAN)
        updates, _ = tx.update(
            grads, tx.init(PARAMS), PARAMS, value_fn=loss, batch=WITH_NAN
        )
        assert not np.isfinite(flat(updates)).all()


def test_patience_ends():
    # After more than 3 broken batches in a row Optax lets the next one through.
    name = "sam"
    kept, _ = train(name, plain([WITH_NAN] * 3))
    chex.assert_trees_all_equal(kept, PARAMS)
    lost, _ = train(name, plain([WITH_NAN] * 4))
    assert not np.isfinite(flat(lost)).any()


# --- The page ----------------------------------------------------------------------


def test_the_page_names_every_test_above():
    named = [name for fault in write_faults.FAULTS for name in fault.tests]
    here = {name for name in globals() if name.startswith("test_")}
    about_the_page = {"test_the_page_names_every_test_above", "test_page_is_generated"}
    assert sorted(named) == sorted(here - about_the_page)


def test_page_is_generated():
    page = write_faults.PAGE.read_text(encoding="utf-8")
    assert page == write_faults.page(), "run `python docs/write_faults.py`"
