"""Tables of paper_figures.py, from what its JSON holds."""

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.accuracy.paper_claims import CONTROL, cell, gap, measured, test
from benchmarks.lib import report, statistics
from benchmarks.lib.runs import column

NAMES = ("SGD", CONTROL, "SAM")  # whose trainings were lengthened


def shown(values: np.ndarray, digits: int, sign: str = "") -> str:
    return report.plus_minus(statistics.mean_and_error(values), digits, sign)


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
    table = report.table(
        f"a, b, e: tuned on validation images; {seeds}",
        *("method", "lr", "decay", "rho", "test accuracy, %", "over SGD"),
    )
    for name, found in result["chosen"].items():
        numbers = (f"{found[key]:g}" for key in ("lr", "decay", "rho"))
        accuracy = test(result, name)
        table.add_row(
            name,
            *numbers,
            shown(accuracy, 2),
            shown(accuracy - test(result, "SGD"), 2, "+"),
        )
    return table


def lengths(result: dict, seeds: str) -> Table:
    table = report.table(
        f"d: settings as for {result['epochs']} epochs; {seeds}",
        *("method", "epochs", "test accuracy, %", "gap, points", "weight norm"),
    )
    for name in NAMES:
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
    table = report.table(
        "e: rise of SGD's training loss by one climb after w1 * c and w2 / c",
        *("climb", *(f"c = {c}" for c in result["factors"])),
    )
    for name in rise_names(result):
        rise = column(result, "looks", cell(result, "SGD"), name)
        table.add_row(name.removeprefix("rise, "), *(shown(x, 4) for x in rise.T))
    return table


def rise_names(result: dict) -> list[str]:
    return [name for name in result["looks"][0] if name.startswith("rise, ")]
