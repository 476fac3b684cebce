"""Every Python block of the pages under docs/ runs, from top to bottom."""

from pathlib import Path

import optax
import pages
import pytest

import optax_sam

DOCS = Path(__file__).parent.parent / "docs"
ALREADY_IMPORTED = {"faults.md": {"optax": optax, "optax_sam": optax_sam}}
# Chapter by chapter, in test_frameworks.py and test_trainers.py.
RUN_ELSEWHERE = {"frameworks.md", "trainers.md"}
PAGES = {page.name for page in DOCS.glob("*.md") if pages.blocks(page)}


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(PAGES - RUN_ELSEWHERE))
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what they write stays out of the checkout
    names = pages.run(DOCS / page, **ALREADY_IMPORTED.get(page, {}))
    if page == "diagnostics.md":
        assert names["seen"].climb_norm == pytest.approx(0.05, rel=1e-4)


def test_the_page_names_every_field():
    text = (DOCS / "diagnostics.md").read_text(encoding="utf-8")
    assert all(f"`{field}`" in text for field in optax_sam.Diagnostics._fields)
