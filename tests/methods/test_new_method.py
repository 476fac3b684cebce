"""A new method from public names, with LookSAM's needs, held to the library's promises.

It keeps a state, makes two passes, and has a condition of its own. What it costs is the
function and a row: `test_contract.py` is collected here once more for that row.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_contract
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from problems import TANH_START, quick_jit
from table import Row, cross, rows_for
from test_combinations import BATCH, SIZE, gradient, loss, unit

import optax_sam

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("x64")]


def echo_sam(rho, k=3, alpha=0.5, *, when=True, **options):
    """Climb on every k-th step; between, add a share of what the last climb changed."""
    sam = optax_sam.climbing(optax_sam.steepest_ascent(rho), keep_clean=True)

    def init(params):
        return {"echo": jax.tree.map(jnp.zeros_like, params), "sam": sam.init(params)}

    def local(passes, state, climbs):
        return sam.local(passes, state["sam"], climbs)

    def finish(state, seen, climbs, params):
        gradient, inner = sam.finish(state["sam"], seen, climbs, params)
        change = jax.tree.map(jnp.subtract, gradient, seen.clean)
        echo = jax.tree.map(
            lambda new, old: jnp.where(climbs, new, old).astype(old.dtype),
            change,
            state["echo"],
        )
        out = jax.tree.map(
            lambda g, e: jnp.where(climbs, g, g + alpha * e).astype(g.dtype),
            gradient,
            echo,
        )
        return out, {"echo": echo, "sam": inner}

    def own(step):
        return (step % k == 0) & (when(step) if callable(when) else when)

    method = optax_sam.Method(init, local, finish)
    return optax_sam.transformation(method, when=own, **options)


ROW = Row("echo", echo_sam, product=True, stateful=True, remembers=True)
MICRO = Row(
    "echo-micro",
    echo_sam,
    product=True,
    stateful=True,
    remembers=True,
    micro_batch=True,
    options=lambda: {"microbatch_size": 2},
)
PROPERTIES = {n: t for n, t in vars(test_contract).items() if n.startswith("test_")}
globals().update({n: t for n, t in PROPERTIES.items() if any(rows_for(t, [ROW]))})


def pytest_generate_tests(metafunc):
    # Two properties divide by the parameters of a float32 tree; x64 changes nothing.
    cross(metafunc, [ROW, MICRO])


def test_a_method_fits_on_a_screen():
    assert len(inspect.getsource(echo_sam).splitlines()) <= 40


# --- Against a loop -------------------------------------------------------------------

RHO, STEPS, RATE = 0.3, 7, 0.2
START = np.concatenate([np.ravel(TANH_START[name]) for name in ("bias", "weight")])
COUNTS = {"whole": 1, "micro": 4, "mesh": 8}


def options_of(place):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    places = {
        "whole": {},
        "micro": {"microbatch_size": 4},
        "mesh": {"axis_name": "data", "mesh": mesh},
    }
    return places[place]


def by_loop(place, first):
    w, echo, seen = START, 0 * START, []
    for t in range(STEPS):
        parts = np.split(np.arange(SIZE), COUNTS[place])
        clean = [gradient(w, rows) for rows in parts]
        out = np.mean(clean, 0)
        if t % 3 == 0 and t >= first:
            pairs = zip(clean, parts, strict=True)
            there = [gradient(w + RHO * unit(g), rows) for g, rows in pairs]
            out, echo = np.mean(there, 0), np.mean(there, 0) - out
        else:
            out = out + 0.5 * echo
        w = w - RATE * out
        seen.append(w)
    return seen


def in_the_optimizer(tx):
    tx = optax.chain(tx, optax.sgd(RATE))

    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=loss, batch=BATCH)
        return optax.apply_updates(params, updates), state

    return tx.init, step


def in_place_of_value_and_grad(tx):
    init, grad_fn = optax_sam.stateful_value_and_grad(loss, tx)

    def step(params, state):
        _, grads, state = grad_fn(state, params, BATCH)
        return jax.tree.map(lambda w, g: w - RATE * g, params, grads), state

    return init, step


@pytest.mark.parametrize("form", [in_the_optimizer, in_place_of_value_and_grad])
@pytest.mark.parametrize("place", COUNTS)
@pytest.mark.parametrize("first", [0, 2])
def test_parity_with_a_loop(form, place, first):
    tx = echo_sam(
        RHO, when=optax_sam.from_step(first), diagnostics=True, **options_of(place)
    )
    init, step = form(tx)
    params = jax.tree.map(jnp.asarray, TANH_START)
    state, step, seen = init(params), quick_jit(step), []
    for _ in range(STEPS):
        params, state = step(params, state)
        seen.append(np.asarray(ravel_pytree(jax.device_get(params))[0]))
    np.testing.assert_allclose(seen, by_loop(place, first), rtol=0, atol=1e-12)
    report = optax.tree.get(state, "diagnostics")
    climbs = len([t for t in range(STEPS) if t % 3 == 0 and t >= first])
    assert int(report.num_gradients) == STEPS + climbs
