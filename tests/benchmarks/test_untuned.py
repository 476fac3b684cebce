"""Rules that set rho without tuning: closed forms, what is frozen, all commands."""

import dataclasses
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from untuned_plan import PLAN, ROWS, frozen_rules

import optax_sam
from benchmarks.accuracy import (
    fashion,
    fine_tuning_imagenet,
    label_noise,
    mnist_5k,
    other_tasks,
    own_method,
    untuned,
    which_method,
)
from benchmarks.lib import (
    blind,
    fixed_sets,
    methods,
    rehearsal,
    report,
    rules,
    untuned_runs,
)
from benchmarks.lib.grids import Axis
from benchmarks.lib.store import Store
from benchmarks.lib.study import BASE

# --- the rules ----------------------------------------------------------------------

HESSIAN = np.array([1.0, 4.0])
START = np.array([3.0, 1.0])  # a loss of 6.5, a gradient (3, 4), its norm 5


def quadratic(params, batch):
    """Of each example the same."""
    return jnp.full(len(batch), 0.5 * jnp.sum(jnp.asarray(HESSIAN) * params**2))


def gradients(rule: rules.Rule, number: float, steps=1) -> list[np.ndarray]:
    """What the rule hands to the optimizer, from the training step of all studies."""
    method = methods.BY_NAME[rule.method]
    tx = methods.transformation(method, methods.Setting(number), optax.sgd(1.0))
    step = methods.step(method, tx, quadratic)
    params, found = jnp.asarray(START, jnp.float32), []
    state = tx.init(params)
    for _ in range(steps):
        new, state, _ = step(params, state, jnp.zeros(4))
        found.append(np.asarray(params - new))
        params = new
    return found


def rule_of(name: str) -> rules.Rule:
    return next(rule for rule in rules.RULES if rule.name == name)


def climbed(radius: float, direction=(0.6, 0.8)) -> np.ndarray:
    return HESSIAN * (START + radius * np.asarray(direction))


@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [
        ("SAM 0.05", 0.05, climbed(0.05)),
        ("share of the loss", 0.1, climbed(0.1 * 6.5 / 5)),
        ("share of the loss", 10.0, climbed(rules.LONGEST)),  # 13 would be longer
        ("share of the weights", 0.02, climbed(0.02 * 10**0.5)),
        ("momentum SAM", 1.0, climbed(0)),  # no momentum yet
    ],
)
def test_a_rule_against_its_closed_form(name, number, expected):
    np.testing.assert_allclose(gradients(rule_of(name), number)[0], expected, rtol=1e-6)


def test_asam_against_its_closed_form():
    """A lone leaf adapts: T = abs(w) + eta."""
    adapted = np.abs(START) + 0.01
    along = adapted**2 * (HESSIAN * START)
    climb = 0.5 * along / np.linalg.norm(adapted * HESSIAN * START)
    found = gradients(rule_of("ASAM 0.5"), 0.5)[0]
    np.testing.assert_allclose(found, HESSIAN * (START + climb), rtol=1e-6)


def test_momentum_sam_goes_against_the_first_gradient():
    first, second = gradients(rule_of("momentum SAM"), 0.5, steps=2)
    point = START - first - 0.5 * first / np.linalg.norm(first)
    np.testing.assert_allclose(second, HESSIAN * point, rtol=1e-5)


def test_a_share_of_the_weights_follows_them():
    """Twice the weights and the same gradient: a climb twice as long; none for zero."""
    grads = {"a": jnp.array([3.0]), "b": jnp.array([[0.0, 4.0]])}
    params = {"a": jnp.array([2.0]), "b": jnp.array([[1.0, 2.0]])}  # a norm of 3
    ascent = rules.ascent_of_weights(0.1)

    def climb(grads, params):
        found = ascent.update(grads, ascent.init(params), params)[0]
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found)])

    np.testing.assert_allclose(climb(grads, params), [0.18, 0, 0.24], rtol=1e-6)
    twice = jax.tree.map(lambda leaf: 2 * leaf, params)
    np.testing.assert_allclose(climb(grads, twice), [0.36, 0, 0.48], rtol=1e-6)
    nothing = jax.tree.map(jnp.zeros_like, grads)
    np.testing.assert_array_equal(climb(nothing, params), 0)


def test_published_numbers_are_the_defaults_of_the_library():
    for rule, product in (("SAM 0.05", "steepest"), ("ASAM 0.5", "adaptive")):
        ascent = getattr(optax_sam, f"{product}_ascent")
        default = inspect.signature(ascent).parameters["rho"].default
        assert rule_of(rule).number == default


# --- what is frozen -----------------------------------------------------------------


