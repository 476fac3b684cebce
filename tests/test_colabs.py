"""The notebooks: stored clean, found by the README's badges, and run to the end."""

import json
import os
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
BADGE = re.compile(r"https://colab\.research\.google\.com/github/([^)\s]+)")
SECONDS = 300  # for a whole notebook, on a busy machine

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def repository():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["urls"]["Repository"]


def badge_of(path):
    """What stands in a badge behind `github/`."""
    owner_and_name = repository().removeprefix("https://github.com/")
    return f"{owner_and_name}/blob/main/{path.relative_to(ROOT).as_posix()}"


def sources(path):
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]


def test_the_readme_has_a_badge_for_each_notebook():
    badges = BADGE.findall((ROOT / "README.md").read_text())
    assert sorted(set(badges)) == [badge_of(path) for path in NOTEBOOKS]


@each_notebook
def test_stored_without_outputs(path):
    for cell in json.loads(path.read_text())["cells"]:
        assert cell["id"]
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@each_notebook
def test_has_the_address_of_the_repository(path):
    cells = sources(path)
    assert BADGE.findall("".join(cells)) == [badge_of(path)]
    install = next(source for source in cells if "%pip install" in source)
    assert f'REPOSITORY = "{repository()}"\n' in install


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@each_notebook
def test_runs(path, monkeypatch):
    import nbclient  # extra `notebook`; without it this fails and is not skipped
    import nbformat

    python_path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(python_path))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )
    # The kernel of the Python that runs the tests, whatever is installed for the user.
    manager = client.create_kernel_manager()
    manager.kernel_spec.argv[0] = sys.executable
    client.execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
