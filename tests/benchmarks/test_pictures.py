"""The pictures of the results: they can be read, and are those of their JSONs."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from benchmarks.accuracy import (
    m_sharpness_report,
    paper_figures_pictures,
    which_rho_picture,
)
from benchmarks.lib import pictures, report, tuning_report


def figure_with(text, size, place=0.1):
    figure, axes = pictures.new(3)
    axes.plot([0, 1], color="black")
    words = axes.text(place, 0.5, text, fontsize=size, transform=axes.transAxes)
    words.set_in_layout(False)  # or it would make way
    return figure


@pytest.mark.parametrize(("size", "place"), [(6.4, 0.1), (10, 0.95)])
def test_what_cannot_be_read_is_refused(size, place, tmp_path):
    """700 / 7 / 72 pixels a point: 9 pixels are 6.48 points. And no word is cut."""
    with pytest.raises(ValueError, match=r"one\.png .*some words"):
        pictures.save(figure_with("some words", size, place), tmp_path / "one.png")
    assert not list(tmp_path.iterdir())
    plt.close("all")


def test_both_variants_have_the_width_of_all(tmp_path):
    pictures.save(figure_with("some words", 6.5), tmp_path / "one.png")
    light, dark = (plt.imread(tmp_path / name) for name in ("one.png", "one-dark.png"))
    assert light.shape == dark.shape == (600, 1400, 4)
    assert (light[..., 3] == 1).all()  # on white
    assert dark[0, 0, 3] == 0  # on whatever the page is
    assert not plt.get_fignums()


def test_greys_are_turned_round_and_colours_stay():
    figure, axes = pictures.new(3)
    (black,) = axes.plot([0, 1], "o-", color="black")
    (blue,) = axes.plot([1, 0], "o-", color="#0072b2", mfc="white")
    pictures.darken(figure)
    bright = to_hex([pictures.BRIGHT] * 3)
    assert to_hex(black.get_color()) == to_hex(black.get_markerfacecolor()) == bright
    assert to_hex(blue.get_color()) == "#0072b2"
    assert to_hex(blue.get_markerfacecolor()) == to_hex([pictures.GROUND] * 3)
    assert to_hex(axes.xaxis.label.get_color()) == bright
    plt.close(figure)


def test_what_lies_on_a_map_stays():
    figure, axes = pictures.new(3)
    axes.contourf([[0, 1], [1, 2]])
    (black,) = axes.plot([0, 1], color="black")
    axes.set_xlabel("outside of it")
    pictures.darken(figure)
    assert to_hex(black.get_color()) == "#000000"
    assert to_hex(axes.xaxis.label.get_color()) != "#000000"
    plt.close(figure)


DRAWN = {
    "fine_tuning": lambda found, path: tuning_report.draw(found, path, "a title"),
    "generalization": lambda found, path: tuning_report.draw(found, path, "a title"),
    "m_sharpness": m_sharpness_report.draw,
    "paper_figures": paper_figures_pictures.draw,
    "which_rho": lambda found, path: which_rho_picture.draw(found, path, "one, two"),
}
REPORTS = report.RESULTS.glob("*_report.json")
OF_STUDIES = tuple(path.stem.removesuffix("_report") for path in REPORTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_committed_pictures_are_drawn_from_their_results(name, tmp_path):
    """Each is readable, or `save` would refuse it; and none is missing or left over."""
    DRAWN[name](report.committed(f"{name}.json"), tmp_path / f"{name}.png")
    drawn = {path.name: path for path in tmp_path.iterdir()}
    there = {path.name for path in report.RESULTS.glob(f"{name}*.png")}
    assert drawn.keys() == {file for file in there if not file.startswith(OF_STUDIES)}
    for file, path in drawn.items():
        committed = plt.imread(report.RESULTS / file)
        assert plt.imread(path).shape == committed.shape, file


def test_finding_says_gains_and_loses():
    rows = report.committed("m_sharpness.json")["summary"]
    of = {
        name: m_sharpness_report.finding(
            [r for r in rows if (r["optimizer"], r["choice"]) == (name, "best")]
        )
        for name in ("sgd", "adamw")
    }
    assert "loses 0.3" in of["sgd"]
    assert "gains 1.0" in of["adamw"]
