"""Numbers on the pages of results are those of benchmarks/results/."""

import re
import textwrap
from pathlib import Path

import pytest
from committed import RESULTS, gains_of, result, study
from sklearn.neighbors import KNeighborsClassifier

from benchmarks.accuracy.flatness import SEEDS, parse_seeds
from benchmarks.lib import results_table
from benchmarks.lib.data import loaded
from benchmarks.lib.tasks import DIGITS, MNIST

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
EVIDENCE, COST = ROOT / "docs" / "evidence.md", ROOT / "docs" / "cost.md"


def flat(page):
    return " ".join(page.read_text(encoding="utf-8").split())


def rows_of(page, pattern):
    return re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE)


# --- Means and their errors ---------------------------------------------------------


def pairs(tree):
    """All pairs of a mean and its error in a result."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        if len(tree) == 2 and all(isinstance(x, float) for x in tree):
            yield tree
        for part in tree:
            yield from pairs(part)


@pytest.mark.parametrize(("page", "least"), [(README, 9), (EVIDENCE, 80)])
def test_every_mean_and_error_is_in_a_result(page, least):
    results = [result(path.stem) for path in RESULTS.glob("*.json")]
    of_study = {
        (f"{abs(one.mean):.2f}", f"{one.error:.2f}")
        for one in gains_of(study("mnist_5k"))
    }
    known = of_study | {
        (f"{abs(mean):.{digits}f}", f"{error:.{digits}f}")
        for one in results
        for mean, error in pairs(one)
        for digits in (1, 2)
    }
    shown = re.findall(r"(\d+\.\d+) ± (\d+\.\d+)", page.read_text(encoding="utf-8"))
    assert len(shown) >= least
    assert set(shown) <= known


def test_the_table_of_the_study_is_its_own():
    shown = EVIDENCE.read_text(encoding="utf-8")
    block = textwrap.indent(results_table.table(study("mnist_5k")), "    ")
    assert "\n".join(line.rstrip() for line in block.splitlines()) in shown


def nearest_neighbours(task):
    """Of the main job's tasks, mean test accuracy over its seeds."""
    values = []
    for seed in parse_seeds(SEEDS):
        split = task.split(loaded(task.load), seed)
        model = KNeighborsClassifier(15).fit(flattened(split.train), split.train.labels)
        values.append(100 * model.score(flattened(split.test), split.test.labels))
    return sum(values) / len(values)


def flattened(examples):
    return examples.images.reshape(len(examples.labels), -1)


def test_where_nearest_neighbours_stand_in_the_first_table():
    of = {
        one["task"]: {
            m["role"]: m["summary"]["test_accuracy"][0] for m in one["methods"]
        }
        for one in result("flatness")["comparisons"][:2]
    }
    assert nearest_neighbours(DIGITS) > max(of["digits"].values())
    known = nearest_neighbours(MNIST)
    assert max(of["mnist"][role] for role in ("base", "best", "longer")) < known
    assert known < of["mnist"]["SAM"]


def of_small_nets(task, role, optimizer="sgd"):
    (found,) = (
        method
        for comparison in result("flatness")["comparisons"]
        for method in comparison["methods"]
        if (comparison["task"], method["role"]) == (task, role)
        and method["optimizer"] == optimizer
    )
    return found


def generalization(task, method):
    (found,) = (
        row
        for row in result("generalization")["summary"]
        if (row["task"], row["method"]) == (task, method)
    )
    return found


def written(pair, sign=""):
    return f"{pair[0]:{sign}.2f} ± {pair[1]:.2f}"


def which_method(task, method):
    (found,) = (
        m
        for m in result("which_method_small")["methods"]
        if (m["task"], m["method"]) == (task, method)
    )
    return found["gain"]


def test_the_headline_is_that_of_the_json():
    clean = generalization("MLP, clean", "SAM")["gain_over_best_length"]
    m_sam, base = (
        written(of_small_nets("mnist", role, "adamw")["summary"]["test_accuracy"])
        for role in ("m-SAM", "best")
    )
    short = study("mnist_5k").gains("SGD", "m-SAM")["chosen length"]
    page = flat(README)
    assert f"reaches {base} % test accuracy with AdamW at its best length" in page
    assert f"and {m_sam} % with m-SAM" in page
    assert f"SAM gained {written(clean, '+')} points" in page
    assert f"m-SAM {short.mean:.2f} ± {short.error:.2f}" in page


