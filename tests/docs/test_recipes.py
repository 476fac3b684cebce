"""What Optax already gives: every recipe of docs/recipes.md, executed.

Each test is the recipe as a user writes it, compared with a plain loop in Python.
"""

import chex
import equinox
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from table import flat

import optax_sam
from optax_sam import adaptive_ascent, sam, sharpness_aware, steepest_ascent

RHO, LEARNING_RATE = 0.5, 0.1
rng = np.random.default_rng(0)
X = jnp.asarray(rng.normal(size=(16, 3)), jnp.float32)
Y = jnp.asarray(rng.normal(size=16), jnp.float32)
BATCH = (X, Y)
PARAMS = {
    "backbone": {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)},
    "head": {"kernel": jnp.asarray(rng.normal(size=4), jnp.float32), "bias": Y[0]},
}
FROZEN = {"backbone": {"kernel": True}, "head": {"kernel": False, "bias": False}}


def loss(params, batch=BATCH):
    x, y = batch
    hidden = jnp.tanh(x @ params["backbone"]["kernel"])
    out = hidden @ params["head"]["kernel"] + params["head"]["bias"]
    return jnp.mean((out - y) ** 2)


gradient = jax.jit(jax.grad(loss))


@jax.jit
def sam_gradient(params, batch=BATCH, rho=RHO):
    """SAM by hand: the oracle of this file."""
    grads = jax.grad(loss)(params, batch)
    size = optax.tree.norm(grads)
    moved = jax.tree.map(lambda w, g: w + rho * g / size, params, grads)
    return jax.grad(loss)(moved, batch)


def descend(params, grads, learning_rate=LEARNING_RATE):
    return jax.tree.map(lambda w, g: w - learning_rate * g, params, grads)


