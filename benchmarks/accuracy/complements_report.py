"""Tables and picture of complements.py, from what its JSON holds."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.lib import pictures, report
from benchmarks.lib.runs import column

SETTINGS = ("lr", "decay", "rho", "strength")
COLOURS = {
    "complementary": report.STYLES["m-SAM"]["color"],
    "overlapping": "#d55e00",
    "unclear": "#777777",
}


def print_tables(result: dict, console: Console) -> None:
    table = Table(
        title="Cells, tuned on validation images (* at an edge of its grid)",
        title_justify="left",
    )
    for name in ("cell", "points", "lr", "decay", "rho", "strength", "test accuracy"):
        table.add_column(name, justify="left" if name == "cell" else "right")
    for name, cell in result["chosen"].items():
        edge = result["at_edge"][name]
        numbers = (f"{cell[key]:g}{'*' * (key in edge)}" for key in SETTINGS)
        accuracy = report.mean_and_error(column(result, "runs", cell, "test"))
        points = str(result["points"][name])
        table.add_row(name, points, *numbers, report.plus_minus(accuracy, 2))
    console.print(table)
    table = Table(
        title=f"Gains in points of test accuracy, {len(result['seeds'])} new seeds",
        title_justify="left",
    )
    names = ("technique", "SAM", "technique", "both", "over the better", "interaction")
    for name in (*names, "verdict"):
        table.add_column(name)
    keys = ("gain_of_sam", "gain_of_technique", "gain_of_both", "both_over_better")
    for row in result["summary"]:
        numbers = (
            report.plus_minus(row.get(k), 2, "+") for k in (*keys, "interaction")
        )
        table.add_row(row["technique"], *numbers, row["verdict"])
    console.print(table)


def draw(result: dict, path: Path) -> None:
    """What decides the verdict: the gain of both over the better one alone."""
    rows = [row for row in result["summary"] if row["verdict"] != "not run"]
    figure, axes = pictures.new(1.4 + 0.42 * len(rows))
    axes.axvline(0, color="#777777", lw=1.2)
    for place, row in enumerate(rows):
        mean, error = row["both_over_better"]
        colour = COLOURS[row["verdict"]]
        axes.errorbar(mean, place, xerr=2 * (error or 0), fmt="o", color=colour, ms=7)
        where = {"xycoords": ("axes fraction", "data"), "va": "center"}
        axes.annotate(row["verdict"], (1.02, place), color=colour, **where)
    axes.set_yticks(range(len(rows)), [f"SAM and {row['technique']}" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.set_xlabel(
        "gain over the better one alone, points of test accuracy\n"
        f"(bars: two standard errors of {len(result['seeds'])} seeds)"
    )
    pictures.title(figure, "What SAM and another regularizer gain together")
    pictures.save(figure, path)
