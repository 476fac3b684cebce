"""What stands in a chain with SAM: every row of docs/compatibility.md is a test here.

    PYTHONPATH=tests python tests/docs/test_compatibility.py > docs/compatibility.md

writes the page. The oracle of most rows: SAM's gradient, computed by hand, given to
the bare optimizer. Rows without control flow are not
compiled: they share their operations.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib
from problems import quick_jit

import optax_sam
from optax_sam import adaptive_ascent, sam, sharpness_aware, steepest_ascent

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
RHO, STEPS, RATE = 0.5, 2, 0.1
LONGER = {"contrib.adopt": 3, "rprop": 5}  # until the gradient is felt
rng = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


BATCH = (normal(8, 3), normal(8))
BATCHES = [jax.tree.map(lambda x, i=i: x[i : i + 4], BATCH) for i in (0, 4)]
PARAMS = {"layer": {"kernel": normal(3, 4), "bias": normal(4)}, "out": normal(4)}


@jax.jit
def loss(params, batch=BATCH):
    x, y = batch
    hidden = jnp.tanh(x @ params["layer"]["kernel"] + params["layer"]["bias"])
    return jnp.mean((hidden @ params["out"] - y) ** 2)


clean_pass = jax.jit(jax.value_and_grad(loss))


@functools.partial(jax.jit, static_argnames="climbing")
def sam_gradient(params, batch=BATCH, rho=RHO, climbing=("layer", "out")):
    """SAM by hand, with the norm of the leaves that climb: the oracle of this file."""
    grads = jax.grad(loss)(params, batch)
    climb = {k: grads[k] if k in climbing else _zeros(grads[k]) for k in grads}
    size = optax.tree.norm(climb)
    moved = jax.tree.map(lambda w, e: w + rho * e / size, params, climb)
    return jax.grad(loss)(moved, batch)


def _zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)


def train(tx, batches=(BATCH,) * STEPS, *, handed=None, compiled=False, **more):
    """The parameters after every step, and the last state.

    `tx` is given the clean gradient, as at door 1, or that of `handed(params, batch)`.
    """

    def step(params, state, batch):
        value, clean = clean_pass(params, batch)
        grads = handed(params, batch) if handed else clean
        extra = {"value_fn": lambda p: loss(p, batch), "value": value, "grad": clean}
        updates, state = tx.update(grads, state, params, **extra | more)
        return optax.apply_updates(params, updates), state

    step = quick_jit(step) if compiled else step
    params, state, seen = PARAMS, tx.init(PARAMS), []
    for batch in batches:
        params, state = step(params, state, batch)
        seen.append(params)
    return seen, state


def train_by_hand(tx, *, handed=sam_gradient, **options):
    """A bare optimizer, which is handed SAM's gradient."""
    return train(optax.with_extra_args_support(tx), handed=handed, **options)


def assert_close(tree, other, rtol=1e-4, atol=1e-5):
    chex.assert_trees_all_close(tree, other, rtol=rtol, atol=atol)


def differ(tree, other):
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs) > 1e-4


def refused(call, *words):
    """The error that the user sees holds these words."""
    with pytest.raises(Exception) as info:  # noqa: PT011 - of what type, says the row
        call()
    missing = [word for word in words if word not in str(info.value)]
    assert not missing, f"{missing} not in: {info.value}"


# --- Rows -------------------------------------------------------------------------

WORKS, RECIPE, REFUSED = "works", "recipe", "refused"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the page, and the function that shows it to be true."""

    name: str
    check: Callable[[], None]
    verdict: str = WORKS
    note: str = ""
    slow: bool = False


def behind(make, **options):
    """`chain(sam(rho), make())` is `make()` with SAM's gradient."""

    def check():
        seen, _ = train(optax.chain(sam(RHO), make()), **options)
        expected, _ = train_by_hand(make(), **options)
        for params, by_hand in zip(seen, expected, strict=True):
            assert_close(params, by_hand)

    return check


