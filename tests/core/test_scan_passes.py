"""The passes of a step as one loop: the same numbers, the model in the program once.

What a program weighs is counted in `test_program_size.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from problems import quick_jit
from recorded import TAKES_ITS_OWN, record, recorded, rows
from test_devices import (
    NETWORK,
    ON_EACH,
    RHO,
    STEPS,
    assert_same,
    check_gradient_function,
    everywhere,
    oracle,
    train_with,
)
from test_recorded import EVERY_TIME
from test_recorded import assert_same as assert_as_recorded

import optax_sam

pytestmark = pytest.mark.usefixtures("x64")

SCANNED = {"scan_passes": True}


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


# --- The same numbers ----------------------------------------------------------------

#: Whose passes are not alike, or no more than one.
WITHOUT = TAKES_ITS_OWN | {"value_and_grad(second_order=True)"}
QUICK = {"sam", "gsam", "look_sam(k=3)", "every_k(m_sam, 3)", "value_and_grad"}


def recorded_rows():
    for product, context in rows():
        if product in WITHOUT:
            continue
        quick = context in EVERY_TIME and product in QUICK
        marks = [] if quick else [pytest.mark.slow]
        yield pytest.param(product, context, marks=marks, id=f"{product}, {context}")


@pytest.fixture(scope="module")
def numbers():
    return recorded()


@pytest.mark.parametrize(("product", "context"), list(recorded_rows()))
def test_as_recorded(numbers, product, context):
    """What straight-line passes gave in 0.1.0, to a relative 1e-12."""
    assert_as_recorded(record(product, context, **SCANNED), numbers[product, context])


@everywhere
def test_gradient_function_against_the_loop(context, microbatch_size):
    """BatchNorm statistics, dropout keys, counts and rows in aux, on all devices."""
    check_gradient_function(context, microbatch_size, **SCANNED)


@pytest.mark.slow
@everywhere
def test_transformation_against_the_loop(context, microbatch_size):
    product = functools.partial(optax_sam.m_sam, RHO, **SCANNED)
    params, _ = train_with(product, NETWORK, context, microbatch_size, inside=True)
    expected = oracle(NETWORK, microbatch_size or ON_EACH, steps=STEPS)
    assert_same(params, expected.params)


# --- A small network for what follows ------------------------------------------------


def loss(params, batch):
    hidden = jnp.tanh(batch @ params["a"])
    return jnp.mean((hidden @ params["b"] - 1) ** 2)


def problem():
    draw = np.random.default_rng(3).normal
    params = {"a": draw(size=(4, 8)), "b": draw(size=(8,))}
    return jax.tree.map(jnp.asarray, (params, draw(size=(16, 4))))


def steps_of(make, count=3, **options):
    """Parameters and state after some steps, as a function of where they start."""
    tx = optax.chain(make(RHO, **options), optax.sgd(0.1))

    def train(params, batch):
        state = tx.init(params)
        for _ in range(count):
            updates, state = tx.update(None, state, params, value_fn=loss, batch=batch)
            params = optax.apply_updates(params, updates)
        return params, state

    return train


OPTIONS = {
    "plain": {},
    "diagnostics": {"diagnostics": True},
    "three steps": {"num_steps": 3, "diagnostics": True},
    "every second": {"when": optax_sam.every_k(2), "diagnostics": True},
    "never": {"when": False},
    "micro-batches": {"microbatch_size": 4, "when": optax_sam.every_k(2)},
}


def assert_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14), got, want
    )


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    "product", ["sam", slow("gsam"), slow("friendly_sam"), "look_sam"]
)
def test_straight_and_scanned(product, options):
    make, options = getattr(optax_sam, product), OPTIONS[options]
    want, got = (steps_of(make, **options, **o) for o in ({}, SCANNED))
    args = problem()
    assert_equal(quick_jit(got)(*args), quick_jit(want)(*args))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("split", [P(), P("model")])
@pytest.mark.parametrize("options", ["plain", slow("three steps"), "every second"])
def test_sharded_arguments(kind, split, options):
    """Batches split along one axis, parameters along another or not at all."""
    devices = np.array(jax.devices()).reshape(4, 2)
    mesh = Mesh(devices, ("data", "model"), axis_types=(kind,) * 2)

    def place(x, *spec):
        return jax.device_put(x, NamedSharding(mesh, P(*spec)))

    def by_leaf(params, batch):
        hidden = jnp.tanh(batch @ params["a"])
        rows = jnp.sum(hidden * params["b"], -1)
        return jnp.mean((rows - 1) ** 2)

    params, batch = problem()
    tx = [optax_sam.gsam(RHO, **OPTIONS[options], **o) for o in ({}, SCANNED)]
    loss_fn = by_leaf if kind == AxisType.Explicit else loss
    with jax.set_mesh(mesh):
        columns = (None, *split) if split else ()
        params = {"a": place(params["a"], *columns), "b": place(params["b"], *split)}
        batch = place(batch, "data")
        want, got = (
            jax.jit(
                lambda p, b, tx=tx: tx.update(
                    None, tx.init(p), p, value_fn=loss_fn, batch=b
                )
            )(params, batch)
            for tx in tx
        )
        assert_equal(got, want)
        for name, x in got[0].items():
            assert x.sharding.is_equivalent_to(params[name].sharding, x.ndim)


# --- Gradients through it, and seeds side by side ------------------------------------


@pytest.mark.parametrize(
    "options", ["plain", slow("three steps"), slow("every second")]
)
def test_gradients_through_three_steps(options):
    """Straight-line passes give the same, and so do finite differences."""

    def after(train):
        def end(params, batch):
            return loss(train(params, batch)[0], batch)

        return end

    params, batch = problem()
    want, got = (
        after(steps_of(optax_sam.sam, **OPTIONS[options], **o)) for o in ({}, SCANNED)
    )
    there = quick_jit(jax.grad(got))(params, batch)
    assert_equal(there, quick_jit(jax.grad(want))(params, batch))
    way = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)

    def along(t):
        return got(jax.tree.map(lambda p, d: p + t * d, params, way), batch)

    slope = (along(1e-5) - along(-1e-5)) / 2e-5
    products = jax.tree.map(lambda g, d: jnp.sum(g * d), there, way)
    np.testing.assert_allclose(slope, sum(products.values()), rtol=1e-7)


def test_a_gradient_of_zero_gives_no_nan_in_reverse():
    """The first trip holds a zero gradient; nothing may be differentiated there."""
    train = steps_of(optax_sam.sam, count=1, **SCANNED)
    params, batch = problem()
    seen = quick_jit(jax.grad(lambda p: loss(train(p, batch)[0], batch)))(params)
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(seen))


def test_over_seeds():
    params, batch = problem()
    several = jax.tree.map(lambda x: jnp.stack([x, -x, 2 * x]), params)
    train = steps_of(optax_sam.sam, when=optax_sam.every_k(2), **SCANNED)
    got = quick_jit(jax.vmap(train, in_axes=(0, None)))(several, batch)
    for seed in range(3):
        own = jax.tree.map(lambda x, seed=seed: x[seed], several)
        want = quick_jit(train)(own, batch)
        assert_equal(jax.tree.map(lambda x, seed=seed: x[seed], got), want)


# --- Aux -----------------------------------------------------------------------------


def everything(params, batch):
    key = jax.random.key(5)
    aux = {
        "array": batch.sum(0),
        "whole numbers": jnp.arange(3),
        "bool": jnp.array(True),
        "key": key,
        "old key": jax.random.PRNGKey(5),
        "text": "layer norm",
        "number": 3,
        "no hash": {1, 2},
        "nothing": None,
        "NumPy": np.float32([1, 2]),
        "depends": params["a"].sum(),
    }
    return loss(params, batch), aux


@pytest.mark.parametrize("options", [{}, {"num_steps": 2}, {"when": True}])
def test_aux_of_any_kind(options):
    params, batch = problem()
    seen = []
    for more in ({}, SCANNED):
        grad_fn = optax_sam.value_and_grad(
            everything,
            optax_sam.steepest_ascent(RHO),
            has_aux=True,
            **options,
            **more,
        )

        def step(params, batch, grad_fn=grad_fn):
            (value, aux), grads = grad_fn(params, batch)
            known = {k: aux.pop(k) for k in ("text", "number", "no hash", "nothing")}
            seen.append(known)
            aux["key"] = jax.random.key_data(aux["key"])
            return value, aux, grads

        seen.append(quick_jit(step)(params, batch))
    assert_equal(seen[3], seen[1])
    assert seen[2] == seen[0] == {
        "text": "layer norm", "number": 3, "no hash": {1, 2}, "nothing": None
    }  # fmt: skip


@pytest.mark.parametrize("now", [True, False])
def test_outside_of_jit_with_a_traced_condition(now):
    params, batch = problem()
    made = [
        optax_sam.value_and_grad(
            everything,
            optax_sam.steepest_ascent(RHO),
            has_aux=True,
            when=jnp.array(now),
            **o,
        )(params, batch)
        for o in ({}, SCANNED)
    ]
    for (_, aux), _ in made:
        assert (aux["text"], aux["no hash"]) == ("layer norm", {1, 2})
    (want, _), want_grads = made[0]
    (got, _), grads = made[1]
    assert_equal((got, grads), (want, want_grads))


def test_stateful():
    """Aux comes back once a step, that of the clean pass."""
    params, batch = problem()

    def with_aux(params, batch):
        return loss(params, batch), {"a": params["a"].sum(), "n": 7, "s": "text"}

    made = []
    for o in ({}, SCANNED):
        tx = optax_sam.look_sam(RHO, k=2, diagnostics=True, **o)
        init, grad_fn = optax_sam.stateful_value_and_grad(with_aux, tx, has_aux=True)
        state = init(params)
        for _ in range(3):
            (value, aux), grads, state = grad_fn(state, params, batch)
            assert (aux.pop("n"), aux.pop("s")) == (7, "text")
        made.append((value, aux, grads, state))
    assert_equal(made[1], made[0])


# --- What runs, and what is traced ---------------------------------------------------


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({}, [2, 2, 2]),
        ({"num_steps": 3}, [4, 4, 4]),
        ({"when": optax_sam.every_k(2)}, [2, 1, 2]),
        ({"when": optax_sam.every_k(2), "num_steps": 2}, [3, 1, 3]),
        ({"when": False}, [1, 1, 1]),
        ({"when": optax_sam.every_k(2), "microbatch_size": 4}, [8, 4, 8]),
    ],
)
@pytest.mark.parametrize("product", ["sam", "look_sam"])
def test_evaluations_that_run(product, options, counts):
    ran = []

    def counted(params, batch):
        jax.debug.callback(lambda: ran.append(1))
        return loss(params, batch)

    params, batch = problem()
    if product == "look_sam":
        options = options | {"k": 1}
    tx = getattr(optax_sam, product)(RHO, **options, **SCANNED)
    step = quick_jit(
        lambda state: tx.update(None, state, params, value_fn=counted, batch=batch)[1]
    )
    state, seen = tx.init(params), []
    for _ in counts:
        ran.clear()
        state = step(state)
        jax.effects_barrier()
        seen.append(len(ran))
    assert seen == counts


@pytest.mark.parametrize("options", OPTIONS)
def test_the_loss_is_traced_once(options):
    traced = []

    def counted(params, batch):
        traced.append(1)
        return loss(params, batch)

    params, batch = problem()
    tx = optax_sam.gsam(RHO, **OPTIONS[options], **SCANNED)
    quick_jit(lambda p: tx.update(None, tx.init(p), p, value_fn=counted, batch=batch))(
        params
    )
    assert len(traced) == 1


def test_outside_of_jit_it_is_compiled_once():
    traced = []

    def counted(params, batch):
        traced.append(1)
        return loss(params, batch)

    params, batch = problem()
    tx, state = optax_sam.sam(RHO, **SCANNED), None
    state = tx.init(params)
    grad_fn = optax_sam.value_and_grad(
        counted, optax_sam.steepest_ascent(RHO), **SCANNED
    )
    # One after the other: each trace leaves a note, which the other would see.
    for _ in range(3):
        _, state = tx.update(None, state, params, value_fn=counted, batch=batch)
    for _ in range(3):
        grad_fn(params, batch)
    assert len(traced) == 2


# --- What cannot be ------------------------------------------------------------------


@pytest.mark.parametrize("product", ["sam", "look_sam", "gsam"])
def test_a_given_gradient_is_refused(product):
    params, batch = problem()
    tx = getattr(optax_sam, product)(RHO, **SCANNED)
    grads = jax.grad(loss)(params, batch)
    with pytest.raises(ValueError, match=r"update\(None, state"):
        tx.update(grads, tx.init(params), params, value_fn=loss, batch=batch)
    tx = getattr(optax_sam, product)(RHO, ignore_updates=True, **SCANNED)
    got, _ = tx.update(grads, tx.init(params), params, value_fn=loss, batch=batch)
    tx = getattr(optax_sam, product)(RHO)
    want, _ = tx.update(grads, tx.init(params), params, value_fn=loss, batch=batch)
    assert_equal(got, want)


def test_one_dtype_for_all_passes():
    params, batch = problem()
    tx = optax_sam.sam(RHO, climb_dtype=jnp.float32, **SCANNED)
    with pytest.raises(ValueError, match="climb_dtype"):
        tx.update(None, tx.init(params), params, value_fn=loss, batch=batch)
    grad_fn = optax_sam.value_and_grad(
        loss, optax_sam.steepest_ascent(RHO), climb_dtype=jnp.float32, **SCANNED
    )
    with pytest.raises(ValueError, match="climb_dtype"):
        grad_fn(params, batch)


def test_second_order_is_refused():
    with pytest.raises(ValueError, match="second_order"):
        optax_sam.value_and_grad(
            loss, optax_sam.steepest_ascent(RHO), second_order=True, **SCANNED
        )


@pytest.mark.parametrize(
    ("product", "options"),
    [
        ("partial_climb", {}),
        ("esam", {"key": 0}),
        ("momentum_sam", {}),
        ("stale_sam", {}),
        ("random_perturbation", {"key": 0}),
    ],
)
def test_products_whose_passes_are_not_alike(product, options):
    with pytest.raises(TypeError, match=f"{product} takes no scan_passes"):
        getattr(optax_sam, product)(RHO, **options, **SCANNED)


@pytest.mark.parametrize("way", ["clean", "at"])
def test_a_method_that_makes_its_own_passes(way):
    def local(passes, state, climbs):
        seen = passes.clean() if way == "clean" else passes.at(passes.params)
        return optax_sam.Seen(seen.value, seen.gradient)

    def finish(state, seen, climbs, params):
        return seen.gradient, state

    method = optax_sam.Method(lambda params: None, local, finish)
    tx, (params, batch) = optax_sam.transformation(method, **SCANNED), problem()
    with pytest.raises(ValueError, match="makes a pass of its own"):
        tx.update(None, tx.init(params), params, value_fn=loss, batch=batch)


def test_half_precision_is_warned_of():
    params, batch = jax.tree.map(lambda x: x.astype(jnp.bfloat16), problem())
    tx = optax_sam.sam(RHO, **SCANNED)
    with pytest.warns(UserWarning, match="half precision") as seen:
        tx.update(None, tx.init(params), params, value_fn=loss, batch=batch)
    assert seen[0].filename == __file__


# --- What the loop carries -----------------------------------------------------------


@pytest.mark.parametrize(
    ("product", "options", "copies"),
    [
        ("sam", {}, 1),  # the next point, and at the end the gradient
        ("sam", {"when": optax_sam.every_k(5)}, 1),
        ("sam", {"num_steps": 3}, 2),  # and the climb so far
        ("sam", {"diagnostics": True}, 2),  # and the clean gradient
        ("gsam", {}, 2),
        ("friendly_sam", {}, 2),
        ("look_sam", {}, 2),
    ],
)
def test_as_little_as_there_can_be(product, options, copies):
    params, batch = problem()
    tx = getattr(optax_sam, product)(RHO, **options, **SCANNED)

    def update(params):
        state = tx.init(params)
        return tx.update(None, state, params, value_fn=loss, batch=batch)

    (loop,) = [
        e for e in jax.make_jaxpr(update)(params).eqns if e.primitive.name == "scan"
    ]
    sizes = [v.aval.size for v in loop.outvars]  # nothing else comes out of it
    whole = sum(x.size for x in jax.tree.leaves(params))
    assert sum(n for n in sizes if n > 1) == copies * whole
