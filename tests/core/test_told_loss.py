"""An ascent that takes `value=` is told the clean loss or nothing: its state too."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam

W = jnp.array([3.0, 1.0])
BATCH = jnp.array([1.0, 3.0, 5.0, 7.0])
NOTHING = -1.0
ORDINARY = optax_sam.steepest_ascent(0.5)


def keeping():
    """SAM's ascent, whose state is the loss that it was told last."""

    def update(updates, state, params=None, *, value=None, **_):
        climb, _ = ORDINARY.update(updates, optax.EmptyState())
        return climb, state if value is None else jnp.asarray(value, jnp.float32)

    return optax.GradientTransformationExtraArgs(
        lambda params: jnp.float32(NOTHING), update
    )


def loss(w, x=None):
    scale = 1.0 if x is None else jnp.mean(x)
    return scale * jnp.sum(w**2)


def losses(w, x):
    return x * jnp.sum(w**2)


def told(state):
    """What the ascent keeps, however deep."""
    return float(jax.tree.leaves(getattr(state, "method", state))[-1])


def stepped(tx, fn=loss, updates=None, **extra):
    return told(tx.update(updates, tx.init(W), W, value_fn=fn, **extra)[1])


PRODUCTS = {
    "sam": lambda ascent, **o: optax_sam.sharpness_aware(ascent, **o),
    "look_sam": lambda ascent, **o: optax_sam.look_sam(ascent=ascent, **o),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_clean_loss(name):
    tx, g = PRODUCTS[name](keeping()), jax.grad(loss)(W)
    assert stepped(tx) == loss(W)
    assert stepped(tx, updates=g, value=loss(W)) == loss(W)


@pytest.mark.parametrize("name", PRODUCTS)
def test_nothing_where_a_gradient_comes_in_alone(name):
    assert stepped(PRODUCTS[name](keeping()), updates=jax.grad(loss)(W)) == NOTHING


def test_that_of_all_sub_batches():
    tx = optax_sam.sharpness_aware(keeping(), microbatch_size=1)
    assert stepped(tx, batch=BATCH) == pytest.approx(float(loss(W, BATCH)))


@pytest.mark.parametrize("climbs", [True, jnp.array(True)])
def test_that_of_the_part_that_climbs(climbs):
    tx = optax_sam.partial_climb(ascent=keeping(), fraction=0.5, when=climbs)
    assert stepped(tx, batch=BATCH) == loss(W, BATCH[:2])


@pytest.mark.parametrize("climbs", [False, jnp.array(False)])
def test_that_of_the_batch_where_no_part_climbs(climbs):
    tx = optax_sam.partial_climb(ascent=keeping(), fraction=0.5, when=climbs)
    assert stepped(tx, batch=BATCH) == loss(W, BATCH)


def test_not_that_of_the_examples_that_are_selected():
    tx = optax_sam.esam(ascent=keeping(), key=jax.random.key(0), gamma=0.5)
    state = tx.update(None, tx.init(W), W, value_fn=losses, batch=BATCH)[1]
    kept = [x for x in jax.tree.leaves(state.method.method.ascent) if x.ndim == 0]
    assert any(np.allclose(x, loss(W, BATCH)) for x in kept if x.dtype == jnp.float32)