OPTIMIZERS = {
    "adabelief": lambda: optax.adabelief(RATE),
    "adadelta": lambda: optax.adadelta(1.0),
    "adafactor": lambda: optax.adafactor(RATE, min_dim_size_to_factor=2),
    "adagrad": lambda: optax.adagrad(RATE),
    "adam": lambda: optax.adam(RATE),
    "adamax": lambda: optax.adamax(RATE),
    "adamw": lambda: optax.adamw(RATE, weight_decay=0.1),
    "adan": lambda: optax.adan(RATE),
    "amsgrad": lambda: optax.amsgrad(RATE),
    "fromage": lambda: optax.fromage(RATE),
    "lamb": lambda: optax.lamb(RATE, weight_decay=0.1),
    "lars": lambda: optax.lars(1.0),
    "lion": lambda: optax.lion(RATE),
    "nadamw": lambda: optax.nadamw(RATE),
    "noisy_sgd": lambda: optax.noisy_sgd(RATE, key=jax.random.key(0)),
    "novograd": lambda: optax.novograd(RATE),
    "optimistic_gradient_descent": lambda: optax.optimistic_gradient_descent(RATE),
    "radam": lambda: optax.radam(RATE),
    "rmsprop": lambda: optax.rmsprop(RATE),
    "rprop": lambda: optax.rprop(RATE),
    "sgd": lambda: optax.sgd(RATE, momentum=0.9, nesterov=True),
    "sign_sgd": lambda: optax.sign_sgd(RATE),
    "sm3": lambda: optax.sm3(RATE),
    "yogi": lambda: optax.yogi(RATE),
    "contrib.acprop": lambda: contrib.acprop(RATE),
    "contrib.ademamix": lambda: contrib.ademamix(RATE),
    "contrib.adopt": lambda: contrib.adopt(RATE),
    "contrib.cocob": contrib.cocob,
    "contrib.dadapt_adamw": lambda: contrib.dadapt_adamw(estim_lr0=0.1),
    "contrib.dog": lambda: contrib.dog(1.0, init_step=("heuristic", 0.1)),
    "contrib.dowg": lambda: contrib.dowg(init_estim_sq_dist=0.1),
    "contrib.galore": lambda: contrib.galore(RATE, rank=2),
    "contrib.madgrad": lambda: contrib.madgrad(RATE),
    "contrib.mechanize": lambda: contrib.mechanize(optax.sgd(RATE), s_init=1.0),
    "contrib.muon": lambda: contrib.muon(RATE),
    "contrib.prodigy": lambda: contrib.prodigy(1.0, estim_lr0=0.1),
    "contrib.simplified_ademamix": lambda: contrib.simplified_ademamix(RATE),
}
EVERYDAY = ("adafactor", "adam", "adamw", "lamb", "lion", "sgd", "contrib.muon")
#: Outside of `jit` a loop or a conditional is compiled anew at every step.
WITH_LOOPS = ("contrib.muon", "contrib.galore", "contrib.mechanize")
TRANSFORMATIONS = {
    "adaptive_grad_clip": lambda: optax.adaptive_grad_clip(0.01),
    "add_noise": lambda: optax.add_noise(0.1, 0.5, key=0),
    "apply_every": lambda: optax.apply_every(2),
    "centralize": optax.centralize,
    "clip_by_block_rms": lambda: optax.clip_by_block_rms(0.1),
    "clip_by_global_norm": lambda: optax.clip_by_global_norm(0.1),
    "ema": lambda: optax.ema(0.9),
    "flatten": lambda: optax.flatten(optax.scale_by_adam()),
    "keep_params_nonnegative": optax.keep_params_nonnegative,
    "normalize_by_update_norm": optax.normalize_by_update_norm,
    "snapshot": lambda: optax.snapshot("norm", optax.tree.norm),
    "zero_nans": optax.zero_nans,
    "contrib.normalize": contrib.normalize,
}


def with_sgd(make):
    """A transformation, with a descent at its end."""
    return lambda: optax.chain(make(), optax.scale(-RATE))


def by_label():
    labels = {"layer": "matrix", "out": "vector"}
    parts = {"matrix": contrib.muon(RATE), "vector": optax.adamw(RATE)}
    return optax.partition(parts, labels)


def line_search(make):
    """A search along SAM's gradient, on the loss as it is."""
    return lambda: optax.chain(optax.sgd(1.0), make())


def backtracking(store_grad=False):
    return optax.scale_by_backtracking_linesearch(10, store_grad=store_grad)


def zoom():
    return optax.scale_by_zoom_linesearch(4)


def make_lbfgs():
    return optax.lbfgs(memory_size=2, linesearch=zoom())


def reuses_the_line_search():
    tx = optax.chain(sam(RHO), optax.sgd(1.0), backtracking(store_grad=True))
    seen, state = train(tx, compiled=True)
    again = optax.value_and_grad_from_state(loss)(seen[-1], state=state)
    assert_close(again, clean_pass(seen[-1]))  # the clean ones, as SAM wants them


