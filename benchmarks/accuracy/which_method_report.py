"""Tables and the picture of which_method.py, from what its JSON holds."""

import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from rich.console import Console
from rich.table import Table

from benchmarks.lib import methods, report

COLOURS = {
    "two gradients": "#000000",
    "a part of the batch climbs or descends": "#009e73",
    "SAM on a fifth of the steps": "#0072b2",
    "one gradient": "#d55e00",
    "no climb": "#777777",
}


def verdict(row: dict, share: float) -> str:
    """Reached only if the whole interval lies above."""
    low, high = row["share_interval"]
    if low > share:
        return "reached"
    return "not reached" if high < share else "not shown"


def of_task(result: dict, task: str) -> list[dict]:
    return [row for row in result["methods"] if row["task"] == task]


def of_nominated(result: dict, task: str) -> list[dict]:
    rows = {row["method"]: row for row in of_task(result, task)}
    return [rows[name] for name in result["nominated"]]


# --- tables -------------------------------------------------------------------------


def print_tables(result: dict, console: Console) -> None:
    for task in result["titles"]:
        console.print(table(result, task))
    console.print("(at the edge of its grid)   * nominated on validation images")
    for task in result["titles"]:
        for row in of_nominated(result, task):
            console.print(
                f"{task}, {row['method']}: {result['share_to_keep']:.0%} of SAM's gain "
                f"{verdict(row, result['share_to_keep'])}: {percent(row)}"
            )
    console.print(alphas(result))


def table(result: dict, task: str) -> Table:
    title = f"{result['titles'][task]}; test images, {len(result['seeds'])} new seeds"
    grid = Table(title=title, title_justify="left")
    grid.add_column("method", no_wrap=True)
    for name in (
        "gradients\na step",
        "lr",
        "decay",
        "rho",
        "gain over\nthe base",
        "share of SAM's\n(95 %)",
        "gain over base,\nbest length",
        "gain on\nvalidation",
    ):
        grid.add_column(name, justify="right", no_wrap=True)
    rows = sorted(
        of_task(result, task), key=lambda row: (row["gradients"], -row["gain"][0])
    )
    for row in rows:
        star = " *" if row["method"] in result["nominated"] else ""
        alpha = f", α {row['alpha']:g}" if "Look" in row["method"] else ""
        grid.add_row(
            row["method"] + alpha + star,
            f"{row['gradients']:.2f}",
            *(number(row, name) for name in ("lr", "decay", "rho")),
            report.plus_minus(row["gain"], 2, "+"),
            "{:.2f} ({:.2f} to {:.2f})".format(row["share"], *row["share_interval"]),
            report.plus_minus(row["gain_over_best_length"], 2, "+"),
            report.plus_minus(row["validation_gain"], 2, "+"),
        )
    return grid


def number(row: dict, name: str) -> str:
    """In brackets at the edge of its grid."""
    text = f"{row[name]:g}"
    return f"({text})" if row["at_edge"] and name in row["at_edge"] else text


def alphas(result: dict) -> Table:
    """LookSAM's best validation accuracy with each alpha."""
    grid = Table(title="LookSAM's alpha: best validation accuracy, %, of its grid")
    grid.add_column("task and method", no_wrap=True)
    values = list(dict.fromkeys(row["alpha"] for row in result["alpha"]))
    for alpha in values:
        grid.add_column(f"α = {alpha:g}", justify="right", no_wrap=True)

    def of(row: dict) -> tuple[str, str]:
        return row["task"], row["method"]

    for key, rows in itertools.groupby(result["alpha"], of):
        cells = [report.plus_minus(row["validation_accuracy"], 2) for row in rows]
        grid.add_row(", ".join(key), *cells)
    return grid


def percent(row: dict) -> str:
    low, high = row["share_interval"]
    return f"{100 * row['share']:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


# --- the picture --------------------------------------------------------------------


