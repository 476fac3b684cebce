"""20,000 steps: no growth of memory, no retrace, no drift against NumPy."""

import gc
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import HESSIAN, START, quadratic

import optax_sam

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("x64")]

STEPS, RHO, LEARNING_RATE, MOMENTUM = 20_000, 0.05, 0.01, 0.9


def unit(x):
    return x / np.linalg.norm(x)


def by_numpy(climb):
    """SGD with momentum behind a climb; the curvature keeps it moving for ever."""
    w, v, memory = START.copy(), 0 * START, None
    for t in range(STEPS):
        e, memory = climb(HESSIAN @ w, v, memory, t)
        v = MOMENTUM * v + HESSIAN @ (w + e)
        w = w - LEARNING_RATE * v
    return w


def look(g, v, memory, t):  # returned as the climb that gives the same gradient
    if t % 5 == 0:
        e = RHO * unit(g)
        s = g + HESSIAN @ e
        return e, s - (s @ unit(g)) * unit(g)
    push = 0.3 * np.linalg.norm(g) * unit(memory)
    return np.linalg.solve(HESSIAN, push), memory


def friendly(g, v, memory, t):
    # Less than the whole average: on one loss d would come to be rounding alone.
    d = g if memory is None else g - 0.5 * memory
    return RHO * unit(d), g if memory is None else 0.9 * memory + 0.1 * g


PRODUCTS = {
    "sam": (optax_sam.sam(RHO), lambda g, v, m, t: (RHO * unit(g), None)),
    "diagnostics": (
        optax_sam.sam(RHO, diagnostics=True),
        lambda g, v, m, t: (RHO * unit(g), None),
    ),
    "momentum_sam": (
        optax_sam.momentum_sam(RHO),
        lambda g, v, m, t: (-RHO * unit(v) if v.any() else 0 * v, None),
    ),
    "look_sam": (optax_sam.look_sam(RHO), look),
    "friendly_sam": (optax_sam.friendly_sam(RHO, sigma=0.5), friendly),
    "every_k": (
        optax_sam.sam(RHO, when=optax_sam.every_k(3)),
        lambda g, v, m, t: (RHO * unit(g) * (t % 3 == 0), None),
    ),
}


def step_of(name, tx):
    traces = []

    def step(w, state):
        traces.append(1)
        value, grads = jax.value_and_grad(quadratic)(w)
        grads = None if name == "momentum_sam" else grads  # it takes its own
        updates, state = tx.update(grads, state, w, value_fn=quadratic, value=value)
        return optax.apply_updates(w, updates), state

    return step, traces


@pytest.mark.parametrize("name", PRODUCTS)
def test_no_drift_under_scan(name):
    sam, climb = PRODUCTS[name]
    tx = optax.chain(sam, optax.sgd(LEARNING_RATE, momentum=MOMENTUM))
    step, _ = step_of(name, tx)
    w = jnp.asarray(START)
    run = jax.jit(
        lambda c: jax.lax.scan(lambda c, _: (step(*c), None), c, length=STEPS)
    )
    (w, _), _ = run((w, tx.init(w)))
    np.testing.assert_allclose(w, by_numpy(climb), rtol=0, atol=1e-9)


def resident():
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize("name", PRODUCTS)
def test_no_growth_step_by_step(name):
    sam, climb = PRODUCTS[name]
    tx = optax.chain(sam, optax.sgd(LEARNING_RATE, momentum=MOMENTUM))
    step, traces = step_of(name, tx)
    step = jax.jit(step, donate_argnums=(0, 1))
    w = jnp.array(START)
    w, state = step(w, tx.init(w))
    for t in range(1, STEPS):
        if t == STEPS // 10:  # all that is cached is there
            gc.collect()
            alive, held = len(jax.live_arrays()), resident()
        w, state = step(w, state)
    gc.collect()
    assert len(jax.live_arrays()) == alive
    assert resident() - held < 2**20  # under 60 bytes a step
    assert len(traces) == 1
    np.testing.assert_allclose(w, by_numpy(climb), rtol=0, atol=1e-9)
