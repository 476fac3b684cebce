"""Diagnostics: what they say, that they cost nothing, and what trouble looks like."""

import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from problems import START, TANH_BATCH, TANH_START, quadratic, quick_jit, tanh_loss
from test_cost import CLEAN, MATMULS, compiled, deep_loss, flops

import optax_sam

RHO = 0.5
#: On the base quadratic: g = (3, 4), the climb (0.3, 0.4), g_s = (3.3, 5.6).
EXPECTED = {
    "loss": 6.5,
    "climbed_loss": 6.5 + 2.865,
    "sharpness": 2.865,
    "grad_norm": 5.0,
    "climbed_grad_norm": 6.5,
    "climb_norm": 0.5,
    "cosine": (3 * 3.3 + 4 * 5.6) / (5 * 6.5),
    "num_gradients": 2,
}


def seen(state):
    return optax.tree.get(state, "diagnostics")


def as_dict(diagnostics):
    return {name: float(x) for name, x in diagnostics._asdict().items()}


def door_1(tx, w, loss=quadratic, **options):
    value, grads = jax.value_and_grad(loss)(w)
    _, state = tx.update(grads, tx.init(w), w, value_fn=loss, value=value, **options)
    return state


def test_door_1(x64):
    tx = optax.chain(optax_sam.sam(RHO, diagnostics=True), optax.sgd(0.1))
    state = door_1(tx, START)
    assert as_dict(seen(state)) == pytest.approx(EXPECTED, rel=1e-12)


def test_door_1_without_the_value(x64):
    tx = optax_sam.sam(RHO, diagnostics=True)
    _, state = tx.update(
        jax.grad(quadratic)(START), tx.init(START), START, value_fn=quadratic
    )
    known = as_dict(seen(state))
    assert np.isnan([known.pop("loss"), known.pop("sharpness")]).all()
    want = {name: EXPECTED[name] for name in known}
    assert known == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("has_aux", [False, True])
def test_door_2(has_aux, x64):
    def loss(w):
        return (quadratic(w), {"seen": w}) if has_aux else quadratic(w)

    ascent = optax_sam.steepest_ascent(RHO)
    grad_fn = optax_sam.value_and_grad(loss, ascent, has_aux=has_aux, diagnostics=True)
    (value, aux), gradient = grad_fn(START)
    if has_aux:
        aux, diagnostics = aux
        np.testing.assert_array_equal(aux["seen"], START)
    else:
        diagnostics = aux
    np.testing.assert_allclose(gradient, (3.3, 5.6), rtol=1e-12)
    assert value == 6.5
    assert as_dict(diagnostics) == pytest.approx(EXPECTED, rel=1e-12)


def test_second_order_counts_what_it_costs(x64):
    ascent = optax_sam.steepest_ascent(RHO)
    grad_fn = optax_sam.value_and_grad(
        quadratic, ascent, second_order=True, diagnostics=True
    )
    (_, diagnostics), gradient = grad_fn(START)
    np.testing.assert_allclose(gradient, (3.2424, 5.7728), rtol=1e-12)
    assert diagnostics.num_gradients == 4
    assert diagnostics.climbed_loss == pytest.approx(EXPECTED["climbed_loss"])


def test_gradients_are_counted_over_steps_and_climbs(x64):
    when = optax_sam.every_k(2)
    tx = optax_sam.sam(RHO, num_steps=3, diagnostics=True, when=when)
    state = tx.init(START)
    for _ in range(3):  # 4 gradients, 1, 4
        grads = jax.grad(quadratic)(START)
        _, state = tx.update(grads, state, START, value_fn=quadratic)
    assert seen(state).num_gradients == 9


@pytest.mark.parametrize("num_steps", [1, 2])
def test_second_order_counts_each_step_of_the_climb(num_steps, x64):
    grad_fn = optax_sam.value_and_grad(
        quadratic,
        optax_sam.steepest_ascent(RHO),
        second_order=True,
        num_steps=num_steps,
        diagnostics=True,
    )
    (_, diagnostics), _ = grad_fn(START)
    assert diagnostics.num_gradients == 1 + 3 * num_steps


@pytest.mark.parametrize("in_chain", [False, True])
def test_without_a_gradient_the_value_is_known(in_chain, x64):
    """The clean pass is made inside, so nobody has to hand in its value."""
    tx = optax_sam.sam(RHO, diagnostics=True)
    tx = optax.chain(tx, optax.sgd(0.1)) if in_chain else tx
    _, state = tx.update(None, tx.init(START), START, value_fn=quadratic)
    assert as_dict(seen(state)) == pytest.approx(EXPECTED, rel=1e-12)


