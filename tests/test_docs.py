"""Every Python block of the pages under docs/ runs, from top to bottom."""

from pathlib import Path

import pages
import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ["diagnostics.md"]


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page):
    assert pages.run(DOCS / page)["seen"].climb_norm == pytest.approx(0.05, rel=1e-4)


def test_the_page_names_every_field():
    from optax_sam import Diagnostics

    text = (DOCS / "diagnostics.md").read_text(encoding="utf-8")
    assert all(f"`{field}`" in text for field in Diagnostics._fields)
