"""docs/claims.md: every test and every result that it names exists, and says that.

`docs/write_claims.py` writes some of its tables from results.
"""

import itertools
import re
import statistics
from pathlib import Path

from committed import gains_of, resampled, result, shares_of_study, study, untuned
from write_claims import MEASURED, PAGE, TABLE, filled

from benchmarks.lib.untuned_results import WHOLE

ROOT = PAGE.parents[1]
STUDIES = (
    "label_noise",
    "mnist_5k",
    "which_method",
    "climbs",
    "fashion",
    "fine_tuning_imagenet",
    "other_tasks_fashion",
)
SIDE_BY_SIDE = ("complementary", "overlapping", "perhaps", "unclear")
VERDICTS = (*MEASURED.values(), *SIDE_BY_SIDE, "cannot be tested here")


def text():
    return PAGE.read_text(encoding="utf-8")


def test_named_tests_exist():
    named = re.findall(r"\[test\]\(\.\./(tests/\w+/\w+\.py) \"(\w+)\"\)", text())
    assert len(named) > 10
    assert len(named) == text().count("[test]") == text().count("](../tests/")
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), name


def test_named_results_exist():
    named = re.findall(r"\[(\S+\.json)\]\(\.\./([^)\s]+)\)", text())
    assert named
    for name, target in named:
        assert (ROOT / target).exists(), target
        assert Path(target).name == name


def rows():
    lines = [line for line in text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row != ["verdict", "claim", "evidence"]]


def test_every_row_has_a_verdict_and_a_reference():
    for row in rows():
        verdict, claim, evidence = row
        assert verdict.startswith(VERDICTS), verdict
        assert re.search(r".<br>\*[^*]+\*$", claim), claim
        assert evidence


# --- Every number of our own is that of a result -------------------------------------


def shares():
    for method in result("which_method_small")["methods"]:
        low, high = method["share_interval"]
        yield f"{100 * method['share']:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
    yield from shares_of_study().values()


def with_errors():
    """All differences with their standard errors, as they would be written here."""
    methods = result("which_method_small")["methods"]
    pairs = [m[k] for m in methods for k in ("gain", "gain_over_best_length")]
    pairs += [row["gain"] for row in result("m_sharpness")["summary"] if row["gain"]]
    studies = [gains_of(study(name)) for name in STUDIES]
    pairs += [(one.mean, one.error) for of in studies for one in of]
    of_rules = untuned()
    for task in of_rules.tasks:
        for row in (WHOLE, *of_rules.rules):
            gain = of_rules.gain(task, row)
            pairs.append((gain.mean, gain.error))
    return {f"{mean:+.2f} ± {error:.2f}" for mean, error in [*pairs, *differences()]}


def runs():
    comparisons = result("flatness")["comparisons"]
    return [[method["runs"] for method in one["methods"]] for one in comparisons]


def differences():
    """In accuracy, seed by seed, of any two methods that were compared."""
    for comparison in runs():
        for one, other in itertools.permutations(comparison, 2):
            both = zip(one, other, strict=True)
            apart = [b["test_accuracy"] - a["test_accuracy"] for a, b in both]
            yield statistics.mean(apart), statistics.stdev(apart) / len(apart) ** 0.5


def sharpnesses():
    for one in itertools.chain(*runs()):
        for key in ("lambda_max_held_out", "worst_case_held_out"):
            mean = statistics.mean(run[key] for run in one)
            yield from (f"{mean:.2f}", f"{mean:.3f}")


def found(pattern):
    """In what was written by hand."""
    numbers = set(re.findall(pattern, re.sub(TABLE, "", text(), flags=re.DOTALL)))
    assert numbers
    return numbers


@resampled
def test_shares_are_those_of_the_results():
    assert found(r"-?\d+ % \(-?\d+ to -?\d+\)") <= set(shares())


@resampled
def test_means_and_errors_are_those_of_the_results():
    assert found(r"[+-]?\d+\.\d+ ± \d+\.\d+") <= with_errors()


def test_sharpnesses_are_those_of_the_results():
    pairs = found(r"(?<!± )\b(\d+\.\d{2,3}) (?:to|against) (\d+\.\d{2,3})")
    assert len(pairs) > 5
    assert {number for pair in pairs for number in pair} <= set(sharpnesses())


def test_the_base_has_most_of_the_accuracy():
    """What a share of the accuracy would say of doing nothing."""
    of = {(m["task"], m["method"]): m for m in result("which_method_small")["methods"]}
    for task, percent in (("digits", "95 %"), ("mnist", "97 %")):
        base, sam = (of[task, name]["test_accuracy"][0] for name in ("base", "SAM"))
        assert f"{100 * base / sam:.0f} %" == percent


def test_the_range_of_rho_is_that_of_the_results():
    methods = result("which_method_small")["methods"]
    rhos = sorted(method["rho"] for method in methods if method["rho"])
    assert f"anything from {rhos[0]:g} to {rhos[-1]:g}" in text()
    best = {m["rho"] for m in methods if m["method"] == "SAM"}
    assert f"On two weaker networks {best.pop():g} was best for SAM" in text()
    assert not best


# --- Tables that are written from results --------------------------------------------


@resampled
def test_tables_are_those_of_the_results():
    assert text() == filled(text()), "run `python -m docs.write_claims`"


def test_sams_radius_on_the_sounder_networks():
    radii = [
        found.rows(task)["SAM"]["settings"]["rho"]
        for found in map(study, (*STUDIES, "other_tasks_few", "other_tasks_mnist"))
        for task in found.tasks
        if found.head["study"] != "fine_tuning_imagenet"
    ]
    assert len(radii) > 10
    assert sorted(set(radii)) == [0.025, 0.05, 0.1]
    assert radii.count(0.025) == 2


def test_sams_radius_elsewhere():
    def radii(name):
        found = study(name)
        return {of: found.rows(of)["SAM"]["settings"]["rho"] for of in found.tasks}

    beside = radii("regularizers")
    assert beside.pop("augmentation") == 0.0125
    assert beside.pop("label smoothing") == 0.025
    assert {*beside.values()} <= {0.05, 0.1}
    assert "beside augmentation (0.0125) and label smoothing (0.025)" in text()
    tuned = {task: f"{rho:.3f}" for task, rho in radii("fine_tuning_imagenet").items()}
    assert tuned["from scratch"] == tuned["whole network"] == "0.006"
    assert tuned["head alone"] == "0.003"
    assert "took 0.006, from scratch and fine-tuned as a whole" in text()
    assert "and 0.003 for the head alone" in text()
