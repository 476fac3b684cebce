"""Old spellings show the new one; numbers that count, or decay, are checked early."""

import warnings

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from optax_sam import _old_spellings, sam, steepest_ascent

KEY, SCHEDULE = jax.random.key(0), optax.constant_schedule(0.1)
W = jnp.ones(2)


def update(**options):
    tx = sam(0.1)
    return tx.update(W, tx.init(W), W, value_fn=jnp.sum, **options)


#: How 0.1.0 was called, for every argument in the table.
CALLS = {
    ("every_k", 1): lambda: optax_sam.every_k(sam(), 5),
    ("every_k", "k"): lambda: optax_sam.every_k(sam(), k=5),
    ("with_probability", 1): lambda: optax_sam.with_probability(sam(), 0.5, KEY),
    ("with_probability", "p"): lambda: optax_sam.with_probability(
        sam(), p=0.5, key=KEY
    ),
    ("steepest_ascent", "axis_name"): lambda: steepest_ascent(0.1, axis_name="model"),
    ("adaptive_ascent", "axis_name"): lambda: optax_sam.adaptive_ascent(axis_name="a"),
    ("random_ascent", 1): lambda: optax_sam.random_ascent(0.1, KEY),
    ("random_perturbation", 1): lambda: optax_sam.random_perturbation(0.1, KEY),
    ("friendly_ascent", "lmbda"): lambda: optax_sam.friendly_ascent(
        steepest_ascent(), lmbda=0.9
    ),
    ("friendly_sam", "lmbda"): lambda: optax_sam.friendly_sam(lmbda=0.9),
    ("update", "climb"): lambda: update(climb=False),
    ("climb_only", "where"): lambda: optax_sam.climb_only(steepest_ascent(), where="b"),
    ("proportional_rho", "highest"): lambda: optax_sam.proportional_rho(
        SCHEDULE, highest=0.1, rho_max=1.0
    ),
    ("proportional_rho", "lowest"): lambda: optax_sam.proportional_rho(
        SCHEDULE, lr_max=0.1, lowest=0.0, rho_max=1.0
    ),
}


def test_every_old_argument_is_called():
    assert set(CALLS) == set(_old_spellings.ARGUMENTS)


@pytest.mark.parametrize("old", CALLS, ids=str)
def test_an_old_call_shows_the_new_one(old):
    with pytest.raises(TypeError) as info:
        CALLS[old]()
    assert _old_spellings.ARGUMENTS[old] in str(info.value)


@pytest.mark.parametrize("name", _old_spellings.NAMES)
def test_an_old_name_shows_the_new_one(name):
    with pytest.raises(ImportError) as info:
        getattr(optax_sam, name)
    assert _old_spellings.NAMES[name] in str(info.value)
    with pytest.raises(ImportError, match="is gone"):
        exec(f"from optax_sam import {name}")
    with pytest.raises(AttributeError, match="no attribute"):
        _ = optax_sam.only_first


BAD = {
    "num_steps=2.5": (lambda: sam(num_steps=2.5), "num_steps"),
    "num_steps=True": (lambda: sam(num_steps=True), "num_steps"),
    "num_steps=0": (lambda: sam(num_steps=0), "num_steps"),
    "k=2.5": (lambda: optax_sam.every_k(2.5), "k"),
    "k=2.5, LookSAM": (lambda: optax_sam.look_sam(k=2.5), "k"),
    "microbatch_size=8.0": (lambda: sam(microbatch_size=8.0), "microbatch_size"),
    "microbatch_size=True": (lambda: sam(microbatch_size=True), "microbatch_size"),
    "at_once=1.5": (lambda: sam(microbatch_size=2, at_once=1.5), "at_once"),
    "ord='2'": (lambda: sam(ord="2"), "ord"),
    "decay=2": (lambda: optax_sam.momentum_sam(decay=2), "decay"),
    "decay=2, F-SAM": (lambda: optax_sam.friendly_sam(decay=2), "decay"),
    "sigma=-1": (lambda: optax_sam.friendly_sam(sigma=-1), "sigma"),
    "gamma=1.0": (lambda: optax_sam.wsam(gamma=1.0), "gamma"),
    "gamma=1.5": (lambda: optax_sam.wsam(gamma=1.5), "gamma"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_at_construction(name):
    call, word = BAD[name]
    with pytest.raises((TypeError, ValueError), match=rf"\b{word}\b") as info:
        call()
    assert info.traceback[-1].frame.f_globals["__name__"].startswith("optax_sam")


def test_integer_parameters_are_called_parameters():
    with pytest.raises(TypeError, match="The parameter leaf"):
        optax_sam.value_and_grad(jnp.sum, steepest_ascent())(jnp.arange(3))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_warning_points_at_the_line_of_the_user(compiled):
    half = jnp.ones(2, jnp.bfloat16)
    grad_fn = optax_sam.value_and_grad(jnp.sum, steepest_ascent())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (jax.jit(grad_fn) if compiled else grad_fn)(half)
    assert [w.filename for w in caught] == [__file__]


def test_a_gradient_that_would_be_dropped_is_refused():
    def value_fn(w, batch):
        return jnp.mean(batch @ w)

    batch = jnp.ones((4, 2))
    for tx in (sam(microbatch_size=2), optax_sam.momentum_sam()):
        with pytest.raises(ValueError, match="ignore_updates=True"):
            tx.update(W, tx.init(W), W, value_fn=value_fn, batch=batch)
    tx = sam(microbatch_size=2, ignore_updates=True)
    got = tx.update(jnp.nan * W, tx.init(W), W, value_fn=value_fn, batch=batch)[0]
    assert jnp.isfinite(got).all()


@pytest.mark.parametrize("wrap", [optax.chain, optax.inject_hyperparams, "named"])
def test_none_is_computed_inside(wrap):
    def value_fn(w):
        return jnp.sum(w**4)

    if wrap == "named":
        tx = optax.named_chain(("sam", sam(0.1)))
    elif wrap is optax.chain:
        tx = optax.chain(sam(0.1))
    else:
        tx = wrap(sam, static_args=("ord", "when"))(0.1)
    state = tx.init(W)
    inside = tx.update(None, state, W, value_fn=value_fn)[0]
    given = tx.update(jax.grad(value_fn)(W), state, W, value_fn=value_fn)[0]
    assert jnp.allclose(inside, given, rtol=1e-6)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.MultiSteps(tx, 2),
        lambda tx: optax.masked(tx, {"w": True}),
        lambda tx: optax.apply_if_finite(tx, 2),
    ],
    ids=["MultiSteps", "masked", "apply_if_finite"],
)
def test_wrappers_that_read_the_gradient_first_fail_on_none(wrap):
    params = {"w": W}
    tx = wrap(optax.chain(sam(0.1), optax.sgd(0.1)))
    with pytest.raises((TypeError, ValueError, AttributeError)):
        tx.update(None, tx.init(params), params, value_fn=lambda p: jnp.sum(p["w"]))
