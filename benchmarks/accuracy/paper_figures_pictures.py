"""The pictures of paper_figures.py, one for each claim, from what its JSON holds."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from benchmarks.accuracy.paper_claims import CONTROL, cell, looks, test
from benchmarks.accuracy.paper_figures_report import NAMES, rise_names
from benchmarks.lib import pictures, report, statistics
from benchmarks.lib.runs import column

STYLES = {
    "SGD": report.STYLES["base"],
    CONTROL: report.STYLES["best"],
    "SAM": report.STYLES["SAM"],
    "ASAM": report.STYLES["ASAM"],
}


def draw(result: dict, path: Path) -> list[Path]:
    """Written beside `path`, each with the name of its claim behind it."""
    panels = {
        "climbs": climbs,
        "second_order": second_order,
        "eigenvalues": eigenvalues,
        "lengths": lengths,
        "radii": radii,
        "rescaling": rescaling,
    }
    for name, panel in panels.items():
        figure, axes = pictures.new(3.2)
        pictures.title(figure, panel(axes, result))
        pictures.save(figure, named(path, name))
    return [named(path, name) for name in panels]


def named(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}_{name}.png")


def band(axes: Axes, x, values: np.ndarray, **style) -> None:
    """The mean over seeds, within two standard errors."""
    mean, error = np.array([statistics.mean_and_error(one) for one in values.T]).T
    axes.fill_between(
        x, mean - 2 * error, mean + 2 * error, color=style["color"], alpha=0.2, lw=0
    )
    axes.plot(x, mean, **style)


def bands(values: np.ndarray) -> str:
    return f"bands: two standard errors of {len(values)} seeds"


def plain_log(axis, subs=(1,)) -> None:
    """Ticks as numbers, not as powers."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def direct(axes: Axes, x, y, text: str, style, **place) -> None:
    """The name of a line, beside it."""
    where = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(text, (x, y), color=style["color"], **(where | place))


def climbs(axes: Axes, result: dict) -> str:
    names = list(result["chosen"])
    for place, name in enumerate(names):
        values = test(result, name)
        mean, error = statistics.mean_and_error(values)
        colour = STYLES.get(name, report.STYLES["control"])["color"]
        axes.plot(
            *(values, np.full(len(values), place + 0.25)),
            *("o",),
            **{"color": colour, "ms": 4, "alpha": 0.5, "mew": 0},
        )
        axes.errorbar(mean, place, xerr=2 * error, fmt="D", color=colour, lw=2, ms=6)
    axes.axvline(test(result, "SGD").mean(), color="#bbbbbb", ls=(0, (2, 2)))
    labels = ["p = 2 (SAM)" if name == "SAM" else name for name in names]
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    seeds = len(result["seeds"])
    axes.set_xlabel(
        f"test accuracy, % (bars: two standard errors; dots: each of {seeds} seeds)"
    )
    return "Which climb: each tuned"


def second_order(axes: Axes, result: dict) -> str:
    at, cosine = looks(result, "SAM", "looked_at")[0], looks(result, "SAM", "cosine")
    band(axes, at, cosine, marker="o", **STYLES["SAM"])
    axes.set_ylim(min(0.95, axes.get_ylim()[0]), 1)  # so that small looks small
    axes.set_xlabel(f"epoch ({bands(cosine)})")
    axes.set_ylabel("cosine")
    return "SAM's gradient and the one that keeps the second-order term: cosine"


def eigenvalues(axes: Axes, result: dict) -> str:
    at = looks(result, "SGD", "looked_at")[0]
    for name in NAMES:
        values = looks(result, name, "held_out")
        style = STYLES[name] | {"ls": "-"}
        band(axes, at, values[:, :, 0], **style)
        band(axes, at, values[:, :, -1], **(style | {"ls": ":"}))
        direct(axes, at[-1], values[:, -1, 0].mean(), name, style)
    axes.set_yscale("log")
    plain_log(axes.yaxis, (1, 2, 5))
    axes.set_xlabel(f"epoch ({bands(values)})")
    axes.set_ylabel("eigenvalue")
    return (
        "Hessian of the held-out loss along training: "
        r"$\lambda_\mathrm{max}$ (line) and $\lambda_5$ (dots)"
    )


def lengths(axes: Axes, result: dict) -> str:
    at = np.array(result["lengths"]) * result["epochs"]
    for name in NAMES:
        found = [test(result, name, length=length) for length in result["lengths"]]
        band(axes, at, np.array(found).T, marker="o", **STYLES[name])
        direct(axes, at[-1], found[-1].mean(), name, STYLES[name])
    axes.set_xscale("log")
    axes.set_xticks(at, [f"{epochs:g}" for epochs in at])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"epochs ({bands(np.array(found).T)})")
    axes.set_ylabel("test accuracy, %")
    return f"Longer training, at the settings for {result['epochs']} epochs"


def radii(axes: Axes, result: dict) -> str:
    """What lies far below is where training collapses: the lines leave the panel."""
    lowest = 100.0
    for name in ("SAM", "ASAM"):
        rhos = result["ladders"][name]
        found = np.array([test(result, name, rho=rho) for rho in rhos])
        lowest = min(lowest, found[0].mean())
        band(axes, rhos, found.T, marker="o", **STYLES[name])
        top = found.mean(1).argmax()
        place = {"xytext": (0, 9), "ha": "center"}
        direct(axes, rhos[top], found[top].mean(), name, STYLES[name], **place)
    level = test(result, "SGD").mean()
    axes.axhline(level, color="#999999", ls=(0, (2, 2)))
    axes.set_ylim(bottom=lowest - 3)
    axes.margins(y=0.15)
    axes.set_xscale("log")
    plain_log(axes.xaxis)
    place = {"xytext": (0, 7), "ha": "left"}
    left = axes.get_xlim()[0]
    direct(axes, left, level, " SGD", report.STYLES["base"], **place)
    axes.set_xlabel(f"ρ ({bands(found.T)})")
    axes.set_ylabel("test accuracy, %")
    return "Response to ρ: beyond the edge training collapses"


def rescaling(axes: Axes, result: dict) -> str:
    styles = (STYLES["SAM"], STYLES["ASAM"], report.STYLES["control"])
    for name, style in zip(rise_names(result), styles, strict=True):
        rise = column(result, "looks", cell(result, "SGD"), name)
        values = rise / rise[:, :1]
        label = name.removeprefix("rise, ")
        band(axes, result["factors"], values, marker="o", label=label, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    plain_log(axes.yaxis, (1, 2, 5))
    axes.set_xticks(result["factors"], [str(c) for c in result["factors"]])
    axes.set_xlabel(f"c: first layer times c, second over c ({bands(values)})")
    axes.set_ylabel("rise, over that at c = 1")
    axes.legend()
    return "The same network, rescaled: the rise of the loss in one climb"