def multi_steps_behind():
    k = len(BATCHES)
    multi = optax.MultiSteps(optax.sgd(RATE), k).gradient_transformation()
    seen, _ = train(optax.chain(sam(RHO), multi), BATCHES * 2, compiled=True)
    params = PARAMS
    for i, after in enumerate(seen):
        if i % k == k - 1:
            params = descend(params, _average(sam_gradient, params))
        assert_close(after, params)


def descend(params, grads):
    return jax.tree.map(lambda w, g: w - RATE * g, params, grads)


def _average(grad_fn, params):
    each = [grad_fn(params, batch) for batch in BATCHES]
    return jax.tree.map(lambda *g: sum(g) / len(g), *each)


def multi_steps_around():
    around = optax.MultiSteps(optax.chain(sam(RHO), optax.sgd(RATE)), len(BATCHES))
    seen, _ = train(around, BATCHES, compiled=True)
    clean = _average(lambda p, batch: clean_pass(p, batch)[1], PARAMS)
    size = optax.tree.norm(clean)
    moved = jax.tree.map(lambda w, g: w + RHO * g / size, PARAMS, clean)
    last_batch_only = clean_pass(moved, BATCHES[-1])[1]
    assert_close(seen[-1], descend(PARAMS, last_batch_only))
    assert differ(seen[-1], descend(PARAMS, _average(sam_gradient, PARAMS)))


def blows_up_away_from(params):
    """A loss that is finite at these parameters alone."""

    def value_fn(q):
        moved = differences(q, params) > 0
        return loss(q) * jnp.where(moved, jnp.inf, 1.0)

    return value_fn


def differences(tree, other):
    return sum(jnp.sum(abs(a - b)) for a, b in _pairs(tree, other))


def _pairs(tree, other):
    return zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)


def one_step(tx, value_fn, state=None, params=PARAMS):
    _, grads = clean_pass(params)
    state = tx.init(params) if state is None else state
    updates, state = tx.update(grads, state, params, value_fn=value_fn)
    return optax.apply_updates(params, updates), state


def apply_if_finite_behind():
    tx = optax.chain(sam(RHO), optax.apply_if_finite(optax.adam(RATE), 5))
    params, state = one_step(tx, blows_up_away_from(PARAMS))
    chex.assert_trees_all_equal(params, PARAMS)
    assert state[1].total_notfinite == 1
    after, _ = one_step(tx, loss, state)  # as if nothing had been
    assert_close(after, train_by_hand(optax.adam(RATE))[0][0])


def apply_if_finite_around():
    tx = optax.apply_if_finite(optax.chain(sam(RHO), optax.adam(RATE)), 5)
    params, state = one_step(tx, blows_up_away_from(PARAMS))
    assert state.total_notfinite == 0  # it has looked at the clean gradient
    assert not np.isfinite(params["out"]).any()


def no_gradient(wrap, *words):
    """Around SAM `None` is refused, a gradient is not; behind it both are the same."""

    def check():
        around = wrap(optax.chain(sam(RHO), optax.sgd(RATE)))
        behind_sam = optax.chain(sam(RHO), wrap(optax.sgd(RATE)))
        _, grads = clean_pass(PARAMS)

        def update(tx, updates):
            return tx.update(updates, tx.init(PARAMS), PARAMS, value_fn=loss)[0]

        refused(lambda: update(around, None), *words)
        update(around, grads)
        assert_close(update(behind_sam, None), update(behind_sam, grads))

    return check


def accumulating(inner):
    return optax.MultiSteps(inner, 1).gradient_transformation()


def masked_nowhere(inner):
    return optax.masked(inner, jax.tree.map(lambda _: True, PARAMS))


def make_lookahead():
    return optax.lookahead(optax.sgd(RATE), sync_period=2, slow_step_size=0.5)


def lookahead_around():
    tx = optax.lookahead(optax.chain(sam(RHO), optax.sgd(RATE)), 2, 0.5)
    params = optax.LookaheadParams.init_synced(PARAMS)
    _, grads = clean_pass(PARAMS)
    call = functools.partial(tx.update, grads, tx.init(params), params)
    refused(lambda: call(value_fn=loss), "unexpected keyword argument 'value_fn'")
    refused(call, "value_fn=")


