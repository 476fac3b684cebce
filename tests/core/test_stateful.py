"""Every method in one's own training loop: its state is carried, aux comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import optax_sam
from optax_sam import stateful_value_and_grad

pytestmark = pytest.mark.usefixtures("x64")
RHO, RATE, STEPS, SIZE = 0.3, 0.1, 6, 8
_random = np.random.default_rng(4)
BATCHES = _random.normal(size=(STEPS, SIZE, 2))


def loss(w, batch, average):
    """As with BatchNorm: a running average of the activations comes back as aux."""
    h = jnp.tanh(batch @ w)
    average = 0.9 * average + 0.1 * jnp.mean(h)
    return jnp.mean((h - 0.5) ** 2), average


def at(w, batch, average):
    (value, average), gradient = jax.value_and_grad(loss, has_aux=True)(
        jnp.asarray(w), batch, average
    )
    return float(value), float(average), np.asarray(gradient)


def unit(x):
    return x / np.linalg.norm(x) if x.any() else x


def momentum(t, w, batch, average, memory):
    v = memory.get("v", 0 * w)
    seen = at(w - RHO * unit(v), batch, average)
    memory["v"] = 0.8 * v + seen[2]
    return seen


def stale(t, w, batch, average, memory):
    seen = at(w + RHO * unit(memory.get("g", 0 * w)), batch, average)
    memory["g"] = seen[2]
    return seen


def le(t, w, batch, average, memory):
    value, average, g = at(w, batch, average)
    rho = min(0.3 * value / np.linalg.norm(g), 0.2)
    return value, average, at(w + rho * unit(g), batch, average)[2]


def look(t, w, batch, average, memory):
    value, average, g = at(w, batch, average)
    if t % 3:
        found = memory["found"]
        return value, average, g + 0.4 * np.linalg.norm(g) * unit(found)
    there = at(w + RHO * unit(g), batch, average)[2]
    memory["found"] = there - (there @ unit(g)) * unit(g)
    return value, average, there


def friendly(t, w, batch, average, memory):
    value, average, g = at(w, batch, average)
    m = memory.get("m")
    d = g if m is None else g - m
    memory["m"] = g if m is None else 0.9 * m + 0.1 * g
    return value, average, at(w + RHO * unit(d), batch, average)[2]


def shaped(t, w, batch, average, memory):
    value, average, g = at(w, batch, average)
    memory["v"] = 0.9 * memory.get("v", 0 * w) + 0.1 * g**2
    u = g / (np.sqrt(memory["v"] / (1 - 0.9 ** (t + 1))) + 1e-8)
    return value, average, at(w + RHO * unit(u), batch, average)[2]


def preconditioned(**options):
    """The recipe's chain, with a decay that moves within six steps."""
    shape = optax.scale_by_rms(0.9, eps_in_sqrt=False, bias_correction=True)
    ascent = optax.chain(shape, optax_sam.steepest_ascent(RHO))
    return optax_sam.sharpness_aware(ascent, **options)


METHODS = {
    "preconditioned": (preconditioned, shaped),
    "momentum_sam": (lambda **o: optax_sam.momentum_sam(RHO, decay=0.8, **o), momentum),
    "stale_sam": (lambda **o: optax_sam.stale_sam(RHO, **o), stale),
    "le_sam": (lambda **o: optax_sam.le_sam(0.3, rho_max=0.2, of_loss=True, **o), le),
    "look_sam": (lambda **o: optax_sam.look_sam(RHO, k=3, alpha=0.4, **o), look),
    "friendly_sam": (lambda **o: optax_sam.friendly_sam(RHO, **o), friendly),
}


def by_loop(method):
    w, average, memory, seen = np.array([0.5, -1.0]), 0.0, {}, []
    for t, batch in enumerate(BATCHES):
        value, average, g = method(t, w, batch, average, memory)
        w = w - RATE * g
        seen.append([value, average, *w])
    return seen


