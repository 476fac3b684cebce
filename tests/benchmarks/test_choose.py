"""The search of a study, on accuracies that are a formula of the settings."""

import dataclasses
import math

import numpy as np
import pytest

from benchmarks.accuracy import fashion
from benchmarks.lib import baselines, fixed_sets, reporting, techniques
from benchmarks.lib.choose import Choice
from benchmarks.lib.store import Store
from benchmarks.lib.study import (
    BASE,
    BASELINES,
    CHOSEN,
    LENGTH_ROWS,
    TWICE,
    packed,
)

pytestmark = pytest.mark.slow  # a study's machinery, not the library

IMAGES = 2000
OTHER = techniques.BY_NAME[techniques.SMOOTHING]
LENGTHS = {"clean": 60, "40 % wrong": 8}  # where the base is best
LR, DECAY = 0.4, 0.0015  # 0.4 lies beyond the grid of the start
# Beyond it, inside of it, below it, so far that the base is owed points, at its end.
RHO = {"SAM": 0.4, "m-SAM": 0.1, "momentum SAM": 0.25, "ASAM": 64.0, "LookSAM": 0.2}
METRIC = {"euclidean": 0.0, "manhattan": 2.0, "cosine": 1.0}


def away(value: float, best: float) -> float:
    return abs(math.log2(value / best))


def accuracy(key) -> float:
    settings = key["settings"]
    if key["method"] == baselines.LOGISTIC:
        return 70 - away(settings["C"], 1.0)
    if key["method"] == baselines.NEIGHBOURS:
        return 70 - away(settings["k"], 8) + METRIC[settings["metric"]]
    value = 90 - away(settings["lr"], LR) - away(settings["decay"], DECAY)
    value -= away(key["epochs"], LENGTHS[key["task"]])
    if key["method"] == "base":
        return value
    return value - away(settings["rho"], RHO[key["method"]])


class Bench:
    """The runs are a formula; `base` moves that of the base."""

    def __init__(self, base: float = 0.0):
        self.study, self.base = fashion.full(fixed_sets.FASHION), base
        labels = np.zeros(IMAGES, np.int32)
        empty = fixed_sets.Examples(labels, labels)
        self.sets = fixed_sets.Sets(empty, empty)

    def work(self, key) -> dict:
        value = accuracy(key) + self.base * (key["method"] == "base")
        right = np.arange(IMAGES) < IMAGES * value / 100
        return {
            "validation": value,
            "seconds": 0.0,
            "right": {"validation": packed(right)},
        }


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "fashion.json"
    return Choice(Bench(), Store(path), tell=lambda line: None).run()


@pytest.fixture(params=list(LENGTHS))
def task(request):
    return request.param


def test_the_search_ends_at_the_optimum_beyond_the_first_grid(chosen, task):
    for name, row in chosen["tasks"][task]["rows"].items():
        settings = dict(row["settings"])
        rho = settings.pop("rho", None)
        assert settings == {"lr": LR, "decay": DECAY}
        assert rho == RHO.get(name)  # None of the base
        assert row["at_edge"] == []


