"""Table and picture of m_sharpness.py, from what its JSON holds."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator
from rich.console import Console
from rich.table import Table

from benchmarks.lib import pictures, report

NAMES = {"sgd": "SGD", "adamw": "AdamW"}
LOOKS = {
    "fixed": {"color": "#0072b2", "marker": "o", "ls": "--"},
    "best": {"color": "#009e73", "marker": "s", "ls": "-"},
}
MEASURES = {
    "test_accuracy": "test accuracy, %",
    "lambda_max_held_out": r"$\lambda_\mathrm{max}$ of the held-out loss",
}


def print_table(rows: list[dict], console: Console) -> None:
    table = Table(title="Test accuracy against m: mean ± standard error")
    for name in ("optimizer", "rho", "m"):
        table.add_column(name)
    for name in ("accuracy, %", "gain over m = 100", "λ_max, held-out"):
        table.add_column(name, justify="right")
    for row in sorted(rows, key=lambda r: (r["optimizer"], r["choice"], -r["m"])):
        table.add_row(
            NAMES[row["optimizer"]],
            f"{row['choice']}, {row['rho']:g}",
            str(row["m"]),
            report.plus_minus(row["test_accuracy"], 2),
            report.plus_minus(row["gain"], 2, "+"),
            report.plus_minus(row["lambda_max_held_out"], 1),
        )
    console.print(table)


def finding(best: list[dict]) -> str:
    """What the curve of the best radii shows; m is chosen on validation images."""
    top = max(best, key=lambda r: r["validation_accuracy"][0])
    if top["gain"] is None:
        return f"with ρ tuned for each m,\nnone is better than m = {top['m']}"
    mean, error = top["gain"]
    size = report.plus_minus((abs(mean), error), 1)
    words = f"gains {size} over" if mean > 0 else f"loses {size} to"
    return f"with ρ tuned for each m,\nm = {top['m']} {words} m = {best[0]['m']}"


def draw(result: dict, path: Path) -> None:
    """A column for each optimizer, a row for each measure, m falling to the right."""
    rows = result["summary"]
    optimizers = list(dict.fromkeys(row["optimizer"] for row in rows))
    figure, grid = pictures.new(
        5.4, 2, len(optimizers), squeeze=False, sharey="row", sharex=True
    )
    for column, optimizer in zip(grid.T, optimizers, strict=True):
        mine = [row for row in rows if row["optimizer"] == optimizer]
        for axes, measure in zip(column, MEASURES, strict=True):
            lines(axes, mine, measure)
        best = [row for row in mine if row["choice"] == "best"]
        column[0].set_title(f"{NAMES[optimizer]}: {finding(best)}")
        column[1].set_xlabel("m, examples that climb together")
        logarithmic(column[1])
    for axes, label in zip(grid[:, 0], MEASURES.values(), strict=True):
        axes.set_ylabel(label)
    fixed = next(row["rho"] for row in rows if row["choice"] == "fixed")
    texts = {"fixed": f"ρ = {fixed:g} for all m", "best": "best ρ for each m"}
    handles, _ = grid[0, 0].get_legend_handles_labels()
    seeds = len({run["seed"] for run in result["runs"]})
    figure.legend(
        *(handles, texts.values()),
        loc="outside lower center",
        ncols=2,
        title=f"bars: two standard errors of {seeds} seeds",
    )
    pictures.save(figure, path)


def lines(axes: Axes, rows: list[dict], measure: str) -> None:
    """Of both choices of rho."""
    for choice, look in LOOKS.items():
        mine = [row for row in rows if row["choice"] == choice]
        mean, error = np.array([row[measure] for row in mine], float).T
        ms = [row["m"] for row in mine]
        axes.errorbar(ms, mean, 2 * error, capsize=3, ms=5, label=choice, **look)
    axes.set_xscale("log")
    axes.set_xlim(1.2 * max(ms), min(ms) / 1.2)
    axes.set_xticks(ms, [str(m) for m in ms])
    axes.xaxis.set_minor_locator(NullLocator())


def logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
