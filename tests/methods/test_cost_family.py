"""What the cheaper methods cost, counted: FLOPs, and the passes that really ran.

As in `test_cost.py`. XLA does not know which branch of a conditional is taken, so each
is compiled alone, on a step that is known, and weighted by how often it is taken.
"""

import functools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from problems import QUICK, quick_jit

import optax_sam
from benchmarks.lib import hlo
from optax_sam import every_k, from_step, look_sam, per_device, sam, with_probability

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
K, STEPS = 5, 10
START = 8  # of the last part: two steps of ten

# --- FLOPs ---------------------------------------------------------------------------

DEPTH, WIDTH, BATCH = 3, 64, 512


def deep_losses(params, inputs):
    h = inputs
    for weight in params.values():
        h = jnp.tanh(h @ weight)
    return jnp.mean(h**2, axis=1)


def deep_loss(params, inputs):
    return jnp.mean(deep_losses(params, inputs))


SHAPES = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
    (
        {f"layer{i}": jnp.zeros((WIDTH, WIDTH)) for i in range(DEPTH)},
        jnp.zeros((BATCH, WIDTH)),
    ),
)


def flops(step, state=()):
    params, inputs = SHAPES
    compiled = quick_jit(step).lower(params, state, inputs).compile()
    assert " conditional(" not in compiled.as_text()
    return compiled.cost_analysis()["flops"]


@functools.cache
def base_flops():
    return flops(
        lambda params, _, inputs: jax.value_and_grad(deep_loss)(params, inputs)
    )


def ratio(tx, inside=None, at=None):
    """FLOPs of a step with its loss over those of one gradient with its loss.

    `inside`: the loss for methods that take their gradients themselves.
    """

    def step(params, state, inputs):
        if at is not None:
            state = optax.tree.set(state, step=jnp.int32(at))
        if inside is not None:
            extra = {"value_fn": inside, "batch": inputs}
            updates, state = tx.update(None, state, params, **extra)
            return optax.tree.get(state, "last_loss"), updates, state
        value, grads = jax.value_and_grad(deep_loss)(params, inputs)
        updates, state = tx.update(
            grads, state, params, value_fn=lambda p: deep_loss(p, inputs)
        )
        return value, updates, state

    return flops(step, jax.eval_shape(tx.init, SHAPES[0])) / base_flops()


TWO_PASSES = {
    "gsam": optax_sam.gsam(),
    "wsam": optax_sam.wsam(),
    "friendly_sam": optax_sam.friendly_sam(),
    "le_sam": optax_sam.le_sam(0.1, rho_max=0.5),
}


@pytest.mark.parametrize("name", TWO_PASSES)
def test_two_passes_have_the_flops_of_two_gradients(name):
    assert 1.995 <= ratio(TWO_PASSES[name]) <= 2.03


def test_momentum_and_its_loss_have_the_flops_of_one_gradient():
    assert 1.00 <= ratio(optax_sam.momentum_sam(), deep_loss) <= 1.03


def test_a_stale_climb_and_its_loss_have_the_flops_of_one_gradient():
    assert 1.00 <= ratio(optax_sam.stale_sam(), deep_loss) <= 1.03


def test_a_random_climb_and_its_loss_have_the_flops_of_one_gradient():
    tx = optax_sam.random_perturbation(0.05, key=KEY)
    assert 1.00 <= ratio(tx, deep_loss) <= 1.03


@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_a_partial_climb_has_the_flops_of_its_part(fraction):
    cost = ratio(optax_sam.partial_climb(fraction=fraction), deep_loss)
    assert 0.995 + fraction <= cost <= 1.03 + fraction


@pytest.mark.parametrize("gamma", [0.25, 0.5])
def test_esam_has_the_flops_of_a_gradient_a_forward_pass_and_a_part(gamma):
    """Selecting is a forward pass; the backward one has twice its FLOPs."""
    forward = flops(lambda params, _, inputs: deep_loss(params, inputs)) / base_flops()
    assert abs(forward - 1 / 3) < 0.06
    cost = ratio(optax_sam.esam(gamma=gamma, key=KEY), deep_losses)
    assert 0.995 + forward + gamma <= cost <= 1.03 + forward + gamma


