"""The site builds without a warning, fetches nothing, and has what it should."""

import inspect
import re
from pathlib import Path

import pytest

import optax_sam
from optax_sam import measure, nnx, plot

pytestmark = pytest.mark.slow


def public(module):
    items = vars(module).items()
    return {name for name, x in items if name[0] != "_" and not inspect.ismodule(x)}


def page(site, name):
    return (site / name / "index.html").read_text(encoding="utf-8")


def test_every_public_name_is_in_the_api(site):
    headings = set(re.findall(r'<h3 id="(optax_sam\.[\w.]+)"', page(site, "api")))
    assert headings == {f"optax_sam.{name}" for name in public(optax_sam)}


@pytest.mark.parametrize("module", [measure, plot])
def test_every_name_of_the_optional_parts_is_in_the_api(site, module):
    found = re.findall(rf'<h3 id="{module.__name__}\.(\w+)"', page(site, "api_extras"))
    assert set(found) == public(module)


def test_nnx_is_in_the_api(site):
    assert f'<h3 id="{nnx.__name__}.value_and_grad"' in page(site, "api_extras")


def test_nothing_is_fetched_when_a_page_is_read(site):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        sources = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?([^\s\">]+)", text)
        sources += re.findall(r"<link[^>]* rel=\"stylesheet\"[^>]*>", text)
        assert not [source for source in sources if "//" in source], path.name


def test_pictures_are_there(site):
    pictures = {path.name for path in site.rglob("*.png")}
    shown = {
        Path(source).name
        for path in site.rglob("*.html")
        for source in re.findall(
            r'<img[^>]* src="([^"]+\.png)(?:#only-(?:light|dark))?"', path.read_text()
        )
    }
    assert (
        {"one_step.png", "flatness_accuracy.png", "dashboard.png"} <= shown <= pictures
    )


def test_a_page_shows_one_of_the_two_variants_of_a_picture(site):
    """In the theme's way: each is marked, and the theme hides the other."""
    text = "".join(page(site, x) for x in ("how_sam_works", "evidence", "measuring"))
    light = re.findall(r'src="([^"]+)\.png#only-light"', text)
    dark = re.findall(r'src="([^"]+)-dark\.png#only-dark"', text)
    assert light == dark
    assert len(light) >= 9


def test_formulas_are_drawn_by_the_browser_itself(site):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert "arithmatex" not in text, path
        assert ".. math" not in text, path
        assert not re.search(r"<m[iot][^>]*>\\\\\w", text), path  # an unknown command
    assert page(site, "api").count("<math") > 10


def test_limits_stand_below(site):
    blocks = re.compile(r'<math[^>]*display="block".*?</math>', re.DOTALL)
    found = " ".join(blocks.findall(page(site, "how_sam_works")))
    assert "<munder><mo>min" in found
    assert "<munder><mo>max" in found
    assert not re.search(r"<msub><mo>(max|min)", found)


def test_tables_are_tables(site):
    for path in site.rglob("*.html"):
        assert "<p>|" not in path.read_text(encoding="utf-8"), path
    assert page(site, "claims").count("<table>") > 5
