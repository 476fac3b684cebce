"""The four questions answered together, against a plain Python loop in NumPy.

Every pair of answers (ascent, combine, sub-batches, condition) occurs in one of the
trainings below, and ten named combinations of more follow. The loop shares no line
with the library: it takes gradients one sub-batch after the other.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from problems import TANH_START, quick_jit

import optax_sam
from optax_sam._ascent.random import coarse_uniform

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("x64")]

SIZE, STEPS, RHO, LEARNING_RATE = 16, 4, 0.3, 0.2
KEY, DICE = jax.random.key(3), jax.random.key(11)
_random = np.random.default_rng(0)
_sizes = np.geomspace(0.3, 3, SIZE)[:, None]
BATCH = _random.normal(size=(SIZE, 2)) * _sizes, _random.normal(size=(SIZE, 2))


def losses(params, batch):
    inputs, targets = batch
    outputs = jnp.tanh(inputs @ params["weight"].T + params["bias"])
    return 0.5 * jnp.sum((outputs - targets) ** 2, axis=1)


def loss(params, batch):
    return jnp.mean(losses(params, batch))


# --- The loop -------------------------------------------------------------------------

# In NumPy: JAX has no float64 before the tests begin.
START = np.concatenate([np.ravel(TANH_START[name]) for name in ("bias", "weight")])
BIASES = np.arange(6) < 2


@functools.cache
def compiled():
    def tree(w):
        return ravel_pytree(jax.tree.map(jnp.asarray, TANH_START))[1](w)

    def flat_loss(w, batch):
        return loss(tree(w), batch)

    return quick_jit(jax.grad(flat_loss)), quick_jit(lambda w, b: losses(tree(w), b))


def gradient(w, rows):
    return np.array(compiled()[0](w, jax.tree.map(lambda x: x[rows], BATCH)))


def each_loss(w, rows):
    return np.array(compiled()[1](w, jax.tree.map(lambda x: x[rows], BATCH)))


def unit(x):
    norm = np.linalg.norm(x)
    return x / norm if norm > 0 else 0 * x


def parts(count):
    return np.split(np.arange(SIZE), count)


def fold(key, index):
    return key if index is None else jax.random.fold_in(key, index)


def indexed(setting):
    """The rows of each sub-batch, and the index its random keys are folded with."""
    count = SETTINGS[setting]["count"]
    return [
        (rows, j if setting != "whole" else None) for j, rows in enumerate(parts(count))
    ]


# Ascents: `climb(g, w, memory, index, t)`, and the next memory from the average of g.


def random_climb(g, w, memory, index, t, draw=coarse_uniform):
    key = jax.random.fold_in(fold(KEY, index), t)
    tree = jax.tree.map(jnp.asarray, TANH_START)
    leaves = [
        draw(jax.random.fold_in(key, i), x.shape, x.dtype)
        for i, x in enumerate(jax.tree.leaves(tree))
    ]
    return RHO * unit(np.concatenate([np.ravel(x) for x in leaves]))


def adaptive_climb(g, w, memory, index, t):
    size = np.where(BIASES, 1, np.abs(w) + 0.01)
    return RHO * size * unit(size * g)


def average(memory, g):
    return g if memory is None else 0.9 * memory + 0.1 * g


def less_average(g, memory):
    return g if memory is None else g - memory


ASCENTS = {
    "steepest": (
        lambda: optax_sam.steepest_ascent(RHO),
        lambda g, w, memory, index, t: RHO * unit(g),
    ),
    "adaptive": (lambda: optax_sam.adaptive_ascent(RHO), adaptive_climb),
    "random": (lambda: optax_sam.random_ascent(RHO, key=KEY), random_climb),
    "friendly": (
        lambda: optax_sam.friendly_ascent(optax_sam.steepest_ascent(RHO)),
        lambda g, w, memory, index, t: RHO * unit(less_average(g, memory)),
    ),
    "friendly adaptive": (
        lambda: optax_sam.friendly_ascent(optax_sam.adaptive_ascent(RHO)),
        lambda g, w, memory, index, t: adaptive_climb(
            less_average(g, memory), w, None, index, t
        ),
    ),
    "biases only": (
        lambda: optax_sam.climb_only(optax_sam.steepest_ascent(RHO), "bias"),
        lambda g, w, memory, index, t: RHO * unit(g * BIASES),
    ),
    "schedule": (
        lambda: optax_sam.steepest_ascent(lambda t: RHO / (1 + t)),
        lambda g, w, memory, index, t: RHO / (1 + t) * unit(g),
    ),
}


def surrogate_gap(g, s):
    return s - 0.4 * (g - g @ s / (s @ s) * s)


COMBINES = {
    "climbed": (None, lambda g, s: s),
    "gap": (optax_sam.surrogate_gap(0.4), surrogate_gap),
    "penalty": (
        optax_sam.gradient_norm_penalty(0.7),
        lambda g, s: 0.3 * g + 0.7 * s,
    ),
}

SETTINGS = {
    "whole": {"count": 1, "options": lambda: {}},
    "micro": {"count": 4, "options": lambda: {"microbatch_size": 4}},
    "device": {"count": 8, "options": lambda: {"axis_name": "data"}},
    "mesh": {"count": 8, "options": lambda: {"axis_name": "data", "mesh": mesh()}},
    "both": {
        "count": 16,
        "options": lambda: {"axis_name": "data", "microbatch_size": 1},
    },
}


def throws(p):
    draws = [jax.random.uniform(jax.random.fold_in(DICE, t)) for t in range(STEPS)]
    return [bool(x < p) for x in draws]


# When: what the library is told, and the steps that climb.
CONDITIONS = {
    "always": (lambda: None, lambda: [True] * STEPS),
    "every 2": (
        lambda: optax_sam.every_k(2),
        lambda: [t % 2 == 0 for t in range(STEPS)],
    ),
    "dice": (lambda: optax_sam.with_probability(0.5, key=DICE), lambda: throws(0.5)),
    "last 2": (
        lambda: optax_sam.from_step(2),
        lambda: [t >= 2 for t in range(STEPS)],
    ),
    "every 3 of the last 2": (
        lambda: lambda t: optax_sam.every_k(3)(t) & optax_sam.from_step(2)(t),
        lambda: [t % 3 == 0 and t >= 2 for t in range(STEPS)],
    ),
    "never": (lambda: False, lambda: [False] * STEPS),
}


def test_the_dice_fall_on_both_sides():
    assert {True, False} == set(throws(0.5))


def sam_loop(ascent, combine, setting, condition):
    """SAM in all its forms: the parameters after each step.

    What is drawn, scheduled and remembered goes on in every step.
    """
    climb_of, out_of = ASCENTS[ascent][1], COMBINES[combine][1]
    w, memory, seen = START, None, []
    for t, climbing in enumerate(CONDITIONS[condition][1]()):
        outs, cleans = [], []
        for rows, index in indexed(setting):
            g = gradient(w, rows)
            cleans.append(g)
            if climbing:
                climb = climb_of(g, w, memory, index, t)
                outs.append(out_of(g, gradient(w + climb, rows)))
        memory = average(memory, np.mean(cleans, 0))
        w = w - LEARNING_RATE * np.mean(outs if climbing else cleans, 0)
        seen.append(w)
    return seen


# --- The library ----------------------------------------------------------------------


def mesh():
    return Mesh(np.array(jax.devices()), ("data",))


def train(tx, setting, value_fn=loss, inside=False):
    """The parameters after each step, in the context of the setting.

    With `inside` the method takes its own gradients, and is given none.
    """
    tx = optax.chain(tx, optax.sgd(LEARNING_RATE))
    inside = inside or setting in ("micro", "mesh", "both")

    def step(carry, batch):
        params, state = carry
        at = optax_sam.per_device(params, "data") if setting == "device" else params
        grads = None if inside else jax.grad(loss)(at, batch)
        updates, state = tx.update(grads, state, params, value_fn=value_fn, batch=batch)
        params = optax.apply_updates(params, updates)
        return params, state

    if setting in ("device", "both"):
        step = jax.shard_map(
            step, mesh=mesh(), in_specs=(P(), P("data")), out_specs=P()
        )
    step = quick_jit(step)
    params = jax.tree.map(jnp.asarray, TANH_START)
    carry, seen = (params, tx.init(params)), []
    for _ in range(STEPS):
        carry = step(carry, BATCH)
        seen.append(np.array(ravel_pytree(jax.device_get(carry[0]))[0]))
    return seen


def assert_same(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-11)


# --- Every pair -----------------------------------------------------------------------

QUESTIONS = (ASCENTS, COMBINES, SETTINGS, CONDITIONS)


def pairs_in(row):
    return {
        ((i, row[i]), (j, row[j]))
        for i, j in itertools.combinations(range(len(row)), 2)
    }


def rows_with_every_pair():
    """Few rows of answers in which every pair of answers occurs."""
    everything = list(itertools.product(*QUESTIONS))
    missing, rows = set().union(*map(pairs_in, everything)), []
    while missing:
        row = max(everything, key=lambda r: len(pairs_in(r) & missing))
        missing -= pairs_in(row)
        rows.append(row)
    return rows


ROWS = rows_with_every_pair()
FAST = 10  # the rest, which are as many pairs again, run once


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=", ".join(row), marks=[pytest.mark.slow] * (i >= FAST))
        for i, row in enumerate(ROWS)
    ],
)
def test_pairs(row):
    ascent, combine, setting, condition = row
    tx = optax_sam.sharpness_aware(
        ASCENTS[ascent][0](),
        combine=COMBINES[combine][0],
        when=CONDITIONS[condition][0](),
        **SETTINGS[setting]["options"](),
    )
    assert_same(train(tx, setting), sam_loop(*row))


# --- Ten named combinations -----------------------------------------------------------


def look_sam_loop(setting, ascent="steepest", k=2, alpha=0.4):
    climb_of, w, reused, seen = ASCENTS[ascent][1], START, None, []
    for t in range(STEPS):
        cleans = [gradient(w, rows) for rows, _ in indexed(setting)]
        g = np.mean(cleans, 0)
        if t % k == 0:
            outs = [
                gradient(w + climb_of(c, w, None, index, t), rows)
                for c, (rows, index) in zip(cleans, indexed(setting), strict=True)
            ]
            out = np.mean(outs, 0)
            reused = out - (out @ unit(g)) * unit(g)
        else:
            out = g + alpha * np.linalg.norm(g) * unit(reused)
        w = w - LEARNING_RATE * out
        seen.append(w)
    return seen


def momentum_loop(setting):
    w, v, seen = START, 0 * START, []
    for _ in range(STEPS):
        point = w - RHO * unit(v)
        out = np.mean([gradient(point, rows) for rows, _ in indexed(setting)], 0)
        v, w = 0.9 * v + out, w - LEARNING_RATE * out
        seen.append(w)
    return seen


def random_loop(setting, condition):
    w, seen = START, []
    for t, climbing in enumerate(CONDITIONS[condition][1]()):
        outs = []
        for rows, index in indexed(setting):
            climb = random_climb(0, w, None, index, t) if climbing else 0
            outs.append(gradient(w + climb, rows))
        w = w - LEARNING_RATE * np.mean(outs, 0)
        seen.append(w)
    return seen


def partial_loop(setting, fraction, ascent):
    climb_of, w, memory, seen = ASCENTS[ascent][1], START, None, []
    for t in range(STEPS):
        outs, cleans = [], []
        for rows, index in indexed(setting):
            few = rows[: int(np.ceil(fraction * len(rows)))]
            cleans.append(gradient(w, few))
            climb = climb_of(cleans[-1], w, memory, index, t)
            outs.append(gradient(w + climb, rows))
        memory = average(memory, np.mean(cleans, 0))
        w = w - LEARNING_RATE * np.mean(outs, 0)
        seen.append(w)
    return seen


def esam_loop(setting, gamma):
    w, seen = START, []
    for _ in range(STEPS):
        outs = []
        for rows, _ in indexed(setting):
            point = w + RHO * unit(gradient(w, rows))
            rise = each_loss(point, rows) - each_loss(w, rows)
            worst = np.argsort(-rise)[: int(np.ceil(gamma * len(rows)))]
            outs.append(gradient(point, rows[np.sort(worst)]))
        w = w - LEARNING_RATE * np.mean(outs, 0)
        seen.append(w)
    return seen


def options(setting):
    return SETTINGS[setting]["options"]()


def adaptive():
    return optax_sam.adaptive_ascent(RHO)


NAMED = {
    "LookSAM with ASAM's ascent over micro-batches per device": (
        "both",
        lambda o: optax_sam.look_sam(None, 2, 0.4, ascent=adaptive(), **o),
        lambda: look_sam_loop("both", "adaptive"),
    ),
    "friendly m-SAM": (
        "micro",
        lambda o: optax_sam.m_sam(
            ascent=optax_sam.friendly_ascent(optax_sam.steepest_ascent(RHO)), **o
        ),
        lambda: sam_loop("friendly", "climbed", "micro", "always"),
    ),
    "GSAM on every second step, per device": (
        "device",
        lambda o: optax_sam.gsam(RHO, 0.4, when=optax_sam.every_k(2), **o),
        lambda: sam_loop("steepest", "gap", "device", "every 2"),
    ),
    "friendly ASAM, penalty, from a mesh, by dice": (
        "mesh",
        lambda o: optax_sam.sharpness_aware(
            optax_sam.friendly_ascent(adaptive()),
            combine=optax_sam.gradient_norm_penalty(0.7),
            when=optax_sam.with_probability(0.5, key=DICE),
            **o,
        ),
        lambda: sam_loop("friendly adaptive", "penalty", "mesh", "dice"),
    ),
    "LookSAM with a random ascent, per device": (
        "device",
        lambda o: optax_sam.look_sam(
            None, 2, 0.4, ascent=optax_sam.random_ascent(RHO, key=KEY), **o
        ),
        lambda: look_sam_loop("device", "random"),
    ),
    "momentum SAM over micro-batches per device": (
        "both",
        lambda o: optax_sam.momentum_sam(RHO, **o),
        lambda: momentum_loop("both"),
    ),
    "a random climb for each device, in the last part": (
        "device",
        lambda o: optax_sam.random_perturbation(
            RHO, key=KEY, when=optax_sam.from_step(2), **o
        ),
        lambda: random_loop("device", "last 2"),
    ),
    "ASAM from half of each micro-batch": (
        "micro",
        lambda o: optax_sam.partial_climb(None, 0.5, ascent=adaptive(), **o),
        lambda: partial_loop("micro", 0.5, "adaptive"),
    ),
    "friendly SAM from half of each device's examples": (
        "mesh",
        lambda o: optax_sam.partial_climb(
            None,
            0.5,
            ascent=optax_sam.friendly_ascent(optax_sam.steepest_ascent(RHO)),
            **o,
        ),
        lambda: partial_loop("mesh", 0.5, "friendly"),
    ),
    "ESAM over micro-batches": (
        "micro",
        lambda o: optax_sam.esam(RHO, beta=1.0, gamma=0.5, key=KEY, **o),
        lambda: esam_loop("micro", 0.5),
    ),
    "ESAM per device": (
        "device",
        lambda o: optax_sam.esam(RHO, beta=1.0, gamma=0.5, key=KEY, **o),
        lambda: esam_loop("device", 0.5),
    ),
    "GSAM of the biases alone, every third step of the last two": (
        "whole",
        lambda o: optax_sam.gsam(
            alpha=0.4,
            ascent=optax_sam.climb_only(optax_sam.steepest_ascent(RHO), "bias"),
            when=CONDITIONS["every 3 of the last 2"][0](),
            **o,
        ),
        lambda: sam_loop("biases only", "gap", "whole", "every 3 of the last 2"),
    ),
}

#: Methods that take their gradients themselves, wherever the examples are.
INSIDE = ("ESAM", "momentum", "a random climb")


@pytest.mark.parametrize("name", NAMED)
def test_named_combination(name):
    setting, make, expected = NAMED[name]
    value_fn = losses if name.startswith("ESAM") else loss
    tx = make(options(setting))
    got = train(tx, setting, value_fn, inside=name.startswith(INSIDE))
    assert_same(got, expected())


def test_a_condition_before_the_average():
    """The bare chain: the condition is on the local part, the average stays behind."""
    tx = optax.chain(
        optax_sam.sam(RHO, when=optax_sam.every_k(2)), optax_sam.mean_over("data")
    )
    expected = sam_loop("steepest", "climbed", "device", "every 2")
    assert_same(train(tx, "device"), expected)


# --- Refused --------------------------------------------------------------------------


def friendly():
    return optax_sam.friendly_sam(RHO)


@pytest.mark.parametrize(
    ("make", "inside"),
    [
        (friendly, False),
        (friendly, True),
        (lambda: optax_sam.look_sam(RHO), False),
        (lambda: optax_sam.momentum_sam(RHO), True),
    ],
)
def test_state_made_by_each_device_alone_is_refused(make, inside):
    def step(params, batch):
        tx = optax.chain(make(), optax_sam.mean_over("data"))
        at = optax_sam.per_device(params, "data")
        grads = None if inside else jax.grad(loss)(at, batch)
        extra = {"value_fn": loss, "batch": batch}
        return tx.update(grads, tx.init(params), at, **extra)[0]

    step = jax.shard_map(step, mesh=mesh(), in_specs=(P(), P("data")), out_specs=P())
    with pytest.raises(ValueError, match="axis_name='data'"):
        jax.eval_shape(step, jax.tree.map(jnp.asarray, TANH_START), BATCH)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: optax_sam.every_k(0), "k must be"),
        (lambda: optax_sam.look_sam(RHO, 0), "k must be"),
        (lambda: optax_sam.from_step(-1), "start"),
        (lambda: optax_sam.with_probability(1.5, key=DICE), "probability"),
        (lambda: optax_sam.tail_schedule(0.1, 100, tail=0.0), "tail"),
        (lambda: optax_sam.tail_schedule(0.1, 100, 0.5, warmup_steps=60), "warmup"),
    ],
)
def test_conditions_refuse(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_tail_owns_a_full_anneal():
    learning_rate, start = optax_sam.tail_schedule(0.1, 100, 0.3, warmup_steps=10)
    rates = [float(learning_rate(t)) for t in range(101)]
    assert start == 70
    np.testing.assert_allclose(rates[:10], np.arange(10) / 100, atol=1e-7)
    np.testing.assert_allclose(rates[10:71], 0.1, atol=1e-7)
    half = 0.05 * (1 + np.cos(np.pi * np.arange(31) / 30))
    np.testing.assert_allclose(rates[70:], half, atol=1e-7)


def test_a_schedule_for_p():
    when = optax_sam.with_probability(lambda t: 1.0 * (t >= 2), key=DICE)
    tx = optax_sam.sam(RHO, when=when)
    assert_same(train(tx, "whole"), sam_loop("steepest", "climbed", "whole", "last 2"))
