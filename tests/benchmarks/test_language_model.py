"""The study of the language model: each method's step, the choice, the whole path."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.accuracy import language_model, language_model_report
from benchmarks.lib import austen, blind, language, language_study
from benchmarks.lib.grids import Axis
from benchmarks.lib.language import (
    BASE,
    BOTH,
    FUNCTIONAL,
    MOMENTUM,
    PRECONDITIONED,
    SAM,
    Kind,
    Settings,
)
from benchmarks.lib.resume import Clock, OutOfTime
from benchmarks.lib.store import Store

VOCABULARY, CONTEXT, RHO = 5, 3, 0.2


class Bigrams:
    """A model with the interface of Flax's: a table, whose squares are the logits."""

    def apply(self, variables, tokens, train):
        return variables["params"]["kernel"][tokens] ** 2


def by_hand(w, tokens, at=None):
    """The loss's gradient in the table; that of the head in the logits is taken at
    another table, if given."""
    x, y = tokens[:, :-1].ravel(), tokens[:, 1:].ravel()
    inputs, targets = np.eye(VOCABULARY)[x], np.eye(VOCABULARY)[y]
    logits = inputs @ (w if at is None else at) ** 2
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return 2 * w * (inputs.T @ (share - targets)) / len(x)


def unit(x):
    return x / np.linalg.norm(x)


TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (7, CONTEXT + 1))
W = np.random.default_rng(1).normal(size=(VOCABULARY, VOCABULARY))
MOMENT = np.random.default_rng(2).uniform(0.1, 3, (VOCABULARY, VOCABULARY)) ** 2
CLEAN = by_hand(W, TOKENS)
SHAPED = unit(CLEAN / np.sqrt(MOMENT))
EXPECTED = {
    BASE: CLEAN,
    SAM: by_hand(W + RHO * unit(CLEAN), TOKENS),
    PRECONDITIONED: by_hand(W + RHO * SHAPED, TOKENS),
    FUNCTIONAL: by_hand(W + RHO * unit(CLEAN), TOKENS, at=W),
    BOTH: by_hand(W + RHO * SHAPED, TOKENS, at=W),
}


@pytest.mark.slow  # a study's machinery, not the library
@pytest.mark.parametrize("method", EXPECTED)
def test_the_gradient_of_each_method(method):
    params, moment = ({"kernel": jnp.float32(x)} for x in (W, MOMENT))
    kind = Kind(Bigrams(), method, CONTEXT)
    _, grads = language.gradient(kind, RHO, moment)(params, jnp.asarray(TOKENS))
    np.testing.assert_allclose(grads["kernel"], EXPECTED[method], atol=1e-5)


@pytest.mark.parametrize("method", [PRECONDITIONED, BOTH])
def test_before_the_first_step_the_climb_is_along_the_gradient(method):
    params = {"kernel": jnp.float32(W)}
    kind = Kind(Bigrams(), method, CONTEXT)
    moment = jax.tree.map(jnp.zeros_like, params)
    _, grads = language.gradient(kind, RHO, moment)(params, jnp.asarray(TOKENS))
    expected = EXPECTED[SAM if method == PRECONDITIONED else FUNCTIONAL]
    np.testing.assert_allclose(grads["kernel"], expected, atol=1e-5)


def test_momentum_sam_takes_one_gradient_at_the_climbed_point():
    tx = language.transformation(
        Kind(Bigrams(), MOMENTUM, CONTEXT), Settings(0.1, 0.0, RHO), 10
    )
    params, points = {"kernel": jnp.float32(W)}, []
    state = tx.init(params)

    def loss(params):
        jax.debug.callback(lambda w: points.append(np.asarray(w)), params["kernel"])
        return jnp.sum(params["kernel"] ** 2)

    for _ in range(2):
        last = np.asarray(params["kernel"])
        updates, state = tx.update(None, state, params, value_fn=loss)
        params = optax.apply_updates(params, updates)
    jax.effects_barrier()
    assert len(points) == 2
    np.testing.assert_allclose(points[0], W, atol=1e-6)
    np.testing.assert_allclose(points[1], last - RHO * unit(W), atol=1e-5)


def test_what_decays_in_the_decoder():
    model = language_study.DECODER
    tokens = jnp.zeros((1, 256), jnp.int32)

    def init():
        return model.init(jax.random.key(0), tokens, train=False)["params"]

    params = jax.eval_shape(init)
    size = sum(x.size for x in jax.tree.leaves(params))
    assert 10e6 < size < 11e6
    decays = language.matrices(params)
    kept = [
        "/".join(part.key for part in path)
        for path, one in jax.tree_util.tree_leaves_with_path(decays)
        if not one
    ]
    assert {path.rsplit("/", 1)[1] for path in kept if path != "place"} == {
        *("bias", "scale")
    }


