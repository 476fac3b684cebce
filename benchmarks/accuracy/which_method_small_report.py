"""Tables and the picture of which_method_small.py, from what its JSON holds."""

import itertools
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from rich.console import Console
from rich.table import Table

from benchmarks.lib import methods, pictures, report

COLOURS = {
    "two gradients": "#000000",
    "a part of the batch climbs or descends": "#009e73",
    "SAM on a fifth of the steps": "#0072b2",
    "one gradient": "#d55e00",
    "no climb": "#777777",
}

LEFT = 0.1  # gradients a step, where the picture starts


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
    grid = report.table(
        title,
        "method",
        "gradients\na step",
        "lr",
        "decay",
        "rho",
        "gain over\nthe base",
        "share of SAM's\n(95 %)",
        "gain over base,\nbest length",
        "gain on\nvalidation",
    )
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
    """A panel a task: gain against cost, a name beside each point."""
    titles, keep = result["titles"], result["share_to_keep"]
    figure, axes = pictures.new(4.4 * len(titles), len(titles), squeeze=False)
    for one, (task, title) in zip(axes[:, 0], titles.items(), strict=True):
        draw_task(one, result, of_task(result, task))
        claims = [
            f"{row['method']} keeps {percent(row)} of SAM's gain: "
            f"{100 * keep:.0f} % {verdict(row, keep)}"
            for row in of_nominated(result, task)
        ]
        one.set_title("\n".join([title, *claims]), fontsize=9.5)
    axes[-1, 0].set_xlabel("gradients evaluated a step, over those of the base")
    pictures.save(figure, path)


def draw_task(axes: Axes, result: dict, rows: list[dict]) -> None:
    """The part asked for is shaded: nine tenths of SAM's gain at 1.2 gradients."""
    sam = next(row for row in rows if row["method"] == "SAM")["gain"][0]
    aim, limit = result["share_to_keep"] * sam, result["cost_limit"] + 0.01
    axes.axhline(0, color="#777777", lw=1)
    low = min(row["gain"][0] - 2 * row["gain"][1] for row in rows)
    high = max(row["gain"][0] + 2 * row["gain"][1] for row in rows)
    room = 0.08 * (high - low)
    axes.set_ylim(low - room, high + room)
    axes.set_xlim(LEFT, 2.4)
    axes.add_patch(
        Rectangle(
            (LEFT, aim),
            limit - LEFT,
            high + room - aim,
            color="#0072b2",
            alpha=0.07,
            lw=0,
        )
    )
    for place in dict.fromkeys(round(row["gradients"], 2) for row in rows):
        group = [row for row in rows if round(row["gradients"], 2) == place]
        draw_group(axes, place, group, result["nominated"], high - low)
    axes.set_ylabel("gain over the base, points of test\naccuracy; two standard errors")


def draw_group(axes: Axes, place: float, group, names, height: float) -> None:
    """Methods of one cost, their names beside them, moved apart where they meet."""
    group = sorted(group, key=lambda row: row["gain"][0])
    levels = pictures.apart([row["gain"][0] for row in group], 0.055 * height)
    side = -1 if place == 1 else 1  # to the left where the next group is near
    for row, level in zip(group, levels, strict=True):
        name = row["method"].replace("base, best ", "base,\nbest\n")
        (mean, error), colour = row["gain"], colour_of(row)
        axes.errorbar(place, mean, 2 * error, color=colour, lw=1, alpha=0.4)
        axes.plot(place, mean, "o", color=colour, ms=4.5, mec="white", mew=0.7)
        axes.annotate(
            name,
            (place + side * 0.025, level),
            ha="left" if side > 0 else "right",
            va="bottom" if mean == 0 else "center",  # not on the line of the base
            fontsize=8,
            color=colour,
            weight="bold" if row["method"] in names else "normal",
        )


def colour_of(row: dict) -> str:
    two, part, fifth, one, none = COLOURS.values()
    method = methods.BY_NAME.get(row["method"])
    if method is None or method.make is None:
        return none
    if method.skips:
        return fifth
    return {1: one, 2: two}.get(method.gradients, part)
