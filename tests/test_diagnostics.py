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
    tx = optax_sam.sam(RHO, num_steps=3, diagnostics=True)
    tx = optax_sam.every_k(tx, 2)
    state = tx.init(START)
    for _ in range(3):  # 4 gradients, 1, 4
        grads = jax.grad(quadratic)(START)
        _, state = tx.update(grads, state, START, value_fn=quadratic)
    assert seen(state).num_gradients == 9


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
        at = optax_sam.per_device(w, "data") if value_of else w
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


@pytest.mark.parametrize("why", ["rho is 0", "policy"])
def test_sam_is_off(why):
    sam = optax_sam.sam(0.05, diagnostics=True)
    off = optax_sam.only_last(sam, 100)
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


def test_the_loss_that_does_not_rise():
    """The climb was made for another batch than the one it is judged on."""
    tx = optax_sam.sam(0.05, diagnostics=True)
    w = jnp.array([3.0, 1.0])
    grads = -jax.grad(quadratic)(w)
    _, state = tx.update(grads, tx.init(w), w, value_fn=quadratic, value=quadratic(w))
    d = as_dict(seen(state))
    assert d["sharpness"] < 0
    assert d["cosine"] < 0