def by_library(tx):
    init, grad_fn = stateful_value_and_grad(loss, tx, has_aux=True)
    w, average, seen = jnp.array([0.5, -1.0]), jnp.zeros(()), []
    state, step = init(w), jax.jit(grad_fn)
    for batch in BATCHES:
        (value, average), g, state = step(state, w, batch, average)
        w = w - RATE * g
        seen.append([value, average, *w])
    return seen


@pytest.mark.parametrize("name", METHODS)
def test_aux_comes_back_once_a_step(name):
    make, method = METHODS[name]
    np.testing.assert_allclose(by_library(make()), by_loop(method), rtol=1e-11)


@pytest.mark.parametrize("name", METHODS)
def test_on_a_mesh_all_parts_of_one_example_each(name):
    """Sub-batches that are equal change nothing, and aux is averaged over them."""
    make, _ = METHODS[name]
    mesh = Mesh(np.array(jax.devices()), ("data",))
    for options in ({"microbatch_size": 2}, {"axis_name": "data", "mesh": mesh}):
        init, grad_fn = stateful_value_and_grad(loss, make(**options), has_aux=True)
        same = jnp.broadcast_to(BATCHES[0, :1], (SIZE, 2))
        w = jnp.array([0.5, -1.0])
        (value, average), g, _ = jax.jit(grad_fn)(init(w), w, same, jnp.zeros(()))
        whole_init, whole = stateful_value_and_grad(loss, make(), has_aux=True)
        (v, a), h, _ = whole(whole_init(w), w, same, jnp.zeros(()))
        np.testing.assert_allclose([value, average, *g], [v, a, *h], rtol=1e-12)


def test_aux_that_is_no_array_comes_back():
    def named(w, batch):
        return jnp.sum((batch @ w) ** 2), {"name": "clean", "sum": jnp.sum(batch)}

    tx = optax_sam.sam(RHO, when=optax_sam.every_k(2))
    init, grad_fn = stateful_value_and_grad(named, tx, has_aux=True)
    w = jnp.ones(2)
    (_, aux), _, _ = grad_fn(init(w), w, jnp.ones((3, 2)))
    assert aux["name"] == "clean"
    assert aux["sum"] == 6


@pytest.mark.parametrize(
    "tx", [optax.chain(optax_sam.sam(), optax.sgd(0.1)), optax.sgd(0.1), 0.05]
)
def test_what_is_no_product_is_refused(tx):
    with pytest.raises(TypeError, match="product"):
        stateful_value_and_grad(loss, tx)


def test_arguments_in_another_order_are_refused():
    init, grad_fn = stateful_value_and_grad(loss, optax_sam.sam(), has_aux=True)
    w = jnp.ones(2)
    with pytest.raises(TypeError, match="state that init"):
        grad_fn(w, init(w), BATCHES[0], 0.0)


@pytest.mark.parametrize("out", [(1.0,), (1.0, {"a": 1}, {"b": 2})])
def test_a_loss_that_returns_no_pair_is_refused(out):
    """What stands behind the aux would be dropped."""
    init, fn = optax_sam.stateful_value_and_grad(
        lambda w: (jnp.sum(w**2), *out[1:]), optax_sam.sam(0.1), has_aux=True
    )
    w = jnp.array([3.0, 1.0])
    with pytest.raises(TypeError, match=r"\(value, aux\)"):
        fn(init(w), w)


def test_a_key_in_the_aux_of_sub_batches_is_refused():
    init, fn = optax_sam.stateful_value_and_grad(
        lambda w, x, key: (jnp.mean(x) * jnp.sum(w**2), key),
        optax_sam.m_sam(0.5, microbatch_size=2),
        has_aux=True,
    )
    w = jnp.array([3.0, 1.0])
    with pytest.raises(TypeError, match="random key"):
        fn(init(w), w, jnp.ones(4), jax.random.key(0))