def lookahead_behind():
    tx = optax.chain(sam(RHO), make_lookahead())
    params = optax.LookaheadParams.init_synced(PARAMS)
    _, grads = clean_pass(PARAMS)
    refused(
        lambda: tx.update(grads, tx.init(params), params, value_fn=loss),
        "different structures",
    )
    grad_fn = optax_sam.value_and_grad(loss, steepest_ascent(RHO))
    by_door_2, by_hand = (
        _train_lookahead(fn) for fn in (lambda p: grad_fn(p)[1], sam_gradient)
    )
    assert_close(by_door_2, by_hand)
    assert differ(by_door_2.fast, by_door_2.slow)


def _train_lookahead(grad_fn):
    tx, params = make_lookahead(), optax.LookaheadParams.init_synced(PARAMS)
    state = tx.init(params)
    for _ in range(3):  # the two are the same again after every second one
        updates, state = tx.update(grad_fn(params.fast), state, params)
        params = optax.apply_updates(params, updates)
    return params


def schedule_free(inner):
    return contrib.schedule_free(inner, RATE, b1=0.9)


def schedule_free_around():
    seen, state = train(schedule_free(optax.chain(sam(RHO), optax.sgd(RATE))))
    expected, by_hand = train_by_hand(schedule_free(optax.sgd(RATE)))
    assert_close(seen[-1], expected[-1])
    average = contrib.schedule_free_eval_params(state, seen[-1])
    assert_close(
        average, contrib.schedule_free_eval_params(by_hand, expected[-1]), atol=1e-4
    )


def mechanize_around():
    around = contrib.mechanize(optax.chain(sam(RHO), optax.sgd(RATE)), s_init=1.0)
    steps = {"batches": (BATCH,) * 4, "compiled": True}
    seen, _ = train(around, **steps)
    behind_sam, _ = train_by_hand(OPTIMIZERS["contrib.mechanize"](), **steps)
    assert differ(seen[-1], behind_sam[-1])  # which is a row of its own


def inject_around():
    inject = optax.inject_hyperparams(sam, static_args=("ord",))
    (after, *_), state = train(optax.chain(inject(rho=RHO), optax.sgd(RATE)))
    assert_close(after, descend(PARAMS, sam_gradient(PARAMS)))
    assert state[0].hyperparams["rho"] == RHO


def inject_around_all():
    def make(rho, learning_rate):
        return optax.chain(sam(rho), optax.sgd(learning_rate))

    (after, *_), state = train(optax.inject_hyperparams(make)(RHO, RATE))
    assert_close(after, descend(PARAMS, sam_gradient(PARAMS)))
    assert set(state.hyperparams) == {"rho", "learning_rate"}


def inject_static():
    make = optax.inject_hyperparams(optax_sam.m_sam)
    refused(
        lambda: train(make(rho=RHO, microbatch_size=4)),
        "microbatch_size",
        "static_args",
    )
    make = optax.inject_hyperparams(optax_sam.m_sam, static_args=("microbatch_size",))
    tx = optax.chain(make(rho=RHO, microbatch_size=4), optax.sgd(RATE))
    updates, _ = tx.update(None, tx.init(PARAMS), PARAMS, value_fn=loss, batch=BATCH)
    expected = _average(sam_gradient, PARAMS)
    assert_close(updates, jax.tree.map(lambda g: -RATE * g, expected))


def every_second():
    policy = optax.conditionally_transform(sam(RHO), lambda step: step % 2 == 0)
    seen, _ = train(optax.chain(policy, optax.sgd(RATE)), compiled=True)
    params = PARAMS
    for i, after in enumerate(seen):
        grads = clean_pass(params)[1] if i % 2 else sam_gradient(params)
        params = descend(params, grads)
        assert_close(after, params)


def every_second_masked():
    policy = optax.conditionally_mask(sam(RHO), lambda step: step % 2 == 0)
    seen, _ = train(optax.chain(policy, optax.sgd(RATE)), compiled=True)
    chex.assert_trees_all_equal(seen[1], seen[0])  # a step lost


FROZEN = {"layer": {"kernel": True, "bias": True}, "out": False}


def trained_alone(seen):
    """As if the frozen leaves were constants of the loss."""
    expected, _ = train_by_hand(
        optax.selective_transform(optax.sgd(RATE), freeze_mask=FROZEN),
        handed=lambda params, batch: sam_gradient(params, batch, climbing=("out",)),
    )
    assert_close(seen[-1], expected[-1])
    chex.assert_trees_all_equal(seen[-1]["layer"], PARAMS["layer"])