def test_the_readmes_results_are_those_of_their_jsons():
    momentum, sam = (
        written(which_method("digits", name), "+") for name in ("momentum SAM", "SAM")
    )
    page = flat(README)
    assert f"`momentum_sam` gained {momentum} points on digits" in page
    assert f"where SAM gained {sam};" in page
    rows = {
        (row["task"], row["method"]): row for row in result("fine_tuning")["summary"]
    }
    asam = written(rows["low-rank", "ASAM"]["gain"], "+")
    assert f"low-rank adapters: ASAM {asam} points" in page
    (best,) = (
        row["gain"]
        for row in result("m_sharpness")["summary"]
        if (row["optimizer"], row["m"], row["choice"]) == ("sgd", 20, "best")
    )
    assert f"SGD gains nothing from it: {written(best)} points" in page


def test_gains_on_other_tasks_are_those_of_the_json():
    rows = {}
    for m in result("generalization")["summary"]:
        if m["method"] in ("SAM", "ASAM", "m-SAM", "momentum SAM") and m.get("gain"):
            gains = m["gain"][0], m["gain_over_best_length"][0]
            rows.setdefault(m["task"], []).append("{:+.1f} / {:+.1f}".format(*gains))
    page = EVIDENCE.read_text(encoding="utf-8")
    assert len(rows) > 5
    for task, cells in rows.items():
        assert f"| {task} | {' | '.join(cells)} |" in page


# --- Every method -------------------------------------------------------------------


def which_method_rows():
    """What each method kept of SAM's gain, as a row of the table."""
    methods = result("which_method_small")["methods"]
    of = {(m["task"], m["method"]): m for m in methods}

    def cells(m):
        low, high = (f"{100 * x:.0f}" for x in m["share_interval"])
        gain, error = m["gain"]
        share = f"{100 * m['share']:.0f} % ({low} to {high})"
        return f"{gain:+.2f} ± {error:.2f} | {share}"

    names = dict.fromkeys(name for _, name in of)
    return {n: f"| {cells(of['digits', n])} | {cells(of['mnist', n])} |" for n in names}


def test_figures_of_which_method_are_those_of_its_json():
    rows = rows_of(EVIDENCE, r"^\| .*? (\| [+-][\d.]+ ± .*\|)$")
    shown = [row for row in rows if row.count("%") == 2]
    assert len(shown) > 8
    assert set(shown) <= set(which_method_rows().values())


# --- What a step costs --------------------------------------------------------------


def networks():
    return result("cost")["networks"].values()


def test_counted_costs_are_those_of_the_json():
    first = next(iter(networks()))
    counted = {
        " | ".join(f"{rows[name]['flops']:.3f}" for rows in networks())
        + f" | {first[name]['evaluations']:.2f} |"
        for name in first
    }
    shown = rows_of(COST, r"^\| .*? \| (\d\.\d{3} \| .*)$")
    assert len(shown) > 8
    assert set(shown) <= counted


def test_times_are_those_of_the_json():
    times = [f"{rows['SAM']['time']['median']:.2f}" for rows in networks()]
    assert "SAM took {}, {} and {} times".format(*times) in flat(COST)
    for rows in networks():
        over = rows["SAM"]["over_contrib"]
        low, high = over["interval"]
        assert f"{over['mean']:.2f} ({low:.2f} to {high:.2f})" in flat(COST)
    assert f"SAM took {min(times)} to {max(times)} times the base's on" in flat(README)


def test_times_on_the_gpu_are_those_of_the_json():
    def ratios(method):
        rows = [r for r in result("gpu")["rows"] if r["method"] == method]
        found = [f"{row['ratio']:.2f}" for row in rows if row["status"] == "run"]
        return f"{min(found)} to {max(found)}"

    theirs = ratios("optax.contrib.sam")
    assert f"SAM took {ratios('SAM')} times as long as the base's" in flat(COST)
    assert f"and `optax.contrib.sam` {theirs}" in flat(COST)
    assert f"{ratios('SAM')} times on an H100" in flat(README)
