"""The picture of which_rho.py, from what its JSON holds."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.lib import pictures, report


def draw(result: dict, path: Path, finding: str) -> None:
    """The curves of all tasks, with the tuned radius on each."""
    figure, axes = pictures.new(
        5.2, 2, len(result["rhos"]), sharex="col", sharey="row", squeeze=False
    )
    for column, (method, rhos) in zip(axes.T, result["rhos"].items(), strict=True):
        rows = [row for row in result["rows"] if row["method"] == method]
        draw_method(column, np.array(rhos), rows, method)
    axes[0, 0].set_ylabel("rise / linear prediction")
    axes[1, 0].set_ylabel("cosine of the gradients")
    look = {"color": "#666666", "ls": "", "marker": "o", "ms": 6}
    handles = [
        Line2D([], [], color="#666666", lw=1, label="one task"),
        Line2D([], [], **look, label="its tuned ρ"),
        Line2D([], [], **look, mfc="white", label="the same, at an edge of its grid"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    before, after = finding.split(", ")
    pictures.title(figure, f"Half way through the base's training. {before},\n{after}")
    pictures.save(figure, path)


def draw_method(axes: np.ndarray, rhos: np.ndarray, rows: list[dict], method: str):
    colour = report.STYLES[method]["color"]
    for row in rows:
        seen = {name: np.array(v, float) for name, v in row["curves"].items()}
        over_linear = seen["rise"] / seen["predicted_rise"]
        for one, values in zip(axes, (over_linear, seen["cosine"]), strict=True):
            here = np.interp(np.log(row["tuned"]), np.log(rhos), values)
            one.plot(rhos, values, color=colour, lw=1, alpha=0.45)
            face = "white" if row["at_edge"] else colour
            one.plot(row["tuned"], here, "o", color=colour, mfc=face, ms=6, zorder=3)
    tuned = [row["tuned"] for row in rows]
    upper, lower = axes
    scales(upper, min(tuned) / 8, max(tuned) * 8)
    upper.set_title(f"{method}, {len(rows)} tasks")
    lower.set(ylim=(-0.3, 1.05), xlabel="ρ")
    upper.axhline(1, color="#777777", lw=1, zorder=1)
    lower.axhline(0, color="#777777", lw=1, zorder=1)


def scales(axes: Axes, left: float, right: float) -> None:
    """Both logarithmic, with numbers, not powers."""
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(0.2, 50))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator())
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
