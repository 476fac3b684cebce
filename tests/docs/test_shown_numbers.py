"""Numbers on the pages of results are those of benchmarks/results/."""

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
from committed import (
    gains_of,
    of_sgd_over_adamw,
    over_its_own,
    over_sgd_at_sams_settings,
    resampled,
    result,
    searched,
    shares_of_study,
    study,
    untuned,
)
from sklearn.neighbors import KNeighborsClassifier

from benchmarks.accuracy import (
    climbs_report,
    fashion,
    regularizers_report,
    which_method_report,
)
from benchmarks.accuracy.flatness import SEEDS, parse_seeds
from benchmarks.lib import gains_table, results_table, untuned_results
from benchmarks.lib.data import loaded
from benchmarks.lib.report import RESULTS
from benchmarks.lib.results import STEPS
from benchmarks.lib.statistics import CERTAIN, LOSS, NONE
from benchmarks.lib.tasks import DIGITS, MNIST
from benchmarks.lib.untuned_results import WHOLE

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TABLES = {
    "label_noise": results_table.table,
    "mnist_5k": results_table.table,
    "which_method": which_method_report.table,
    "fashion": fashion.table,
    "fine_tuning_imagenet": results_table.table,
}
OTHER_TASKS = ("other_tasks_few", "other_tasks_fashion", "other_tasks_mnist")
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