def test_combine_is_not_what_is_reported(x64):
    """The climbed gradient is seen before it is mixed."""
    tx = optax_sam.gsam(RHO, 1.0, diagnostics=True)
    assert as_dict(seen(door_1(tx, START))) == pytest.approx(EXPECTED, rel=1e-12)


def test_in_a_scan_the_state_keeps_its_form():
    tx = optax.chain(optax_sam.sam(RHO, diagnostics=True), optax.sgd(0.1))

    def step(carry, _):
        w, state = carry
        value, grads = jax.value_and_grad(quadratic)(w)
        updates, state = tx.update(grads, state, w, value_fn=quadratic, value=value)
        return (optax.apply_updates(w, updates), state), seen(state)

    w = jnp.asarray(START, jnp.float32)
    run = quick_jit(lambda c: jax.lax.scan(step, c, length=5)[1])
    history = run((w, tx.init(w)))
    np.testing.assert_array_equal(history.num_gradients, 2 * np.arange(1, 6))
    np.testing.assert_allclose(history.climb_norm, RHO, rtol=1e-5)
    assert np.all(np.diff(history.loss) < 0)


# --- Sub-batches and devices: the average of what each of them saw --------------------

ROWS = 4


def of_each_row(rho=0.1):
    """The diagnostics of SAM on every row alone, averaged by NumPy."""
    alone = []
    for i in range(ROWS):
        row = jax.tree.map(lambda x, i=i: x[i : i + 1], TANH_BATCH)
        tx = optax_sam.sam(rho, diagnostics=True)
        state = door_1(tx, TANH_START, loss=lambda w, row=row: tanh_loss(w, row))
        alone.append(as_dict(seen(state)))
    return {name: np.mean([a[name] for a in alone]) for name in alone[0]}


def mesh():
    return Mesh(np.array(jax.devices()[:ROWS]), ("data",))


def by_product(options, value_of=None):
    """Door 1: what comes to lie in the state."""
    tx = optax_sam.m_sam(0.1, diagnostics=True, **options)

    def step(w, batch):
        value, grads = None, None
        if value_of:
            at = optax_sam.per_device(w, "data")
            value, grads = jax.value_and_grad(tanh_loss)(at, batch)
        return seen(
            tx.update(
                grads, tx.init(w), w, value_fn=tanh_loss, batch=batch, value=value
            )[1]
        )

    if value_of:
        step = jax.shard_map(
            step, mesh=mesh(), in_specs=(P(), P("data")), out_specs=P()
        )
    return step


def by_wrapper(options):
    """Door 2: what comes back as aux."""
    grad_fn = optax_sam.value_and_grad(
        tanh_loss, optax_sam.steepest_ascent(0.1), diagnostics=True
    )
    m_sam = optax_sam.m_sharpness(grad_fn, **options)
    return lambda w, batch: m_sam(w, batch)[0][1]


PLACES = {
    "micro, door 1": lambda: by_product({"microbatch_size": 1}),
    "micro, door 2": lambda: by_wrapper({"microbatch_size": 1}),
    "mesh, door 1": lambda: by_product({"axis_name": "data", "mesh": mesh()}),
    "mesh, door 2": lambda: by_wrapper({"axis_name": "data", "mesh": mesh()}),
    "shard_map, door 1": lambda: by_product({"axis_name": "data"}, value_of=True),
}


@pytest.mark.parametrize("place", PLACES)
def test_average_of_the_sub_batches(place, x64):
    got = quick_jit(PLACES[place]())(TANH_START, TANH_BATCH)
    assert as_dict(got) == pytest.approx(of_each_row(), rel=1e-11)


def test_no_further_collective():
    def all_reduces(diagnostics):
        tx = optax_sam.m_sam(
            0.1, axis_name="data", mesh=mesh(), diagnostics=diagnostics
        )

        def step(w, batch):
            return tx.update(None, tx.init(w), w, value_fn=tanh_loss, batch=batch)

        batch = jax.tree.map(jnp.float32, TANH_BATCH)
        params = jax.tree.map(jnp.float32, TANH_START)
        text = jax.jit(step).lower(params, batch).compile().as_text()
        return len(re.findall(r" all-reduce(?:-start)?\(", text))

    assert all_reduces(diagnostics=True) == all_reduces(diagnostics=False) == 1


def test_the_bare_chain_is_refused():
    """Each device would keep its own."""
    tx = optax.chain(optax_sam.sam(0.1, diagnostics=True), optax_sam.mean_over("data"))

    def step(w, batch):
        value, grads = jax.value_and_grad(tanh_loss)(
            optax_sam.per_device(w, "data"), batch
        )
        loss = functools.partial(tanh_loss, batch=batch)
        return tx.update(grads, tx.init(w), w, value_fn=loss, value=value)[0]

    step = jax.shard_map(step, mesh=mesh(), in_specs=(P(), P("data")), out_specs=P())
    with pytest.raises(ValueError, match="axis_name='data'"):
        jax.eval_shape(step, TANH_START, TANH_BATCH)


