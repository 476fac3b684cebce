"""Every Python block of the pages under docs/ runs, from top to bottom."""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pages
import pytest

import optax_sam

DOCS = Path(__file__).parents[2] / "docs"
ALREADY_IMPORTED = {"faults.md": {"optax": optax, "optax_sam": optax_sam}}
# In test_frameworks.py, test_nnx_on_a_pod.py and test_trainers.py.
RUN_ELSEWHERE = {"frameworks.md", "nnx_on_a_pod.md", "trainers.md"}
PAGES = {page.name for page in DOCS.glob("*.md") if pages.blocks(page)}


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(PAGES - RUN_ELSEWHERE))
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what they write stays out of the checkout
    names = pages.run(DOCS / page, **ALREADY_IMPORTED.get(page, {}))
    if page == "diagnostics.md":
        assert names["seen"].climb_norm == pytest.approx(0.05, rel=1e-4)


def test_every_public_name_is_on_the_page_of_the_api():
    items = vars(optax_sam).items()
    public = {n for n, x in items if n[0] != "_" and not inspect.ismodule(x)}
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^::: optax_sam\.(\w+)$", text, re.MULTILINE)) == public


def test_the_page_names_every_field():
    text = (DOCS / "diagnostics.md").read_text(encoding="utf-8")
    assert all(f"`{field}`" in text for field in optax_sam.Diagnostics._fields)


@pytest.mark.slow
def test_what_the_reader_writes_does_what_the_page_says():
    names = pages.run(DOCS / "write_your_own.md")
    start, batch, loss_fn = (names[name] for name in ("start", "batch", "loss_fn"))
    before = float(loss_fn(start, batch))
    assert all(0 < loss < before for loss in names["losses"].values())
    assert len({round(loss, 6) for loss in names["losses"].values()}) > 4

    grads = jax.grad(loss_fn)(start, batch)
    ascent = names["layerwise_ascent"](0.05)
    climb, _ = ascent.update(grads, ascent.init(start))
    for leaf in jax.tree.leaves(climb):
        assert optax.tree.norm(leaf) == pytest.approx(0.05, rel=1e-5)

    ascent = names["half_where_low"](0.05, threshold=1.0)
    for value, radius in [(0.5, 0.025), (2.0, 0.05)]:
        climb, _ = ascent.update(grads, ascent.init(start), start, value=value)
        assert optax.tree.norm(climb) == pytest.approx(radius, rel=1e-5)
    broken = {**grads, "out": grads["out"].at[0].set(jnp.nan)}
    climb, _ = names["layerwise_ascent"](0.05).update(broken, optax.EmptyState())
    assert optax.tree.norm(climb) == 0
    out = names["keep_the_norm"](grads, optax.tree.scale(3.0, grads))
    assert optax.tree.norm(out) == pytest.approx(
        float(optax.tree.norm(grads)), rel=1e-5
    )
    climbs = [bool(names["more_and_more_often"](t)) for t in (0, 2, 4, 100, 102, 103)]
    assert climbs == [True, False, True, True, True, False]