@resampled
@pytest.mark.parametrize(("page", "least"), [(README, 9), (EVIDENCE, 80)])
def test_every_mean_and_error_is_in_a_result(page, least):
    results = [result(path.stem) for path in RESULTS.glob("*.json")]
    of_study = {
        (f"{abs(one.mean):.2f}", f"{one.error:.2f}")
        for name in (*TABLES, "regularizers", "climbs", *OTHER_TASKS)
        for one in gains_of(study(name))
    }
    of_study |= {
        (f"{abs(mean):.2f}", f"{error:.2f}")
        for mean, error in over_sgd_at_sams_settings().values()
    } | {
        (f"{abs(one.mean):.2f}", f"{one.error:.2f}")
        for one in of_sgd_over_adamw().values()
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


@resampled
@pytest.mark.parametrize("name", TABLES)
def test_the_table_of_the_study_is_its_own(name):
    shown = EVIDENCE.read_text(encoding="utf-8")
    block = textwrap.indent(TABLES[name](study(name)), "    ")
    assert "\n".join(line.rstrip() for line in block.splitlines()) in shown


@resampled
def test_the_cells_of_regularizers_are_those_of_the_study():
    shown = EVIDENCE.read_text(encoding="utf-8")
    lines = list(regularizers_report.squares(study("regularizers")))
    assert len(lines) == 13
    assert "\n".join(f"    {line}" for line in lines) in shown


@resampled
def test_the_climbs_are_those_of_the_study():
    found, shown = study("climbs"), EVIDENCE.read_text(encoding="utf-8")
    for task in found.tasks:
        lines = [f"    {line}".rstrip() for line in climbs_report.of_task(found, task)]
        assert len(lines) > 5
        assert "\n".join(lines).rstrip() in shown


@resampled
def test_the_gains_on_other_tasks_are_those_of_the_studies():
    lines = gains_table.table([study(name) for name in OTHER_TASKS]).split("\n\n")[0]
    assert textwrap.indent(lines, "    ") in EVIDENCE.read_text(encoding="utf-8")
    assert len(lines.splitlines()) == 9
    certain = [row for row in lines.splitlines() if "*" in row]
    assert [row.split("  ")[0] for row in certain] == [
        "MNIST CNN, clean",
        "MNIST CNN, clean, AdamW",
    ]
    assert "+" not in re.sub(r"\S+ / ", "", "".join(certain))  # losses, all of them
    few = study("other_tasks_few")
    network, logistic = (
        f"{few.accuracy('Fashion MLP, 200 images', row, 'test').mean:.2f}"
        for row in ("base", "logistic regression")
    )
    level = f"level with logistic regression ({network} and {logistic})"
    assert level in flat(EVIDENCE)


@resampled
def test_the_rules_are_those_of_the_study():
    found, shown = untuned(), EVIDENCE.read_text(encoding="utf-8")
    for lines in (untuned_results.in_one(found), untuned_results.of_rules(found)):
        block = "\n".join(f"    {line}" for line in lines if line)
        assert block in shown
    assert untuned_results.conclusion(found).startswith("No rule keeps more than half")
    words = [found.verdicts()[task, "SAM 0.05"][0] for task in found.tasks]
    assert len(words) == 16
    assert {*words} == {LOSS, NONE, f"suggestive {LOSS}"}
    assert words.count(LOSS) == 2
    assert found.accuracy("EfficientNet, fine-tuned", "SAM 0.05").mean < 10.5
    assert not found.hurt("share of the loss")
    assert all(
        found.verdicts()[task, "share of the loss"][1] == 1 for task in found.tasks
    )
    assert 20 < 100 * np.median([*found.shares("share of the loss").values()]) < 30
    rows = [found.rows(task) for task in found.shares("SAM 0.05")]
    assert len(rows) == 4
    ratios = {
        name: [
            row[WHOLE]["settings"][name] / row["base"]["settings"][name] for row in rows
        ]
        for name in ("lr", "decay")
    }
    assert 1 not in ratios["lr"]
    assert ratios["decay"].count(1) == 1
    assert min(ratios["decay"]) == pytest.approx(1 / 3, rel=1e-3)


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


@pytest.mark.slow
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


def written(pair, sign=""):
    return f"{pair[0]:{sign}.2f} ± {pair[1]:.2f}"


@resampled
def test_the_headline_is_that_of_the_json():
    found, page = study("label_noise"), flat(README)
    base, ours = (
        f"{found.accuracy('AdamW', row, 'test').mean:.2f}" for row in ("base", "m-SAM")
    )
    assert f"from {base} to {ours} % test accuracy with AdamW" in page
    smallest = {which: of_study(one.gain) for which, one in found.verdicts().items()}
    assert f"AdamW: {smallest['AdamW', 'm-SAM']} points" in page
    own, sam = over_its_own(found, "AdamW", "m-SAM"), found.gains("SGD", "SAM")
    assert f"and {of_study(own)} over AdamW at its best length" in page
    clean, wrong, mlp_clean, mlp_wrong = (
        of_study(study(name).gains(task, "SAM")["chosen length"])
        for name, task in (
            ("fashion", "clean"),
            ("fashion", "40 % wrong"),
            ("other_tasks_fashion", "Fashion MLP, clean"),
            ("other_tasks_fashion", "Fashion MLP, 40 % wrong"),
        )
    )
    short = study("mnist_5k").gains("SGD", "m-SAM")["chosen length"]
    longer = study("other_tasks_mnist").gains("MNIST CNN, clean", "SAM")
    lost = of_study(longer["chosen length"])
    assert f"with all right on MNIST {lost} over SGD trained for longer" in page
    assert f"plain SAM gained {of_study(sam['chosen length'])} points there" in page
    assert f"length, {clean} points with all labels right and {wrong} with 40 %" in page
    adamw = of_study(of_sgd_over_adamw()["other_tasks_fashion"])
    assert f"MLP {mlp_clean} and {mlp_wrong}, the latter {adamw} over AdamW)" in page
    assert f"in a shorter training m-SAM {of_study(short)}." in page
    assert found.verdicts()["AdamW", "m-SAM"].gain.mean > own.mean  # the smallest
    both = f"{smallest['SGD', 'm-SAM']} points with SGD, {of_study(own)} with AdamW"
    assert f"m-SAM {both}" in page


def of_study(gain):
    return f"{gain.mean:+.2f} ± {gain.error:.2f}"


@resampled
def test_the_readmes_results_are_those_of_their_jsons():
    page, found = flat(README), study("which_method")
    m_sam, le_sam = (
        of_study(found.gains("SGD", name)["chosen length"])
        for name in ("m-SAM", "LE-SAM")
    )
    assert f"methods m-SAM ({m_sam}) and LE-SAM ({le_sam}) gain over SGD" in page
    gained = [
        method for (_, method), one in found.verdicts().items() if one.word == CERTAIN
    ]
    assert sorted(gained) == ["LE-SAM", "m-SAM"]
    momentum, look = (
        shares_of_study()[name, STEPS] for name in ("momentum SAM", "LookSAM")
    )
    assert f"`momentum_sam` {momentum} ([all" in page
    choosing = flat(ROOT / "docs" / "choosing.md")
    assert f"`look_sam` kept {look} of SAM's gain" in choosing
    assert f"and `momentum_sam` {momentum}, so" in choosing
    rows = {
        (row["task"], row["method"]): row for row in result("fine_tuning")["summary"]
    }
    asam = written(rows["low-rank", "ASAM"]["gain"], "+")
    imagenet = study("fine_tuning_imagenet").gains("whole network", "SAM")
    lost = of_study(imagenet["equal gradients"])
    assert f"ImageNet: SAM {lost} against twice the epochs." in page
    longer = written(rows["low-rank", "ASAM"]["gain_over_best_length"], "+")
    assert f"adapters, on digits: ASAM {asam} points, {longer} over" in page
    best = {
        (row["optimizer"], row["m"]): row["gain"]
        for row in result("m_sharpness")["summary"]
        if row["choice"] == "best"
    }
    lost, won = best["sgd", 20], best["adamw", 10]
    assert lost[0] < -2 * lost[1]
    assert f"SGD loses {written([-lost[0], lost[1]])} points by it" in page
    assert f"AdamW gains {written(won)}, and" in page


def test_the_published_radius_did_not_train_the_whole_network():
    runs = searched("fine_tuning_imagenet", "whole network", "SAM", 5)
    found = [accuracy for settings, accuracy in runs if settings["rho"] == 0.05]
    assert len(found) == 3
    assert max(found) <= 10
    assert "(10 % of the validation images, at three learning rates)" in flat(EVIDENCE)


def test_how_the_base_of_fashion_was_found():
    """On validation images, around the old best and around the new one."""

    def best(method, lr):
        return max(
            (accuracy, settings["decay"])
            for settings, accuracy in searched("fashion", "40 % wrong", method, 30)
            if settings["lr"] == lr
        )

    page = flat(EVIDENCE)
    (old, much), (new, little) = (best("base", lr) for lr in (0.1, 0.8))
    assert f"much decay, at {old:.2f} % of the validation images" in page
    assert f"searched from there, at {best('SAM', 0.1)[0]:.2f} %." in page
    assert f"found {new:.2f} % at a learning rate of 0.8 and a ninth" in page
    assert much == pytest.approx(9 * little)
    assert f"as well, rose to {best('SAM', 0.8)[0]:.2f} %" in page


@resampled
def test_the_better_base_is_adamws():
    for name, said in (
        ("climbs", "of AdamW nothing: {})"),
        ("other_tasks_fashion", "over it SAM with SGD gains nothing ({})"),
    ):
        assert said.format(of_study(of_sgd_over_adamw()[name])) in flat(EVIDENCE)


def test_the_base_was_never_tried_at_ten_epochs():
    over = over_sgd_at_sams_settings()
    longer, ten, twenty = (
        f"{abs(over[one][0]):.2f} ± {over[one][1]:.2f}"
        for one in (("SGD", 40), ("SAM", 10), ("SAM", 20))
    )
    assert over["SGD", 40][0] > 0 > over["SAM", 20][0]
    assert f"{longer} above its" in flat(EVIDENCE)
    assert f"{ten} ahead of SAM at 10 epochs and {twenty} behind SAM" in flat(EVIDENCE)


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


def test_how_far_apart_two_libraries_are_in_float64():
    apart = result("peers")["networks"]["conv net"]["agreement"]["100"]
    shown = f"{apart:.0e}".replace("e-0", "e-")
    assert f"the two libraries are {shown} apart after 100 steps" in flat(EVIDENCE)


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


def test_gpu_studies_are_not_run_until_their_results_are_there():
    names = ("fashion_paper", "language_model_report")
    there = [(RESULTS / f"{name}.json").exists() for name in names]
    assert ("**not run** yet" in flat(EVIDENCE)) == (there == [False, False])