class Formula:
    """In place of a choice: the accuracy of a task is best at one rho."""

    def __init__(self, best):
        self.best, self.asked = best, []

    def values(self, task, method, epochs, points):
        self.asked += [point | {"epochs": epochs} for point in points]
        return [90 - np.log2(point["rho"] / self.best) ** 2 for point in points]


def test_a_number_is_the_best_of_the_mean_over_both_tasks():
    """Best at 0.02 and at 0.32 alone: together at their geometric mean, 0.08, which is
    outside of where the search for a share of the weights starts."""
    base = {"settings": {"lr": 0.3, "decay": 0.7}, "epochs": 15}
    choices = [Formula(best) for best in (0.02, 0.32)]
    tasks = [untuned_runs.Choosing(one, "a task", base) for one in choices]
    rule = rule_of("share of the weights")
    found = rules.frozen(rule, untuned_runs.evaluated(rule, tasks))
    assert found["number"] == 0.08
    assert found["tried"] == [0.005, 0.01, 0.02, 0.04, 0.08, 0.16]
    assert found["at_bound"] == []
    asked = [point for choice in choices for point in choice.asked]
    assert len(asked) == 2 * len(found["tried"])
    of_base = {(point["lr"], point["decay"], point["epochs"]) for point in asked}
    assert of_base == {(0.3, 0.7, 15)}


def test_published_numbers_are_not_searched():
    def evaluate(points):
        raise AssertionError(points)

    assert rules.frozen(rule_of("SAM 0.05"), evaluate)["number"] == 0.05


def test_the_rules_of_this_study_are_taken():
    rules.check(frozen_rules(), rules.RULES)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("SAM 0.05", {"number": 0.1}),
        ("ASAM 0.5", {"method": "SAM"}),
        ("share of the loss", {"published": True}),
    ],
)
def test_other_rules_are_refused(name, change):
    changed = frozen_rules()
    changed[name] |= change
    with pytest.raises(ValueError, match=name):
        rules.check(changed, rules.RULES)


def test_a_rule_that_is_missing_is_asked_for():
    fewer = frozen_rules()
    del fewer["momentum SAM"]
    with pytest.raises(ValueError, match="--tune"):
        rules.check(fewer, rules.RULES)


def test_rules_have_all_but_rho_from_the_base():
    def row(method, **settings):
        return {"method": method, "epochs": 15, "settings": settings, "points": 9}

    tuned = {
        BASE: row("base", lr=0.2, decay=0.03),
        "SAM": row("SAM", lr=0.1, decay=0.01, rho=0.3),
        "ASAM": row("ASAM", lr=0.1, decay=0.01, rho=3.0),
    }
    rows = untuned_runs.rows(tuned, frozen_rules())
    assert rows[BASE]["settings"] == {"lr": 0.2, "decay": 0.03}
    assert rows["SAM, tuned"]["settings"]["rho"] == 0.3
    assert len(rows) == ROWS
    for name, of in frozen_rules().items():
        expected = {"lr": 0.2, "decay": 0.03, "rho": of["number"]}
        assert rows[name]["settings"] == expected
        assert (rows[name]["method"], rows[name]["epochs"]) == (of["method"], 15)


def test_a_method_that_was_not_tuned_has_no_row():
    base = {"method": "base", "epochs": 15, "settings": {"lr": 0.2}}
    rows = untuned_runs.rows({"base": base, "SAM": base}, {})
    assert list(rows) == ["base", "SAM, tuned"]


def test_the_seeds_that_report_are_new():
    others = [mnist_5k.STUDY, label_noise.STUDY, which_method.STUDY]
    others += [fashion.full(fixed_sets.FASHION)]
    others += [fine_tuning_imagenet.full(fixed_sets.FASHION)]
    others += other_tasks.studies(fixed_sets.FASHION)
    seen = {seed for one in others for seed in (*one.seeds, *one.tuning_seeds)}
    assert not seen & {*untuned.SEEDS}
    assert not {*own_method.SEEDS} & {*untuned.SEEDS}
    for place in PLAN.places.values():
        assert {*place.study.seeds} <= {*untuned.SEEDS}
        assert not {*place.study.tuning_seeds} & {*untuned.SEEDS}


def test_eight_tasks_or_more_and_two_that_choose():
    assert len(PLAN.places) >= 8
    assert len(PLAN.choosing) == 2
    assert {*PLAN.choosing} <= {*PLAN.places}


def test_a_large_network_and_fine_tuning_are_among_the_tasks():
    names = {place.settings for place in PLAN.places.values()}
    assert {"fashion", "fine_tuning_imagenet"} <= names


