"""Write the tables of docs/claims.md that results fill; the rest is written by hand.

    python -m docs.write_claims

writes anew what stands between `<!-- name -->` and `<!-- / -->`, where `name.json` in
benchmarks/results/ is the result, or `name_report.json` that of a study.
`tests/docs/test_claims.py` compares the committed page with what this file writes, and
the numbers beside the tables with the results.
"""

import re
from pathlib import Path

from benchmarks.accuracy import regularizers_report
from benchmarks.lib import results, statistics
from benchmarks.lib.report import committed
from benchmarks.lib.results import committed_study
from benchmarks.lib.statistics import Gain

PAGE = Path(__file__).parent / "claims.md"
MEASURED = {"agrees": "holds", "disagrees": "does not hold", "not run": "not run"}
TABLE = r"(<!-- (\w+) -->\n)(.*?)(<!-- / -->)"
HEADER = "| verdict | claim | evidence |\n|---|---|---|\n"


def link(name):
    return f"[{name}.json](../benchmarks/results/{name}.json)"


def filled(page):
    """The page with its tables as their results have them."""

    def table(found):
        lines = "".join(TABLES[found[2]](found[2]))
        return found[1] + (HEADER + lines if lines else "Not run.\n") + found[4]

    return re.sub(TABLE, table, page, flags=re.DOTALL)


def line(verdict, claim, reference, evidence):
    """A row of the page."""
    return f"| {verdict} | {claim}<br>*{reference}* | {evidence} |\n"


def measured(pair, sign="", digits=2):
    """A mean and its standard error, as the page shows them."""
    mean, error = pair
    return f"{mean:{sign}.{digits}f} ± {error:.{digits}f}"


def paper_rows(name):
    """A row for each claim of a paper that was measured."""
    reference = ""
    for row in committed(f"{name}.json")["claims"]:
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
        yield line(verdict, claim, reference, f"{looked_at}: {link(name)}")


def gains(name):
    """A row for each task, of SAM alone."""
    names = {
        "gain": "over the base",
        "gain_over_2x_epochs": "over twice the epochs",
        "gain_over_best_length": "over its best length",
    }
    for row in committed(f"{name}.json")["summary"]:
        if row["method"] != "SAM" or "gain" not in row:
            continue
        known = {names[k]: row[k] for k in names if row[k]}
        numbers = ", ".join(f"{measured(pair, '+')} {k}" for k, pair in known.items())
        claim, evidence = f"SAM gains: {row['task']}", f"{numbers}: {link(name)}"
        yield line(word(known), claim, "Foret et al. 2021", evidence)


def word(differences):
    """The verdict on gains: two standard errors from zero count."""
    sizes = [mean / error for mean, error in differences.values()]
    if min(sizes) < -2:
        return "does not hold"
    sure = [size > 2 for size in sizes]
    return "holds" if all(sure) else "holds in part" if any(sure) else "unclear"


def of(gain: Gain):
    return measured((gain.mean, gain.error), "+")


NETWORK = {"fashion": "Fashion CNN, "}  # where the names of the tasks do not say it


def study_gains(*names):
    """A row for each task of some studies, of SAM alone."""
    over = {
        results.STEPS: "over the base",
        results.GRADIENTS: "over twice the epochs",
        results.LENGTH: "over its best length",
    }

    def table(_):
        for name in names:
            found = committed_study(name)
            for task in found.tasks if found else ():
                gains = found.gains(task, "SAM")
                numbers = ", ".join(f"{of(gains[k])} {w}" for k, w in over.items())
                known = {k: (gain.mean, gain.error) for k, gain in gains.items()}
                evidence = f"{numbers}: {link(f'{name}_report')}"
                verdict = of_study(found.verdicts()[task, "SAM"].word, known)
                claim = f"SAM gains: {NETWORK.get(name, '')}{task}"
                yield line(verdict, claim, "Foret et al. 2021", evidence)

    return table


def of_study(said, known):
    """The verdict on gains of a study, whose own word has Holm's correction in it."""
    words = {
        statistics.CERTAIN: "holds",
        statistics.SUGGESTIVE: "unclear: suggestive",
        statistics.LOSS: "does not hold",
    }
    return words.get(said) or word(known)


def regularizers(name):
    """A row for each technique beside SAM."""
    found, said = committed_study(name), "often said, rarely measured"
    squares = regularizers_report.complete(found) if found else {}
    words = regularizers_report.words_of(found) if found else {}
    for technique, square in squares.items():
        numbers = (
            f"SAM {of(square.of_sam)}, the technique {of(square.of_technique)}, both "
            f"{of(square.of_both)}, interaction {of(square.interaction)}"
        )
        evidence = f"{numbers}: {link(f'{name}_report')}"
        yield line(words[technique], f"SAM and {technique}", said, evidence)


TABLES = {
    "paper_figures": paper_rows,
    "generalization": gains,
    "other_tasks": study_gains(
        "other_tasks_mnist", "fashion", "other_tasks_fashion", "other_tasks_few"
    ),
    "fine_tuning_imagenet": study_gains("fine_tuning_imagenet"),
    "fine_tuning": gains,
    "regularizers": regularizers,
}


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
