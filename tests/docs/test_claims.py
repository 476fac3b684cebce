"""docs/claims.md: every test and every result that it names exists, and says that.

Some of its tables are written from results: `python tests/docs/test_claims.py`.
"""

import itertools
import json
import re
import statistics
from pathlib import Path

from benchmarks.lib.results import Results
from benchmarks.lib.store import Store

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "claims.md"
MEASURED = {"agrees": "holds", "disagrees": "does not hold", "not run": "not run"}
SIDE_BY_SIDE = ("complementary", "overlapping", "unclear")
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


def result(name):
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def shares():
    for method in result("which_method")["methods"]:
        low, high = method["share_interval"]
        yield f"{100 * method['share']:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def with_errors():
    """All differences with their standard errors, as they would be written here."""
    methods = result("which_method")["methods"]
    pairs = [m[k] for m in methods for k in ("gain", "gain_over_best_length")]
    pairs += [row["gain"] for row in result("m_sharpness")["summary"] if row["gain"]]
    study = Results(Store(ROOT / "benchmarks" / "results" / "mnist_5k_report.json"))
    for method in study.methods("SGD"):
        pairs += [(g.mean, g.error) for g in study.gains("SGD", method).values()]
    return {f"{mean:+.2f} ± {error:.2f}" for mean, error in [*pairs, *differences()]}


def runs():
    comparisons = result("label_noise")["comparisons"]
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


def test_shares_are_those_of_the_results():
    assert found(r"-?\d+ % \(-?\d+ to -?\d+\)") <= set(shares())


def test_means_and_errors_are_those_of_the_results():
    assert found(r"[+-]?\d+\.\d+ ± \d+\.\d+") <= with_errors()


def test_sharpnesses_are_those_of_the_results():
    pairs = found(r"(?<!± )\b(\d+\.\d{2,3}) (?:to|against) (\d+\.\d{2,3})")
    assert len(pairs) > 5
    assert {number for pair in pairs for number in pair} <= set(sharpnesses())


def test_the_base_has_most_of_the_accuracy():
    """What a share of the accuracy would say of doing nothing."""
    of = {(m["task"], m["method"]): m for m in result("which_method")["methods"]}
    for task, percent in (("digits", "95 %"), ("mnist", "97 %")):
        base, sam = (of[task, name]["test_accuracy"][0] for name in ("base", "SAM"))
        assert f"{100 * base / sam:.0f} %" == percent


def test_the_range_of_rho_is_that_of_the_results():
    methods = result("which_method")["methods"]
    rhos = sorted(method["rho"] for method in methods if method["rho"])
    assert f"anything from {rhos[0]:g} to {rhos[-1]:g}" in text()
    best = {m["rho"] for m in methods if m["method"] == "SAM"}
    assert f"For SAM on these tasks {best.pop():g} was best" in text()
    assert not best


# --- Tables that are written from results --------------------------------------------

TABLE = r"(<!-- (\w+) -->\n)(.*?)(<!-- / -->)"


def filled(page):
    """The page with its tables as their results have them."""

    def table(found):
        name = found[2]
        link = f"[{name}.json](../benchmarks/results/{name}.json)"
        lines = "".join(TABLES[name](result(name), link))
        return found[1] + (HEADER + lines if lines else "Not run.\n") + found[4]

    return re.sub(TABLE, table, page, flags=re.DOTALL)


HEADER = "| verdict | claim | evidence |\n|---|---|---|\n"


def line(verdict, claim, reference, evidence):
    return f"| {verdict} | {claim}<br>*{reference}* | {evidence} |\n"


def measured(pair, sign="", digits=2):
    mean, error = pair
    return f"{mean:{sign}.{digits}f} ± {error:.{digits}f}"


def paper_rows(result, link):
    reference = ""
    for row in result.get("claims", []):
        claim = row["paper"].removesuffix(".")
        if cited := re.search(r" \(([^()]*\d{4}[^()]*)\)$", claim):
            claim, reference = claim.removesuffix(cited[0]), cited[1]
        looked_at = row["what"]
        if "difference" in row:
            digits = 3 if abs(row["first"][0]) < 1 else 2  # cosines, or per cent
            first, second = (measured(row[k], "", digits) for k in ("first", "second"))
            apart = measured(row["difference"], "+", digits)
            looked_at += f": {first} and {second}, difference {apart}"
        verdict = MEASURED.get(row["verdict"], f"unclear: {row['verdict']}")
        yield line(verdict, claim, reference, f"{looked_at}: {link}")


def gains(result, link):
    """A row for each task, of SAM alone."""
    names = {
        "gain": "over the base",
        "gain_over_2x_epochs": "over twice the epochs",
        "gain_over_best_length": "over its best length",
    }
    for row in result.get("summary", []):
        if row["method"] != "SAM" or "gain" not in row:
            continue
        known = {names[k]: row[k] for k in names if row[k]}
        numbers = ", ".join(f"{measured(pair, '+')} {k}" for k, pair in known.items())
        claim, evidence = f"SAM gains: {row['task']}", f"{numbers}: {link}"
        yield line(word(known), claim, "Foret et al. 2021", evidence)


def word(differences):
    sizes = [mean / error for mean, error in differences.values()]
    if min(sizes) < -2:
        return "does not hold"
    sure = [size > 2 for size in sizes]
    return "holds" if all(sure) else "holds in part" if any(sure) else "unclear"


def regularizers(result, link):
    names = {
        "gain_of_sam": "SAM",
        "gain_of_technique": "the technique",
        "gain_of_both": "both",
        "interaction": "interaction",
    }
    for row in result.get("summary", []):
        known = [(name, row[key]) for key, name in names.items() if key in row]
        numbers = ", ".join(f"{name} {measured(pair, '+')}" for name, pair in known)
        claim, evidence = f"SAM and {row['technique']}", numbers or "no runs"
        said = "often said, rarely measured"
        yield line(row["verdict"], claim, said, f"{evidence}: {link}")


TABLES = {
    "paper_figures": paper_rows,
    "generalization": gains,
    "fine_tuning": gains,
    "complements": regularizers,
}


def test_tables_are_those_of_the_results():
    assert text() == filled(text()), "run `python tests/docs/test_claims.py`"


if __name__ == "__main__":
    PAGE.write_text(filled(text()), encoding="utf-8")