def train(tx, steps, params=PARAMS, batches=None):
    """The loop of door 1; the parameters after every step, and the last state."""

    @jax.jit
    def step(params, state, batch):
        def value_fn(q):
            return loss(q, batch)

        grads = jax.grad(value_fn)(params)
        updates, state = tx.update(grads, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    state, seen = tx.init(params), []
    for i in range(steps):
        params, state = step(params, state, batches[i] if batches else BATCH)
        seen.append(params)
    return seen, state


def assert_close(tree, other):
    chex.assert_trees_all_close(tree, other, rtol=2e-5, atol=2e-6)


def assert_different(tree, other):
    assert np.abs(flat(tree) - flat(other)).max() > 1e-3


# --- A schedule for rho -----------------------------------------------------------


def test_schedule_for_rho():
    schedule = optax.linear_schedule(1.0, 0.0, 4)
    seen, _ = train(optax.chain(sam(rho=schedule), optax.sgd(LEARNING_RATE)), 4)
    params = PARAMS
    for step, after in enumerate(seen):
        params = descend(params, sam_gradient(params, rho=1.0 - step / 4))
        assert_close(after, params)


def test_schedule_for_rho_at_door_2():
    schedule = optax.linear_schedule(1.0, 0.0, 4)

    @jax.jit
    def step(params, step):
        ascent = steepest_ascent(rho=schedule(step))
        _, grads = optax_sam.value_and_grad(loss, ascent)(params, BATCH)
        return grads

    for i in range(4):
        assert_close(step(PARAMS, i), sam_gradient(PARAMS, rho=1.0 - i / 4))


def test_inject_hyperparams():
    inject = optax.inject_hyperparams(sam, static_args=("ord",))
    tx = optax.chain(inject(rho=RHO), optax.sgd(LEARNING_RATE))
    _, state = train(tx, 1)
    (after, *_), state = train(tx, 1)
    assert_close(after, descend(PARAMS, sam_gradient(PARAMS)))
    assert state[0].hyperparams["rho"] == RHO
    # By hand, between two steps of one compiled function.
    update = jax.jit(lambda s: tx.update(gradient(PARAMS), s, PARAMS, value_fn=loss)[0])
    for rho in (0.25, 0.0):
        state[0].hyperparams["rho"] = jnp.asarray(rho)
        expected = sam_gradient(PARAMS, rho=rho)
        assert_close(descend(PARAMS, update(state), -1), descend(PARAMS, expected))
    assert update._cache_size() == 1


# --- Masks -------------------------------------------------------------------------


def test_mask_on_the_ascent():
    # The frozen leaf does not climb, and does not count in the norm.
    ascent = optax.selective_transform(steepest_ascent(RHO), freeze_mask=FROZEN)
    grads = gradient(PARAMS)
    climb, _ = ascent.update(grads, ascent.init(PARAMS), PARAMS)
    assert not flat(climb["backbone"]).any()
    assert float(optax.tree.norm(climb)) == pytest.approx(RHO, rel=1e-6)
    size = optax.tree.norm(grads["head"])
    head = jax.tree.map(lambda g: RHO * g / size, grads["head"])
    assert_close(climb["head"], head)

    # All leaves are trained, at the point where only the head has climbed.
    tx = optax.chain(sharpness_aware(ascent), optax.sgd(LEARNING_RATE))
    (after, *_), _ = train(tx, 1)
    climbed = gradient(jax.tree.map(jnp.add, PARAMS, climb))
    assert_close(after, descend(PARAMS, climbed))


@pytest.mark.parametrize("make", [steepest_ascent, adaptive_ascent])
def test_frozen_backbone(make):
    # Weight decay would move frozen leaves too: the optimizer wants the mask as well.
    ascent = optax.selective_transform(make(RHO), freeze_mask=FROZEN)
    optimizer = optax.selective_transform(
        optax.adamw(LEARNING_RATE, weight_decay=0.1), freeze_mask=FROZEN
    )
    seen, _ = train(optax.chain(sharpness_aware(ascent), optimizer), 3)
    chex.assert_trees_all_equal(seen[-1]["backbone"], PARAMS["backbone"])
    assert_different(seen[-1]["head"], PARAMS["head"])

    # The head trains as if the backbone were a constant of the loss.
    def head_loss(head):
        return loss(PARAMS | {"head": head})

    tx = optax.chain(
        sharpness_aware(make(RHO)), optax.adamw(LEARNING_RATE, weight_decay=0.1)
    )
    head, state = PARAMS["head"], tx.init(PARAMS["head"])
    for after in seen:
        grads = jax.grad(head_loss)(head)
        updates, state = tx.update(grads, state, head, value_fn=head_loss)
        head = optax.apply_updates(head, updates)
        assert_close(after["head"], head)


def test_asam_on_kernels_and_sam_on_biases():
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: "sam" if path[-1].key == "bias" else "asam", PARAMS
    )
    parts = {"sam": steepest_ascent(0.05), "asam": adaptive_ascent(0.5)}
    ascent = optax.partition(parts, labels)
    grads = gradient(PARAMS)
    climb, _ = ascent.update(grads, ascent.init(PARAMS), PARAMS)
    assert float(abs(climb["head"]["bias"])) == pytest.approx(0.05, rel=1e-6)
    kernels = [
        e / (abs(w) + 0.01)
        for e, w in zip(jax.tree.leaves(climb), jax.tree.leaves(PARAMS), strict=True)
        if e.ndim
    ]
    assert float(optax.tree.norm(kernels)) == pytest.approx(0.5, rel=1e-6)


def test_climb_along_an_averaged_gradient():
    tx = optax.chain(
        sharpness_aware(optax.chain(optax.ema(0.5), steepest_ascent(RHO))),
        optax.sgd(LEARNING_RATE),
    )
    seen, _ = train(tx, 3)
    params, average = PARAMS, jax.tree.map(jnp.zeros_like, PARAMS)
    for after in seen:
        grads = gradient(params)
        average = jax.tree.map(lambda a, g: (a + g) / 2, average, grads)
        size = optax.tree.norm(average)
        climb = jax.tree.map(lambda a, s=size: RHO * a / s, average)
        params = descend(params, gradient(jax.tree.map(jnp.add, params, climb)))
        assert_close(after, params)


def five_steps_by_hand(climb_of, sub_batches=(BATCH,)):
    """`climb_of(gradient, average, t)` gives the climb; the average is kept here."""
    params, seen, state = PARAMS, [], None
    for _ in range(5):
        each = [gradient(params, batch) for batch in sub_batches]
        out = []
        for batch, g in zip(sub_batches, each, strict=True):
            climb = climb_of(g, state)[0]
            out.append(gradient(jax.tree.map(jnp.add, params, climb), batch))
        mean = [jax.tree.map(lambda *g: sum(g) / len(g), *gs) for gs in (each, out)]
        state = climb_of(mean[0], state)[1]
        params = descend(params, mean[1])
        seen.append(params)
    return seen


