"""What the diagnostics of a training say."""

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

#: For each panel its label, and the fields it shows with their names in the legend.
_PANELS: tuple[tuple[str, dict[str, str]], ...] = (
    ("loss", {"loss": "at w", "climbed_loss": "at w + climb"}),
    ("rise in one climb", {"sharpness": ""}),
    ("cosine of the gradients", {"cosine": ""}),
    (
        "norm",
        {
            "climb_norm": "climb",
            "grad_norm": "clean gradient",
            "climbed_grad_norm": "climbed gradient",
        },
    ),
)


def dashboard(
    diagnostics: Any, *, steps: Any = None, axes: Sequence[Axes] | None = None
) -> Figure:
    """What the diagnostics of a training say, against its steps, in four panels.

    The loss before and after the climb; their difference, the sharpness; the cosine
    between the two gradients; the length of the climb beside those of the gradients.
    A sharpness below zero or a climb that is not rho long is a climb gone wrong. Of
    many steps the lines are running means, over a fortieth of them.

    Args:
      diagnostics: any object with the attributes `loss`, `climbed_loss`, `sharpness`,
        `cosine`, `climb_norm`, `grad_norm` and `climbed_grad_norm`, arrays of one
        entry for each step: `Diagnostics` stacked by `jax.lax.scan`, say. Entries that
        are not finite leave a gap.
      steps: the steps they belong to, of shape (n,); `None` is 0, 1, 2, ...
      axes: four, for the panels in this order; `None` is a new figure.

    Returns:
      The figure of the axes.

    Raises:
      ValueError: diagnostics of a single step, or of another number than `steps`;
        another number of axes than four.

    Example:
      >>> import numpy as np, types
      >>> from optax_sam import plot
      >>> names = "loss climbed_loss sharpness cosine climb_norm grad_norm"
      >>> names = [*names.split(), "climbed_grad_norm"]
      >>> seen = types.SimpleNamespace(**{name: np.ones(9) for name in names})
      >>> figure = plot.dashboard(seen)
    """
    panels = take_axes(axes, 4, columns=2, sharex=True)
    size = np.size(diagnostics.loss)
    t = np.arange(size) if steps is None else line(steps)
    for ax, (label, lines) in zip(panels, _PANELS, strict=True):
        for (name, text), style in zip(lines.items(), styles(lines), strict=True):
            values = np.asarray(getattr(diagnostics, name), float)
            _check_steps(name, values, t)
            _draw(ax, t, values, text, style)
        ax.set_ylabel(label)
        legend(ax, lines)
        tidy(ax)
    panels[1].axhline(0, color="0.6", lw=0.8, zorder=0)
    panels[2].axhline(1, color="0.6", lw=0.8, zorder=0)
    panels[3].set_ylim(bottom=0)
    for ax in panels[2:]:
        ax.set_xlabel("step")
    return figure_of(panels[0])


def _draw(ax: Axes, t: Any, values: Any, text: str, style: dict[str, Any]) -> None:
    """A line; of many steps their running mean, over the steps themselves."""
    window = t.size // 40
    if window > 1:
        ax.plot(t, values, color=style["color"], alpha=0.2, linewidth=0.5)
        values = np.convolve(values, np.full(window, 1 / window), "valid")
        t = np.convolve(t, np.full(window, 1 / window), "valid")
    ax.plot(t, values, label=text, markevery=every(t.size), **style)


def _check_steps(name: str, values: Any, steps: Any) -> None:
    if values.ndim != 1 or values.shape != steps.shape or values.size < 2:
        raise ValueError(
            f"dashboard was given {name} of shape {values.shape} for {steps.size} "
            f"steps. Stack the diagnostics of at least two steps: jax.lax.scan does, "
            f"and so does jax.tree.map(lambda *x: jnp.stack(x), *diagnostics)."
        )
