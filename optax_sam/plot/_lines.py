"""The loss along lines, and densities of eigenvalues."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from optax_sam.plot._figure import (
    every,
    legend,
    line,
    new_or_given,
    require,
    styles,
    tidy,
)


def landscape(
    distances: Any,
    losses: Mapping[str, Any],
    *,
    ax: Axes | None = None,
    xlabel: str = "distance along the direction",
    ylabel: str = "loss",
) -> Figure:
    """Slices of the loss around several solutions, on one scale.

    Args:
      distances: where the losses were taken, of shape (n,), as for
        `optax_sam.measure.loss_along`.
      losses: for each solution's name its losses, of shape (n,); or of shape
        (directions, n): then the median is drawn over a band from the lowest to the
        highest quarter.
      ax: where to draw; `None` is a new figure.
      xlabel, ylabel: what stands at the axes.

    Returns:
      The figure of the axes.

    Raises:
      ValueError: losses of another length than the distances; nothing to draw.

    Example:
      >>> import numpy as np
      >>> from optax_sam import plot
      >>> t = np.linspace(-1, 1, 11)
      >>> figure = plot.landscape(t, {"SGD": 4 * t**2, "SAM": t**2})
    """
    ax = new_or_given(ax)
    t = line(distances)
    for (name, values), style in zip(losses.items(), styles(losses), strict=True):
        rows = np.atleast_2d(np.asarray(values, float))
        if rows.ndim != 2 or rows.shape[1] != t.size:
            raise ValueError(
                f"landscape was given losses of shape {np.shape(values)} for {name!r} "
                f"at {t.size} distances. Give shape ({t.size},) or (directions, "
                f"{t.size})."
            )
        low, middle, high = np.quantile(rows, (0.25, 0.5, 0.75), axis=0)
        if len(rows) > 1:
            ax.fill_between(t, low, high, color=style["color"], alpha=0.15, lw=0)
        ax.plot(t, middle, label=name, markevery=every(t.size), **style)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    legend(ax, losses)
    return tidy(ax)


def spectral_densities(
    spectra: Mapping[str, Any], *, ax: Axes | None = None, floor: float = 1e-6
) -> Figure:
    """How many eigenvalues lie where, for several solutions, on a logarithmic scale.

    Drawn from the quadratures themselves, all with the same width of peaks, 1 % of
    the range that they span together: what is compared is smoothed alike.

    Args:
      spectra: for each solution's name its `optax_sam.measure.SpectralDensity`.
      ax: where to draw; `None` is a new figure.
      floor: where the vertical axis ends: the share of its highest density below
        which nothing is shown. One eigenvalue of n has the share 1/n of the mass.

    Returns:
      The figure of the axes.

    Raises:
      ValueError: nothing to draw.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_sam import measure, plot
      >>> density = measure.spectral_density(
      ...     lambda w: jnp.sum(w**4), jnp.arange(9.0), key=jax.random.key(0))
      >>> figure = plot.spectral_densities({"SGD": density})
    """
    ax = new_or_given(ax)
    require(spectra)
    nodes = {name: np.asarray(one.nodes, float) for name, one in spectra.items()}
    low, high = min(map(np.min, nodes.values())), max(map(np.max, nodes.values()))
    width = (high - low) / 100 or max(abs(high), 1) / 100
    grid = np.linspace(low - 5 * width, high + 5 * width, 1000)
    top = 0.0
    for (name, one), style in zip(spectra.items(), styles(spectra), strict=True):
        distance = (grid[:, None] - nodes[name].ravel()) / width
        peaks = np.exp(-(distance**2) / 2) / (width * np.sqrt(2 * np.pi))
        density = peaks @ np.asarray(one.weights, float).ravel() / len(nodes[name])
        ax.semilogy(grid, density, label=name, markevery=every(grid.size), **style)
        top = max(top, float(density.max()))
    ax.set(xlabel="eigenvalue of the Hessian", ylabel="density")
    ax.set_ylim(floor * top, 2 * top)
    legend(ax, spectra)
    return tidy(ax)
