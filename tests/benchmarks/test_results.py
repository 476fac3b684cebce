"""Table and picture of a report, from runs that are made up."""

import json
import subprocess

import numpy as np
import pytest

from benchmarks.accuracy import fashion
from benchmarks.lib import (
    blind,
    fixed_sets,
    rehearsal,
    reporting,
    results_picture,
    results_table,
)
from benchmarks.lib.results import GRADIENTS, LENGTH, STEPS, Results
from benchmarks.lib.statistics import LEVEL
from benchmarks.lib.store import Store
from benchmarks.lib.study import BASE, CHOSEN, TWICE, packed

pytestmark = pytest.mark.slow  # a study's machinery, not the library

SEEDS = list(range(1000, 1008))
IMAGES = {"test": 3000, "official": 1000}
TASKS = {"clean": 0.0, "40 % wrong": 1.0}  # and how many times larger gains are
# Points of accuracy over the base of the study.
ROWS = {BASE: 0, TWICE: 1, CHOSEN: 0.5, "SAM": 3, "m-SAM": 4, "momentum SAM": 0.6}
EPOCHS = {TWICE: 60, CHOSEN: 15}


def settings_of(sound=True, **more):
    def row(name):
        method = "base" if name in (BASE, TWICE, CHOSEN) else name
        inside = {"at_edge": [], "at_bound": []} | more
        epochs = EPOCHS.get(name, 30)
        return {"method": method, "epochs": epochs, "settings": {}, **inside}

    neighbours = {"nearest neighbours": {"settings": {"k": 4}, "validation": 80}}
    return {
        "rows": {name: row(name) for name in ROWS},
        "baselines": neighbours,
        "sound": sound,
        "nominated": "SAM",
    }


def head(**tasks):
    return {
        "study": "fashion",
        "settings_blob": "abc",
        "settings": {
            "study": "fashion",
            "tuning_seeds": [100],
            "tasks": {task: settings_of() for task in TASKS} | tasks,
        },
        "seeds": SEEDS,
        "images": IMAGES,
    }


def made_up(name: str, times: float, seed: int) -> dict:
    """Images of one difficulty for all, so that what is better knows more of them."""
    rng, right = np.random.default_rng(seed), {}
    level = 0.8 + (0.02 + times) * ROWS.get(name, -1) / 100 + rng.normal(0, 0.001)
    for part, count in IMAGES.items():
        difficulty = np.random.default_rng(count).random(count)
        right[part] = packed(difficulty + rng.normal(0, 0.02, count) < level)
    return {"test": 80.0, "validation": 81.0, "seconds": 30.0, "right": right}


def store_of(path, missing=(), **tasks) -> Store:
    store, said = Store(path), head(**tasks)
    store.describe(said)
    names = {}
    for task, of_task in said["settings"]["tasks"].items():
        for name, row in reporting.rows(of_task).items():
            for seed in SEEDS:
                key = reporting.key(said, task, row, seed)
                names[json.dumps(key)] = (name, task, seed)

    def work(key):
        name, task, seed = names[json.dumps(key)]
        return made_up(name, TASKS[task], seed)

    wanted = [key for key in map(json.loads, names) if wanted_of(key, missing)]
    store.run(wanted, work)
    return store


def wanted_of(key, missing) -> bool:
    return (key["method"], key["seed"]) not in missing


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return Results(store_of(tmp_path_factory.mktemp("runs") / "report.json"))


def test_the_better_base_of_two_optimizers_is_the_rival(tmp_path):
    rivals = {
        "clean": settings_of(validation=90),
        "40 % wrong": settings_of(validation=89) | {"rival": "clean"},
    }
    both = Results(store_of(tmp_path / "report.json", **rivals))
    of = {task: 100 * both.right(task, CHOSEN).mean() for task in TASKS}
    for task in TASKS:
        ours = 100 * both.right(task, "SAM").mean()
        gain = both.gains(task, "SAM")[LENGTH].mean
        assert gain == pytest.approx(ours - of["clean"])
    assert of["clean"] != of["40 % wrong"]
    assert "its chosen length is that of clean" in results_table.table(both)


def test_gains_are_over_the_base_with_as_many_steps_and_as_many_gradients(found):
    gains = found.gains("40 % wrong", "m-SAM")
    of = {n: 100 * found.right("40 % wrong", n).mean() for n in ROWS}
    assert gains[STEPS].mean == pytest.approx(of["m-SAM"] - of[BASE])
    assert gains[GRADIENTS].mean == pytest.approx(of["m-SAM"] - of[TWICE])
    assert gains[LENGTH].mean == pytest.approx(of["m-SAM"] - of[CHOSEN])
    one_gradient = found.gains("40 % wrong", "momentum SAM")
    assert one_gradient[GRADIENTS] == one_gradient[STEPS]


