"""The program grows with the number of leaves, not with its square."""

import jax
import jax.numpy as jnp
import pytest

import optax_sam
from benchmarks.lib import hlo
from optax_sam import sam

KEY = jax.random.key(0)
PRODUCTS = {
    "sam": lambda: sam(),
    "sam, ord=1": lambda: sam(ord=1),
    "sam, ord=1.5": lambda: sam(ord=1.5),
    "sam, ord=inf": lambda: sam(ord=float("inf")),
    "sam, num_steps": lambda: sam(num_steps=3),
    "sam, diagnostics": lambda: sam(diagnostics=True),
    "sam, climb_dtype": lambda: sam(climb_dtype=jnp.float32),
    "sam, scan_passes": lambda: sam(scan_passes=True, num_steps=2),
    "sam, every_k": lambda: sam(when=optax_sam.every_k(5)),
    "sam, schedule": lambda: sam(lambda t: 0.1 / (1 + t)),
    "asam": lambda: optax_sam.asam(),
    "m_sam": lambda: optax_sam.m_sam(microbatch_size=2),
    "gsam": lambda: optax_sam.gsam(),
    "wsam": lambda: optax_sam.wsam(),
    "friendly_sam": lambda: optax_sam.friendly_sam(),
    "look_sam": lambda: optax_sam.look_sam(),
    "look_sam, per_leaf": lambda: optax_sam.look_sam(per_leaf=True),
    "look_sam, diagnostics": lambda: optax_sam.look_sam(diagnostics=True),
    "momentum_sam": lambda: optax_sam.momentum_sam(),
    "stale_sam": lambda: optax_sam.stale_sam(),
    "le_sam": lambda: optax_sam.le_sam(0.1, rho_max=0.5, of_loss=True),
    "random_perturbation": lambda: optax_sam.random_perturbation(0.1, key=KEY),
    "partial_climb": lambda: optax_sam.partial_climb(),
    "esam": lambda: optax_sam.esam(key=KEY),
    "climb_only": lambda: optax_sam.sharpness_aware(
        optax_sam.climb_only(optax_sam.steepest_ascent(), "leaf")
    ),
}


def losses(params, batch):
    return batch * sum(jnp.sum(jnp.sin(x)) for x in params.values())


def loss(params, batch):
    return jnp.mean(losses(params, batch))


def equations(name, count):
    """Those of the jaxpr of an update, sub-jaxprs included."""
    tx, value_fn = PRODUCTS[name](), losses if name == "esam" else loss
    shapes = [(64, 64), (64,)]
    params = {f"leaf{i:03d}": jnp.ones(shapes[i % 2]) for i in range(count)}

    def step(params, state, batch):
        return tx.update(None, state, params, value_fn=value_fn, batch=batch)

    return hlo.equations(
        jax.make_jaxpr(step)(params, tx.init(params), jnp.ones(4)).jaxpr
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PRODUCTS)
def test_equations_grow_with_the_leaves(name):
    few, more, most = (equations(name, count) for count in (16, 32, 64))
    first, second = (more - few) / 16, (most - more) / 32
    assert first > 1, "the leaves are in the program"
    assert abs(second - first) <= 0.05 * first


def test_what_grows_with_the_square_is_seen():
    def step(params):
        total = lambda: sum(jnp.sum(x) for x in params)  # noqa: E731
        return [x / total() for x in params]

    few, more, most = (
        hlo.equations(jax.make_jaxpr(step)([jnp.ones(2)] * n).jaxpr)
        for n in (5, 10, 20)
    )
    assert (most - more) / 10 > 1.05 * (more - few) / 5
