"""The notebooks: stored with their outputs, found by the badges, and run to the end."""

import base64
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "colabs"))

import execute  # noqa: E402

NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
BADGE = re.compile(r"https://colab\.research\.google\.com/github/([^)\s]+)")
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)")
# Of the machine, or of the moment, at which a notebook was executed.
MACHINE = re.compile(
    r"(?:^|[\s\"'(=])/[a-z]+/|ipykernel|site-packages|localhost|\.local"
)
MOMENT = re.compile(r"\b\d+:\d\d:\d\d\b|\d\d\d\d-\d\d-\d\d|\x1b|\r")
MOST_BYTES = 400_000

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def repository():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["urls"]["Repository"]


def badge_of(path):
    """What stands in a badge behind `github/`."""
    owner_and_name = repository().removeprefix("https://github.com/")
    return f"{owner_and_name}/blob/main/{path.relative_to(ROOT).as_posix()}"


def cells(path, kind=None):
    found = json.loads(path.read_text("utf-8"))["cells"]
    return [cell for cell in found if kind in (None, cell["cell_type"])]


def sources(path):
    return ["".join(cell["source"]) for cell in cells(path)]


def outputs(path):
    return [output for cell in cells(path, "code") for output in cell["outputs"]]


def images(path):
    """The stored pictures, as bytes."""
    data = [output.get("data", {}).get("image/png") for output in outputs(path)]
    return [base64.b64decode("".join(image)) for image in data if image]


def test_the_readme_has_a_badge_for_each_notebook():
    badges = BADGE.findall((ROOT / "README.md").read_text())
    assert sorted(set(badges)) == [badge_of(path) for path in NOTEBOOKS]


@each_notebook
def test_stored_with_outputs(path):
    counts = [cell["execution_count"] for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1))  # all of them, in one go
    assert not [o for o in outputs(path) if o["output_type"] == "error"]
    assert [o for o in outputs(path) if o["output_type"] == "stream"]
    assert images(path)
    assert all(image.startswith(b"\x89PNG") for image in images(path))
    assert path.stat().st_size <= MOST_BYTES
    # Every cell that asks for a picture has one.
    for cell in cells(path, "code"):
        shown = [o for o in cell["outputs"] if "image/png" in o.get("data", {})]
        assert bool(shown) == ("plt.show()" in "".join(cell["source"]))


@each_notebook
def test_stored_without_the_machine_and_the_moment(path):
    for cell in cells(path):
        assert cell["id"]
        assert "execution" not in cell["metadata"]
    for output in outputs(path):
        texts = [output.get("text", ""), output.get("data", {}).get("text/plain", "")]
        for text in map("".join, texts):
            assert not MACHINE.search(text), text
            assert not MOMENT.search(text), text
    metadata = json.loads(path.read_text("utf-8"))["metadata"]
    assert metadata["language_info"] == {"name": "python"}


@each_notebook
def test_has_the_address_of_the_repository(path):
    texts = sources(path)
    assert BADGE.findall("".join(texts)) == [badge_of(path)]
    assert "works once the repository is public" in texts[0]
    install = next(source for source in texts if "%pip install" in source)
    assert f'REPOSITORY = "{repository()}"\n' in install
    assert "../pyproject.toml" in install  # in a clone it is the clone


@each_notebook
def test_links_lead_somewhere(path):
    for cell in cells(path, "markdown"):
        for target in LINK.findall("".join(cell["source"])):
            assert (path.parent / target).exists(), target


def test_a_machine_would_be_seen():
    for text in ("in /tmp/x.py", "/home/me/x", "lib/site-packages/jax", '"/work/x"'):
        assert MACHINE.search(text)
    assert not MACHINE.search("norm / m-SAM's, gs://my-bucket/run-1")
    assert MOMENT.search("100% 0:00:12")


class Stream(dict):
    """As nbformat's, which the fast tests do without."""

    __getattr__, __setattr__ = dict.__getitem__, dict.__setitem__

    def __init__(self, text, name="stdout"):
        super().__init__(output_type="stream", text=text, name=name)


def test_outputs_are_tidied():
    bar = ["\x1b[?25l", "\r\x1b[2Kone ━ 0%", "\r\x1b[2Ktwo ━ 100%\n", "after\n"]
    (tidied,) = execute.tidy([*map(Stream, bar), Stream("\n", "stderr")])
    assert tidied.text == "after\n"
    warned = Stream("/x/ipykernel_12/345.py:7: UserWarning: no\n", "stderr")
    assert execute.tidy([warned])[0].text == "this cell:7: UserWarning: no\n"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@each_notebook
def test_runs(path):
    """Needs the extra `notebook`; without it this fails and is not skipped."""
    notebook = execute.execute(path)
    found = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    images_now = [o for o in found if "image/png" in o.get("data", {})]
    assert len(images_now) == len(images(path))
