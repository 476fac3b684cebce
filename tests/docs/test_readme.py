"""What the README says is run, named and linked as it says.

Its ```python blocks are executed from top to bottom in one namespace, as by a reader
who pastes one after the other; tracebacks show the README's own line numbers.
"""

import importlib.util
import re
import tomllib
from pathlib import Path

import pages
import pytest
from table import PRODUCTS

import optax_sam

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
LINES = 150


def text():
    return README.read_text(encoding="utf-8")


def test_it_is_short():
    assert len(text().splitlines()) <= LINES


def test_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what they write stays out of the checkout
    pages.run(README)


def test_both_forms_are_shown_and_the_first_in_ten_lines():
    first, second = pages.blocks(README)
    lines = [line for line in first.splitlines() if line]
    assert "optax_sam.value_and_grad(" in first
    assert len(lines) <= 10
    assert "value_fn=" in second
    assert "optax.chain(optax_sam." in second


def test_every_fence_is_closed():
    fences = re.findall(r"^ *```(\w*)$", text(), re.MULTILINE)
    assert fences[1::2] == [""] * (len(fences) // 2)
    assert len(fences) % 2 == 0


def methods():
    """Every product: those of the contract's table, and the modules of _methods."""
    modules = (ROOT / "optax_sam" / "_methods").glob("[a-z]*.py")
    names = {re.split(r"-", row.name)[0] for row in PRODUCTS} - {"random"}
    return sorted(names | {path.stem for path in modules})


@pytest.mark.parametrize("page", ["README.md", "docs/choosing.md"])
@pytest.mark.parametrize("name", methods())
def test_every_product_is_a_row(name, page):
    assert callable(getattr(optax_sam, name))
    rows = re.findall(r"^\| (.*?) \|", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    assert any(f"`{name}`" in row for row in rows)


def test_every_row_of_a_method_has_a_paper():
    table = text().split("| name | what it is |")[1].split("\n\n")[0]
    for row in table.splitlines()[2:]:
        paper = row.split(" | ")[-1]
        known = ("the same", "Foret et al. 2021, appendix", "MosaicML Composer")
        assert "arxiv.org/abs/" in paper or paper.startswith(known), row


def test_local_links_lead_somewhere():
    links = re.findall(r"\]\(([^)\s]+)", text()) + re.findall(r'src="([^"]+)"', text())
    assert links
    for link in (link for link in links if "://" not in link):
        path, _, place = link.partition("#")
        target = ROOT / path if path else README
        assert target.exists(), link
        if place:
            assert place in {anchor(title) for title in headings(target)}, link


def test_colab_badges_open_existing_notebooks():
    for path in re.findall(r"colab\.research\.google\.com/github/[^)\s\"]+", text()):
        notebook = path.split("/blob/")[1].split("/", 1)[1]
        assert (ROOT / notebook).exists(), notebook


def headings(page):
    return re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)


def anchor(title):
    """GitHub's name for the place of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_commands_name_existing_files():
    commands = re.findall(r"^(?: {4}|\$ )(.*python\S* .*)$", text(), re.MULTILINE)
    modules = {m for c in commands for m in re.findall(r"-m (benchmarks\S+)", c)}
    assert modules, "the first command of the README runs a benchmark"
    assert not [m for m in modules if not importlib.util.find_spec(m)]


def test_the_two_commands_are_there():
    venv = "    python3 -m venv .venv && .venv/bin/pip install -e "
    demo = "'.[demo]' && .venv/bin/python -m benchmarks.accuracy.flatness\n"
    assert f"\n{venv}{demo}" in text()
    assert f"\n{venv}'.[test]' && .venv/bin/pytest\n" in text()


def test_what_it_needs_is_what_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    python = project["requires-python"].removeprefix(">=")
    jax, optax = (needed.split(">=")[1] for needed in project["dependencies"])
    flat = " ".join(text().split())
    assert f"Python {python}, jax {jax} and optax {optax}, or newer" in flat


def test_the_citation_is_of_this_version():
    assert f"version = {{{optax_sam.__version__}}}" in text()


def test_every_fact_beside_other_libraries_names_its_test():
    table = text().split("## Why this one")[1].split("\n\n")[1]
    rows = table.splitlines()[2:]
    assert len(rows) > 5
    for row in rows:
        named = re.findall(r"\[(test_\w+)\]\((tests/\S+\.py)\)", row.split(" | ")[-1])
        assert named, row
        for name, path in named:
            assert f"def {name}(" in (ROOT / path).read_text("utf-8"), name
