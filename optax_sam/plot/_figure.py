"""Figures, styles and scales that all pictures share."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Black first: alone it needs no colour, and beside others it is the baseline.
_COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00")
_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
_MARKERS = ("o", "s", "^", "D", "v", "P")


def new_or_given(ax: Axes | None) -> Axes:
    """The axes, or those of a new figure."""
    return take_axes(None if ax is None else [ax], 1)[0]


def take_axes(
    axes: Sequence[Axes] | None, count: int, columns: int | None = None, **options: Any
) -> list[Axes]:
    """As many axes as were given, or those of a new figure."""
    if axes is None:
        columns = count if columns is None else columns
        rows = count // columns
        size = (4.6 if count == 1 else 3.6) * columns, 3.2 if rows == 1 else 2.5 * rows
        figure = plt.figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, **options)
        return list(grid.ravel())
    panels = list(np.ravel(np.asarray(axes, object)))
    if len(panels) != count:
        raise ValueError(f"{count} panels need as many axes, got {len(panels)}.")
    return panels


def figure_of(ax: Axes) -> Figure:
    """The figure that holds these axes, however deep."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def require(items: Mapping[str, Any]) -> None:
    """Refuse an empty picture."""
    if not items:
        raise ValueError("There is nothing to draw: give {name: values}.")


def styles(items: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A style for each line: colour, dashes and marker all differ."""
    require(items)
    return [
        {
            "color": _COLORS[i % len(_COLORS)],
            "linestyle": _LINES[i % len(_LINES)],
            "marker": _MARKERS[i % len(_MARKERS)],
            "markersize": 4,
            "linewidth": 1.5,
        }
        for i in range(len(items))
    ]


def every(size: int) -> int:
    """At which of the points a marker stands."""
    return max(1, size // 10)


def line(values: Any) -> Any:
    """The values as one row of floats."""
    line = np.asarray(values, float)
    if line.ndim != 1 or line.size == 0:
        raise ValueError(f"A line of numbers was expected, got shape {line.shape}.")
    return line


def legend(ax: Axes, names: Mapping[str, Any]) -> None:
    """A legend, where there is more than one line to tell apart."""
    if len(names) > 1:
        ax.legend(frameon=False, fontsize="small")


def tidy(ax: Axes) -> Figure:
    """The figure, without the spines that say nothing."""
    ax.spines[["top", "right"]].set_visible(False)
    return figure_of(ax)
