"""Pictures that read at the width of a README, on a light page and on a dark one.

`new` makes a figure as wide as all of them, `save` writes it twice: `name.png` on
white, and `name-dark.png`, which has no ground, greys turned round, and the colours as
they are. A label that would be too small to read, or that is cut, is refused.
"""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import Collection
from matplotlib.colors import to_rgba, to_rgba_array
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

WIDTH = 7.0  # inches
DPI = 200
SHOWN = 700  # pixels, in a README
SMALLEST = 9.0  # pixels there, of a label
BRIGHT, GROUND = 0.92, 0.13  # what black and white turn into on a dark page


def style() -> None:
    """Sizes for a figure that is WIDTH wide: 10 points are 14 pixels of SHOWN."""
    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {
            "figure.facecolor": "white",
            "figure.dpi": DPI,
            "savefig.dpi": DPI,
            "font.size": 10,
            "axes.titlesize": 10.5,
            "axes.titlelocation": "left",
            "axes.titlepad": 8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#888888",
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e6e6e6",
            "xtick.color": "#444444",
            "ytick.color": "#444444",
            "lines.linewidth": 1.8,
            "lines.solid_capstyle": "round",
            "legend.frameon": False,
        }
    )


def new(height: float, rows: int = 1, columns: int = 1, **options):
    """A figure of `height` inches, and its axes."""
    style()
    size = WIDTH, height
    return plt.subplots(rows, columns, figsize=size, layout="constrained", **options)


def title(figure: Figure, text: str) -> None:
    """Above everything, from the left edge of the picture."""
    size = matplotlib.rcParams["axes.titlesize"]
    figure.suptitle(text, x=0.01, ha="left", fontsize=size)


def save(figure: Figure, path: Path) -> None:
    """On white, and beside it for dark pages; the figure is closed."""
    if found := unreadable(figure):
        raise ValueError(f"{path.name} cannot be read at {SHOWN} pixels: {found}")
    figure.savefig(path)
    darken(figure)
    figure.savefig(dark_name(path), transparent=True)
    plt.close(figure)


def dark_name(path: Path) -> Path:
    return path.with_stem(f"{path.stem}-dark")


def unreadable(figure: Figure) -> list[str]:
    """Labels under SMALLEST pixels where the picture is SHOWN wide, or cut."""
    pixels = SHOWN / figure.get_figwidth() / 72
    for _ in range(2):  # the layout of a map with a fixed aspect takes two
        figure.draw_without_rendering()
    ticks = {  # those out of sight are there too
        label
        for axis in figure.findobj(Axis)
        for label in axis.get_ticklabels(which="both")
    }
    found = []
    for text in figure.findobj(Text):
        if not text.get_visible() or not text.get_text().strip():
            continue
        box, whole = text.get_window_extent(), figure.bbox.padded(1)
        inside = whole.contains(*box.min) and whole.contains(*box.max)
        if text.get_fontsize() * pixels < SMALLEST or not (inside or text in ticks):
            found.append(text.get_text())
    return found


def apart(levels: list[float], least: float) -> np.ndarray:
    """Ascending levels moved until no two are nearer than `least`: of labels."""
    levels = np.array(levels, float)
    for _ in range(500):
        for i in range(len(levels) - 1):
            lack = least - (levels[i + 1] - levels[i])
            if lack > 1e-9:
                levels[i] -= lack / 2
                levels[i + 1] += lack / 2
    return levels


# --- for dark pages -----------------------------------------------------------------


def darken(figure: Figure) -> None:
    """Turn greys round in place. What lies on a map of colours stays as it is."""
    stay = {artist for axes in figure.axes if is_map(axes) for artist in within(axes)}
    for artist in figure.findobj(lambda artist: artist not in stay):
        turn(artist)


def is_map(axes: Axes) -> bool:
    """Whether the ground of the axes has colours of its own."""
    return any(isinstance(one, ContourSet) for one in axes.collections)


def within(axes: Axes) -> list[Artist]:
    return [*axes.lines, *axes.texts, *axes.patches, *axes.collections, axes.patch]


def turn(artist: Artist) -> None:
    if isinstance(artist, Line2D):
        face, edge = artist.get_markerfacecolor(), artist.get_markeredgecolor()
        artist.set_color(turned(artist.get_color()))
        artist.set_markerfacecolor(turned(face))  # which may follow the line's
        artist.set_markeredgecolor(turned(edge))
    elif isinstance(artist, Text):
        artist.set_color(lighter(turned(artist.get_color())))
    elif isinstance(artist, Patch):
        artist.set_facecolor(turned(artist.get_facecolor()))
        artist.set_edgecolor(turned(artist.get_edgecolor()))
    elif isinstance(artist, Collection) and artist.get_array() is None:
        artist.set_facecolor([turned(one) for one in artist.get_facecolor()])
        edges = to_rgba_array(artist.get_edgecolor())
        artist.set_edgecolor([turned(one) for one in edges])


def turned(colour) -> tuple[float, float, float, float]:
    """A grey as light as it was dark; any other colour as it is."""
    red, green, blue, alpha = to_rgba(colour)
    if np.ptp([red, green, blue]) > 0.02:
        return red, green, blue, alpha
    grey = BRIGHT + (GROUND - BRIGHT) * red
    return grey, grey, grey, alpha


def lighter(colour) -> tuple[float, float, float, float]:
    """Of coloured letters: half way to white, so that thin strokes can be read."""
    red, green, blue, alpha = colour
    if np.ptp([red, green, blue]) < 0.02:
        return colour
    return (red + 1) / 2, (green + 1) / 2, (blue + 1) / 2, alpha