def freeze_behind():
    seen, _ = train(optax.chain(sam(RHO), optax.freeze(FROZEN), optax.sgd(RATE)))
    expected, _ = train_by_hand(optax.chain(optax.freeze(FROZEN), optax.sgd(RATE)))
    assert_close(seen[-1], expected[-1])
    only_out = sam_gradient(PARAMS, climbing=("out",))["out"]
    assert differ(sam_gradient(PARAMS)["out"], only_out)  # the frozen leaves climb too


def mask_on_the_ascent():
    ascent = optax.selective_transform(steepest_ascent(RHO), freeze_mask=FROZEN)
    optimizer = optax.selective_transform(optax.sgd(RATE), freeze_mask=FROZEN)
    seen, _ = train(optax.chain(sharpness_aware(ascent), optimizer))
    trained_alone(seen)


HOLES = ("sharpness_aware(", "selective_transform(ascent", "freeze_mask=")


def masked_around():
    mask = jax.tree.map(lambda frozen: not frozen, FROZEN)
    refused(lambda: train(optax.masked(sam(RHO), mask)), *HOLES)


def partition_around():
    labels = jax.tree.map(lambda frozen: "still" if frozen else "sam", FROZEN)
    parts = {"sam": sam(RHO), "still": optax.set_to_zero()}
    refused(lambda: train(optax.partition(parts, labels)), *HOLES)


def partition_of_ascents():
    parts = {"sam": steepest_ascent(0.05), "asam": adaptive_ascent(0.5)}
    labels = {"layer": {"kernel": "asam", "bias": "sam"}, "out": "asam"}
    ascent = optax.partition(parts, labels)
    _, grads = clean_pass(PARAMS)
    climb, _ = ascent.update(grads, ascent.init(PARAMS), PARAMS)
    bias = grads["layer"]["bias"]
    assert_close(climb["layer"]["bias"], 0.05 * bias / jnp.linalg.norm(bias))
    kernels = [
        (climb[i][j] if j else climb[i])
        / (abs(PARAMS[i][j] if j else PARAMS[i]) + 0.01)
        for i, j in (("layer", "kernel"), ("out", None))
    ]
    np.testing.assert_allclose(optax.tree.norm(kernels), 0.5, rtol=1e-5)


LORA = {"down": 0.1 * normal(3, 2), "up": 0.1 * normal(2, 4)}


def merged(adapters, base=PARAMS):
    kernel = base["layer"]["kernel"] + adapters["down"] @ adapters["up"]
    return base | {"layer": base["layer"] | {"kernel": kernel}}


def lora():
    @jax.jit
    def adapter_loss(adapters):
        return loss(merged(adapters))

    tx = optax.chain(sam(RHO), optax.adamw(RATE))
    adapters, state = LORA, tx.init(LORA)
    by_hand, bare = LORA, optax.adamw(RATE)
    bare_state = bare.init(LORA)
    for _ in range(STEPS):
        grads = jax.grad(adapter_loss)(adapters)
        updates, state = tx.update(grads, state, adapters, value_fn=adapter_loss)
        adapters = optax.apply_updates(adapters, updates)
        grads = jax.grad(adapter_loss)(by_hand)
        size = optax.tree.norm(grads)
        moved = jax.tree.map(lambda w, g, s=size: w + RHO * g / s, by_hand, grads)
        updates, bare_state = bare.update(
            jax.grad(adapter_loss)(moved), bare_state, by_hand
        )
        by_hand = optax.apply_updates(by_hand, updates)
    assert_close(adapters, by_hand)


def lora_in_one_tree():
    def whole_loss(params):
        return loss(merged(params["lora"], params["base"]))

    params = {"base": PARAMS, "lora": LORA}
    frozen = {"base": True, "lora": False}
    freeze = functools.partial(optax.selective_transform, freeze_mask=frozen)
    tx = optax.chain(
        sharpness_aware(freeze(steepest_ascent(RHO))), freeze(optax.sgd(RATE))
    )
    grads = jax.grad(whole_loss)(params)
    updates, _ = tx.update(grads, tx.init(params), params, value_fn=whole_loss)
    assert not any(jnp.any(u) for u in jax.tree.leaves(updates["base"]))
    tx = sam(RHO)
    alone, _ = tx.update(
        grads["lora"], tx.init(LORA), LORA, value_fn=lambda p: loss(merged(p))
    )
    assert_close(updates["lora"], jax.tree.map(lambda g: -RATE * g, alone))