def five_steps(tx):
    """The gradients are taken inside, from the batch."""
    tx = optax.chain(tx, optax.sgd(LEARNING_RATE))

    @jax.jit
    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=loss, batch=BATCH)
        return optax.apply_updates(params, updates), state

    params, state, seen = PARAMS, tx.init(PARAMS), []
    for _ in range(5):
        params, state = step(params, state)
        seen.append(params)
    return seen


def devices(count):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("data",))
    return {"axis_name": "data", "mesh": mesh}


@pytest.mark.parametrize("where", ["batch", "micro-batches", "devices"])
@pytest.mark.parametrize("name", ["VaSSO", "USAM"])
def test_five_steps_of_vasso_and_of_the_unnormalized_climb(name, where):
    theta = 0.4

    def vasso(g, d):
        d = (
            g
            if d is None
            else jax.tree.map(lambda d, g: (1 - theta) * d + theta * g, d, g)
        )
        size = optax.tree.norm(d)
        return jax.tree.map(lambda d: RHO * d / size, d), d

    def unnormalized(g, _):
        return jax.tree.map(lambda g: RHO * g, g), None

    first = optax.scale_by_schedule(lambda t: jnp.where(t == 0, 1 / theta, 1.0))
    average = optax.chain(first, optax.ema(1 - theta, debias=False))
    ascent, by_hand = {
        "VaSSO": (optax.chain(average, steepest_ascent(RHO)), vasso),
        "USAM": (optax.scale(RHO), unnormalized),
    }[name]
    options = {"batch": {}, "micro-batches": {"microbatch_size": 4}}
    options = options.get(where) or (devices(4) if where == "devices" else {})
    quarters = [(X[i : i + 4], Y[i : i + 4]) for i in range(0, 16, 4)]
    expected = five_steps_by_hand(by_hand, quarters if options else [BATCH])
    for got, want in zip(
        five_steps(sharpness_aware(ascent, **options)), expected, strict=True
    ):
        assert_close(got, want)


# --- Every k steps -----------------------------------------------------------------


def count_evaluations(fn, ran):
    """The same loss, which notes every time that it really runs."""

    def counted(*args):
        jax.debug.callback(lambda: ran.append(1))
        return fn(*args)

    return counted


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("scan", [False, True], ids=["jit", "scan"])
def test_every_k_steps(k, scan):
    every_k = optax.conditionally_transform(sam(RHO), lambda step: step % k == 0)
    tx = optax.chain(every_k, optax.sgd(LEARNING_RATE))
    ran = []
    climbed_loss = count_evaluations(loss, ran)

    def step(carry, _):
        params, state = carry
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params, value_fn=climbed_loss)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    carry, steps = (PARAMS, tx.init(PARAMS)), 5
    if scan:
        _, seen = jax.jit(lambda c: jax.lax.scan(step, c, length=steps))(carry)
        seen = [jax.tree.map(lambda x, i=i: x[i], seen) for i in range(steps)]
    else:
        seen, compiled = [], jax.jit(step)
        for _ in range(steps):
            carry, params = compiled(carry, None)
            seen.append(params)
    jax.effects_barrier()

    params = PARAMS
    for i, after in enumerate(seen):
        params = descend(params, (sam_gradient if i % k == 0 else gradient)(params))
        assert_close(after, params)
    assert len(ran) == len(range(0, steps, k))  # the second pass was really skipped


# --- Order in the chain ------------------------------------------------------------


def test_clip_after():
    limit = 0.1
    (after, *_), _ = train(
        optax.chain(sam(RHO), optax.clip_by_global_norm(limit), optax.sgd(1.0)), 1
    )
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, after, PARAMS))
    assert float(moved) == pytest.approx(limit, rel=1e-5)
    # In front it clips the gradient that only gives the direction: to no effect.
    clip_first = optax.chain(
        optax.clip_by_global_norm(limit), sam(RHO), optax.sgd(LEARNING_RATE)
    )
    (after, *_), _ = train(clip_first, 1)
    assert_close(after, descend(PARAMS, sam_gradient(PARAMS)))


BATCHES = [(X[i : i + 4], Y[i : i + 4]) for i in range(0, 16, 4)]