BRANCHES = {
    "look_sam": look_sam(k=K),
    "look_sam, per leaf": look_sam(k=K, per_leaf=True),
    "every_k": sam(when=every_k(K)),
    "from_step": sam(when=from_step(K)),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_four_steps_of_five_have_the_flops_of_one_gradient(name):
    """At t = 5 all of them climb, at t = 1 none of them does."""
    tx = BRANCHES[name]
    climbs, stays = (ratio(tx, at=t) for t in (K, 1))
    assert 1.995 <= climbs <= 2.03
    assert 1.00 <= stays <= 1.02
    assert (climbs + (K - 1) * stays) / K <= 1.25


# --- The passes that really ran ------------------------------------------------------


class CountedLoss:
    """A loss that counts its evaluations as they run, and the examples they saw."""

    def __init__(self, per_example=False):
        self.counts, self.per_example = Counter(), per_example

    def __call__(self, params, inputs):
        losses = 0.5 * (inputs @ params) ** 2
        jax.debug.callback(self._ran, losses)
        return losses if self.per_example else jnp.mean(losses)

    def _ran(self, losses):
        self.counts["evaluations"] += 1
        self.counts["examples"] += losses.size

    def ran(self, what="evaluations"):
        jax.effects_barrier()
        return self.counts[what]


PARAMS, INPUTS = jnp.ones(3), jnp.arange(48.0).reshape(16, 3) / 48
ROWS = len(INPUTS)
DICE = [
    float(jax.random.uniform(jax.random.fold_in(KEY, t))) < 1 / K for t in range(STEPS)
]

#: Each with the number of climbs that it must make in STEPS steps.
SKIPPING = {
    "look_sam": (lambda **o: look_sam(k=K, **o), STEPS // K),
    "every_k": (lambda **o: sam(when=every_k(K), **o), STEPS // K),
    "with_probability": (
        lambda **o: sam(when=with_probability(1 / K, key=KEY), **o),
        sum(DICE),
    ),
    "from_step": (lambda **o: sam(when=from_step(START), **o), STEPS - START),
}


def counted_step(make, **options):
    """A training step, the counter of its clean passes and that of the climbed ones."""
    clean, climbed = CountedLoss(), CountedLoss()
    tx = make(**options)

    def step(params, state, inputs, at=lambda p: p):
        grads = jax.grad(clean)(at(params), inputs)
        grads, state = tx.update(
            grads, state, params, value_fn=lambda p: climbed(p, inputs)
        )
        return params - 0.01 * grads, state

    return tx, step, clean, climbed


def loop(step, params, state, inputs, steps=STEPS):
    def body(carry, _):
        return step(*carry, inputs), None

    return jax.lax.scan(body, (params, state), length=steps)[0]


def under_jit(make):
    tx, step, clean, climbed = counted_step(make)
    jitted, carry = quick_jit(step), (PARAMS, tx.init(PARAMS))
    for _ in range(STEPS):
        carry = jitted(*carry, INPUTS)
    return clean, climbed, 1


def under_scan(make):
    tx, step, clean, climbed = counted_step(make)
    quick_jit(functools.partial(loop, step))(PARAMS, tx.init(PARAMS), INPUTS)
    return clean, climbed, 1


def under_shard_map(make):
    """A climb for each device, and all devices climb on the same steps."""
    tx, step, clean, climbed = counted_step(make, axis_name="data")
    mesh = Mesh(jax.devices(), ("data",))
    local = functools.partial(step, at=lambda p: per_device(p, "data"))
    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P()
    )
    jitted, carry = jax.jit(sharded, compiler_options=QUICK), (PARAMS, tx.init(PARAMS))
    for _ in range(STEPS):
        carry = jitted(*carry, INPUTS)
        jax.block_until_ready(carry)
    return clean, climbed, len(jax.devices())


RUNNERS = {"jit": under_jit, "scan": under_scan, "shard_map": under_shard_map}


def test_the_dice_skip_some_steps():
    assert 0 < sum(DICE) < STEPS


@pytest.mark.parametrize("name", SKIPPING)
@pytest.mark.parametrize("runner", RUNNERS)
def test_the_second_pass_is_really_skipped(runner, name):
    make, climbs = SKIPPING[name]
    clean, climbed, devices = RUNNERS[runner](make)
    assert clean.ran() == devices * STEPS
    assert climbed.ran() == devices * climbs


SEEDS = 2
STARTS = jnp.stack([PARAMS * (1 + seed) for seed in range(SEEDS)])


def climbs_over_seeds(make, over, own_states):
    """How many second passes run in the loop over all steps, for several starts."""
    tx, step, clean, climbed = counted_step(make)
    states = tx.init(PARAMS)
    if own_states:
        states = jax.tree.map(lambda x: jnp.stack([x] * SEEDS), states)

    @quick_jit
    def train(starts, states):
        if own_states:
            return over(lambda start, state: loop(step, start, state, INPUTS))(
                starts, states
            )
        return over(lambda start: loop(step, start, states, INPUTS))(starts)

    jax.block_until_ready(train(STARTS, states))
    assert clean.ran() == SEEDS * STEPS
    return climbed.ran()


def one_after_another(train):
    return lambda *args: jax.lax.map(lambda one: train(*one), args)


@pytest.mark.parametrize("name", SKIPPING)
def test_under_vmap_over_states_nothing_is_skipped(name):
    """A counter of its own for each seed is a condition of its own: a select."""
    make, _ = SKIPPING[name]
    assert climbs_over_seeds(make, jax.vmap, own_states=True) == SEEDS * STEPS


@pytest.mark.parametrize("name", SKIPPING)
def test_looping_over_seeds_skips_as_well(name):
    make, climbs = SKIPPING[name]
    found = climbs_over_seeds(make, one_after_another, own_states=True)
    assert found == SEEDS * climbs


@pytest.mark.parametrize("name", SKIPPING)
def test_vmap_over_whole_trainings_skips(name):
    """A state that starts inside has one counter, and its key, for all seeds."""
    make, climbs = SKIPPING[name]
    found = climbs_over_seeds(make, jax.vmap, own_states=False)
    assert found == SEEDS * climbs


# --- One pass, or a part of one ------------------------------------------------------

#: Each with the examples it must see in a step, of ROWS.
INSIDE = {
    "momentum_sam": (optax_sam.momentum_sam(), ROWS),
    "stale_sam": (optax_sam.stale_sam(), ROWS),
    "random_perturbation": (optax_sam.random_perturbation(0.05, key=KEY), ROWS),
    "partial_climb": (optax_sam.partial_climb(fraction=0.25), ROWS * 5 // 4),
    # A gradient, a forward pass to select by, and a gradient of the selected.
    "esam": (optax_sam.esam(gamma=0.25, key=KEY), ROWS * 9 // 4),
}


@pytest.mark.parametrize("name", INSIDE)
def test_methods_that_take_their_gradients_themselves_see_no_more(name):
    tx, examples = INSIDE[name]
    loss = CountedLoss(per_example=name == "esam")

    def step(params, state, inputs):
        grads, state = tx.update(None, state, params, value_fn=loss, batch=inputs)
        return params - 0.01 * grads, state

    quick_jit(functools.partial(loop, step))(PARAMS, tx.init(PARAMS), INPUTS)
    assert loss.ran("examples") == STEPS * examples


# --- What benchmarks/ count ----------------------------------------------------------


def test_the_rounds_of_the_random_generator_are_counted():
    """Threefry: 20 rounds of 5 operations, 5 injections of 2, for every word."""
    words = 1000

    def found(function, key):
        compiled = quick_jit(function).lower(key).compile()
        missing = hlo.rounds_not_counted(compiled.as_text())
        return (compiled.cost_analysis()["flops"] + missing) / words, missing

    def bits(key):
        return jax.random.bits(key, (words,))

    total, _ = found(bits, KEY)
    assert 110 <= total <= 2 * 110  # XLA computes some of them twice
    assert found(bits, jax.random.key(0, impl="rbg"))[1] == 0
    assert found(lambda x: jax.lax.fori_loop(0, 7, lambda i, x: x + i, x), 1)[1] == 0


# --- What benchmarks/ found ----------------------------------------------------------

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@functools.cache
def reported(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def test_the_reported_costs_are_those_of_theory():
    expected = {"base": 1, "SAM": 2, "LookSAM": 1.2, "climb by 1/4": 1.25}
    expected |= {"every 5th step": 1.2, "random 1/5 of steps": 1.2, "m-SAM": 2}
    expected |= {"last 1/5 of steps": 1.2, "momentum SAM": 1, "random perturbation": 1}
    for rows in reported("cost")["networks"].values():
        for name, evaluations in expected.items():
            np.testing.assert_allclose(rows[name]["evaluations"], evaluations)
    missed = [
        (network, name)
        for network, rows in reported("cost")["networks"].items()
        for name, bar in reported("cost")["bars"].items()
        if rows[name]["flops"] > bar
    ]
    assert not missed


def seeds_of(row, seeds, which):
    return np.array([row[which][row["seeds"].index(seed)] for seed in seeds])


def runs_of(result, row):
    """The runs of what was chosen."""
    keys = ("task", "method", "epochs", "lr", "decay", "rho", "alpha")
    (found,) = [r for r in result["runs"] if all(r[k] == row[k] for k in keys)]
    return found


def test_the_reported_gains_are_those_of_the_reported_runs():
    result = reported("which_method_small")
    for task in result["titles"]:
        rows = {r["method"]: r for r in result["methods"] if r["task"] == task}

        def gain(name, which="test", seeds=result["seeds"], rows=rows):
            return seeds_of(runs_of(result, rows[name]), seeds, which) - seeds_of(
                runs_of(result, rows["base"]), seeds, which
            )

        for name, row in rows.items():
            mean, error = gain(name).mean(), gain(name).std(ddof=1)
            error = error / len(result["seeds"]) ** 0.5
            np.testing.assert_allclose(row["gain"], (mean, error), atol=2e-3)
            share = mean / gain("SAM").mean()
            np.testing.assert_allclose(row["share"], share, atol=2e-3)
            low, high = row["share_interval"]
            assert low <= row["share"] <= high


def test_what_was_nominated_was_the_best_of_the_cheap_on_validation():
    result = reported("which_method_small")
    assert not set(result["seeds"]) & set(result["tuning_seeds"])
    shares = {}
    for task in result["titles"]:
        rows = {r["method"]: r for r in result["methods"] if r["task"] == task}
        sam = rows["SAM"]["validation_gain"][0]
        for name, row in rows.items():
            if row["gradients"] <= result["cost_limit"] and "base" not in name:
                share = row["validation_gain"][0] / sam
                shares[name] = min(share, shares.get(name, np.inf))
    best = sorted(shares, key=shares.get, reverse=True)
    assert result["nominated"] == best[: len(result["nominated"])]
    assert len(result["nominated"]) <= 2


def script(name, *options):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_costs_on_tiny_sizes(tmp_path):
    script("cost.cost", "--smoke", "--out", str(tmp_path))
    result = json.loads((tmp_path / "cost.json").read_text(encoding="utf-8"))
    assert abs(result["over_unrolled"] - 1) < 0.02
    rows = result["networks"]["MLP"]
    assert rows["LookSAM"]["evaluations"] == 1.2
    assert rows["LookSAM"]["all_reduces"] == 1.2
    assert rows["SAM"]["all_reduces_own_climbs"] == 1


@pytest.mark.slow
def test_which_method_on_tiny_sizes_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "which_method_small.json"
    first = script("accuracy.which_method_small", "--smoke", "--out", str(tmp_path))
    before = json.loads(path.read_text(encoding="utf-8"))
    short = {**before, "runs": before["runs"][1:]}
    path.write_text(json.dumps(short), encoding="utf-8")
    again = script("accuracy.which_method_small", "--smoke", "--out", str(tmp_path))
    after = json.loads(path.read_text(encoding="utf-8"))
    for row, old in zip(after["methods"], before["methods"], strict=True):
        assert runs_of(after, row)["test"] == runs_of(before, old)["test"]
        # Means of what the file has rounded to five digits.
        np.testing.assert_allclose(row["gain"], old["gain"], atol=2e-3)
    assert "momentum SAM" in first
    assert "momentum SAM" in again
    picture = (tmp_path / "which_method_small.png").read_bytes()
    script("accuracy.which_method_small", "--redraw", "--out", str(tmp_path))
    assert (tmp_path / "which_method_small.png").read_bytes() == picture
