"""What is committed in benchmarks/results, for the tests that read it."""

import functools

import pytest

from benchmarks.accuracy import climbs, climbs_report, which_method_report
from benchmarks.lib import report, statistics
from benchmarks.lib.results import Results, committed_study
from benchmarks.lib.statistics import Gain
from benchmarks.lib.store import Key, Store
from benchmarks.lib.study import CHOSEN, Bench, Study
from benchmarks.lib.untuned_results import Found
from benchmarks.lib.untuned_runs import Plan

SGD = "SGD"  # the task of which_method.py
# The task of which a run is made again, where one of the others takes minutes.
CHEAP = {"fine_tuning_imagenet": "head alone", "untuned": "MNIST CNN, 40 % wrong"}
resampled = pytest.mark.slow  # a bootstrap over 30,000 images for each gain


def result(name):
    return report.committed(f"{name}.json")


def study(name) -> Results:
    """What a study by the stricter rules reported."""
    found = committed_study(name)
    assert found, f"{name}_report.json is not in benchmarks/results/"
    return found


def searched(name, task, method, epochs):
    """Settings and validation accuracy of each tuning run of a row of a study."""
    store = Store(report.ROOT / "benchmarks" / "runs" / f"{name}.json")
    for key in store.keys():
        if (key["task"], key["method"], key["epochs"]) == (task, method, epochs):
            yield key["settings"], store.find(key)["validation"]


@functools.cache
def shares_of_study() -> dict[tuple[str, str], str]:
    """What the nominated methods of which_method.py keep of SAM's gain, as pages show
    it: by method, and by what the gain is over."""
    found = study("which_method")
    return {
        (name, over): written(share)
        for over in which_method_report.OVER
        for name, share in which_method_report.shares(found, SGD, over).items()
        if share
    }


def written(share) -> str:
    of, low, high = (f"{100 * x:.0f}" for x in (share.of, share.low, share.high))
    return f"{of} % ({low} to {high})"


def one_run_again(of: Study) -> tuple[float, float, float]:
    """A run of a network that the hash of the settings draws, made again: its accuracy
    on validation images then and now, in percent, and the standard error of that.

    Another processor sums in another order, and a training may end a few images apart;
    other settings or images would end points apart.
    """
    found = study(of.name)
    key = drawn(found.store, found.head["settings_blob"], CHEAP.get(of.name))
    return again(of, key, found.store.find(key)["validation"])


def one_rule_again(plan: Plan) -> tuple[float, float, float]:
    """The same of untuned.py."""
    found = untuned()
    key = drawn(found.store, found.head["rules_blob"], CHEAP["untuned"])
    place = plan.places[key["task"]]
    then = found.store.find(key)["validation"]
    return again(place.study, key | {"task": place.task}, then)


def drawn(store: Store, blob: str, task: str | None = None) -> Key:
    keys = [key for key in store.keys() if key["epochs"]]
    keys = [key for key in keys if task in (None, key["task"])]
    return keys[int(blob, 16) % len(keys)]


def again(of: Study, key: Key, then: float) -> tuple[float, float, float]:
    bench = Bench(of)
    error = (then * (100 - then) / len(bench.sets.validation.labels)) ** 0.5
    return then, bench.work(key)["validation"], error


@functools.cache
def untuned() -> Found:
    """What untuned.py reported."""
    return Found(Store(report.where_committed("untuned_report.json")))


def gains_of(found: Results):
    """All that it compares."""
    for task in found.tasks:
        for method in found.methods(task):
            yield from found.gains(task, method).values()
            if found.best_base(task) != task:  # else it is among them
                yield over_its_own(found, task, method)
        if found.head["study"] == climbs.NAME:
            yield from climbs_report.over_sam(found, task).values()


def over_its_own(found: Results, task: str, method: str) -> Gain:
    """Over the base of the chosen length, whatever the other optimizer's rival does."""
    return statistics.gain(found.right(task, method), found.right(task, CHOSEN))


def over_sgd_at_sams_settings() -> dict[tuple[str, int], tuple[float, float]]:
    """What paper_figures.py has of SGD of 10 epochs with SAM's learning rate and decay,
    over each method and number of epochs: a mean and its error over the seeds."""
    found = result("paper_figures")
    same = {(run["lr"], run["decay"]) for run in found["runs"] if run["rho"] == 0.05}
    runs = {
        (run["method"], run["epochs"], (run["lr"], run["decay"]) in same): run["test"]
        for run in found["runs"]
        if run["rho"] == (0.05 if run["method"] == "SAM" else 0)
    }
    ours = runs["SGD", 10, True]
    return {
        (method, epochs): statistics.mean_and_error(
            [a - b for a, b in zip(ours, theirs, strict=True)]
        )
        for (method, epochs, at_same), theirs in runs.items()
        if at_same == (method == "SAM")
    }


def of_sgd_over_adamw() -> dict[str, Gain]:
    """SAM with SGD over AdamW's base of its best length, which validates better; where
    neither is named the other's rival."""
    noisy = "Fashion MLP, 40 % wrong"
    pairs = {
        "climbs": ("SGD", "AdamW"),
        "other_tasks_fashion": (noisy, f"{noisy}, AdamW"),
    }
    return {
        name: statistics.gain(
            study(name).right(sgd, "SAM"), study(name).right(adamw, CHOSEN)
        )
        for name, (sgd, adamw) in pairs.items()
    }
