"""paper_figures.py and peers.py: what they say is what they ran."""

import json

import jax
import numpy as np
import pytest

from benchmarks.accuracy import climbs, paper_claims, paper_figures, peers, peers_report
from benchmarks.lib import commands, fixed_sets, report, runs, statistics
from benchmarks.lib.blind import Committed
from benchmarks.lib.data import Examples
from benchmarks.lib.study import Bench

SETTINGS = commands.SETTINGS / "climbs.json"


def reported(name):
    path = report.RESULTS / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not {"summary", "claims"} & set(found):
        pytest.skip(f"{name}.py was not run to its end")
    return found


def same(said, values):
    """A mean and its error, as the file rounds them."""
    np.testing.assert_allclose(
        said, statistics.mean_and_error(values), rtol=1e-3, atol=1e-3
    )


# --- the papers' claims -------------------------------------------------------------


def test_claims_are_those_of_the_raw_values():
    result = reported("paper_figures")
    assert len(result["claims"]) == len(paper_claims.CLAIMS)
    for row, claim in zip(result["claims"], paper_claims.CLAIMS, strict=True):
        first, second = claim.first(result), claim.second(result)
        assert len(first) >= 5
        assert row["paper"] == claim.paper
        same(row["first"], first)
        same(row["second"], second)
        same(row["difference"], first - second)
        mean, error = row["difference"]
        word = "no difference seen"
        if abs(mean) > 2 * error:
            word = "agrees" if mean > 0 else "disagrees"
        assert row["verdict"] == word


def test_the_settings_are_those_that_climbs_chose():
    result, permit = reported("paper_figures"), Committed(SETTINGS)
    assert result["settings_blob"] == permit.blob
    rows = permit.settings["tasks"][climbs.SGD]["rows"]
    for name, row in paper_figures.METHODS.items():
        chosen = result["chosen"][name]
        said = {key: chosen[key] for key in rows[row]["settings"]}
        assert said == rows[row]["settings"]
        assert chosen["epochs"] == rows[row]["epochs"]
    assert not set(permit.settings["tuning_seeds"]) & set(result["seeds"])


def test_a_claim_without_its_runs_is_not_run():
    result = reported("paper_figures") | {"runs": [], "looks": []}
    for row in paper_claims.claims(result):
        assert row["verdict"] == "not run"
        assert "difference" not in row


# --- peers --------------------------------------------------------------------------


def test_peers_summary_is_that_of_the_raw_values():
    result = reported("peers")
    assert len(result["load_average_before_the_times"]) == 3
    for name, network in result["networks"].items():
        said, rows = result["summary"][name], network["methods"]
        ours = np.array(rows[peers.OURS]["test_accuracy"])
        for method, row in rows.items():
            if row is None:
                assert said["methods"][method] is None
                continue
            same(said["methods"][method]["test_accuracy"], row["test_accuracy"])
            same(said["methods"][method]["difference"], row["test_accuracy"] - ours)
        for first, second in peers_report.RATIOS:
            ratio = said["time_ratios"][f"{first} / {second}"]
            if rows[first] is None or rows[second] is None:
                assert ratio is None
                continue
            pair = zip(
                *(rows[n]["steps_per_second"] for n in (second, first)), strict=True
            )
            median = np.median([a / b for a, b in pair])
            assert ratio["median"] == pytest.approx(median, rel=1e-3)


@pytest.mark.slow  # a study's machinery, not the library
def test_the_jax_peers_take_the_same_steps():
    job, rng = peers.jobs(smoke=True)[0], np.random.default_rng(0)
    images = rng.standard_normal((400, 14, 14, 1), np.float32)
    data = Examples(images, rng.integers(0, 10, 400).astype(np.int32))
    split = job.task.split(data, 0)
    found = [peers.start(n, job, 0, split.train) for n in (peers.OURS, peers.CONTRIB)]
    for rows in peers.batches(job, 0)[:2]:
        for one in found:
            one.step(rows)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        *(one.network for one in found),
    )


# --- runs that are kept -------------------------------------------------------------


def test_what_is_written_is_read_again():
    cell = paper_figures.Cell("SAM", 0.1, 0.01, 0.3, 60)
    table = {
        cell: {
            3: {"validation": 81.0, "test": [1, 2]},
            1: {"validation": 80.0, "test": [3, 4]},
        }
    }
    rows = json.loads(json.dumps(runs.written(table)))
    assert runs.read(rows, paper_figures.Cell) == table


@pytest.mark.slow
def test_one_run_of_the_figures_again():
    if not fixed_sets.FASHION.is_dir():
        pytest.skip("no dataset-fashion-mnist here")
    result, plan = reported("paper_figures"), paper_figures.full(fixed_sets.FASHION)
    cell, seed = paper_figures.Cell(**result["chosen"]["SAM"]), result["seeds"][0]
    again = paper_figures.run(plan, Bench(plan.study, Committed(SETTINGS)), cell, seed)
    recorded = runs.column(result, "runs", cell._asdict(), "test")
    assert abs(again["test"] - recorded[0]) <= np.ptp(recorded)


@pytest.mark.slow
def test_one_run_of_peers_again():
    result, job = reported("peers"), peers.jobs(smoke=False)[0]
    seed = result["seeds"][0]
    split = job.task.split(job.task.load(), seed)
    recorded = result["networks"][job.name]["methods"][peers.OURS]["test_accuracy"]
    again = peers.final_accuracy(peers.OURS, job, split, seed)
    assert abs(again - recorded[0]) <= np.ptp(recorded)
