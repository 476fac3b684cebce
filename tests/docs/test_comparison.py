"""What the README says of `optax.contrib.sam`, run side by side with this library.

That it takes the same steps is in `test_parity.py`, what it does inside `shard_map` in
`test_trap.py`.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import optax_sam

PARAMS, RHO = jnp.array([3.0, 1.0]), 0.1


def loss(w):
    return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)


def theirs(climb=RHO, **options):
    ascent = optax.chain(contrib.normalize(), optax.sgd(climb))
    return contrib.sam(optax.sgd(0.1), ascent, opaque_mode=True, **options)


def grad_fn(params, _):
    return jax.grad(loss)(params)


def test_other_extra_arguments():
    grads = jax.grad(loss)(PARAMS)
    tx = theirs()
    with pytest.raises(TypeError, match="value"):
        tx.update(grads, tx.init(PARAMS), PARAMS, grad_fn=grad_fn, value=1.0)
    tx = optax_sam.sam(RHO)
    tx.update(grads, tx.init(PARAMS), PARAMS, value_fn=loss, value=1.0)


def test_zero_gradient():
    zero = jnp.zeros(2)
    tx = theirs()
    updates, _ = tx.update(zero, tx.init(PARAMS), PARAMS, grad_fn=grad_fn)
    assert np.isnan(updates).all()
    tx = optax_sam.sam(RHO)
    gradient, _ = tx.update(zero, tx.init(PARAMS), PARAMS, value_fn=loss)
    np.testing.assert_array_equal(gradient, jax.grad(loss)(PARAMS))


@pytest.mark.parametrize(
    ("reset_state", "expected"), [(True, [0.1] * 3), (False, [0.1, 0.2, 0.3])]
)
def test_schedule_for_rho(reset_state, expected):
    climbs = []

    def watched(params, _):
        climbs.append(float(jnp.linalg.norm(params - PARAMS)))
        return jax.grad(loss)(params)

    tx = theirs(lambda count: 0.1 * (count + 1.0), reset_state=reset_state)
    state = tx.init(PARAMS)
    for _ in range(3):
        _, state = tx.update(jax.grad(loss)(PARAMS), state, PARAMS, grad_fn=watched)
    np.testing.assert_allclose(climbs, expected, rtol=1e-5)


def test_schedule_for_rho_here():
    tx = optax_sam.sam(lambda count: 0.1 * (count + 1.0))
    state = tx.init(PARAMS)
    grads = jax.grad(loss)(PARAMS)
    for step in range(3):
        gradient, state = tx.update(grads, state, PARAMS, value_fn=loss)
        at = PARAMS + 0.1 * (step + 1.0) * grads / jnp.linalg.norm(grads)
        np.testing.assert_allclose(gradient, jax.grad(loss)(at), rtol=1e-6)


def curved_loss(w, x):
    return jnp.mean((x @ w) ** 2 + jnp.tanh(x @ w))


def test_m_sam_over_devices():
    """With `batch_axis_name` and gradients that nobody has averaged, theirs too."""
    parts = jax.random.normal(jax.random.key(0), (4, 3, 2))
    ascent = optax.chain(contrib.normalize(), optax.sgd(RHO))
    tx = contrib.sam(
        optax.sgd(1.0), ascent, opaque_mode=True, batch_axis_name="devices"
    )

    def of_device(x):
        def grad_fn(params, _):
            return jax.grad(curved_loss)(params, x)

        grads = grad_fn(PARAMS, 0)
        return tx.update(grads, tx.init(PARAMS), PARAMS, grad_fn=grad_fn)[0]

    theirs = jax.vmap(of_device, axis_name="devices")(parts)[0]
    ours = optax_sam.m_sam(RHO, microbatch_size=3)
    gradient, _ = ours.update(
        None,
        ours.init(PARAMS),
        PARAMS,
        value_fn=curved_loss,
        batch=parts.reshape(12, 2),
    )
    np.testing.assert_allclose(-theirs, gradient, rtol=1e-5)


def test_no_micro_batches_and_no_asam_in_contrib():
    options = set(inspect.signature(contrib.sam).parameters)
    assert options == {
        "optimizer",
        "adv_optimizer",
        "sync_period",
        "reset_state",
        "opaque_mode",
        "batch_axis_name",
    }
    assert not [name for name in vars(contrib) if "asam" in name.lower()]
    for product in (optax_sam.m_sam(RHO, microbatch_size=1), optax_sam.asam(RHO)):
        assert isinstance(product, optax.GradientTransformationExtraArgs)
