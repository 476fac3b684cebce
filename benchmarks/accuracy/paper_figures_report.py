"""Tables and the picture of paper_figures.py, from what its JSON holds."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table

from benchmarks.accuracy.paper_claims import CONTROL, cell, gap, looks, measured, test
from benchmarks.lib import report
from benchmarks.lib.runs import column

STYLES = {
    "SGD": report.STYLES["base"],
    CONTROL: report.STYLES["best"],
    "SAM": report.STYLES["SAM"],
    "ASAM": report.STYLES["ASAM"],
}


# --- tables -------------------------------------------------------------------------


def grid_of(title: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    return table


def shown(values: np.ndarray, digits: int, sign: str = "") -> str:
    return report.plus_minus(report.mean_and_error(values), digits, sign)


def print_tables(result: dict, console: Console) -> None:
    seeds = f"{len(result['seeds'])} new seeds"
    console.print(tuned(result, seeds), lengths(result, seeds), climbs(result))
    table = Table(title="What the papers report, and the results here", show_lines=True)
    for name in ("", "the paper", "here", "first", "second", "difference", "verdict"):
        table.add_column(name)
    for row in result["claims"]:
        digits = 3 if max(abs(row.get("first", [0])[0]), 0) < 2 else 2
        numbers = [
            report.plus_minus(row.get(name), digits, "+" if name[0] == "d" else "")
            for name in ("first", "second", "difference")
        ]
        table.add_row(row["part"], row["paper"], row["what"], *numbers, row["verdict"])
    console.print(table)


def tuned(result: dict, seeds: str) -> Table:
    table = grid_of(
        f"a, b, e: tuned on validation images; {seeds}",
        *("method", "lr", "decay", "rho", "at an edge", "test accuracy, %", "over SGD"),
    )
    for name, found in result["chosen"].items():
        numbers = (f"{found[key]:g}" for key in ("lr", "decay", "rho"))
        accuracy = test(result, name)
        table.add_row(
            name,
            *numbers,
            ", ".join(result["at_edge"][name]),
            shown(accuracy, 2),
            shown(accuracy - test(result, "SGD"), 2, "+"),
        )
    return table


def lengths(result: dict, seeds: str) -> Table:
    table = grid_of(
        f"d: settings as for {result['epochs']} epochs; {seeds}",
        *("method", "epochs", "test accuracy, %", "gap, points", "weight norm"),
    )
    for name in (*STYLES,)[:3]:
        for length in result["lengths"]:
            table.add_row(
                name,
                str(int(length * result["epochs"])),
                shown(test(result, name, length=length), 2),
                shown(gap(result, name, length=length), 2, "+"),
                shown(measured(result, name, "weight_norm", length=length), 2),
            )
    return table


def climbs(result: dict) -> Table:
    table = grid_of(
        "e: rise of SGD's training loss by one climb after w1 * c and w2 / c",
        *("climb", *(f"c = {c}" for c in result["factors"])),
    )
    for name in rise_names(result):
        rise = column(result, "looks", cell(result, "SGD"), name)
        table.add_row(name.removeprefix("rise, "), *(shown(x, 4) for x in rise.T))
    return table


def rise_names(result: dict) -> list[str]:
    return [name for name in result["looks"][0] if name.startswith("rise, ")]


# --- the picture --------------------------------------------------------------------


def draw(result: dict, path: Path) -> None:
    report.picture_style()
    figure, axes = plt.subplots(2, 3, figsize=(16, 9.5), layout="constrained")
    panels = (
        draw_norms,
        draw_cosine,
        draw_spectrum,
        draw_lengths,
        draw_rho,
        draw_rises,
    )
    for one, panel in zip(axes.flat, panels, strict=True):
        panel(one, result)
    figure.savefig(path)
    plt.close(figure)


def band(axes: Axes, x, values: np.ndarray, **style) -> None:
    mean = values.mean(0)
    error = values.std(0, ddof=1) / len(values) ** 0.5
    axes.fill_between(x, mean - error, mean + error, color=style["color"], alpha=0.2)
    axes.plot(x, mean, **style)


def plain_log(axis, subs=(1,)) -> None:
    """Ticks as numbers, not as powers."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def draw_norms(axes: Axes, result: dict) -> None:
    names = list(result["chosen"])
    for place, name in enumerate(names):
        values = test(result, name)
        mean, error = report.mean_and_error(values)
        colour = STYLES.get(name, report.STYLES["control"])["color"]
        spread = place + 0.2 * np.linspace(-1, 1, len(values))
        axes.plot(values, spread, "o", color=colour, ms=4, alpha=0.35, mew=0)
        axes.errorbar(mean, place, xerr=error, color=colour, lw=2.5)
        axes.plot(mean, place, "D", color=colour, ms=7, mec="white")
    axes.axvline(test(result, "SGD").mean(), color="#bbbbbb", ls=(0, (2, 2)))
    labels = ["p = 2 (SAM)" if name == "SAM" else name for name in names]
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.set_xlabel("test accuracy, %")
    axes.set_title("a  Which climb (each tuned)")