def test_multi_steps_behind_sam_is_m_sam():
    accumulate = optax.MultiSteps(optax.sgd(LEARNING_RATE), every_k_schedule=4)
    tx = optax.chain(sam(RHO), accumulate.gradient_transformation())
    seen, _ = train(tx, 4, batches=BATCHES)
    each = [sam_gradient(PARAMS, batch) for batch in BATCHES]
    average = jax.tree.map(lambda *g: sum(g) / 4, *each)
    for before in seen[:3]:
        chex.assert_trees_all_equal(before, PARAMS)
    assert_close(seen[3], descend(PARAMS, average))
    # The same numbers in one step.
    m_sam = optax_sam.m_sam(RHO, microbatch_size=4)
    grads, _ = m_sam.update(
        None, m_sam.init(PARAMS), PARAMS, value_fn=loss, batch=BATCH
    )
    assert_close(grads, average)


def test_m_sam_takes_any_ascent():
    @jax.jit
    def both():
        same = [
            optax_sam.m_sam(ascent=adaptive_ascent(RHO), microbatch_size=4),
            optax_sam.asam(RHO, microbatch_size=4),
        ]
        call = {"value_fn": loss, "batch": BATCH}
        return [tx.update(None, tx.init(PARAMS), PARAMS, **call)[0] for tx in same]

    by_ascent, by_name = both()
    assert_close(by_ascent, by_name)
    each = [sam_gradient(PARAMS, batch) for batch in BATCHES]
    assert_different(by_ascent, jax.tree.map(lambda *g: sum(g) / 4, *each))


def test_multi_steps_around_sam_is_something_else():
    # It climbs along the mean gradient, and differentiates the last micro-batch only.
    inner = optax.chain(sam(RHO), optax.sgd(LEARNING_RATE))
    around = optax.MultiSteps(inner, every_k_schedule=4)
    seen, _ = train(around, 4, batches=BATCHES)
    each = [sam_gradient(PARAMS, batch) for batch in BATCHES]
    m_sam = descend(PARAMS, jax.tree.map(lambda *g: sum(g) / 4, *each))
    full_batch = descend(PARAMS, sam_gradient(PARAMS))
    assert_different(seen[3], m_sam)
    assert_different(seen[3], full_batch)


# --- Full-batch SAM with the memory of one micro-batch ------------------------------


def looped(loss_fn, microbatch_size):
    """The mean loss over the batch, with the memory of one micro-batch.

    `jax.checkpoint` keeps nothing of a micro-batch but its examples, so that the
    gradient loops too; both doors take this loss as they take any other.
    """

    def full(params, batch):
        cut = jax.tree.map(
            lambda x: x.reshape(-1, microbatch_size, *x.shape[1:]), batch
        )
        one = jax.checkpoint(lambda part: loss_fn(params, part))
        return jnp.mean(jax.lax.map(one, cut))

    return full


def from_averages(loss_fn, microbatch_size):
    """The same from averaged gradients: climb along one, return another."""
    grad_fn = optax_sam.m_sharpness(
        jax.value_and_grad(loss_fn), microbatch_size=microbatch_size
    )
    ascent = steepest_ascent(RHO)

    def sam_value_and_grad(params, batch):
        value, grads = grad_fn(params, batch)
        climb, _ = ascent.update(grads, ascent.init(params), params)
        return value, grad_fn(optax.apply_updates(params, climb), batch)[1]

    return sam_value_and_grad


def from_looped(loss_fn, microbatch_size):
    return optax_sam.value_and_grad(
        looped(loss_fn, microbatch_size), steepest_ascent(RHO)
    )


@pytest.mark.parametrize("recipe", [from_averages, from_looped])
def test_full_batch_sam_in_micro_batches(recipe):
    value, grads = jax.jit(recipe(loss, 4))(PARAMS, BATCH)
    assert_close(grads, sam_gradient(PARAMS))
    np.testing.assert_allclose(value, loss(PARAMS), rtol=1e-5)
    each = [sam_gradient(PARAMS, batch) for batch in BATCHES]
    assert_different(grads, jax.tree.map(lambda *g: sum(g) / 4, *each))  # not m-SAM


