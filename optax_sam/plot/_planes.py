"""The loss over planes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from optax_sam.plot._figure import (
    figure_of,
    line,
    require,
    take_axes,
)

_CMAP = "cividis"


def contours(
    xs: Any,
    ys: Any,
    losses: Mapping[str, Any],
    *,
    axes: Sequence[Axes] | None = None,
    num_levels: int = 12,
) -> Figure:
    """The loss over a plane through each of several solutions, on one scale.

    The levels are the same in all panels, evenly spaced in the logarithm of the rise
    above the lowest loss; a cross marks the solution itself, at (0, 0).

    Args:
      xs: the distances along the first direction, of shape (n,).
      ys: the distances along the second, of shape (m,).
      losses: for each solution's name its losses, of shape (n, m), as
        `optax_sam.measure.loss_plane` returns them.
      axes: one for each solution; `None` is a new figure.
      num_levels: about how many levels there are.

    Returns:
      The figure of the axes.

    Raises:
      ValueError: losses of another shape than (n, m); nothing to draw; another number
        of axes than of solutions.

    Example:
      >>> import numpy as np
      >>> from optax_sam import plot
      >>> x = np.linspace(-1, 1, 11)
      >>> bowl = x[:, None] ** 2 + x**2
      >>> figure = plot.contours(x, x, {"SGD": 9 * bowl, "SAM": bowl})
    """
    maps = _maps(xs, ys, losses)
    panels = take_axes(axes, len(maps), sharey=True)
    levels, norm = _levels(maps, num_levels)
    for ax, (name, values) in zip(panels, maps.items(), strict=True):
        # Contours have the first index upwards, `loss_plane` has it to the right.
        place = line(xs), line(ys), np.ma.masked_invalid(values.T)
        filled = ax.contourf(*place, levels=levels, norm=norm, cmap=_CMAP)
        ax.contour(*place, levels=levels, colors="black", linewidths=0.4)
        ax.plot(0, 0, "x", color="white", markersize=6, markeredgewidth=1.5)
        ax.set(title=name, xlabel="first direction", aspect="equal")
        ax.set_facecolor("0.8")  # where the loss is not finite
    panels[0].set_ylabel("second direction")
    figure = figure_of(panels[0])
    bar = figure.colorbar(filled, ax=panels, label="loss", format="%.2g", shrink=0.9)
    bar.ax.tick_params(labelsize="small")
    return figure


def surfaces(
    xs: Any, ys: Any, losses: Mapping[str, Any], *, axes: Sequence[Any] | None = None
) -> Figure:
    """The loss over a plane through each of several solutions, as landscapes in 3D.

    They share the height and the colours of `contours`, which is easier to read off.

    Args:
      xs, ys, losses: as for `contours`.
      axes: one with `projection="3d"` for each solution; `None` is a new figure.

    Returns:
      The figure of the axes.

    Raises:
      ValueError: as `contours`.

    Example:
      >>> import numpy as np
      >>> from optax_sam import plot
      >>> x = np.linspace(-1, 1, 11)
      >>> bowl = x[:, None] ** 2 + x**2
      >>> figure = plot.surfaces(x, x, {"SGD": 9 * bowl, "SAM": bowl})
    """
    maps = _maps(xs, ys, losses)
    panels: Any = take_axes(axes, len(maps), subplot_kw={"projection": "3d"})
    levels, norm = _levels(maps, 64)
    across, along = np.meshgrid(line(xs), line(ys), indexing="ij")
    for ax, (name, values) in zip(panels, maps.items(), strict=True):
        finite = np.where(np.isfinite(values), values, np.nan)
        ax.plot_surface(
            *(across, along, finite),
            **{"cmap": _CMAP, "norm": norm, "rcount": 40, "ccount": 40},
            **{"edgecolor": "black", "linewidth": 0.2},
        )
        ax.set(xlabel="first direction", ylabel="second direction")
        ax.set_title(name, y=0.95)
        ax.set_zlim(levels[0], levels[-1])
        ax.set_box_aspect(None, zoom=0.85)
        places = (ax.xaxis, 3, 4), (ax.yaxis, 3, 8), (ax.zaxis, 4, 4)
        for axis, ticks, space in places:
            axis.set_major_locator(MaxNLocator(ticks))
            axis.labelpad = space  # the labels lie aslant, beside their numbers
    panels[0].set_zlabel("loss")
    return figure_of(panels[0])


def _maps(xs: Any, ys: Any, losses: Mapping[str, Any]) -> dict[str, Any]:
    shape = line(xs).size, line(ys).size
    maps = {name: np.asarray(values, float) for name, values in losses.items()}
    require(maps)
    for name, values in maps.items():
        if values.shape != shape:
            raise ValueError(
                f"The losses of {name!r} have shape {values.shape}, but there are "
                f"{shape[0]} xs and {shape[1]} ys: {shape} was expected, as "
                f"loss_plane(loss_fn, params, first, second, xs, ys) returns it."
            )
    return maps


def _levels(maps: dict[str, Any], num_levels: int) -> tuple[Any, BoundaryNorm]:
    """Levels whose rise above the lowest loss grows by a constant factor."""
    finite = np.concatenate([v[np.isfinite(v)] for v in maps.values()])
    if finite.size == 0:
        raise ValueError("No loss of the plane is finite: take shorter directions.")
    low, high = finite.min(), finite.max()
    rise = high - low or 1.0
    levels = np.r_[low, low + np.geomspace(rise / 300, rise, num_levels - 1)]
    return levels, BoundaryNorm(levels, 256)