def draw_cosine(axes: Axes, result: dict) -> None:
    at = looks(result, "SAM", "looked_at")[0]
    band(axes, at, looks(result, "SAM", "cosine"), marker="o", **STYLES["SAM"])
    axes.set_ylim(min(0.95, axes.get_ylim()[0]), 1)  # so that small looks small
    axes.set_xlabel("epoch")
    axes.set_ylabel("cosine")
    axes.set_title(
        "b  SAM's gradient and the one that keeps\nthe second-order term: cosine"
    )


def draw_spectrum(axes: Axes, result: dict) -> None:
    at = looks(result, "SGD", "looked_at")[0]
    for name in (*STYLES,)[:3]:
        values = looks(result, name, "held_out")
        style = STYLES[name] | {"ls": "-"}
        band(axes, at, values[:, :, 0], label=name, **style)
        band(axes, at, values[:, :, -1], **(style | {"ls": ":"}))
    axes.set_yscale("log")
    plain_log(axes.yaxis, (1, 2, 5))
    axes.set_xlabel("epoch")
    axes.set_ylabel("eigenvalues of the Hessian")
    axes.legend(frameon=False, fontsize=10)
    axes.set_title("c  Held-out loss along training:\nλ_max (line) and λ_5 (dots)")


def draw_lengths(axes: Axes, result: dict) -> None:
    at = np.array(result["lengths"]) * result["epochs"]
    for name in (*STYLES,)[:3]:
        found = [test(result, name, length=length) for length in result["lengths"]]
        band(axes, at, np.array(found).T, marker="o", label=name, **STYLES[name])
    axes.set_xscale("log")
    axes.set_xticks(at, [f"{epochs:g}" for epochs in at])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("epochs (settings those for the second length)")
    axes.set_ylabel("test accuracy, %")
    axes.legend(frameon=False, fontsize=10)
    axes.set_title("d  Longer training")


def draw_rho(axes: Axes, result: dict) -> None:
    """What lies far below is where training collapses: the lines leave the panel."""
    lowest = 100.0
    for name in ("SAM", "ASAM"):
        here = {key: result["chosen"][name][key] for key in ("lr", "decay", "epochs")}
        rhos = result["ladders"][name]
        found = [test(result, name, rho=rho) for rho in rhos]
        settings = f"lr {here['lr']:g}, decay {here['decay']:g}"
        label = f"{name} ({settings})"
        lowest = min(lowest, found[0].mean())
        band(axes, rhos, np.array(found).T, marker="o", label=label, **STYLES[name])
    axes.axhline(test(result, "SGD").mean(), color="#bbbbbb", ls=(0, (2, 2)))
    axes.set_ylim(bottom=lowest - 3)
    axes.set_xscale("log")
    plain_log(axes.xaxis)
    axes.set_xlabel("ρ")
    axes.set_ylabel("test accuracy, %")
    axes.legend(frameon=False, fontsize=10)
    axes.set_title(
        "e  Response to ρ (dashed: tuned SGD);\nbeyond the edge training collapses"
    )


def draw_rises(axes: Axes, result: dict) -> None:
    colours = (STYLES["SAM"], STYLES["ASAM"], report.STYLES["control"])
    for name, style in zip(rise_names(result), colours, strict=True):
        rise = column(result, "looks", cell(result, "SGD"), name)
        label = name.removeprefix("rise, ")
        values = rise / rise[:, :1]
        band(axes, result["factors"], values, marker="o", label=label, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    plain_log(axes.yaxis, (1, 2, 5))
    axes.set_xticks(result["factors"], [str(c) for c in result["factors"]])
    axes.set_xlabel("c: first layer times c, second layer over c")
    axes.set_ylabel("rise of the loss, over that at c = 1")
    axes.legend(frameon=False, fontsize=10)
    axes.set_title("e  The same network, rescaled")
