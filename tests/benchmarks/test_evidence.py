"""What benchmarks/results/ says is what the runs in it say, and can be run again.

One run of each file is trained again. Rows of other scripts can be added to RERUNS.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.accuracy import (
    fine_tuning,
    flatness,
    generalization,
    m_sharpness,
    which_method_small,
)
from benchmarks.lib import evaluation, report, training, tuning, tuning_report
from benchmarks.lib.data import Examples, loaded
from benchmarks.lib.tasks import MNIST
from benchmarks.lib.training import Kind, Settings
from benchmarks.lib.tuning import BASE, BEST, TWICE, Cell

SCRIPTS = ("generalization", "fine_tuning")


@functools.cache
def result(name):
    return report.committed(f"{name}.json")


# --- Summaries ----------------------------------------------------------------------


def found(name, cell, which, seeds):
    """The values of one cell, straight from the file."""
    rows = [
        row
        for row in result(name)["runs"]
        if all(row[key] == value for key, value in cell.items())
    ]
    assert len(rows) == 1, cell
    by_seed = dict(zip(rows[0]["seeds"], rows[0][which], strict=True))
    return np.array([by_seed[seed] for seed in seeds])


def cell_of(row):
    cell = {key: row[key] for key in Cell._fields if key in row}
    return cell | {"method": method_of(row["method"])}


def method_of(name):
    return "m-SAM" if name == tuning.CONTROL else name.split(",")[0]


def run_rows(name):
    return [row for row in result(name)["summary"] if row["test"] != "not run"]


def check(pair, values):
    error = values.std(ddof=1) / len(values) ** 0.5
    np.testing.assert_allclose(pair, (values.mean(), error), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SCRIPTS)
def test_means_and_gains_are_those_of_the_runs(name):
    seeds = result(name)["seeds"]
    rows = {(row["task"], row["method"]): row for row in run_rows(name)}
    assert rows
    tests = {key: found(name, cell_of(row), "test", seeds) for key, row in rows.items()}
    over = {"gain": BASE, "gain_over_2x_epochs": TWICE, "gain_over_best_length": BEST}
    for (task, method), row in rows.items():
        check(row["test"], tests[task, method])
        for key, other in over.items():
            if other == method or (task, other) not in rows:
                assert row[key] is None
            else:
                check(row[key], tests[task, method] - tests[task, other])


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_best_on_validation_was_chosen(name):
    whole = result(name)
    tuned = set(whole["tuning_seeds"])
    for row in run_rows(name):
        grids = whole["grids"][row["task"]]
        lengths = row["method"] == BEST
        names = tuning.LENGTHS if lengths else [row["method"]]
        cells = [Cell(*cell) for n in names for cell in grids[n]]
        of_cell = {
            Cell(*(run[key] for key in Cell._fields)): dict(
                zip(run["seeds"], run["validation"], strict=True)
            )
            for run in whole["runs"]
        }
        if not lengths:  # the best few on the first seed saw the others
            tried = sorted(cells, key=lambda cell: -of_cell[cell][min(tuned)])
            cells = tried[: whole["promising"]]
        means = {
            cell: np.mean([of_cell[cell][seed] for seed in tuned])
            for cell in cells
            if tuned <= set(of_cell[cell])
        }
        here = Cell(**cell_of(row))
        assert means[here] == pytest.approx(max(means.values()), abs=1e-9)
        assert row["points"] == len(grids[BASE])  # as many points for every method


@pytest.mark.parametrize("name", SCRIPTS)
def test_reporting_seeds_were_not_tuned_on(name):
    whole = result(name)
    assert not set(whole["seeds"]) & set(whole["tuning_seeds"])
    assert len(whole["seeds"]) >= 6


def test_grids_are_those_of_the_scripts():
    plans = {
        "generalization": {b.task.name: b.grid for b in generalization.BENCHES},
        "fine_tuning": fine_tuning.GRIDS,
    }
    for name, grids in plans.items():
        plan = tuning.Plan(grids).header()["grids"]
        assert json.loads(json.dumps(plan)) == result(name)["grids"]


def test_what_is_missing_is_not_run():
    whole = result("fine_tuning")
    sam = next(r for r in whole["summary"] if r["method"] == "SAM")
    cell = cell_of(sam)
    seed = whole["seeds"][0]

    def without(row):
        keep = [
            i
            for i, found in enumerate(row["seeds"])
            if found != seed or any(row[key] != cell[key] for key in cell)
        ]
        columns = ("seeds", "validation", "test")
        return row | {key: [row[key][i] for i in keep] for key in columns}

    cut = whole | {"runs": [without(row) for row in whole["runs"]]}
    rows = tuning.summary(cut)
    missing = [row for row in rows if row["test"] == "not run"]
    assert missing == [{"task": sam["task"], "method": "SAM", "test": "not run"}]
    assert tuning_report.numbers(missing[0])[-1] == "not run"
    nothing = tuning.summary(whole | {"runs": []})
    assert {row["test"] for row in nothing} == {"not run"}


# --- Tuning, without any training ---------------------------------------------------

TOY = tuning.Plan(
    {
        "toy": tuning.Grid(
            epochs=4,
            base=((0.1, 0.0), (0.2, 0.0), (0.3, 0.0)),
            family=((0.1, 0.0),),
            rhos={"SAM": (0.1, 0.2, 0.3)},
        )
    },
    tuning=(0, 1),
    promising=2,
    seeds=(5, 6),
)


def toy_work(calls, stop=None):
    """Accuracies that tell the cell: best at lr 0.2, at rho 0.2, and at 2 epochs."""

    def work(cell, seed):
        calls.append((cell, seed))
        if len(calls) == stop:
            raise KeyboardInterrupt
        off = abs(cell.lr - 0.2) + abs(cell.rho - 0.2) + abs(cell.epochs - 2) / 10
        return {"validation": 90 - off + seed, "test": 80 - 10 * off + seed}

    return work


def toy_summary(path):
    whole = json.loads(path.read_text(encoding="utf-8"))
    return {row["method"]: row for row in tuning.summary(whole)}


def test_tuning_takes_the_best_on_validation_to_new_seeds(tmp_path):
    calls = []
    tuning.measure(TOY, tmp_path / "toy.json", toy_work(calls))
    rows = toy_summary(tmp_path / "toy.json")
    assert rows[BASE]["lr"] == rows[TWICE]["lr"] == rows[BEST]["lr"] == 0.2
    assert [rows[name]["epochs"] for name in (BASE, TWICE, BEST)] == [4, 8, 2]
    assert (rows["SAM"]["lr"], rows["SAM"]["rho"]) == (0.1, 0.2)
    assert rows["SAM"]["at_edge"] == []
    assert rows["SAM"]["gain"] == pytest.approx((10 * (0.4 - 0.3), 0))
    assert rows["SAM"]["gain_over_best_length"] == pytest.approx((-1, 0))
    # 5 groups of 3 points on one seed, of 2 on the other, of 1 on the new ones.
    assert len(calls) == len(set(calls)) == 5 * (3 + 2 + 1 * 2)


def test_a_stopped_run_goes_on_and_says_what_is_missing(tmp_path):
    whole, path, calls = tmp_path / "whole.json", tmp_path / "toy.json", []
    tuning.measure(TOY, whole, toy_work([]))
    with pytest.raises(KeyboardInterrupt):
        tuning.measure(TOY, path, toy_work(calls, stop=32))
    rows = toy_summary(path)  # of what was saved on the way
    assert "not run" in {row["test"] for row in rows.values()}
    tuning.measure(TOY, path, toy_work([]))
    assert toy_summary(path) == toy_summary(whole)
    again = []
    tuning.measure(TOY, path, toy_work(again))
    assert not again


# --- Which leaves are trained -------------------------------------------------------


@pytest.mark.slow  # a study's machinery, not the library
@pytest.mark.parametrize("name", [BASE, "SAM", "ASAM", "m-SAM"])
@pytest.mark.parametrize("way", fine_tuning.WAYS)
def test_only_these_leaves_are_trained_and_climb(way, name):
    moves = {
        "whole network": (True, True, False),
        "frozen backbone": (False, True, False),
        "low-rank": (False, True, True),
    }[way]
    params = {
        "network": {"Dense_0": jnp.ones((2, 2)), "Dense_2": jnp.ones((2, 2))},
        "adapters": jnp.ones((2, 2)),
    }

    def losses(params, batch):
        total = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return total * batch.labels

    where = fine_tuning.WAYS[way]
    program = tuning.compiled_epoch(
        losses,
        fine_tuning.method(name, where),
        fine_tuning.optimizer(where),
        m=2,
        at_once=2,
    )
    data = Examples(jnp.ones((4, 1)), jnp.ones(4))
    cell = Cell(way, name, 2, 0.1, 0.0, 0.5)
    after = tuning.train(program, params, data, 4, cell, 0)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after, params)
    expected = jax.tree.unflatten(
        jax.tree.structure(params), [moves[2], moves[0], moves[1]]
    )
    assert moved == expected


def test_adapters_change_nothing_at_first():
    kernel = jax.random.normal(jax.random.key(0), (6, 5))
    network = {"Dense_0": {"kernel": kernel, "bias": jnp.ones(5)}}
    adapters = {"Dense_0": fine_tuning.adapter(jax.random.key(1), kernel)}
    merged = fine_tuning.merged({"network": network, "adapters": adapters})
    np.testing.assert_array_equal(merged["Dense_0"]["kernel"], kernel)
    adapters["Dense_0"]["up"] = jnp.ones((fine_tuning.RANK, 5))
    more = fine_tuning.merged({"network": network, "adapters": adapters})
    difference = np.asarray(more["Dense_0"]["kernel"] - kernel)
    assert 0 < np.linalg.matrix_rank(difference, tol=1e-4) <= fine_tuning.RANK


# --- Runs, done again ---------------------------------------------------------------
# Each function gives the recorded accuracy of every seed, and one that trains again.


def of_tuned(name, work, methods):
    """The cheapest of the reported cells."""
    rows = [r for r in run_rows(name) if r["method"] in methods]
    first = min(rows, key=lambda row: (row["epochs"], row["task"]))
    seeds, cell = result(name)["seeds"], cell_of(first)
    recorded = dict(zip(seeds, found(name, cell, "test", seeds), strict=True))
    return recorded, lambda seed: work(Cell(**cell), seed)["test"]


def of_flatness():
    comparisons = result("flatness")["comparisons"]
    reported = next(c for c in comparisons if c["task"] == MNIST.name)
    row = flatness.with_role(reported["methods"], "best")
    kind = Kind(row["optimizer"], row["ascent"], row["microbatch"])
    settings = Settings(row["lr"], row["decay"], row["rho"])

    def again(seed):
        return accuracy_of(kind, settings, row["epochs"], seed)

    return {run["seed"]: run["test_accuracy"] for run in row["runs"]}, again


def of_m_sharpness():
    rho = m_sharpness.FIXED_RHO
    recorded = {
        run["seed"]: run["test_accuracy"]
        for run in result("m_sharpness")["runs"]
        if (run["optimizer"], run["m"], run["rho"]) == ("sgd", 100, rho)
    }
    kind = Kind("sgd", ascent="sam", microbatch=100)
    settings = Settings(*m_sharpness.LR_DECAY["sgd"], rho)
    epochs = result("m_sharpness")["epochs"]
    return recorded, lambda seed: accuracy_of(kind, settings, epochs, seed)


def accuracy_of(kind, settings, epochs, seed):
    split = jax.device_put(MNIST.split(loaded(MNIST.load), seed))
    *_, (_, network, _) = training.run(MNIST, kind, settings, epochs, seed, split.train)
    return 100 * float(evaluation.accuracy(MNIST)(network, split.test))


def of_which_method():
    bench = which_method_small.Bench(which_method_small.GRIDS, [], (), None)
    cell = bench.shorter(MNIST.name)
    row = next(
        row
        for row in result("which_method_small")["runs"]
        if (row["task"], row["method"]) == (cell.task, cell.method)
    )
    recorded = dict(zip(row["seeds"], row["test"], strict=True))
    return recorded, lambda seed: bench.train(cell, seed)[1]


RERUNS = {
    "flatness": of_flatness,
    "m_sharpness": of_m_sharpness,
    "which_method_small": of_which_method,
    "generalization": lambda: of_tuned(
        "generalization",
        generalization.work(generalization.BENCHES),
        ("SAM", BEST),
    ),
    "fine_tuning": lambda: of_tuned(
        "fine_tuning",
        functools.partial(fine_tuning.run, fine_tuning.Sizes()),
        ("SAM",),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RERUNS)
def test_a_run_done_again_lands_within_the_recorded_spread(name):
    recorded, again = RERUNS[name]()
    values = np.array(list(recorded.values()))
    seed = min(recorded)
    accuracy = again(seed)
    assert abs(accuracy - values.mean()) < 4 * values.std(ddof=1)
    # Sums in another order, on another machine, decide a few images otherwise.
    assert accuracy == pytest.approx(recorded[seed], abs=1.0)
