"""A new ascent in one function, held to every promise of the library's own.

This is what a new method costs: the function, and a row. Its tests are those of
`test_contract.py`, collected here once more for the rows below.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_contract
from table import Row, cross, flat, rows_for

import optax_sam

pytestmark = pytest.mark.slow


def layerwise_ascent(rho):
    """Every leaf climbs by rho along its own gradient, however small that is.

    The ball is that of max over leaves of norm(e, 2), so <g, climb> is rho times the
    sum over leaves of norm(g, 2). `rho` may be a number, a tracer or a schedule.
    """

    def init(params):
        del params
        return {"step": jnp.zeros([], jnp.int32)} if callable(rho) else {}

    def unit(g, usable):
        wide = g.astype(jnp.promote_types(g.dtype, jnp.float32))
        # The scale cancels, and so does its derivative, which could overflow.
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(wide), initial=0))
        usable &= largest > 0
        scaled = jnp.where(usable, wide / jnp.where(usable, largest, 1), 0)
        square = jnp.sum(jnp.where(usable, scaled, 1) ** 2)  # guarded before the root
        return scaled / jnp.sqrt(jnp.where(usable, square, 1))

    def update(grads, state, params=None):
        del params
        radius = rho(state["step"]) if callable(rho) else rho
        finite = [jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads)]
        usable = jnp.all(jnp.asarray([*finite, True]))
        clean = jax.tree.map(lambda g: jnp.where(usable, g, 0), grads)
        climb = jax.tree.map(
            lambda g: (radius * unit(g, usable)).astype(g.dtype), clean
        )
        return climb, jax.tree.map(lambda step: step + 1, state)

    return optax.GradientTransformation(init, update)


def layerwise_sam(rho):
    return optax_sam.sharpness_aware(layerwise_ascent(rho))


def norms(tree):
    return [np.linalg.norm(flat(leaf)) for leaf in jax.tree.leaves(tree)]


BALL = {
    "length": lambda climb: max(norms(climb), default=0.0),
    "dual": lambda g: sum(norms(g)),
}
NEW_ROWS = [
    Row("layerwise", layerwise_ascent, **BALL),
    Row("layerwise-sam", layerwise_sam, product=True, **BALL),
]
PROPERTIES = {
    name: test for name, test in vars(test_contract).items() if name.startswith("test_")
}
globals().update({n: t for n, t in PROPERTIES.items() if any(rows_for(t, NEW_ROWS))})


def pytest_generate_tests(metafunc):
    cross(metafunc, NEW_ROWS)


def test_an_ascent_fits_on_a_screen():
    assert len(inspect.getsource(layerwise_ascent).splitlines()) <= 50


def test_every_property_was_asked():
    # No property holds for no row, which would make it a test of nothing.
    assert len(PROPERTIES) > 30
    rows = [*test_contract.ROWS, *NEW_ROWS]
    for name, test in PROPERTIES.items():
        assert any(rows_for(test, rows)), name