# --- Methods that see less, or more ---------------------------------------------------


def test_one_pass_shows_what_it_saw(x64):
    """Momentum SAM: the first pass is clean, the second at w - rho v / |v|."""
    tx = optax_sam.momentum_sam(RHO, diagnostics=True)
    state = tx.init(START)
    for count in (1, 2):
        _, state = tx.update(None, state, START, value_fn=quadratic)
        d = as_dict(seen(state))
        assert d["num_gradients"] == count
        point = START - (RHO * np.array([0.6, 0.8]) if count == 2 else 0)
        assert d["climbed_loss"] == pytest.approx(float(quadratic(point)), rel=1e-12)
        assert d["climb_norm"] == pytest.approx(RHO * (count - 1), rel=1e-12)
        # The clean pass was not made, so nothing of it is known.
        assert np.isnan([d["loss"], d["grad_norm"], d["cosine"]]).all()
        length = np.linalg.norm([1.0, 4.0] * point)
        assert d["climbed_grad_norm"] == pytest.approx(length, rel=1e-12)


def tanh_losses(params, batch):
    inputs, targets = batch
    outputs = jnp.tanh(inputs @ params["weight"].T + params["bias"])
    return 0.5 * jnp.sum((outputs - targets) ** 2, axis=1)


def key():
    return {"key": jax.random.key(0)}