def test_what_tuned_a_place_is_the_study_that_its_settings_name():
    """All but the seeds that report; so nothing is tuned twice."""
    folder = fixed_sets.FASHION
    studies = [mnist_5k.STUDY, label_noise.STUDY, fashion.full(folder)]
    studies += [fine_tuning_imagenet.full(folder)]
    by_name = {one.name: one for one in (*studies, *other_tasks.studies(folder))}
    for place in PLAN.places.values():
        study = by_name[place.settings]
        assert place.settings.startswith(place.script)
        assert place.task in study.tasks
        same = {"seeds": study.seeds, "source": study.source}
        assert dataclasses.replace(place.study, **same) == study


# --- what is refused ----------------------------------------------------------------


def settings_of(plan: untuned_runs.Plan) -> dict:
    return {"study": plan.name, "tuning_seeds": [100], "rules": frozen_rules()}


def committed(folder, **files) -> None:
    """Settings that a repository has."""
    for name, settings in files.items():
        path = folder / f"{name}.json"
        report.write_json(path, settings)
        rehearsal.commit(path)


def test_settings_that_are_not_there_yet_are_left_out(tmp_path):
    with pytest.raises(blind.NotCommittedError, match="--tune"):
        untuned_runs.permits(PLAN, tmp_path)
    committed(tmp_path, untuned=settings_of(PLAN))
    assert list(untuned_runs.permits(PLAN, tmp_path)) == ["untuned"]


def test_no_search_before_the_base_is_tuned(tmp_path, monkeypatch):
    path, out = tmp_path / "untuned.json", tmp_path / "out"
    command = ["untuned", "--tune", "--settings", str(path), "--out", str(out)]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(FileNotFoundError, match=r"accuracy\.mnist_5k --tune"):
        untuned.main()
    assert not path.exists()


def test_no_report_of_rules_that_are_not_committed(tmp_path, monkeypatch):
    committed(tmp_path, untuned=settings_of(PLAN))
    changed = settings_of(PLAN)
    changed["rules"]["share of the loss"]["number"] = 0.4
    report.write_json(tmp_path / "untuned.json", changed)
    path, out = tmp_path / "untuned.json", tmp_path / "out"
    command = ["untuned", "--report", "--settings", str(path), "--out", str(out)]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(blind.NotCommittedError, match="differs from the file"):
        untuned.main()
    assert not (out / "untuned_report.json").exists()


def test_no_report_of_other_rules_even_if_committed(tmp_path):
    changed = settings_of(PLAN)
    changed["rules"]["SAM 0.05"]["number"] = 0.1
    committed(tmp_path, untuned=changed)
    permits, store = untuned_runs.permits(PLAN, tmp_path), Store(tmp_path / "r.json")
    with pytest.raises(ValueError, match=r"SAM 0\.05"):
        untuned_runs.run(PLAN, permits, store, print)
    assert not store.path.exists()


def test_no_report_on_seeds_that_chose(tmp_path):
    chose = settings_of(PLAN) | {"tuning_seeds": [untuned.SEEDS[0]]}
    committed(tmp_path, untuned=chose)
    with pytest.raises(ValueError, match=str(untuned.SEEDS[0])):
        untuned_runs.check(PLAN, untuned_runs.permits(PLAN, tmp_path))


# --- all commands -------------------------------------------------------------------


@pytest.mark.slow
def test_all_commands_in_a_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["untuned", "--smoke", "--out", str(tmp_path)])
    untuned.main()
    said = capsys.readouterr().out
    small = untuned.tiny(PLAN)
    assert "not run" not in said
    assert f"{small.name}.png" in {path.name for path in tmp_path.iterdir()}

    written = json.loads((tmp_path / f"{small.name}_report.json").read_text())
    folder = tmp_path / f"{small.name}_settings"
    permits = untuned_runs.permits(small, folder)
    assert written["rules_blob"] == permits[small.name].blob
    assert written["rules"] == permits[small.name].settings["rules"]
    seeds = len(untuned.SEEDS[:2])
    keys = [run["key"] for run in written["runs"]]
    assert len(keys) == len({json.dumps(key) for key in keys})
    assert len(keys) == len(small.places) * ROWS * seeds
    assert {key["seed"] for key in keys} == {*untuned.SEEDS[:2]}
    for run in written["runs"]:
        assert list(run["found"]["right"]) == ["test"]

    # Everything is there: nothing runs, and the table is made of the file alone.
    lines: list[str] = []
    store = untuned.reported(small, tmp_path)
    untuned_runs.run(small, permits, store, lines.append)
    assert lines == []
    untuned.show(small, tmp_path)
    assert said.endswith(capsys.readouterr().out)


def test_a_smoke_run_searches_nothing():
    for rule in untuned.tiny(PLAN).rules:
        if isinstance(rule.number, Axis):
            assert rule.number.around(rule.number.start[0]) == []
