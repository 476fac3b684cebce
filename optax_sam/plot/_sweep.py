"""What climbs of several radii do."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optax_sam.plot._figure import (
    every,
    figure_of,
    legend,
    line,
    styles,
    take_axes,
    tidy,
)


def radius_sweep(sweep: Any, *, axes: Sequence[Axes] | None = None) -> Figure:
    """How far the loss rises and the gradient turns, over the radius of the climb.

    On the left the rise as measured beside the one that a linear loss would have, on
    logarithmic axes; on the right the cosine of the clean and the climbed gradient.
    Where the two lines on the left are one and the cosine is 1, the climb is too short
    to see any curvature; where the cosine nears 0, it is too long. Bands are one
    standard error of the mean over the batches, up and down. What has no place on a
    logarithmic axis leaves a gap: a radius of 0, a loss that falls.

    Args:
      sweep: an `optax_sam.measure.RadiusSweep`, of two radii at least.
      axes: two, for the rise and the cosine; `None` is a new figure.

    Returns:
      The figure of the axes.

    Raises:
      ValueError: fewer than two positive radii; another number of axes than two.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> from optax_sam import measure, plot
      >>> sweep = measure.radius_sweep(lambda w: jnp.sum(w**4), jnp.ones(3),
      ...     optax_sam.steepest_ascent, jnp.geomspace(0.01, 1, 9))
      >>> figure = plot.radius_sweep(sweep)
    """
    rhos = line(sweep.rhos)
    if np.sum(rhos > 0) < 2:
        raise ValueError(
            f"radius_sweep draws lines over the radius, but was given rhos {rhos}. "
            f"Sweep over at least two positive ones: jnp.geomspace(0.01, 1, 9)."
        )
    order = np.argsort(rhos)
    order = order[rhos[order] > 0]
    rises, turns = take_axes(axes, 2)
    lines = {"as measured": sweep.rise, "if the loss were linear": sweep.predicted_rise}
    for (name, one), style in zip(lines.items(), styles(lines), strict=True):
        _draw(rises, rhos, one, order, style, name, positive=True)
    (black,) = styles({"cosine": sweep.cosine})
    _draw(turns, rhos, sweep.cosine, order, black, "", positive=False)
    rises.set(xscale="log", yscale="log", xlabel="rho", ylabel="rise of the loss")
    turns.set(xscale="log", xlabel="rho", ylabel="cosine of the gradients")
    turns.axhline(1, color="0.6", lw=0.8, zorder=0)
    turns.axhline(0, color="0.6", lw=0.8, zorder=0)
    legend(rises, lines)
    for ax in (rises, turns):
        tidy(ax)
    return figure_of(rises)


def _draw(
    ax: Axes,
    rhos: Any,
    one: Any,
    order: Any,
    style: dict[str, Any],
    name: str,
    *,
    positive: bool,
) -> None:
    """A line and its band, in the order of the radii."""
    mean, error = (np.asarray(x, float)[order] for x in one)
    low, high = mean - error, mean + error
    if positive:  # a logarithm has none below zero
        mean = np.where(mean > 0, mean, np.nan)
        low = np.where(low > 0, low, mean)
    if np.isfinite(error).any():
        # One entry of the legend for all bands: that of the first, which is measured.
        label = "± standard error" if name == "as measured" else None
        look = {"color": style["color"], "alpha": 0.25, "lw": 0}
        ax.fill_between(rhos[order], low, high, label=label, **look)
    ax.plot(rhos[order], mean, label=name, markevery=every(mean.size), **style)
