"""What peers.py found: ratios of times, means, and the tables."""

from statistics import median

import numpy as np
from rich.console import Console

from benchmarks.accuracy.peers_jobs import CONTRIB, OURS, SGD, TORCH, TORCH_SGD
from benchmarks.lib import report, statistics

RATIOS = (
    (OURS, SGD),
    (CONTRIB, SGD),
    (OURS, CONTRIB),
    (TORCH, TORCH_SGD),
    (OURS, TORCH),
)


def ratios(rows: dict) -> dict[str, dict]:
    """How many times as long a step of the first takes, round by round."""
    found = {}
    for first, second in RATIOS:
        if not (rows[first] and rows[second]):
            found[f"{first} / {second}"] = None
            continue
        speeds = (np.array(rows[n]["steps_per_second"]) for n in (second, first))
        low, median, high = np.percentile(np.divide(*speeds), [25, 50, 75])
        found[f"{first} / {second}"] = {"median": median, "middle_half": (low, high)}
    return found


def summary(result: dict) -> dict:
    made = {}
    for name, network in result["networks"].items():
        rows = network["methods"]
        ours = np.array(rows[OURS]["test_accuracy"])
        made[name] = {"time_ratios": ratios(rows), "methods": {}}
        for method, row in rows.items():
            made[name]["methods"][method] = row and {
                "steps_per_second": median(row["steps_per_second"]),
                "test_accuracy": statistics.mean_and_error(row["test_accuracy"]),
                "difference": statistics.mean_and_error(row["test_accuracy"] - ours),
            }
    return made


def print_tables(result: dict, console: Console) -> None:
    for name, found in result["summary"].items():
        table = report.table(
            f"{name}, {len(result['seeds'])} seeds",
            *("method", "steps a second", "peak MB", "rise, MB"),
            *("test accuracy, %", f"over {OURS}"),
        )
        for method, row in found["methods"].items():
            if row is None:
                table.add_row(method, "not run")
                continue
            raw = result["networks"][name]["methods"][method]
            table.add_row(
                method,
                f"{row['steps_per_second']:.0f}",
                f"{raw['peak_megabytes']:.0f}",
                f"{raw['rise_megabytes']:.0f}",
                report.plus_minus(row["test_accuracy"], 2),
                report.plus_minus(row["difference"], 2, "+"),
            )
        console.print(table)
        agree = result["networks"][name].get("agreement") or {}
        for steps, apart in agree.items():
            console.print(f"  {OURS}, {TORCH}, float64, {steps} steps: {apart:.1e}")
        for pair, ratio in found["time_ratios"].items():
            text = "not run"
            if ratio:
                low, high = ratio["middle_half"]
                text = f"{ratio['median']:.2f} ({low:.2f} to {high:.2f})"
            console.print(f"  time of a step, {pair}: {text}")
    load = ", ".join(f"{x:.1f}" for x in result["load_average_before_the_times"])
    console.print(f"load average before the times: {load} ({result['cpus']} cores)")