def kinds(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@pytest.mark.slow
@pytest.mark.parametrize("method", [PRECONDITIONED, BOTH, MOMENTUM])
def test_a_step_in_bfloat16_keeps_the_state_in_float32(method):
    init, step = language.compiled(Kind(language_study.DECODER, method))
    state = jax.eval_shape(init, jax.random.key(0))
    text, begin = jnp.zeros(1000, jnp.uint8), jnp.zeros(2, jnp.int32)
    after = jax.eval_shape(step, state, text, begin, Settings(0.001, 0.1, 0.05), 10)
    assert kinds(after) == kinds(state)
    assert {x.dtype for x in jax.tree.leaves(state[0])} == {jnp.dtype("float32")}


def test_the_schedule_against_its_closed_form():
    schedule = language.warm_up_and_cosine(0.4, 200)
    found = [float(schedule(t)) for t in range(201)]
    expected = [0.4 * t / 10 for t in range(10)]
    expected += [0.2 * (1 + np.cos(np.pi * (t - 10) / 190)) for t in range(10, 201)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_each_character_of_a_block_is_predicted_once():
    text = np.arange(1 + 2 * language.BLOCK * CONTEXT + 5) % 251
    found = language.blocks(text.astype(np.uint8), CONTEXT)
    assert found.shape == (2, language.BLOCK, CONTEXT + 1)
    size = 2 * language.BLOCK * CONTEXT
    np.testing.assert_array_equal(found[..., 1:].ravel(), text[1 : size + 1])
    np.testing.assert_array_equal(found[..., :-1].ravel(), text[:size])


def test_windows_depend_on_the_seed_alone():
    first = language.starts(1000, 32, 4, 10, seed=7)
    assert first.max() + 32 < 1000
    np.testing.assert_array_equal(language.starts(1000, 32, 4, 20, seed=7)[:10], first)
    assert (language.starts(1000, 32, 4, 10, seed=8) != first).any()


# --- choosing -------------------------------------------------------------------------


class Bowl:
    """In place of runs: lowest at lr 0.004, decay 0.1, 3,000 steps, rho 0.1."""

    def __init__(self, study):
        self.study, self.seen = study, []

    def work(self, key):
        self.seen.append((key["method"], key["steps"]))
        at = key["settings"] | {"steps": key["steps"]}
        best = {"lr": 0.004, "decay": 0.1, "steps": 3000, "rho": 0.1}
        loss = sum(math.log(at[name] / best[name]) ** 2 for name in at)
        return {"validation": 1 + loss}


def study(**changes):
    made = language_study.Study(lambda: None, lambda permit: None)
    return dataclasses.replace(made, **changes)


def test_the_choice_ends_inside_of_what_was_tried(tmp_path):
    bench = Bowl(study())
    found = language_study.Choice(bench, Store(tmp_path / "runs.json")).run()
    rows = found["rows"]
    assert rows["base"]["settings"] == {"lr": 0.004, "decay": 0.1}
    assert rows["base, length chosen"]["steps"] == 3000
    assert {int(n) for n in found["lengths"]} == {750, 1500, 3000, 6000}
    assert rows["base, 2x steps"]["steps"] == 3000
    for method in language_study.RHO:
        assert rows[method]["settings"] == {"lr": 0.004, "decay": 0.1, "rho": 0.1}
        assert rows[method]["steps"] == 1500
        assert rows[method]["points"] <= rows["base"]["points"]
    assert all(row["at_bound"] == [] for row in rows.values())
    assert found["rows"]["base"]["validation"] > rows["base, 2x steps"]["validation"]


def test_a_bound_is_told(tmp_path):
    narrow = {"lr": Axis((0.001,), high=0.001), "decay": Axis((0.1,), ratio=3)}
    bench = Bowl(study(base=narrow, longest=3000))
    rows = language_study.Choice(bench, Store(tmp_path / "runs.json")).run()["rows"]
    assert rows["base"]["at_bound"] == ["lr"]
    assert rows["base, length chosen"]["at_bound"] == ["lr", "steps"]


def test_a_choice_that_runs_out_of_time_goes_on(tmp_path, capsys):
    class Impatient(Bowl):
        def __init__(self, study, runs):
            super().__init__(study)
            self.left, self.tell = runs, print

        def work(self, key):
            self.left -= 1
            if self.left < 0:
                raise OutOfTime
            return super().work(key)

    path = tmp_path / "settings.json"
    for runs in (5, 5):
        store = Store(tmp_path / "runs.json")
        assert not language_study.tune(Impatient(study(), runs), store, path)
    assert not path.exists()
    assert "10 runs are there" in capsys.readouterr().out
    assert language_study.tune(Impatient(study(), 500), store, path)
    whole = language_study.Choice(Bowl(study()), Store(tmp_path / "other.json")).run()
    assert (
        json.loads(path.read_text())["rows"]["base"]["settings"]
        == (whole["rows"]["base"]["settings"])
    )


# --- the table ------------------------------------------------------------------------


def row(method, steps):
    return {"method": method, "steps": steps, "settings": {}, "at_bound": []}


ROWS = {
    "base": row(BASE, 10),
    "base, 2x steps": row(BASE, 20),
    "base, length chosen": row(BASE, 20),
    SAM: row(SAM, 10),
    MOMENTUM: row(MOMENTUM, 10),
}
LOSSES = {("base", 10): 1.5, ("base", 20): 1.4, (SAM, 10): 1.42, (MOMENTUM, 10): 1.3}


def reported(path, rows):
    head = {"study": "s", "settings_blob": "abc", "seeds": [1, 2, 3]}
    head |= {"settings": {"rows": rows}, "characters": 40_000, "block": 4096}
    store = Store(path)
    store.describe(head)
    rng = np.random.default_rng(0)
    of_seed, of_block = rng.normal(0, 0.001, 3), rng.normal(0, 0.05, 10)

    def work(key):
        loss = LOSSES[key["method"], key["steps"]]
        losses = loss + of_seed[key["seed"] - 1] * loss + of_block
        return {"test": losses.tolist(), "validation": 1.0, "seconds": 9.0}

    store.run(language_model_report.keys(head), work)
    return store


def test_gains_are_over_the_same_gradients(tmp_path):
    store = reported(tmp_path / "a.json", ROWS)
    assert len(store.keys()) == 4 * 3  # the chosen length is twice the steps
    found = language_model_report.Results(store)
    of_sam, of_momentum = found.gains(SAM), found.gains(MOMENTUM)
    assert [round(one.mean, 2) for one in of_sam.values()] == [0.08, -0.02, -0.02]
    assert [round(one.mean, 2) for one in of_momentum.values()] == [0.2, 0.2, 0.1]
    for one in (*of_sam.values(), *of_momentum.values()):
        assert one.images < 1e-9  # blocks that are hard for all of them cancel
    text = language_model_report.table(store)
    lines = {line[:31].strip(): line.split() for line in text.splitlines()}
    assert lines[MOMENTUM][-1] == "gain"
    assert lines[SAM][-1] == "loss"


def test_a_row_counts_when_all_of_its_seeds_are_there(tmp_path):
    store = reported(tmp_path / "a.json", ROWS)
    more = ROWS | {FUNCTIONAL: row(FUNCTIONAL, 10)}
    store.describe(store.head | {"settings": {"rows": more}})
    assert language_model_report.Results(store).gains(FUNCTIONAL) is None
    lines = language_model_report.table(store).splitlines()
    assert sum("not run" in line for line in lines) == 2


# --- the whole path -------------------------------------------------------------------


def test_a_smoke_run_without_the_novels_says_so_and_ends(tmp_path, capsys, monkeypatch):
    command = ["x", "--smoke", "--data", str(tmp_path), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    language_model.main()
    said = capsys.readouterr().out
    assert said.startswith("Skipped")
    assert "r-cran-janeaustenr" in said


@pytest.mark.slow
def test_all_commands_in_a_row_and_it_learns(tmp_path, capsys, monkeypatch):
    if not austen.FOLDER.is_dir():
        pytest.skip("no r-cran-janeaustenr here")
    pytest.importorskip("rdata", reason="extra `text`")
    monkeypatch.setattr("sys.argv", ["x", "--smoke", "--out", str(tmp_path)])
    language_model.main()
    said = capsys.readouterr().out
    assert "not run" not in said
    assert not list(tmp_path.rglob("*.npz"))
    store = Store(tmp_path / "language_model_smoke_report.json")
    permit = blind.Committed(
        tmp_path / "language_model_smoke_settings" / "settings.json"
    )
    assert store.head["settings_blob"] == permit.blob
    found = language_model_report.Results(store)
    for name in found.rows:
        assert found.losses(name).mean() < math.log(81) - 0.3
    # Everything is there: nothing runs.
    small = language_model.tiny(austen.FOLDER)
    lines = []
    bench = language_study.Bench(small, Clock(), tmp_path, lines.append)
    assert language_model.run_report(bench, permit, store)
    assert lines == []
