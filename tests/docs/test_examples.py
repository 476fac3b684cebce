"""The examples run, and docs/examples.md shows what SAM changes in them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import write_examples as page

ROOT = Path(__file__).parents[2]
SCRIPTS = [f"{name}{suffix}.py" for name in page.EXAMPLES for suffix in ("", "_sam")]


def test_page_is_generated():
    results = json.loads(page.RESULTS.read_text("utf-8"))
    committed = page.PAGE.read_text("utf-8")
    assert committed == page.page(results), "run `python docs/write_examples.py`"


def test_the_page_claims_nothing_before_the_code():
    before, after = page.PAGE.read_text("utf-8").split("```diff", 1)
    assert "not evidence" in before
    assert "%" not in before
    assert after.rindex("```diff") < after.index("| test accuracy")


@pytest.mark.parametrize("name", page.EXAMPLES)
def test_sam_is_a_few_lines(name):
    changed = [x for x in page.diff(name).splitlines()[2:] if x[0] in "+-"]
    added = [x for x in changed if x.startswith("+") and x.strip("+ ")]
    assert any("optax_sam" in line for line in added)
    assert len(added) <= 4  # the title, the import and two lines of code
    assert len(changed) - len(added) <= 3


@pytest.mark.parametrize("script", SCRIPTS)
def test_numbers_on_the_page_were_printed(script):
    result = json.loads(page.RESULTS.read_text("utf-8"))[script.removesuffix(".py")]
    assert {"loss": result["loss"], "accuracy": result["accuracy"]} == page.numbers(
        result["last_line"]
    )
    assert float(result["accuracy"]) > 50  # it has trained


def test_the_language_model_has_no_gap_and_is_behind():
    results = json.loads(page.RESULTS.read_text("utf-8"))
    test = {name: float(result["loss"]) for name, result in results.items()}
    for name in ("language_model", "language_model_sam"):
        training = re.search(r"train loss (\S+),", results[name]["last_line"])[1]
        assert float(training) == pytest.approx(test[name], rel=0.01)
    assert test["language_model_sam"] > test["language_model"]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_smoke(script):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / script, "--smoke"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert re.search(r"train loss \d+\.\d+", line)
    assert page.numbers(line)
