"""The table and picture of untuned.py, from runs that are made up."""

import numpy as np
import pytest
from untuned_plan import PLAN, frozen_rules

from benchmarks.accuracy import untuned
from benchmarks.lib import untuned_picture, untuned_results, untuned_runs
from benchmarks.lib.store import Store
from benchmarks.lib.study import BASE, packed
from benchmarks.lib.untuned_results import Found

pytestmark = pytest.mark.slow  # a study's machinery, not the library

IMAGES, MADE_UP_SEEDS = 4000, list(range(8))
TRUE = {  # points over the base, where SAM gains
    BASE: 0,
    "SAM, tuned": 4,
    "ASAM, tuned": 3,
    "SAM 0.05": 2,
    "ASAM 0.5": 3,
    "share of the loss": 3.6,
    "share of the weights": 0,
    "momentum SAM": -4,
}


def head(**more) -> dict:
    def of(sound=True):
        rows = {
            row: {"method": row, "epochs": 9, "settings": {"rho": k}}
            for k, row in enumerate(TRUE)
        }
        return {
            "settings": "mnist_5k",
            "settings_blob": "abc",
            "sound": sound,
            "seeds": MADE_UP_SEEDS,
            "images": IMAGES,
            "rows": rows,
        }

    tasks = {"chose": of(), "gains": of(), "more": of(), "flat": of()}
    return {
        "study": "untuned",
        "rules_blob": "def",
        "rules": frozen_rules(),
        "choosing": ["chose"],
        "tasks": tasks | {"unsound": of(sound=False)},
        "not_tuned": {"Fashion": "fashion"},
        **more,
    }


TIMES = {"chose": 1, "gains": 1, "more": 2, "flat": 0}


def store_of(path, missing=lambda key: False) -> Store:
    store, said = Store(path), head()
    store.describe(said)

    def work(key):
        rng = np.random.default_rng(key["seed"])
        gain = TRUE[key["method"]] * TIMES[key["task"]]
        level = 0.8 + gain / 100 + rng.normal(0, 0.001)
        easy = np.linspace(0, 1, IMAGES)
        return {"right": {"test": packed(easy < level)}}

    wanted = [key for key in untuned_runs.keys(said) if not missing(key)]
    store.run(wanted, work)
    return store


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return Found(store_of(tmp_path_factory.mktemp("runs") / "untuned_report.json"))


def test_shares_are_ratios_of_gains(found):
    for rule in found.rules:
        for task in ("gains", "more"):
            assert found.share(task, rule) == pytest.approx(TRUE[rule] / 4, abs=0.01)
    assert found.share("gains", "SAM, tuned") == 1


def test_no_share_where_tuned_sam_gains_nothing(found):
    assert found.share("flat", "SAM 0.05") is None
    line = untuned_results.of_row(found, "flat", "SAM 0.05")
    assert line.count("±") == 4  # the gain, and the difference to tuned SAM
    assert "%" not in line


def test_the_median_leaves_out_what_chose_the_numbers(found):
    assert set(found.shares("share of the loss")) == {"gains", "more"}


def test_what_hurts_is_named_and_counts_once_for_all_rules_and_tasks(found):
    verdicts = found.verdicts()
    assert len(verdicts) == len(found.rules) * len(found.tasks)
    assert found.hurt("momentum SAM") == ["chose", "gains", "more"]
    assert not any(found.hurt(rule) for rule in found.rules if rule != "momentum SAM")


def test_the_conclusion_is_by_the_rule(found):
    said = untuned_results.conclusion(found)
    assert said.startswith('"share of the loss" keeps 90 %')
    assert "nowhere shown to hurt" in said


def test_without_a_good_rule_it_says_so(found, monkeypatch):
    monkeypatch.setattr(untuned_results, "MOST", 0.99)
    assert untuned_results.conclusion(found).startswith("No rule")


def test_where_tuned_sam_gains_nothing_no_rule_is_judged(found, monkeypatch):
    monkeypatch.setattr(found, "tasks", ["chose", "flat"])
    assert untuned_results.conclusion(found).startswith("Tuned SAM gains")


def test_the_table_is_complete_and_has_80_columns(found):
    text = untuned_results.table(found)
    assert max(map(len, text.splitlines())) <= 80
    for word in (*TRUE, *TIMES, "90 %", "loss", "Holm", "abc", "def"):
        assert word in text
    assert "unsound: not shown." in text
    assert "Fashion: not run. There is no settings/fashion.json yet." in text


def test_all_gains_in_one_table(found):
    lines = [*untuned_results.in_one(found)]
    head, rows = lines[:3], [line.split() for line in lines[3:-1]]
    assert [line.split() for line in head] == [
        ["share", "share"],
        ["SAM,", "SAM", "ASAM", "of", "the", "of", "the", "mom."],
        ["task", "tuned", "0.05", "0.5", "loss", "weights", "SAM"],
    ]
    assert [row[0] for row in rows] == ["chose*", "gains", "more", "flat"]
    gains = [float(cell.rstrip("*~")) for cell in rows[1][1:]]
    expected = [TRUE[name] for name in (untuned_results.WHOLE, *found.rules)]
    np.testing.assert_allclose(gains, expected, atol=0.5)
    certain = [cell.endswith("*") for cell in rows[1][1:]]
    assert certain == [False, True, True, True, False, True]
    assert max(map(len, lines)) <= 80


def test_the_longest_names_and_words_fit():
    """A task that chose has a star behind its name."""
    names = [f"{task}*" if task in PLAN.choosing else task for task in PLAN.places]
    longest = max(map(len, names))
    assert longest + 2 * len("-1.23 ±.12 ±.12 ") + len("  suggestive loss") <= 80
    assert longest <= 31  # the first column


def test_a_row_counts_when_all_of_its_seeds_are_there(tmp_path):
    def missing(key):
        return key["task"] == "gains" and key["method"] == "SAM 0.05" and key["seed"]

    some = Found(store_of(tmp_path / "untuned_report.json", missing))
    text = untuned_results.table(some)
    assert "1 of 8 seeds" in text
    assert "No conclusion" in text
    assert some.gain("gains", "SAM 0.05") is None
    assert ("gains", "SAM 0.05") not in some.verdicts()
    untuned_picture.draw(some, tmp_path / "untuned.png")


def test_the_picture_is_readable(found, tmp_path):
    untuned_picture.draw(found, tmp_path / "untuned.png")
    width = int.from_bytes((tmp_path / "untuned.png").read_bytes()[16:20], "big")
    assert width == 1400
    assert (tmp_path / "untuned-dark.png").exists()


def test_without_a_report_there_is_no_table(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["untuned", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="nothing was reported yet"):
        untuned.main()
