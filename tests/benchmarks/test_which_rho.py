"""What benchmarks/accuracy/which_rho.py predicts, and what its page says of it."""

from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from benchmarks.accuracy import which_rho
from benchmarks.lib import report

PAGE = Path(__file__).parents[2] / "docs" / "which_rho.md"
RESULT = report.committed("which_rho.json")


def test_radii_are_read_between_two_of_the_sweep():
    rhos = np.array([0.1, 1.0, 10.0])
    rising = np.array([1.0, 2.0, 4.0])
    assert which_rho.crossing(rhos, rising, 2.0) == pytest.approx(1.0)
    assert which_rho.crossing(rhos, rising, 3.0) == pytest.approx(10**0.5)
    assert which_rho.crossing(rhos, rising, 0.5) == 0.1  # before the first
    assert which_rho.crossing(rhos, rising, 9.0) == 10.0  # never
    overflown = np.array([1.0, 2.0, np.inf])
    assert which_rho.crossing(rhos, overflown, 3.0) == pytest.approx(10.0)


def test_predictors_on_a_quadratic_along_its_gradient():
    """L = w^2/2 at w = 2: rise 2 rho + rho^2/2, linear 2 rho, cosine 1."""
    rhos = np.geomspace(0.003, 30, 3001)
    curves = {
        "loss": 2.0,
        "rise": 2 * rhos + rhos**2 / 2,
        "predicted_rise": 2 * rhos,
        "cosine": 1 / (1 + rhos),
        "climb_norm": rhos,
        "weights": 2.0,
    }
    expected = {
        "rise = 1.5 x linear": 2,  # 1 + rho / 4
        "rise = 2 x linear": 4,
        "cosine = 0.9": 1 / 9,
        "cosine = 0.5": 1,
        "rise = 10 % of the loss": -2 + 4.4**0.5,
        "rise = 50 % of the loss": -2 + 6**0.5,
        "rise = 100 % of the loss": -2 + 8**0.5,
        "climb = 1 % of the weights": 0.02,
    }
    found = {name: f(rhos, curves) for name, f in which_rho.PREDICTORS.items()}
    assert found == pytest.approx(expected, rel=1e-5)


def test_rank_correlation_is_scipys_and_p_is_that_of_permutations():
    rng = np.random.default_rng(0)
    a, noise = rng.integers(0, 5, 12), rng.normal(size=12)  # with ties
    found, p = which_rho.spearman(a, a + 2 * noise)
    theirs = scipy.stats.spearmanr(a, a + 2 * noise)
    assert found == pytest.approx(theirs.statistic)
    assert p == pytest.approx(theirs.pvalue, abs=0.02)
    # Of the 6 orders of three, two are as extreme as a perfect one.
    assert which_rho.spearman([1, 2, 3], [4, 5, 6])[1] == pytest.approx(1 / 3, abs=0.01)
    assert which_rho.spearman(np.ones(4), np.arange(4))[1] == 1


def test_holm_by_hand():
    assert which_rho.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert which_rho.holm([0.6, 0.001]) == pytest.approx([0.6, 0.002])


def test_hits_do_not_depend_on_a_factor():
    tuned = np.array([0.1, 0.2, 0.4, 4.0])
    assert which_rho.within_two(100 * tuned, tuned) == 4
    assert which_rho.within_two(np.ones(4), np.array([1.0, 1.0, 1.9, 2.1])) == 4
    assert which_rho.within_two(np.ones(3), np.array([1.0, 1.0, 2.1])) == 2


def test_tuned_radii_are_those_of_the_results():
    found = list(which_rho.benches())
    assert len({one.task for one in found}) == len(found) == 13
    tuned = {
        (f"{one.source}.json", one.task, m): one.rows[m]["rho"]
        for one in found
        for m in which_rho.METHODS
    }
    rows = RESULT["rows"]
    assert {(r["source"], r["task"], r["method"]): r["tuned"] for r in rows} == tuned
    for row in rows:
        whole = report.committed(row["source"])
        table = whole.get("summary") or whole["methods"]
        (theirs,) = [
            r for r in table if (r["task"], r["method"]) == (row["task"], row["method"])
        ]
        assert row["tuned"] == theirs["rho"]
        assert row["at_edge"] == ("rho" in theirs["at_edge"])
    # MLP, 40 % wrong is which_method_small.py's second task, and counts once.
    names = {one.task for one in found}
    assert "mnist" in names
    assert "MLP, 40 % wrong" not in names


def test_the_table_of_the_page_is_that_of_the_result():
    assert RESULT["worth"] == report.rounded(which_rho.worth(RESULT["rows"]))
    page = PAGE.read_text(encoding="utf-8")
    assert which_rho.page_table(RESULT) in page
    text = page.replace("\n", " ")
    ranges = which_rho.at_tuned(RESULT)
    assert RESULT["at_tuned"] == report.rounded(ranges)
    assert which_rho.at_tuned_text(RESULT) in text
    low, _, high = ranges["rise_over_loss"]
    assert f"{low:.1f} to {high:.0f} times the loss" in text
    assert which_rho.verdict(RESULT) in text
    edges = sum(row["at_edge"] for row in RESULT["rows"])
    assert f"{edges} of {len(RESULT['rows'])} tuned radii" in text


def test_nothing_is_called_predictive_that_a_constant_beats():
    row = {"method": "SAM", "predictor": "x", "spearman": 0.9, "p_holm": 0.01}
    constant = {"method": "SAM", "predictor": which_rho.CONSTANT, "within_two": 5}

    def said(**changes):
        found = {**row, "within_two": 6, **changes}
        return which_rho.verdict({"worth": [found, constant]})

    assert "SAM: x" in said()
    for changes in ({"within_two": 5}, {"p_holm": 0.06}, {"spearman": -0.9}):
        assert said(**changes) == "No predictor passes."


@pytest.mark.slow
def test_half_way_is_half_way(monkeypatch):
    """The network after half of the epochs, of the schedule of all of them."""
    one = next(one for one in which_rho.benches() if one.task == "low-rank")
    calls = []
    original = which_rho.tuning.compiled_epoch

    def counted(*args):
        init, epoch = original(*args)

        def seen(*args):
            calls.append(args[-1])
            return epoch(*args)

        return init, seen

    monkeypatch.setattr(which_rho.tuning, "compiled_epoch", counted)
    one.half_way(one.seeds[0])
    assert calls == [60 * 3] * 30
