"""What is refused, and that the message says what to write instead.

Every refusal is one case: what was done, and the words that must come back: the
value or the leaf that is wrong, and the code to type next. A case runs plain and under
`jit`, where errors must come too.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import (
    adaptive_ascent,
    asam,
    esam,
    m_sam,
    m_sharpness,
    random_ascent,
    random_perturbation,
    sam,
    sharpness_aware,
    steepest_ascent,
    value_and_grad,
)

PARAMS = {"alpha": jnp.ones(2), "beta": jnp.ones(3), "gamma": jnp.ones(2)}
GRADS = jax.tree.map(lambda w: 0.5 * w, PARAMS)
BATCH = jnp.ones((12, 2))
KEY = jax.random.key(0)


def loss(params, batch=None):
    del batch
    return sum(jnp.sum(w**2) for w in jax.tree.leaves(params))


def update(tx, grads=GRADS, params=PARAMS, value_fn=loss, **extra_args):
    return tx.update(grads, tx.init(params), params, value_fn=value_fn, **extra_args)


def refused(words, call, **options):
    return pytest.param(words, functools.partial(call, **options), id=words[0])


def raises(words, call):
    """The message of the refusal, after a look at its type and its words."""
    with pytest.raises((ValueError, TypeError)) as info:
        call()
    message = str(info.value)
    # Not an error of JAX's or Optax's own that happens to use the same words.
    last = info.traceback[-1].frame.f_globals["__name__"]
    assert last.startswith("optax_sam"), f"raised by {last}: {message}"
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in: {message}"
    return message


def in_both_modes(call):
    return [call, jax.jit(call)]


# --- When it is made --------------------------------------------------------------

MAKERS = {
    "steepest_ascent": steepest_ascent,
    "adaptive_ascent": adaptive_ascent,
    "random_ascent": functools.partial(random_ascent, key=KEY),
    "sam": sam,
    "asam": asam,
    "m_sam": functools.partial(m_sam, microbatch_size=2),
}
WITH_ORD = ["steepest_ascent", "adaptive_ascent", "sam", "asam"]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("rho", [-0.1, np.float32(-0.125), -1, float("nan")])
def test_negative_or_undefined_rho(name, rho):
    raises(["rho", f"{rho}", "non-negative"], lambda: MAKERS[name](rho=rho))


@pytest.mark.parametrize("maker", [adaptive_ascent, asam])
@pytest.mark.parametrize("eta", [-0.01, np.float32(-0.125), -1, float("nan")])
def test_negative_or_undefined_eta(maker, eta):
    """At abs(w) = -eta a weight would not climb at all, and smaller ones would more."""
    raises([f"eta = {eta}", "abs(w)", "eta=0.01"], lambda: maker(eta=eta))


@pytest.mark.parametrize("rho", ["0.05", True])
@pytest.mark.parametrize("name", MAKERS)
def test_no_number_for_rho(name, rho):
    words = ["rho", repr(rho), "no number", "schedule"]
    raises(words, lambda: MAKERS[name](rho=rho))


@pytest.mark.parametrize("name", WITH_ORD)
@pytest.mark.parametrize("ord", [0.5, 0, -1, -np.inf, float("nan")])
def test_ord_below_one(name, ord):
    raises(["ord", f"{ord}", "[1, inf]"], lambda: MAKERS[name](ord=ord))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("rho", [0, 0.0, 0.05, 3, np.float64(0.5)])
def test_a_radius_that_is_fine(name, rho):
    MAKERS[name](rho=rho).init(PARAMS)


@pytest.mark.parametrize("ord", [1, 1.0, 1.5, 2, None, np.inf, jnp.inf, np.float64(3)])
def test_an_order_that_is_fine(ord):
    steepest_ascent(ord=ord).init(PARAMS)


def test_m_sam_without_sub_batches():
    raises(["microbatch_size=", "axis_name=", "sam(rho"], lambda: m_sam(0.05))


def test_m_sharpness_without_sub_batches():
    grad_fn = value_and_grad(loss, steepest_ascent())
    raises(["microbatch_size=", "axis_name="], lambda: m_sharpness(grad_fn))


def test_m_sam_with_two_radii():
    ascent = adaptive_ascent(0.5)
    raises(["rho", "ascent"], lambda: m_sam(0.05, ascent=ascent, microbatch_size=2))


@pytest.mark.parametrize("size", [0, -4])
@pytest.mark.parametrize("maker", [sam, asam, m_sam])
def test_sub_batches_of_no_examples(maker, size):
    raises(["microbatch_size", f"{size}"], lambda: maker(0.1, microbatch_size=size))


# --- Missing arguments of `update` ---------------------------------------------

PRODUCTS = {
    "sam": sam(0.1),
    "asam": asam(0.1),
    "m_sam": m_sam(0.1, microbatch_size=4),
    "random": sharpness_aware(random_ascent(0.1, key=KEY)),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("given", [{}, {"value_fn": None}, {"batch": BATCH}])
def test_update_without_value_fn(name, given):
    tx = PRODUCTS[name]
    state = tx.init(PARAMS)
    for call in in_both_modes(lambda: tx.update(GRADS, state, PARAMS, **given)):
        raises(["value_fn=", "update("], call)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize(
    "given",
    ["grad_fn", "valuefn", "loss_fn", "loss", "value_func", "fn", "objective_fn"],
)
def test_the_loss_under_another_name(name, given):
    tx = PRODUCTS[name]
    state, extra = tx.init(PARAMS), {given: loss, "rate": 0.1, "key": KEY}
    for call in in_both_modes(lambda: tx.update(None, state, PARAMS, **extra)):
        message = raises([f"{given}=", "value_fn=", "update("], call)
        assert "rate" not in message
        assert "key" not in message


def test_the_loss_as_a_number():
    # As Levanter's trainer and Optax's line searches pass it, beside the function.
    tx = sam(0.1)
    for given in ("loss", "value"):
        call = functools.partial(
            tx.update, GRADS, tx.init(PARAMS), PARAMS, **{given: jnp.ones(())}
        )
        raises([f"{given}=", "value_fn="], call)


def test_names_that_are_no_loss_are_not_named():
    tx = sam(0.1)
    extra = {"grad": GRADS, "learning_rate": 0.1, "step": 3}
    message = raises(
        ["value_fn="], lambda: tx.update(GRADS, tx.init(PARAMS), PARAMS, **extra)
    )
    assert not [name for name in extra if f"{name}=" in message]


@pytest.mark.parametrize("name", PRODUCTS)
def test_update_without_params_and_loss(name):
    # As Equinox's examples call it: `optim.update(grads, state)`.
    tx = PRODUCTS[name]
    state = tx.init(PARAMS)
    for extra in ({}, {"batch": BATCH}, {"loss_fn": loss}):
        for call in in_both_modes(lambda extra=extra: tx.update(GRADS, state, **extra)):
            words = ["parameters", "params, value_fn=", *(f"{x}=" for x in extra)]
            raises([w for w in words if w != "batch="], call)


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_loss_as_obj_fn(name):
    # As Levanter and `optax.contrib.sophia` call it; Levanter's `loss=` is a number.
    def result(**extra):
        tx = optax.chain(PRODUCTS[name], optax.scale(-0.1))
        return tx.update(None, tx.init(PARAMS), PARAMS, batch=BATCH, **extra)

    expected = result(value_fn=loss)
    for extra in ({"loss": 2.0}, {"value_fn": None}, {"value_fn": loss}):
        got = result(obj_fn=loss, **extra)
        assert jax.tree.all(jax.tree.map(jnp.array_equal, got, expected))


@pytest.mark.parametrize("name", PRODUCTS)
def test_two_losses(name):
    tx = PRODUCTS[name]
    state, extra = tx.init(PARAMS), {"value_fn": loss, "obj_fn": lambda p, b=None: 0.0}
    for call in in_both_modes(lambda: tx.update(None, state, PARAMS, **extra)):
        raises(["value_fn=", "obj_fn="], call)


@pytest.mark.parametrize("name", PRODUCTS)
def test_update_without_params(name):
    tx = PRODUCTS[name]
    state = tx.init(PARAMS)
    missing = [
        lambda: tx.update(GRADS, state, value_fn=loss, batch=BATCH),
        lambda: tx.update(GRADS, state, None, value_fn=loss, batch=BATCH),
    ]
    for call in missing:
        raises(["params", "update("], call)
        raises(["params", "update("], jax.jit(call))


def test_adaptive_ascent_without_params():
    ascent = adaptive_ascent()
    state = ascent.init(PARAMS)
    for call in in_both_modes(lambda: ascent.update(GRADS, state)):
        raises(["adaptive_ascent", "params", "update("], call)


@pytest.mark.parametrize("maker", [sam, asam, m_sam])
def test_micro_batches_without_a_batch(maker):
    tx = maker(0.1, microbatch_size=4)
    for call in in_both_modes(lambda: update(tx, grads=None)):
        raises(["batch=", "value_fn="], call)


# --- The loss ---------------------------------------------------------------------


def vector(params, batch=None):
    del batch
    return params["beta"] ** 2


def pair(params, batch=None):
    return loss(params, batch), {"accuracy": 1.0}


def triple(params, batch=None):
    return loss(params, batch), 1.0, 2.0


BAD_LOSSES = {
    "vector": (vector, False, ["scalar", "(3,)", "mean"]),
    "tuple": (pair, False, ["tuple", "has_aux=True"]),
    "no tuple": (loss, True, ["has_aux", "(value, aux)"]),
    "triple": (triple, True, ["has_aux", "(value, aux)"]),
    "vector and aux": (lambda p, _=None: (vector(p), 1.0), True, ["scalar", "(3,)"]),
}


@pytest.mark.parametrize("case", BAD_LOSSES)
@pytest.mark.parametrize("door", ["sam", "m_sam", "value_and_grad", "second_order"])
def test_loss_of_the_wrong_kind(case, door):
    bad, has_aux, words = BAD_LOSSES[case]
    ran = []

    def counted(params, batch=None):
        jax.debug.callback(lambda: ran.append(1))
        return bad(params, batch)

    calls = {
        "sam": lambda: update(sam(0.1, has_aux=has_aux), value_fn=counted),
        "m_sam": lambda: update(
            m_sam(0.1, microbatch_size=4, has_aux=has_aux),
            grads=None,
            value_fn=counted,
            batch=BATCH,
        ),
        "value_and_grad": lambda: value_and_grad(
            counted, steepest_ascent(), has_aux=has_aux
        )(PARAMS),
        "second_order": lambda: value_and_grad(
            counted, steepest_ascent(), has_aux=has_aux, second_order=True
        )(PARAMS),
    }
    raises(words, jax.jit(calls[door]))
    jax.effects_barrier()
    assert not ran  # refused while it was traced
    raises(words, calls[door])


# --- Trees ------------------------------------------------------------------------


def without(name, tree=GRADS):
    return {k: v for k, v in tree.items() if k != name}


DIFFERENT = {
    "missing": (without("beta"), PARAMS, "beta"),
    "too many": (GRADS, without("beta", PARAMS), "beta"),
    "last one missing": (without("gamma"), PARAMS, "gamma"),
    "last one too many": (GRADS, without("gamma", PARAMS), "gamma"),
    "other name": (without("beta") | {"bravo": jnp.ones(3)}, PARAMS, "beta"),
    "deeper": (GRADS | {"beta": {"inner": GRADS["beta"]}}, PARAMS, "beta"),
    "two deep": (
        {"outer": {"alpha": jnp.ones(2)}},
        {"outer": {"alpha": jnp.ones(2), "delta": jnp.ones(1)}},
        "['outer']['delta']",
    ),
    "none at all": ({}, PARAMS, "alpha"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_gradient_of_another_structure(name):
    grads, params, path = DIFFERENT[name]
    ran = []

    def counted(params):
        ran.append(1)
        return loss(params)

    tx = sam(0.1)
    for call in in_both_modes(lambda: update(tx, grads, params, counted)):
        message = raises(["structure", path], call)
        if path != "alpha":
            assert "alpha" not in message  # where they agree
    assert not ran


def test_gradient_of_another_shape():
    grads = GRADS | {"beta": jnp.ones(5)}
    for call in in_both_modes(lambda: update(sam(0.1), grads)):
        raises(["beta", "(5,)", "(3,)"], call)


MASK = {"alpha": True, "beta": True, "gamma": False}
LABELS = jax.tree.map(lambda m: "climb" if m else "still", MASK)
PARTS = {"climb": sam(0.1), "still": optax.set_to_zero()}


@pytest.mark.parametrize(
    "tx",
    [
        optax.masked(sam(0.1), MASK),
        optax.masked(asam(0.1), MASK),
        optax.masked(m_sam(0.1, microbatch_size=4), MASK),
        optax.masked(optax.chain(sam(0.1), optax.sgd(0.1)), MASK),
        optax.partition(PARTS, LABELS),
        optax.selective_transform(
            sam(0.1), freeze_mask={"alpha": False, "beta": False, "gamma": True}
        ),
    ],
    ids=["sam", "asam", "m_sam", "chain", "partition", "selective_transform"],
)
def test_mask_around_sam(tx):
    ran = []

    def counted(params, batch=None):
        ran.append(1)
        return loss(params, batch)

    for call in in_both_modes(lambda: update(tx, value_fn=counted, batch=BATCH)):
        raises(["sharpness_aware(", "selective_transform(ascent", "freeze_mask="], call)
    assert not ran


@pytest.mark.parametrize("dtype", ["int32", "bool", "uint8"])
def test_integer_leaf_in_the_gradient(dtype):
    params = PARAMS | {"beta": jnp.ones(3, dtype)}
    grads = GRADS | {"beta": jnp.ones(3, dtype)}
    for call in in_both_modes(lambda: update(sam(0.1), grads, params)):
        raises(["beta", dtype], call)


@pytest.mark.parametrize("dtype", ["int32", "bool"])
def test_integer_leaf_in_the_parameters(dtype):
    params = PARAMS | {"beta": jnp.ones(3, dtype)}
    calls = [
        lambda: update(m_sam(0.1, microbatch_size=4), None, params, batch=BATCH),
        lambda: value_and_grad(loss, steepest_ascent())(params),
        lambda: value_and_grad(loss, steepest_ascent(), second_order=True)(params),
    ]
    for call in calls:
        raises(["beta", dtype], call)
        raises(["beta", dtype], jax.jit(call))


@pytest.mark.parametrize("maker", [steepest_ascent, adaptive_ascent])
def test_integer_leaf_at_a_bare_ascent(maker):
    # An ascent alone would round the climb to integers: to zero, without a word.
    grads = {"alpha": jnp.ones(2), "beta": jnp.arange(3)}
    ascent = maker(0.1)
    for call in in_both_modes(lambda: ascent.update(grads, ascent.init(grads), grads)):
        raises(["beta", "int32"], call)


# --- Door 2 ------------------------------------------------------------------------

STATEFUL = {
    "schedule": steepest_ascent(optax.constant_schedule(0.1)),
    "adaptive schedule": adaptive_ascent(lambda step: 0.1 / (step + 1)),
    "random": random_ascent(0.1, key=KEY),
    "average": optax.chain(optax.ema(0.9), steepest_ascent(0.1)),
}


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("second_order", [False, True])
def test_stateful_ascent_at_door_2(name, second_order):
    ran = []

    def counted(params):
        ran.append(1)
        return loss(params)

    def call():
        ascent = STATEFUL[name]
        return value_and_grad(counted, ascent, second_order=second_order)(PARAMS)

    for call_in_mode in in_both_modes(call):
        # Both ways out: the line for door 1, and the schedule inside the step.
        words = ["optax_sam.sharpness_aware(ascent)", "rho=schedule(step)"]
        words += ["stateful_value_and_grad(loss_fn"]
        raises(words, call_in_mode)
    assert not ran


BAD_ARGNUMS = [
    (1.5, ["argnums = 1.5", "argnums=(0, 2)"]),
    ("0", ["argnums = '0'", "argnums=(0, 2)"]),
    ((0, None), ["argnums = (0, None)"]),
    ((), ["argnums = ()", "names no argument"]),
    ((0, -2), ["argnums = (0, -2)", "twice"]),
    (2, ["argnums = 2", "only 2 positional"]),
    ((0, -3), ["argnums = (0, -3)", "only 2 positional"]),
]


@pytest.mark.parametrize(("argnums", "words"), BAD_ARGNUMS)
def test_argnums_that_name_no_argument(argnums, words):
    def both(params, batch):
        return value_and_grad(loss, steepest_ascent(), argnums=argnums)(params, batch)

    def averaged(params, batch):
        grad_fn = jax.value_and_grad(loss)
        m_sam = m_sharpness(
            grad_fn, microbatch_size=4, argnums=argnums, batch_argnums=1
        )
        return m_sam(params, batch)

    for call in (both, averaged):
        raises(words, lambda call=call: call(PARAMS, BATCH))
        raises(words, lambda call=call: jax.jit(call)(PARAMS, BATCH))


def test_what_is_differentiated_was_given_by_name():
    grad_fn = value_and_grad(loss, steepest_ascent(), argnums=1)
    raises(["argnums = 1", "by position"], lambda: grad_fn(PARAMS, batch=BATCH))


@pytest.mark.parametrize(
    ("argnums", "batch_argnums"), [(0, 0), ((0, 1), 1), (1, (1, 2)), (1, -1), (-2, 0)]
)
def test_what_is_differentiated_is_not_cut(argnums, batch_argnums):
    options = {"argnums": argnums, "batch_argnums": batch_argnums}
    words = ["argnums = ", "batch_argnums = ", "both name", "batch_argnums=1"]

    def call():
        m_sam = m_sharpness(jax.value_and_grad(loss), microbatch_size=4, **options)
        m_sam(PARAMS, BATCH)

    raises(words, call)


@pytest.mark.parametrize("leaf", [jnp.arange(3), jnp.ones(3, bool), KEY])
def test_integers_without_allow_int(leaf):
    params = PARAMS | {"beta": leaf}
    for argnums in (1, (0, 1)):
        for scan_passes in (False, True):
            grad_fn = value_and_grad(
                lambda x, params: jnp.sum(x) + jnp.sum(params["alpha"]),
                steepest_ascent(),
                argnums=argnums,
                scan_passes=scan_passes,
            )
            words = ["beta", str(leaf.dtype)]
            for call in in_both_modes(lambda fn=grad_fn: fn(jnp.ones(2), params)):
                raises(words, call)


def test_complex_numbers_with_allow_int():
    params = PARAMS | {"beta": jnp.ones(3, complex)}
    grad_fn = value_and_grad(loss, steepest_ascent(), allow_int=True)
    raises(["beta", "complex64"], lambda: grad_fn(params))


def linear(w, x, b):
    return jnp.mean(x @ w) * b


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("at", [(0, 2), 2, (0, -1)])
def test_arguments_that_m_sharpness_was_not_told_of(ours, at):
    # Their gradients would be summed over the devices before anyone sees them.
    if ours:
        grad_fn = value_and_grad(linear, steepest_ascent(), argnums=at)
    else:
        grad_fn = jax.value_and_grad(linear, at)
    mesh = jax.make_mesh((4,), ("data",))
    m_sam = m_sharpness(grad_fn, axis_name="data", mesh=mesh)
    raises(["argnums="], lambda: m_sam(jnp.ones(2), BATCH, jnp.ones(())))


def test_the_same_arguments_said_otherwise():
    grad_fn = value_and_grad(linear, steepest_ascent(), argnums=(-1, 0))
    m_sam = m_sharpness(grad_fn, microbatch_size=4, argnums=(0, 2))
    m_sam(jnp.ones(2), BATCH, jnp.ones(()))


# --- Sub-batches -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "nearest"), [(5, "4 and 6"), (7, "6 and 12"), (24, "12"), (8, "6 and 12")]
)
def test_microbatch_size_that_does_not_divide_the_batch(size, nearest):
    calls = [
        lambda: update(m_sam(0.1, microbatch_size=size), None, batch=BATCH),
        lambda: m_sharpness(jax.value_and_grad(loss), microbatch_size=size)(
            PARAMS, BATCH
        ),
    ]
    for call in calls:
        raises(["microbatch_size", f"{size}", "12", f" {nearest}."], call)
        raises([f" {nearest}."], jax.jit(call))


@pytest.mark.parametrize(
    "batch",
    [
        {"images": jnp.ones((12, 2)), "labels": jnp.ones(8)},
        (jnp.ones((12, 2)), {"labels": jnp.ones((8, 12))}),
    ],
)
def test_batch_leaves_of_different_sizes(batch):
    calls = [
        lambda: update(m_sam(0.1, microbatch_size=4), None, batch=batch),
        lambda: m_sharpness(jax.value_and_grad(loss), microbatch_size=4)(PARAMS, batch),
    ]
    for call in calls:
        raises(["leading", "labels", "12", "8", "batch_argnums"], call)
        raises(["leading"], jax.jit(call))


def test_batch_leaf_without_an_axis():
    batch = {"images": jnp.ones((12, 2)), "temperature": jnp.ones(())}
    grad_fn = m_sharpness(jax.value_and_grad(loss), microbatch_size=4)
    raises(["leading", "temperature"], lambda: grad_fn(PARAMS, batch))


@pytest.mark.parametrize("concat_aux", [False, True])
def test_random_key_in_aux(concat_aux):
    def with_key(params, batch):
        return loss(params), {"mean": batch.mean(), "next_key": jax.random.key(0)}

    grad_fn = m_sharpness(
        value_and_grad(with_key, steepest_ascent(), has_aux=True),
        microbatch_size=4,
        concat_aux=concat_aux,
    )
    for call in in_both_modes(lambda: grad_fn(PARAMS, BATCH)):
        raises(["next_key", "key"], call)


def test_aux_inside_m_sharpness_without_has_aux():
    grad_fn = m_sharpness(value_and_grad(pair, steepest_ascent()), microbatch_size=4)
    raises(["has_aux=True"], lambda: grad_fn(PARAMS, BATCH))


@pytest.mark.parametrize(
    "combine",
    [
        lambda clean, climbed: (clean, climbed),
        lambda clean, climbed: jax.tree.map(lambda g: g.sum(), climbed),
    ],
)
@pytest.mark.parametrize("options", [{}, {"second_order": True}])
def test_a_combine_that_returns_no_gradient(combine, options):
    grad_fn = value_and_grad(loss, steepest_ascent(), combine=combine, **options)
    for call in in_both_modes(lambda: grad_fn(PARAMS)):
        raises(["combine(clean, climbed)", "jax.tree.map"], call)


@pytest.mark.parametrize(
    "keys",
    [
        jax.random.split(jax.random.key(0), 3),
        jax.random.key_data(jax.random.split(jax.random.key(0), 3)),
    ],
)
def test_several_keys_where_one_is_wanted(keys):
    for ascent in (random_ascent, random_perturbation, esam):
        tx = ascent(0.1, key=keys)
        raises(["key=keys[0]", "(3,)"], lambda tx=tx: tx.init(PARAMS))


# --- Nothing has changed -----------------------------------------------------------


def test_the_state_survives_a_refusal():
    # The step can be repeated as it should have been, from the same state.
    tx = optax.chain(sam(optax.linear_schedule(0.1, 0.2, 5)), optax.adam(0.1))
    state = tx.init(PARAMS)
    before = jax.tree.map(jnp.copy, state)
    raises(["value_fn="], lambda: tx.update(GRADS, state, PARAMS))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, state, before))
    tx.update(GRADS, state, PARAMS, value_fn=loss)


def test_doors_are_public():
    # The messages above tell users to type these names.
    assert optax_sam.sharpness_aware is sharpness_aware
    assert callable(optax.selective_transform)