def test_the_best_length_is_chosen_and_both_beside_it_were_tried(chosen, task):
    of_task, best = chosen["tasks"][task], LENGTHS[task]
    assert of_task["rows"][CHOSEN]["epochs"] == best
    lengths = {int(epochs): value for epochs, value in of_task["lengths"].items()}
    assert max(lengths, key=lengths.get) == best
    assert {30, 60, best * 2} <= set(lengths)
    # Half of 8 epochs is below the shortest: that is a bound, and it is said.
    assert (best // 2 in lengths) == (task == "clean")
    at_bound = of_task["rows"][CHOSEN]["at_bound"]
    assert at_bound == (["epochs"] if task == "40 % wrong" else [])


def test_the_base_is_tried_on_as_many_points_as_any_method(chosen, task):
    rows = chosen["tasks"][task]["rows"]
    most = max(row["points"] for name, row in rows.items() if "rho" in row["settings"])
    assert rows[BASE]["points"] >= most
    assert rows[TWICE]["points"] >= most


def test_the_baselines_are_tuned_too(chosen, task):
    found = chosen["tasks"][task]["baselines"]
    neighbours = found[baselines.NEIGHBOURS]["settings"]
    assert neighbours == {"k": 8, "metric": "manhattan"}
    assert found[baselines.LOGISTIC]["settings"] == {"C": 1.0}  # beyond the grid


def test_the_nominated_method_is_the_best_on_validation(chosen, task):
    of_task = chosen["tasks"][task]
    values = {name: of_task["rows"][name]["validation"] for name in fashion_methods()}
    assert values[of_task["nominated"]] == max(values.values())


def fashion_methods():
    return fashion.full(fixed_sets.FASHION).methods


ALL = packed(np.ones(IMAGES, bool))
REACHED = 7 * 7  # all that lies within three steps of a best, on two axes


class TwoHills(Bench):
    """The base and all methods are best at a learning rate of 0.8, behind a valley; the
    base finds it when it is given as many points as ASAM, whose rho lies far off."""

    def work(self, key) -> dict:
        settings = key["settings"]
        if key["method"] in BASELINES:
            return super().work(key)
        near, far = away(settings["lr"], 0.1), away(settings["lr"], 0.8)
        value = max(88 - near, 89 - 3 * far) - away(settings["decay"], DECAY)
        if key["method"] != "base":
            value -= away(settings["rho"], 2.0**6 if key["method"] == "ASAM" else 0.1)
        return {"validation": value, "seconds": 0.0, "right": {"validation": ALL}}


def test_where_the_base_finds_a_better_best_at_last_methods_start_there_too(tmp_path):
    choice = Choice(TwoHills(), Store(tmp_path / "runs.json"), tell=lambda line: None)
    rows = choice.run()["tasks"]["clean"]["rows"]
    assert {row["settings"]["lr"] for row in rows.values()} == {0.8}
    assert all(row["at_edge"] == [] for row in rows.values())
    most = max(row["points"] for name, row in rows.items() if name not in LENGTH_ROWS)
    assert rows[BASE]["points"] >= min(most, REACHED)


@pytest.mark.parametrize(
    ("base", "sound"), [(0, True), (-17.75, True), (-17.85, False)]
)
def test_sound_is_two_standard_errors_above_both_baselines(base, sound, tmp_path):
    """The base has 90 + base with true labels at its best length, the neighbours 72.
    The images that one of them alone knows are 100 d % of all:
    d > 2 sqrt(d (1 - d) / n), or d > 0.2 %."""
    study_choice = Choice(Bench(base), Store(tmp_path / "runs.json"), lambda line: None)
    assert study_choice.run()["tasks"]["clean"]["sound"] == sound


def test_what_was_run_is_not_run_again(tmp_path):
    bench, lines = Bench(), []
    first = Choice(bench, Store(tmp_path / "runs.json"), lines.append).run()
    count = len(lines)
    again = Choice(bench, Store(tmp_path / "runs.json"), lines.append).run()
    assert count == len(lines)
    assert first == again


def test_tasks_of_the_same_images_share_their_baselines(tmp_path):
    """They are run for the first of them, and reported once."""
    bench = Bench()
    first = bench.study.tasks["clean"]
    tasks = {"clean": first, "40 % wrong": dataclasses.replace(first, technique=OTHER)}
    bench.study = dataclasses.replace(bench.study, tasks=tasks)
    store = Store(tmp_path / "runs.json")
    settings = Choice(bench, store, tell=lambda line: None).run()
    of = {key["task"] for key in store.keys() if key["method"] in BASELINES}
    assert of == {"clean"}
    found = settings["tasks"]
    assert found["40 % wrong"]["baselines_of"] == "clean"
    assert "baselines_of" not in found["clean"]
    assert found["40 % wrong"]["baselines"] == found["clean"]["baselines"]
    head = {"study": "fashion", "settings_blob": "", "settings": settings, "seeds": [1]}
    keys = [k for k in reporting.keys(head) if k["method"] in BASELINES]
    assert [key["task"] for key in keys] == ["clean", "clean"]
    rows = reporting.rows(found["40 % wrong"])
    again = [reporting.key(head, "40 % wrong", rows[name], 1) for name in BASELINES]
    assert sorted(map(str, again)) == sorted(map(str, keys))