@pytest.mark.parametrize("recipe", [from_averages, from_looped])
def test_memory_of_one_micro_batch(recipe):
    def wide_loss(params, batch):
        hidden = jnp.tanh(batch @ params)
        return jnp.mean(jnp.tanh(hidden @ params.T) ** 2)

    def temporary(fn):
        shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(8, 128), (4096, 8)]]
        compiled = jax.jit(fn).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    full = temporary(optax_sam.value_and_grad(wide_loss, steepest_ascent(RHO)))
    assert temporary(recipe(wide_loss, 256)) < full / 4


def test_full_batch_sam_in_micro_batches_at_door_1():
    value_fn = looped(loss, 4)
    tx = sam(RHO)

    @jax.jit
    def step(params, batch):
        grads = jax.grad(value_fn)(params, batch)
        return tx.update(
            grads, tx.init(params), params, value_fn=value_fn, batch=batch
        )[0]

    assert_close(step(PARAMS, BATCH), sam_gradient(PARAMS))


# --- What stands behind SAM ----------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [sam(RHO), optax_sam.asam(RHO), optax_sam.m_sam(RHO, microbatch_size=4)],
    ids=["sam", "asam", "m_sam"],
)
@pytest.mark.parametrize("where", ["clean", "climbed"])
def test_apply_if_finite_behind(method, where):
    # The first gradient not finite, or only the second one: no step, and it is counted.
    tx = optax.chain(
        method, optax.apply_if_finite(optax.sgd(LEARNING_RATE, momentum=0.9), 5)
    )

    @jax.jit
    def step(params, state, bad):
        def value_fn(q, batch):
            moved = optax.tree.norm(jax.tree.map(jnp.subtract, q, params)) > 0
            broken = bad & (jnp.array(where == "clean") | moved)
            return loss(q, batch) * jnp.where(broken, jnp.nan, 1)

        grads = jax.grad(value_fn)(params, BATCH)
        grads = None if method.step.sub_batches.split else grads
        updates, state = tx.update(grads, state, params, value_fn=value_fn, batch=BATCH)
        return optax.apply_updates(params, updates), state

    good, state = step(PARAMS, tx.init(PARAMS), False)
    assert_different(good, PARAMS)
    kept, after = step(good, state, True)
    chex.assert_trees_all_equal(kept, good)
    assert after[1].total_notfinite == 1
    chex.assert_trees_all_equal(after[1].inner_state, state[1].inner_state)
    again, last = step(kept, after, False)
    assert np.isfinite(flat(again)).all()
    assert_different(again, good)
    assert last[1].notfinite_count == 0


def test_average_of_the_weights():
    # The parameters are never anything but clean, so their average is too.
    tx = optax.chain(sam(RHO), optax.sgd(LEARNING_RATE))
    seen, _ = train(tx, 3)
    averaging = optax.ema(0.5, debias=False)
    state = averaging.init(PARAMS)
    for params in seen:
        average, state = averaging.update(params, state)
    by_hand = jax.tree.map(lambda a, b, c: a / 8 + b / 4 + c / 2, *_clean_path(3))
    assert_close(average, by_hand)
    incremental = PARAMS
    for params in seen:
        incremental = optax.incremental_update(params, incremental, step_size=0.5)
    assert_close(incremental, jax.tree.map(lambda a, w: a + w / 8, by_hand, PARAMS))


def _clean_path(steps):
    path = [PARAMS]
    for _ in range(steps):
        path.append(descend(path[-1], sam_gradient(path[-1])))
    return path[1:]


def line_search():
    return optax.scale_by_backtracking_linesearch(max_backtracking_steps=10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "behind",
    [optax.chain(optax.sgd(1.0), line_search()), optax.lbfgs()],
    ids=["backtracking", "lbfgs"],
)
def test_line_search_behind(behind):
    tx = optax.chain(sam(0.05), behind)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=loss
        )
        return optax.apply_updates(params, updates), state, value

    params, state, values = PARAMS, tx.init(PARAMS), []
    for _ in range(10):
        before = params
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < 0.7 * values[0]
    assert np.isfinite(flat(params)).all()
    # The search goes along the climbed gradient, which the clean one is not.
    first, _, _ = step(PARAMS, tx.init(PARAMS))
    moved = flat(jax.tree.map(jnp.subtract, PARAMS, first))
    climbed = flat(sam_gradient(PARAMS, rho=0.05))
    cosine = moved @ climbed / np.linalg.norm(moved) / np.linalg.norm(climbed)
    assert cosine == pytest.approx(1, abs=1e-5)
    assert_different(before, params)


