"""A user's typed code passes strict type checkers, and a user's mistakes do not."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from test_imports import public_names

PROJECT = Path(__file__).parents[1] / "typing_project"
CACHE = "--cache-dir ../../.pytest_cache/mypy"
MYPY = f"-m mypy --config-file mypy.ini {CACHE} trainer.py wrong.py".split()
PYRIGHT = f"-m pyright --pythonpath {sys.executable} -p .".split()
# Pyright asks PyPI for a newer version of itself unless it is told not to.
OFFLINE = {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "MYPYPATH": str(PROJECT.parents[1])}


def test_every_public_name_is_used():
    tree = ast.parse((PROJECT / "trainer.py").read_text("utf-8"))
    attributes = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert set(public_names()) <= attributes


@pytest.mark.slow
@pytest.mark.parametrize("checker", [MYPY, PYRIGHT], ids=["mypy", "pyright"])
def test_only_what_is_wrong_is_reported(checker):
    pytest.importorskip(checker[1])  # extra `lint`
    said = subprocess.run(
        [sys.executable, *checker],
        cwd=PROJECT,
        env=os.environ | OFFLINE,
        capture_output=True,
        text=True,
    )
    reported = re.findall(r"(\w+\.py):(\d+):.* error: ", said.stdout)
    lines = (PROJECT / "wrong.py").read_text("utf-8").splitlines()
    wrong = [i for i, line in enumerate(lines, 1) if line.endswith("# wrong")]
    assert [(f, int(i)) for f, i in reported] == [("wrong.py", i) for i in wrong], (
        said.stdout + said.stderr
    )


@pytest.mark.slow
def test_the_project_also_runs():
    import typing_project.trainer as trainer

    assert len(trainer.ascents()) == 7
    for product in trainer.products():
        assert callable(product.init(trainer.PARAMS) and product.update)
    seen = trainer.in_the_optimizer()
    assert int(seen.num_gradients) == 2
    for form in ("in_place_of_value_and_grad", "with_a_state", "of_a_net_and_a_head"):
        value, gradient = getattr(trainer, form)()
        assert jax.tree.structure(gradient) == jax.tree.structure(trainer.PARAMS)
        assert value == trainer.loss_fn(trainer.PARAMS, trainer.BATCH)
