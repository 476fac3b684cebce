"""The preconditioned climb of the recipes: Optax's pieces, against loops in NumPy."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pages
import pytest
from jax.sharding import AxisType, PartitionSpec
from table import flat

import optax_sam
from optax_sam import steepest_ascent

RHO, DECAY, EPS, LEARNING_RATE, STEPS, M = 0.3, 0.9, 1e-8, 0.1, 5, 4
CURVATURE = np.array([1.0, 4.0, 0.25])
rng = np.random.default_rng(0)
START = 2 + rng.normal(size=3)
BATCH = rng.normal(size=(16, 3))


def preconditioned(rho=RHO):
    """The recipe, with a decay that moves within five steps."""
    precondition = optax.scale_by_rms(
        decay=DECAY, eps=EPS, eps_in_sqrt=False, bias_correction=True
    )
    return optax.chain(precondition, steepest_ascent(rho))


def loss(w, batch):
    return 0.5 * jnp.mean((batch - w) ** 2 @ CURVATURE.astype(np.float32))


def gradient(w, batch):
    return CURVATURE * (w - batch).mean(0)


def loop(batches):
    """The parameters and the second moment, after five steps in NumPy."""
    w, moment = START, np.zeros(3)
    for step in range(1, STEPS + 1):
        climbed = []
        for batch in batches:
            g = gradient(w, batch)
            seen = DECAY * moment + (1 - DECAY) * g**2
            u = g / (np.sqrt(seen / (1 - DECAY**step)) + EPS)
            climbed.append(gradient(w + RHO * u / np.linalg.norm(u), batch))
        mean = np.mean([gradient(w, batch) for batch in batches], 0)
        moment = DECAY * moment + (1 - DECAY) * mean**2
        w = w - LEARNING_RATE * np.mean(climbed, 0)
    return w, moment


def train(tx, run=lambda step: step):
    @jax.jit
    @run
    def step(params, state, batch):
        updates, state = tx.update(None, state, params, value_fn=loss, batch=batch)
        return optax.apply_updates(params, updates), state

    params, batch = jnp.float32(START), jnp.float32(BATCH)
    state = tx.init(params)
    for _ in range(STEPS):
        params, state = step(params, state, batch)
    return params, optax.tree.get(state, "nu")


def chain(**options):
    ascent = optax_sam.sharpness_aware(preconditioned(), **options)
    return optax.chain(ascent, optax.sgd(LEARNING_RATE))


def test_the_batch_equals_the_loop():
    params, moment = train(chain())
    expected, second = loop([BATCH])
    np.testing.assert_allclose(params, expected, rtol=1e-5)
    np.testing.assert_allclose(moment, second, rtol=1e-5)


def mesh():
    return jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[:4])


def by_shard_map(step):
    whole, cut = PartitionSpec(), PartitionSpec("data")
    specs = {"in_specs": (whole, whole, cut), "out_specs": (whole, whole)}
    return jax.shard_map(step, mesh=mesh(), **specs)


PLACEMENTS = {
    "micro-batches": lambda: train(chain(microbatch_size=M)),
    "devices": lambda: train(chain(axis_name="data"), by_shard_map),
    "both": lambda: train(chain(axis_name="data", microbatch_size=M), by_shard_map),
    "mesh": lambda: train(chain(axis_name="data", mesh=mesh())),
    "scanned": lambda: train(chain(microbatch_size=M, scan_passes=True)),
}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_sub_batches_equal_the_loop_wherever_they_are(placement):
    params, moment = PLACEMENTS[placement]()
    expected, second = loop(np.split(BATCH, 4))
    np.testing.assert_allclose(params, expected, rtol=1e-5)
    np.testing.assert_allclose(moment, second, rtol=1e-5)


def test_with_the_identity_it_is_sam():
    ascents = optax.chain(optax.identity(), steepest_ascent(RHO)), steepest_ascent(RHO)
    products = [optax_sam.sharpness_aware(ascent) for ascent in ascents]
    one, other = (
        train(optax.chain(product, optax.sgd(LEARNING_RATE)))[0] for product in products
    )
    np.testing.assert_array_equal(one, other)


def test_its_climb_is_not_along_the_gradient():
    # After one step it is that along the gradient's signs, as the first of Adam is.
    ascent, g = preconditioned(), jnp.array([3.0, -4.0, 0.5])
    climb, _ = ascent.update(g, ascent.init(g))
    np.testing.assert_allclose(climb, RHO * np.sign(g) / np.sqrt(3), rtol=1e-6)


def test_a_step_without_a_climb_counts_in_the_average():
    _, moment = train(chain(when=lambda step: step < 0))
    w, second = START, np.zeros(3)
    for _ in range(STEPS):
        g = gradient(w, BATCH)
        second = DECAY * second + (1 - DECAY) * g**2
        w = w - LEARNING_RATE * g
    np.testing.assert_allclose(moment, second, rtol=1e-5)


# --- As the page writes it ------------------------------------------------------------


@pytest.fixture(scope="module")
def page():
    return pages.run(Path(__file__).parents[2] / "docs" / "recipes.md")


@pytest.mark.slow
def test_the_recipe_is_this_chain(page):
    ascent = page["preconditioned"](0.3)
    state, moment = ascent.init(jnp.zeros(3)), np.zeros(3)
    for step, g in enumerate(BATCH[:3], 1):
        climb, state = ascent.update(jnp.float32(g), state)
        moment = 0.999 * moment + 0.001 * g**2
        u = g / (np.sqrt(moment / (1 - 0.999**step)) + EPS)
        np.testing.assert_allclose(climb, 0.3 * u / np.linalg.norm(u), rtol=1e-4)


@pytest.mark.slow
def test_the_optimizers_own_moment(page):
    params, state = page["params"], page["adam_state"]
    grads = jax.grad(page["loss_fn"])(params, page["batch"])
    moment = optax.tree.get(state, "nu")
    shaped = jax.tree.map(lambda g, v: g / (np.sqrt(v) + EPS), grads, moment)
    size = np.linalg.norm(flat(shaped))
    point = jax.tree.map(lambda w, u: w + 0.05 * u / size, params, shaped)
    expected = jax.grad(page["loss_fn"])(point, page["batch"])
    np.testing.assert_allclose(flat(page["shaped_grads"]), flat(expected), rtol=1e-4)