def filtered():
    # What equinox.partition and nnx.split leave of what no gradient reaches: `None`.
    params = PARAMS | {"activation": None}
    grads = clean_pass(PARAMS)[1] | {"activation": None}
    tx = optax.chain(sam(RHO), optax.adam(RATE))
    updates, _ = tx.update(grads, tx.init(params), params, value_fn=loss)
    assert updates["activation"] is None
    after = optax.apply_updates(params, updates)
    expected = train_by_hand(optax.adam(RATE))[0][0]
    assert_close({k: after[k] for k in PARAMS}, expected)


def in_front():
    # Decay in front turns the climb; clipping in front does nothing at all.
    decay = 0.5
    tx = optax.chain(
        optax.add_decayed_weights(decay),
        optax.clip_by_global_norm(0.01),
        sam(RHO),
        optax.sgd(RATE),
    )
    (after, *_), _ = train(tx)
    grads = jax.tree.map(lambda g, w: g + decay * w, clean_pass(PARAMS)[1], PARAMS)
    size = optax.tree.norm(grads)
    moved = jax.tree.map(lambda w, g: w + RHO * g / size, PARAMS, grads)
    assert_close(after, descend(PARAMS, clean_pass(moved)[1]))


def ascent_of_a_chain():
    tx = sharpness_aware(
        optax.chain(optax.ema(0.5, debias=False), steepest_ascent(RHO))
    )
    seen, _ = train(optax.chain(tx, optax.sgd(RATE)))
    params, average = PARAMS, _zeros(PARAMS)
    for after in seen:
        average = jax.tree.map(lambda a, g: (a + g) / 2, average, clean_pass(params)[1])
        size = optax.tree.norm(average)
        moved = jax.tree.map(lambda w, a, s=size: w + RHO * a / s, params, average)
        params = descend(params, clean_pass(moved)[1])
        assert_close(after, params)


def average_of_the_weights():
    seen, _ = train(optax.chain(sam(RHO), optax.sgd(RATE)))
    expected, _ = train_by_hand(optax.sgd(RATE))
    averages = []
    for path in (seen, expected):
        averaging = optax.ema(0.5)
        state = averaging.init(PARAMS)
        for params in path:
            average, state = averaging.update(params, state)
        averages.append(average)
    assert_close(*averages)


def flatten_around():
    refused(
        lambda: train(optax.flatten(optax.chain(sam(RHO), optax.adam(RATE)))),
        "string",
        "index",
    )


def private():
    each = jax.vmap(jax.grad(loss), in_axes=(None, 0))(
        PARAMS, jax.tree.map(lambda x: x[:, None], BATCH)
    )
    aggregate = contrib.differentially_private_aggregate(
        1.0, 0.1, key=jax.random.key(0)
    )
    tx = optax.chain(sam(RHO), aggregate)
    refused(
        lambda: tx.update(each, tx.init(PARAMS), PARAMS, value_fn=loss),
        "(8, 4)",
        "(4,)",
        "shape",
    )


def complex_parameters():
    params = {"w": jnp.ones(2, jnp.complex64)}

    def square(params):
        return jnp.sum(jnp.abs(params["w"]) ** 2)

    inner = contrib.split_real_and_imaginary(optax.adam(RATE))
    tx = optax.chain(sam(RHO), inner)
    grads = jax.grad(square)(params)
    refused(
        lambda: tx.update(grads, tx.init(params), params, value_fn=square),
        "['w']",
        "complex64",
        "real",
    )
    # Two real leaves in place of one complex one.
    parts = {"re": jnp.ones(2), "im": jnp.zeros(2)}

    def of_parts(parts):
        return square({"w": parts["re"] + 1j * parts["im"]})

    tx = sam(RHO)
    grads, _ = tx.update(
        jax.grad(of_parts)(parts), tx.init(parts), parts, value_fn=of_parts
    )
    size = 1 + RHO / np.sqrt(2)
    assert_close(grads, {"re": jnp.full(2, 2 * size), "im": jnp.zeros(2)})


ACCUMULATED = "m-SAM over the accumulated batches"
JUDGES = "it judges what comes out"
TAKES_NONE = "pass the clean gradient, or put it behind, where `None` works"
VALUE = "pass `value=`, the clean loss: SAM lets it through"
ON_THE_ASCENT = (
    "put the mask on the ascent: `sharpness_aware(optax.selective_transform("
    "steepest_ascent(rho), freeze_mask=frozen))`"
)