def draw(result: dict, path: Path) -> None:
    report.picture_style()
    titles = result["titles"]
    figure, axes = plt.subplots(
        len(titles), 1, figsize=(11, 6 * len(titles)), squeeze=False
    )
    for one, (task, title) in zip(axes[:, 0], titles.items(), strict=True):
        draw_task(one, result, of_task(result, task))
        claims = [
            f"{row['method']} keeps {percent(row)} of SAM's gain: "
            f"{result['share_to_keep']:.0%} {verdict(row, result['share_to_keep'])}"
            for row in of_nominated(result, task)
        ]
        one.set_title("\n".join([title, *claims]))
    axes[-1, 0].set_xlabel("gradients evaluated, per step of the base")
    marks = [
        Line2D([], [], marker="o", ls="", color=colour, label=name)
        for name, colour in COLOURS.items()
    ]
    axes[0, 0].legend(handles=marks, loc="lower left", fontsize=9.5, frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def draw_task(axes: Axes, result: dict, rows: list[dict]) -> None:
    """Gain against cost; the labels stand beside each group of the same cost."""
    sam = next(row for row in rows if row["method"] == "SAM")["gain"][0]
    aim, limit = result["share_to_keep"] * sam, result["cost_limit"] + 0.04
    axes.axhline(0, color="#777777", lw=1)
    axes.axhline(aim, color="#0072b2", lw=1, ls=(0, (4, 3)))
    # Below the lowest groups there is nothing to see; far outliers are drawn anyway.
    lows, highs = zip(*(error_bar(row) for row in rows), strict=True)
    height = max(highs) - min(lows)
    axes.set_ylim(min(lows) - 0.1 * height, max(highs) + 0.12 * height)
    axes.set_xlim(-0.15, 2.4)
    axes.set_xticks([0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.6, 1.8, 2])
    top = axes.get_ylim()[1]
    axes.add_patch(
        Rectangle(
            (-0.15, aim), limit + 0.15, top - aim, color="#0072b2", alpha=0.07, lw=0
        )
    )
    axes.annotate(
        f"asked for: {result['share_to_keep']:.0%} of SAM's gain\n"
        f"at {result['cost_limit']:g} gradients or fewer",
        (-0.13, top - 0.02 * height),
        va="top",
        fontsize=10,
        color="#0072b2",
    )
    by_cost: dict[float, list[dict]] = {}
    for row in rows:
        by_cost.setdefault(round(row["gradients"], 2), []).append(row)
    for place, group in by_cost.items():
        draw_group(axes, place, group, result["nominated"], height)
    axes.set_ylabel("gain over the base, points of\ntest accuracy (± standard error)")


def error_bar(row: dict) -> tuple[float, float]:
    mean, error = row["gain"]
    return mean - error, mean + error


def draw_group(axes: Axes, place: float, group, names, height: float) -> None:
    """Methods of one cost side by side, in the order of their gains."""
    group = sorted(group, key=lambda row: row["gain"][0])
    levels = spread([row["gain"][0] for row in group], 0.058 * height)
    offsets = np.linspace(-1, 1, len(group)) * min(0.012 * (len(group) - 1), 0.035)
    # To the left where the next group stands on the right.
    side = -1 if place <= 1 or place == 1.83 else 1
    for row, level, offset in zip(group, levels, offsets, strict=True):
        mean, error = row["gain"]
        colour, x, end = colour_of(row), place + offset, place + side * 0.075
        axes.errorbar(x, mean, error, color=colour, lw=1.5, zorder=3)
        axes.plot(x, mean, "o", color=colour, ms=6, mec="white", zorder=4)
        axes.plot([x, end], [mean, level], color=colour, lw=0.6, alpha=0.6)
        axes.annotate(
            row["method"].replace(", ", ",\n") if place < 1 else row["method"],
            (end + side * 0.01, level),
            ha="right" if side < 0 else "left",
            va="center",
            fontsize=10.5,
            color=colour,
            weight="bold" if row["method"] in names else "normal",
            bbox={"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 0.5},
        )


def spread(levels: list[float], distance: float) -> np.ndarray:
    """Ascending levels moved apart until no two labels overlap."""
    levels = np.array(levels, float)
    for _ in range(500):
        for i in range(len(levels) - 1):
            lack = distance - (levels[i + 1] - levels[i])
            if lack > 1e-9:
                levels[i] -= lack / 2
                levels[i + 1] += lack / 2
    return levels


def colour_of(row: dict) -> str:
    two, part, fifth, one, none = COLOURS.values()
    method = methods.BY_NAME.get(row["method"])
    if method is None or method.make is None:
        return none
    if method.skips:
        return fifth
    return {1: one, 2: two}.get(method.gradients, part)
