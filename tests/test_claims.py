"""docs/claims.md: every test and every result that it names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "claims.md"
VERDICTS = ("holds", "does not hold", "cannot be tested here", "unclear")


def text():
    return PAGE.read_text(encoding="utf-8")


def test_named_tests_exist():
    named = re.findall(r"\[(tests/\w+\.py)::(\w+)\]\(\.\./(\S+)\)", text())
    assert len(named) > 10
    for file, name, target in named:
        assert file == target
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), name


def test_named_results_exist():
    named = re.findall(r"\[(\S+\.json)\]\(\.\./(\S+)\)", text())
    assert named
    for name, target in named:
        assert (ROOT / target).exists(), target
        assert Path(target).name == name


def rows():
    lines = [line for line in text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0] != "claim"]


def test_every_row_has_a_verdict_and_a_reference():
    for row in rows():
        assert len(row) == 4, row
        assert row[2].startswith(VERDICTS), row[2]
        assert row[3]