SECTIONS = {
    "Behind SAM: `chain(sam(rho), X)`": [
        *(
            Row(
                f"`{name}`",
                behind(
                    make,
                    batches=(BATCH,) * LONGER.get(name, STEPS),
                    compiled=name in WITH_LOOPS,
                ),
                slow=name not in EVERYDAY,
            )
            for name, make in OPTIMIZERS.items()
        ),
        *(
            Row(f"`{name}`", behind(with_sgd(make)))
            for name, make in TRANSFORMATIONS.items()
        ),
        Row("`partition` by label (muon and adamw)", behind(by_label, compiled=True)),
        Row(
            "`named_chain`",
            behind(lambda: optax.named_chain(("decay", optax.adamw(RATE)))),
        ),
        Row(
            "`contrib.schedule_free`",
            behind(lambda: schedule_free(optax.sgd(RATE))),
            note="train at its parameters, evaluate at `schedule_free_eval_params`",
        ),
        Row(
            "`contrib.momo`",
            behind(lambda: contrib.momo(RATE)),
            note=VALUE,
        ),
        Row("`contrib.momo_adam`", behind(lambda: contrib.momo_adam(RATE)), note=VALUE),
        Row("`polyak_sgd`", behind(lambda: optax.polyak_sgd(RATE)), note=VALUE),
        Row(
            "`contrib.reduce_on_plateau`",
            behind(
                with_sgd(lambda: contrib.reduce_on_plateau(patience=1)), compiled=True
            ),
            note=VALUE,
            slow=True,
        ),
        Row(
            "`contrib.sophia`",
            behind(
                lambda: contrib.sophia(RATE), obj_fn=loss, value_fn=None, compiled=True
            ),
            note="pass `obj_fn=`, which SAM takes for `value_fn=`: the Hessian is the "
            "one at the parameters",
            slow=True,
        ),
        Row(
            "`scale_by_backtracking_linesearch`",
            behind(line_search(backtracking), compiled=True),
            note="along the climbed gradient, on the loss as it is; pass `value=`, "
            "`grad=` (clean) and a `value_fn` that closes over the batch",
            slow=True,
        ),
        Row(
            "`scale_by_zoom_linesearch`",
            behind(line_search(zoom), compiled=True),
            note="as above",
            slow=True,
        ),
        Row(
            "`lbfgs`",
            behind(make_lbfgs, compiled=True),
            note="as above; its curvature is that of the climbed gradients",
            slow=True,
        ),
        Row(
            "`value_and_grad_from_state`",
            reuses_the_line_search,
            note="the value and gradient that a line search has stored are clean ones",
            slow=True,
        ),
        Row("`MultiSteps`", multi_steps_behind, note=ACCUMULATED),
        Row("`apply_if_finite`", apply_if_finite_behind, note=JUDGES),
        Row(
            "`lookahead`",
            lookahead_behind,
            RECIPE,
            "its parameters are pairs, of which SAM can climb but one: differentiate "
            "by `value_and_grad` at `params.fast`",
        ),
        Row(
            "`contrib.differentially_private_aggregate`",
            private,
            REFUSED,
            "it needs the gradient of each example, and SAM returns one",
        ),
    ],
    "Around SAM: `X(chain(sam(rho), ...))`": [
        Row("`inject_hyperparams(sam)`", inject_around, note="rho in the state"),
        Row("`inject_hyperparams` of a whole chain", inject_around_all),
        Row(
            "`inject_hyperparams(m_sam)`",
            inject_static,
            RECIPE,
            'name what must be known in Python: `static_args=("microbatch_size",)`',
        ),
        Row(
            "`contrib.schedule_free`",
            schedule_free_around,
            note="the same numbers as behind",
        ),
        Row(
            "`conditionally_transform`",
            every_second,
            note="SAM on some steps, the plain gradient on the others",
        ),
        Row(
            "`conditionally_mask`",
            every_second_masked,
            RECIPE,
            "the other steps are lost: you want `conditionally_transform`",
        ),
        Row(
            "`MultiSteps`",
            multi_steps_around,
            RECIPE,
            "it climbs along the average, but differentiates the last batch alone: put "
            f"it behind, for {ACCUMULATED}",
        ),
        Row(
            "`apply_if_finite`",
            apply_if_finite_around,
            RECIPE,
            f"it judges the clean gradient only: put it behind, where {JUDGES}",
        ),
        Row(
            "`MultiSteps`, `update(None, ...)`",
            no_gradient(accumulating, "None"),
            REFUSED,
            f"it adds up gradients before SAM could take them: {TAKES_NONE}",
        ),
        Row(
            "`masked`, `update(None, ...)`",
            no_gradient(masked_nowhere, "None"),
            REFUSED,
            f"it masks the gradient before SAM could take one: {TAKES_NONE}",
        ),
        Row(
            "`apply_if_finite`, `update(None, ...)`",
            no_gradient(lambda inner: optax.apply_if_finite(inner, 5), "structure"),
            REFUSED,
            f"it would skip with zeros like the gradient that came in: {TAKES_NONE}",
        ),
        Row(
            "`contrib.mechanize`",
            mechanize_around,
            RECIPE,
            "it would tune the learning rate with the clean gradients: put it behind",
        ),
        Row(
            "`lookahead`",
            lookahead_around,
            RECIPE,
            "it hands no `value_fn` on: differentiate by `value_and_grad` at "
            "`params.fast`",
        ),
        Row(
            "`flatten`",
            flatten_around,
            REFUSED,
            "the loss would be given one flat vector: put it behind",
        ),
    ],
    "Some parameters only": [
        Row("`None` in place of a leaf (Equinox, NNX)", filtered),
        Row("LoRA, the base weights closed over", lora),
        Row(
            "LoRA, base and adapters in one tree",
            lora_in_one_tree,
            RECIPE,
            ON_THE_ASCENT,
        ),
        Row(
            "`selective_transform` of the ascent",
            mask_on_the_ascent,
            note="the norm is that of the trained leaves",
        ),
        Row(
            "`partition` of ascents",
            partition_of_ascents,
            note="each label has its own rho and norm",
        ),
        Row(
            "`freeze` behind SAM",
            freeze_behind,
            RECIPE,
            f"frozen leaves would still climb, and count in the norm: {ON_THE_ASCENT}",
        ),
        Row("`masked` around SAM", masked_around, REFUSED, ON_THE_ASCENT),
        Row("`partition` around SAM", partition_around, REFUSED, ON_THE_ASCENT),
        Row(
            "complex parameters, `contrib.split_real_and_imaginary`",
            complex_parameters,
            REFUSED,
            "hold real and imaginary parts as two leaves",
        ),
    ],
    "In front of SAM, inside it, beside it": [
        Row(
            "`chain(X, sam(rho))`",
            in_front,
            note="X changes the direction of the climb and nothing else: clipping does "
            "nothing there, weight decay joins the climb",
        ),
        Row(
            "`sharpness_aware(chain(ema(0.9), steepest_ascent(rho)))`",
            ascent_of_a_chain,
            note="climb along an average of gradients",
        ),
        Row(
            "an average of the weights, `ema` or `incremental_update`",
            average_of_the_weights,
            note="the parameters are never anything but clean",
        ),
    ],
}
ROWS = [
    pytest.param(
        row,
        id=f"{row.name}-{section.split()[0]}",
        marks=[pytest.mark.slow] if row.slow else [],
    )
    for section, rows in SECTIONS.items()
    for row in rows
]


@pytest.mark.parametrize("row", ROWS)
def test_row(row):
    row.check()


# --- The page -----------------------------------------------------------------------


def page():
    """The rows as Markdown; those that work without a word share a line."""
    lines = [
        "# What works with what",
        "",
        "Each line is a test in `tests/docs/test_compatibility.py`, which also writes "
        "this page.",
        "",
        "- *works*: the numbers are those of the bare optimizer that is handed SAM's "
        "gradient.",
        "- *recipe*: it runs, or is refused, but you want something else: the note "
        "says what. That is tested too.",
        "- *refused*: an error says why.",
    ]
    for title, rows in SECTIONS.items():
        silent = [row.name for row in rows if row.verdict == WORKS and not row.note]
        lines += ["", f"## {title}", ""]
        if silent:
            lines += ["Works as it is: " + ", ".join(silent) + ".", ""]
        lines += ["| | verdict | |", "|---|---|---|"]
        lines += [
            f"| {row.name} | {row.verdict} | {row.note} |"
            for row in rows
            if row.name not in silent
        ]
    return "\n".join(lines) + "\n"


def test_page_is_generated():
    assert PAGE.read_text() == page()


if __name__ == "__main__":
    print(page(), end="")
