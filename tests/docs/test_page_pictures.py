"""The pictures that pages show are in the repository, and are those that are drawn."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from docs import write_pictures

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "pictures"
PAGES = sorted((ROOT / "docs").glob("*.md"))


def shown(page: Path) -> list[str]:
    """The pictures of a page that are not on some other host."""
    found = re.findall(r"!\[[^]]*\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    return [path for path in found if "://" not in path]


def test_a_reader_on_github_sees_every_picture():
    for page in PAGES:
        for path in shown(page):
            assert (page.parent / path).exists(), f"{page.name}: {path}"


def test_every_picture_is_shown_and_has_its_dark_variant():
    names = {Path(path).name for page in PAGES for path in shown(page)}
    drawn = {path.name for path in FOLDER.iterdir()}
    light = {name for name in drawn if not name.endswith("-dark.png")}
    assert light
    assert light <= names
    assert drawn - light == {name.replace(".png", "-dark.png") for name in light}


@pytest.mark.slow
def test_the_pictures_are_those_that_are_drawn(tmp_path):
    """Another matplotlib may move a line by a pixel."""
    write_pictures.draw(tmp_path)
    drawn = {path.name: path for path in tmp_path.iterdir()}
    assert drawn.keys() == {path.name for path in FOLDER.iterdir()}
    for name, path in drawn.items():
        new, committed = colours(path), colours(FOLDER / name)
        assert new.shape == committed.shape, name
        assert abs(new - committed).mean() < 0.02, name


def colours(path: Path) -> np.ndarray:
    """(height, width, 4), from 0 to 1."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGBA")) / 255