def test_reduce_on_plateau_behind():
    # It needs `value`, an argument that SAM does not know.
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
    tx = optax.chain(sam(RHO), optax.sgd(LEARNING_RATE), plateau)
    state, grads = tx.init(PARAMS), gradient(PARAMS)
    for _ in range(4):
        updates, state = tx.update(grads, state, PARAMS, value_fn=loss, value=1.0)
    expected = jax.tree.map(lambda g: -LEARNING_RATE * g, sam_gradient(PARAMS))
    scale = float(state[-1].scale)
    assert scale < 1
    assert_close(updates, jax.tree.map(lambda u: scale * u, expected))


def test_parameters_in_half_precision():
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), PARAMS)

    def from_start(q):  # its gradient is the climb that the loss really saw
        moved = jax.tree.map(lambda a, w: a.astype(jnp.float32) - w, q, params)
        return sum(jnp.sum(e**2) for e in jax.tree.leaves(moved)) / 2

    def climb(tx):
        return tx.update(params, tx.init(params), params, value_fn=from_start)[0]

    # A climb that is shorter than the last bit of the weights.
    with pytest.warns(UserWarning, match="climb_dtype=jnp.float32"):
        rounded_away = climb(sam(1e-3))
    assert not flat(rounded_away).any()
    kept = climb(sam(1e-3, climb_dtype=jnp.float32))
    assert np.linalg.norm(flat(kept)) == pytest.approx(1e-3, rel=5e-3)
    chex.assert_trees_all_equal_dtypes(kept, params)


def test_checkpointed_loss():
    remat = jax.checkpoint(loss)
    _, grads = optax_sam.value_and_grad(remat, steepest_ascent(RHO))(PARAMS, BATCH)
    assert_close(grads, sam_gradient(PARAMS))


@pytest.mark.slow
def test_equinox_model():
    # What no gradient reaches (the activation, the integers) is `None` in the tree.
    model = equinox.nn.MLP(3, "scalar", 4, 1, key=jax.random.key(0))
    params, static = equinox.partition(model, equinox.is_inexact_array)
    tx = optax.chain(optax_sam.asam(RHO), optax.adam(LEARNING_RATE))

    def model_loss(params):
        out = jax.vmap(equinox.combine(params, static))(X)
        return jnp.mean((out - Y) ** 2)

    @equinox.filter_jit
    def step(params, state):
        grads = jax.grad(model_loss)(params)
        updates, state = tx.update(grads, state, params, value_fn=model_loss)
        return equinox.apply_updates(params, updates), state

    after, state = params, tx.init(params)
    for _ in range(3):
        after, state = step(after, state)
    assert model_loss(after) < model_loss(params)
    chex.assert_trees_all_equal_structs(after, params)
    _, grads = optax_sam.value_and_grad(model_loss, adaptive_ascent(RHO))(params)
    expected, _ = optax_sam.asam(RHO).update(
        jax.grad(model_loss)(params), tx.init(params)[0], params, value_fn=model_loss
    )
    assert_close(grads, expected)


@pytest.mark.slow
def test_functional_sam_of_a_flax_model():
    """The clean gradient in the logits, pulled back through the climbed model."""

    class LanguageModel(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            return nn.Dense(8)(nn.gelu(nn.Dense(8)(nn.Embed(8, 4)(tokens))))

    model = LanguageModel()
    tokens = jnp.asarray(rng.integers(0, 8, size=(4, 6)))
    params = model.init(jax.random.key(0), tokens[:, :-1])["params"]

    def net(params, tokens):
        return model.apply({"params": params}, tokens[:, :-1])

    def head(logits, tokens):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return losses.mean()

    grad_fn = optax_sam.functional_value_and_grad(net, head, steepest_ascent(RHO))
    _, found = jax.jit(grad_fn)(params, tokens)

    logits, pull_back = jax.vjp(lambda p: net(p, tokens), params)
    slope = jax.grad(head)(logits, tokens)
    (clean,) = pull_back(slope)
    size = optax.tree.norm(clean)
    moved = jax.tree.map(lambda w, g: w + RHO * g / size, params, clean)
    (expected,) = jax.vjp(lambda p: net(p, tokens), moved)[1](slope)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)
