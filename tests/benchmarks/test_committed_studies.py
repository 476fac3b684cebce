"""What every study by the rules has committed: its settings, its rows, and its runs."""

import hashlib
import importlib
import json

import pytest
from committed import one_rule_again, one_run_again, study, untuned

from benchmarks.accuracy import (
    climbs,
    fashion,
    fine_tuning_imagenet,
    label_noise,
    mnist_5k,
    other_tasks,
    regularizers,
    which_method,
)
from benchmarks.accuracy import untuned as rules_for_rho
from benchmarks.lib import commands, fixed_sets, report
from benchmarks.lib.store import Store

ALL = (
    mnist_5k.STUDY,
    label_noise.STUDY,
    which_method.STUDY,
    *(
        one.full(fixed_sets.FASHION)
        for one in (climbs, regularizers, fashion, fine_tuning_imagenet)
    ),
    *other_tasks.studies(fixed_sets.FASHION),
)
REPORTED = {path.stem for path in report.RESULTS.glob("*_report.json")}
STUDIES = [one for one in ALL if f"{one.name}_report" in REPORTED]
each = pytest.mark.parametrize("of", STUDIES, ids=lambda of: of.name)


def blob(path) -> str:
    """git's hash of a file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def test_no_report_is_forgotten():
    assert REPORTED == {f"{of.name}_report" for of in STUDIES} | {"untuned_report"}


@each
def test_the_results_are_of_the_committed_settings(of):
    head, path = study(of.name).head, commands.SETTINGS / f"{of.name}.json"
    assert head["settings_blob"] == blob(path)
    assert head["seeds"] == list(of.seeds)
    settings = json.loads(path.read_text(encoding="utf-8"))
    assert head["settings"] == settings
    assert settings["tuning_seeds"] == list(of.tuning_seeds)


@each
def test_all_rows_are_there_sound_and_inside_of_their_grids(of):
    found = study(of.name)
    assert [*found.tasks, *found.unsound] == list(of.tasks)
    for task in found.tasks:
        for one, row in found.rows(task).items():
            assert found.complete(task, one)
            assert row.get("at_edge", []) == []


def test_the_rules_and_what_they_stand_on_are_committed():
    found = untuned()
    assert found.head["rules_blob"] == blob(commands.SETTINGS / "untuned.json")
    for of in found.head["tasks"].values():
        path = commands.SETTINGS / f"{of['settings']}.json"
        assert of["settings_blob"] == blob(path)
    assert found.everything()


# --- how a reader sees them ----------------------------------------------------------

SCRIPTS = {
    "climbs": 1,
    "fashion": 1,
    "fine_tuning_imagenet": 1,
    "label_noise": 1,
    "mnist_5k": 1,
    "other_tasks": 3,
    "regularizers": 1,
    "untuned": 1,
    "which_method": 1,
}


def call(name, monkeypatch, *options) -> None:
    monkeypatch.setattr("sys.argv", [name, *options])
    importlib.import_module(f"benchmarks.accuracy.{name}").main()


@pytest.mark.parametrize("name", SCRIPTS)
def test_redraw_shows_what_is_committed(name, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(report, "OUT", tmp_path)
    monkeypatch.setattr(
        commands, "show", lambda of, out, *_: shown.append(commands.reported(of, out))
    )
    monkeypatch.setattr(
        rules_for_rho,
        "show",
        lambda plan, out: shown.append(rules_for_rho.reported(plan, out)),
    )
    call(name, monkeypatch, "--redraw")
    assert len(shown) == SCRIPTS[name]
    for store in shown:
        assert store.path.parent == tmp_path / "redrawn"
        assert store.head == Store(report.RESULTS / store.path.name).head != {}


def test_redraw_and_work_are_not_asked_for_at_once(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(report, "OUT", tmp_path)
    with pytest.raises(SystemExit):
        call("fashion", monkeypatch, "--redraw", "--report")
    assert "leave it or --report out" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


# --- one run of each, again ---------------------------------------------------------


def near(found: tuple[float, float, float]) -> None:
    then, now, error = found
    assert now == pytest.approx(then, abs=min(2, 3 * error))


@pytest.mark.slow
@each
def test_one_run_again_is_the_committed_one(of):
    try:
        fixed_sets.tuning_sets(of.source)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    near(one_run_again(of))


@pytest.mark.slow
def test_one_run_of_a_rule_again_is_the_committed_one():
    if not fixed_sets.FASHION.is_dir():
        pytest.skip("no dataset-fashion-mnist here")
    near(one_rule_again(rules_for_rho.plan(fixed_sets.FASHION)))
