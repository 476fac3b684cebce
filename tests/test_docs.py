"""Every Python block of the pages under docs/ runs, from top to bottom."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ["diagnostics.md"]


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    namespace = {"__name__": "__main__"}
    for block in blocks:
        code = "\n" * text[: block.start(1)].count("\n") + block[1]
        exec(compile(code, str(DOCS / page), "exec"), namespace)
    assert namespace["seen"].climb_norm == pytest.approx(0.05, rel=1e-4)


def test_the_page_names_every_field():
    from optax_sam import Diagnostics

    text = (DOCS / "diagnostics.md").read_text(encoding="utf-8")
    assert all(f"`{field}`" in text for field in Diagnostics._fields)