def test_the_verdict_is_on_the_smallest_gain_of_all_tasks_together(found):
    verdicts = found.verdicts()
    assert len(verdicts) == 6
    for which, one in verdicts.items():
        assert one.gain.mean == min(g.mean for g in found.gains(*which).values())
        assert one.p >= one.gain.p
    assert verdicts["40 % wrong", "SAM"].word == "gain"
    assert max(one.p for one in verdicts.values()) > LEVEL
    smallest = min(one.gain.p for one in verdicts.values())
    assert min(one.p for one in verdicts.values()) == pytest.approx(6 * smallest)


def test_both_errors_of_an_accuracy(found):
    one = found.accuracy("clean", "SAM", "test")
    right = 100 * found.right("clean", "SAM").astype(float)
    assert one.mean == pytest.approx(right.mean())
    assert one.seeds == pytest.approx(right.mean(1).std(ddof=1) / 8**0.5)
    of_images = right.mean(0).std() / 3000**0.5
    assert one.images == pytest.approx(of_images, rel=0.1)


def test_the_table_has_80_columns_and_all_rows(found):
    text = results_table.table(found)
    assert max(map(len, text.splitlines())) <= 80
    for word in (*ROWS, *TASKS, "nearest neighbours", "abc", "nominated", "Holm"):
        assert word in text
    assert "not run" not in text


def test_what_was_not_run_says_so_and_has_no_verdict(tmp_path):
    missing = {("SAM", seed) for seed in SEEDS} | {("m-SAM", 1003)}
    found = Results(store_of(tmp_path / "report.json", missing))
    text = results_table.table(found)
    assert sum("not run" in line for line in text.splitlines()) == 6
    assert text.count("7 of 8 seeds") == 2  # a row counts when it is complete
    assert {row for _, row in found.verdicts()} == {"momentum SAM"}
    results_picture.draw(found, tmp_path / "fashion.png")


def test_a_task_whose_network_is_not_sound_is_not_shown(tmp_path):
    found = Results(store_of(tmp_path / "report.json", clean=settings_of(sound=False)))
    text = results_table.table(found)
    assert "clean: not shown." in text
    assert "clean, gain" not in text
    assert {task for task, _ in found.verdicts()} == {"40 % wrong"}
    results_picture.draw(found, tmp_path / "fashion.png")


def test_settings_at_an_edge_are_named(tmp_path):
    edge = settings_of(at_edge=["rho"])
    found = Results(store_of(tmp_path / "report.json", clean=edge))
    assert "clean: AT THE EDGE of the grid" in results_table.table(found)


def test_runs_of_other_settings_do_not_count(tmp_path):
    store = store_of(tmp_path / "report.json")
    store.describe(store.head | {"settings_blob": "other"})
    assert not Results(store).runs("clean", "SAM")


def test_the_picture_is_readable_at_700_pixels(found, tmp_path):
    path = tmp_path / "fashion.png"
    results_picture.draw(found, path)
    width = int.from_bytes(path.read_bytes()[16:20], "big")
    assert 700 <= width <= 1400  # shown at 700, letters are at least half as large


def test_errors_take_four_characters():
    words = [results_table.error(v) for v in (0.123, 0.999, 1.26, float("nan"))]
    assert words == ["±.12", "±1.0", "±1.3", "±?"]


# --- what is refused ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"study": "other", "tuning_seeds": [100]}, "--settings"),
        ({"study": "fashion", "tuning_seeds": [1003]}, "1003"),
    ],
)
def test_settings_of_another_study_or_of_a_seed_that_reports(settings, match):
    study = fashion.full(fixed_sets.FASHION)
    with pytest.raises(ValueError, match=match):
        reporting.check(study, settings)


@pytest.mark.parametrize(
    ("tasks", "match"),
    [
        ({}, "'clean' nothing was chosen for base, SAM"),
        ({"clean": {"rows": {"base": {}, "SAM": {}}}}, "for m-SAM, momentum SAM"),
    ],
)
def test_settings_without_a_task_or_a_method(tasks, match):
    study = fashion.full(fixed_sets.FASHION)
    settings = {"study": "fashion", "tuning_seeds": [100], "tasks": tasks}
    with pytest.raises(ValueError, match=match):
        reporting.check_rows(study, settings)


def test_report_refuses_changed_settings(tmp_path, monkeypatch):
    path = tmp_path / "fashion.json"
    path.write_text(json.dumps({"study": "fashion"}))
    rehearsal.commit(path)
    command = ["fashion", "--report", "--settings", str(path), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    path.write_text(json.dumps({"study": "fashion", "tasks": {}}))
    with pytest.raises(blind.NotCommittedError, match="differs from the file"):
        fashion.main()
    assert not (tmp_path / "fashion_report.json").exists()
    subprocess.run(["git", "checkout", "-q", "."], cwd=tmp_path, check=True)
    assert blind.Committed(path).settings == {"study": "fashion"}


def test_without_a_report_there_is_no_table(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["fashion", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="nothing was reported yet"):
        fashion.main()
