"""Stale SAM: one pass a step, along the gradient that came out of the step before."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from problems import HESSIAN, START, quadratic, quick_jit

from optax_sam import momentum_sam, per_device, stale_sam

pytestmark = pytest.mark.usefixtures("x64")
RHO, RATE, STEPS = 0.5, 0.1, 6
ROWS = np.random.default_rng(6).normal(size=(STEPS, 8, 2))


def unit(x):
    return x / np.linalg.norm(x) if x.any() else x


def gradient(w, rows):
    h = np.tanh(rows @ w)
    return rows.T @ (2 * (h - 0.5) * (1 - h**2)) / len(rows)


def loss(w, rows):
    return jnp.mean((jnp.tanh(rows @ w) - 0.5) ** 2)


def by_loop(climbs=lambda t: True, m=8, bad=()):
    """All sub-batches climb alike; a gradient that is not finite is not kept."""
    w, previous, seen = np.array([0.5, -1.0]), np.zeros(2), []
    for t, rows in enumerate(ROWS):
        point = w + RHO * unit(previous) * climbs(t)
        g = np.mean([gradient(point, part) for part in rows.reshape(-1, m, 2)], axis=0)
        if t not in bad:
            w, previous = w - RATE * g, g
        seen.append([float(loss(jnp.asarray(point), rows)), *w])
    return seen


def by_library(tx, bad=()):
    w, seen = jnp.array([0.5, -1.0]), []
    state = tx.init(w)

    @jax.jit
    def step(w, state, rows, factor):
        def value_fn(w, rows):
            return factor * loss(w, rows)

        return tx.update(None, state, w, value_fn=value_fn, batch=rows)

    for t, rows in enumerate(ROWS):
        g, state = step(w, state, rows, np.nan if t in bad else 1.0)
        w = w if t in bad else w - RATE * g
        seen.append([float(optax.tree.get(state, "last_loss")), *w])
    return seen


def on_devices():
    return {"axis_name": "data", "mesh": Mesh(np.array(jax.devices()[:4]), ("data",))}


@pytest.mark.parametrize(
    "options",
    [{}, {"microbatch_size": 2}, on_devices(), {"microbatch_size": 1} | on_devices()],
    ids=["whole", "micro-batches", "devices", "both"],
)
def test_a_plain_loop(options):
    m = options.get("microbatch_size", 2 if options else 8)
    got = by_library(stale_sam(RHO, **options))
    np.testing.assert_allclose(got, by_loop(m=m), rtol=1e-11)


def test_one_all_reduce_a_step():
    """All that is averaged is one tuple; the climb needs nothing from the others."""
    tx, shape = stale_sam(RHO, **on_devices()), jax.ShapeDtypeStruct
    w = shape((2,), np.float64)
    text = (
        jax.jit(lambda w, s, rows: tx.update(None, s, w, value_fn=loss, batch=rows))
        .lower(w, jax.eval_shape(tx.init, w), shape((8, 2), np.float64))
        .compile()
        .as_text()
    )
    assert len(re.findall(r" all-reduce(?:-start)?\(", text)) == 1


def test_a_step_without_a_climb_keeps_its_gradient_too():
    got = by_library(stale_sam(RHO, when=lambda t: t % 2 == 0))
    np.testing.assert_allclose(got, by_loop(lambda t: t % 2 == 0), rtol=1e-11)


def test_a_gradient_that_is_not_finite_is_not_kept():
    got, expected = by_library(stale_sam(RHO), bad=(2,)), by_loop(bad=(2,))
    np.testing.assert_allclose(got[:2] + got[3:], expected[:2] + expected[3:], 1e-11)


def test_the_published_sequence_from_its_second_step_on():
    """With a pass of its own for it, the stale gradient is clean: set it by hand."""
    tx = optax.chain(stale_sam(RHO), optax.sgd(RATE))
    before, w = START, np.array([2.67, 0.44])
    for expected in ([2.373, 0.104], [2.0939537, -0.0476726]):
        state = optax.tree.set(tx.init(w), previous=HESSIAN @ before)
        updates, _ = tx.update(None, state, jnp.asarray(w), value_fn=quadratic)
        before, w = w, np.asarray(optax.apply_updates(jnp.asarray(w), updates))
        np.testing.assert_allclose(w, expected, atol=5e-8)


def test_it_climbs_where_momentum_sam_without_momentum_goes_down():
    """From the second step on, on the other side of the same parameters."""
    w, points = jnp.asarray(START), []
    for make in (stale_sam, lambda rho: momentum_sam(rho, decay=0)):
        tx = make(RHO)
        first, state = tx.update(None, tx.init(w), w, value_fn=quadratic)
        np.testing.assert_allclose(first, [3, 4])
        second, _ = tx.update(None, state, w, value_fn=quadratic)
        points.append(np.linalg.solve(HESSIAN, second))
    np.testing.assert_allclose(points[0] - START, RHO * np.array([0.6, 0.8]))
    np.testing.assert_allclose(points[1] - START, -RHO * np.array([0.6, 0.8]))


def test_the_state_is_in_float32_at_least():
    state = stale_sam(RHO).init(jnp.ones(3, jnp.bfloat16))
    assert optax.tree.get(state, "previous").dtype == jnp.float32


def test_in_a_bare_chain_each_device_would_keep_its_own():
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    tx = stale_sam(RHO)

    def step(w, rows):
        own = per_device(w, "data")
        g, _ = tx.update(None, tx.init(w), own, value_fn=loss, batch=rows)
        return jax.lax.pmean(g, "data")

    p = jax.sharding.PartitionSpec
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(p(), p("data")), out_specs=p())
    with pytest.raises(ValueError, match="axis_name"):
        quick_jit(mapped)(jnp.ones(2), ROWS[0])