#: What is asked for, whether the loss is per example, and gradients in a step.
PRODUCTS = {
    "sam": (optax_sam.sam, dict, False, 2),
    "asam": (optax_sam.asam, dict, False, 2),
    "gsam": (optax_sam.gsam, dict, False, 2),
    "wsam": (optax_sam.wsam, dict, False, 2),
    "friendly_sam": (optax_sam.friendly_sam, dict, False, 2),
    "look_sam": (optax_sam.look_sam, dict, False, 2),
    "m_sam": (optax_sam.m_sam, lambda: {"microbatch_size": 2}, False, 2),
    "momentum_sam": (optax_sam.momentum_sam, dict, False, 1),
    "random_perturbation": (optax_sam.random_perturbation, key, False, 1),
    "partial_climb": (optax_sam.partial_climb, dict, False, 2),
    "esam": (optax_sam.esam, lambda: key() | {"beta": 1.0}, True, 2),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_product_reports(name, x64):
    make, options, per_example, count = PRODUCTS[name]
    loss = tanh_losses if per_example else tanh_loss
    w, batch = jax.tree.map(jnp.asarray, (TANH_START, TANH_BATCH))
    updates = []
    for diagnostics in (False, True):
        tx = make(rho=0.1, diagnostics=diagnostics, **options())
        out, state = quick_jit(
            lambda w, b, tx=tx: tx.update(None, tx.init(w), w, value_fn=loss, batch=b)
        )(w, batch)
        updates.append(out)
    jax.tree.map(np.testing.assert_array_equal, *updates)
    d = as_dict(seen(state))
    assert d["num_gradients"] == count
    assert np.isfinite(d["climbed_grad_norm"])
    assert np.isfinite(d["climbed_loss"])
    if name not in ("asam", "momentum_sam"):  # its own norm; no momentum yet
        assert d["climb_norm"] == pytest.approx(0.1, rel=1e-6)


# --- What they cost -------------------------------------------------------------------


def step_with(tx):
    def step(params, inputs):
        value, grads = CLEAN(params, inputs)
        updates, state = tx.update(
            grads,
            tx.init(params),
            params,
            value_fn=lambda p: deep_loss(p, inputs),
            value=value,
        )
        return value, updates, state

    return step


ON = step_with(optax_sam.sam(diagnostics=True))
OFF = step_with(optax_sam.sam())


def by_hand(params, inputs):
    """SAM as one would write it without the library's doors."""
    value, grads = CLEAN(params, inputs)
    ascent = optax_sam.steepest_ascent()
    climb, _ = ascent.update(grads, ascent.init(params), params)
    point = jax.tree.map(lambda p, e: (p + e).astype(p.dtype), params, climb)
    return value, jax.grad(deep_loss)(point, inputs)


def operations(function):
    """How often each operation stands in the compiled program."""
    text = compiled(function, MATMULS).as_text()
    return Counter(re.findall(r"= \S+ ([\w-]+)\(", text))


def test_off_is_the_program_without_them():
    assert operations(OFF) == operations(by_hand)
    assert flops(OFF) == flops(by_hand)


def test_on_makes_no_further_pass():
    assert flops(ON) / flops(CLEAN) <= 2.02
    dots = "dot", "custom-call"  # on a CPU matrix products may be calls
    on, off = operations(ON), operations(OFF)
    assert [on[name] for name in dots] == [off[name] for name in dots]


def test_on_evaluates_the_loss_as_often(x64):
    calls = []

    def loss(w):
        jax.debug.callback(lambda: calls.append(1))
        return quadratic(w)

    for diagnostics in (False, True):
        tx = optax_sam.sam(RHO, diagnostics=diagnostics)
        jax.block_until_ready(
            quick_jit(lambda w, tx=tx: door_1(tx, w, loss=loss))(START)
        )
        jax.effects_barrier()
    assert len(calls) == 4


# --- "Is SAM doing anything?": each trouble of the page, made on purpose --------------


def report(rho=0.05, tx=None):
    """The last diagnostics of a short training on the tanh layer."""
    tx = optax.chain(tx or optax_sam.sam(rho, diagnostics=True), optax.sgd(0.1))
    w, batch = jax.tree.map(jnp.float32, (TANH_START, TANH_BATCH))

    def step(carry, _):
        w, state = carry
        value, grads = jax.value_and_grad(tanh_loss)(w, batch)
        updates, state = tx.update(
            grads, state, w, value_fn=lambda w: tanh_loss(w, batch), value=value
        )
        return (optax.apply_updates(w, updates), state), seen(state)

    history = quick_jit(lambda c: jax.lax.scan(step, c, length=5)[1])((w, tx.init(w)))
    return as_dict(jax.tree.map(lambda x: x[-1], history))


def test_healthy():
    """The climb has the norm that was asked for, the loss rises by about rho |g|."""
    d = report(0.05)
    assert d["climb_norm"] == pytest.approx(0.05, rel=1e-4)
    assert 0.5 < d["sharpness"] / (0.05 * d["grad_norm"]) < 2
    assert 0.5 < d["cosine"] < 0.99999
    assert d["num_gradients"] == 10


def test_rho_too_small():
    d = report(1e-4)
    assert d["cosine"] > 0.999999
    assert d["sharpness"] < 1e-3 * d["loss"]


def test_rho_too_large():
    d, healthy = report(3.0), report(0.05)
    assert d["cosine"] < 0.5 < healthy["cosine"]
    assert d["sharpness"] > d["loss"]


def test_climb_lost_in_half_precision():
    """bfloat16 has steps of 1/64 between 2 and 4: a climb of 0.001 goes nowhere."""
    w = jnp.array([3.0, 2.5], jnp.bfloat16)
    with pytest.warns(UserWarning, match="half precision"):
        lost = door_1(optax_sam.sam(1e-3, diagnostics=True), w, lambda w: w @ w)
    assert seen(lost).climb_norm == 0
    tx = optax_sam.sam(1e-3, climb_dtype=jnp.float32, diagnostics=True)
    cured = door_1(tx, w, lambda w: w @ w)
    assert seen(cured).climb_norm == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("why", ["rho is 0", "when"])
def test_sam_is_off(why):
    off = optax_sam.sam(0.05, diagnostics=True, when=optax_sam.from_step(100))
    d = report(0.0) if why == "rho is 0" else report(tx=off)
    assert d["climb_norm"] == 0 == d["sharpness"]
    assert d["cosine"] == pytest.approx(1, abs=1e-6)
    assert d["num_gradients"] == (10 if why == "rho is 0" else 5)


def test_a_gradient_that_is_not_finite():
    def loss(w):
        return jnp.sum(jnp.sqrt(w))  # an infinite slope at 0

    tx = optax_sam.sam(0.05, diagnostics=True)
    d = as_dict(seen(door_1(tx, jnp.array([0.0, 1.0]), loss=loss)))
    assert d["climb_norm"] == 0
    assert not np.isfinite(d["grad_norm"])


def test_asam_measures_its_radius_otherwise():
    d = report(tx=optax_sam.asam(0.5, diagnostics=True))
    assert abs(d["climb_norm"] - 0.5) > 0.05
    assert d["sharpness"] > 0


def test_the_loss_that_does_not_rise(x64):
    """The climb was made for another batch than the one it is judged on."""
    tx = optax_sam.sam(0.05, diagnostics=True)
    w = jnp.array([3.0, 1.0])
    grads = -jax.grad(quadratic)(w)
    _, state = tx.update(grads, tx.init(w), w, value_fn=quadratic, value=quadratic(w))
    d = as_dict(seen(state))
    assert d["sharpness"] < 0
    assert d["cosine"] < 0
