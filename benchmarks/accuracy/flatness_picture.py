"""The pictures of flatness.py: accuracies on one task, and the held-out loss around
each solution."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from benchmarks.lib import pictures, report
from benchmarks.lib.accuracies_picture import Line, chart

SHOWN = "mnist"  # the task of the first picture, where it was run
DRAWN = ("SAM", "m-SAM")  # beside the base, in the second


def draw(result: dict, path: Path) -> None:
    """`path` has the losses, `..._accuracy` the accuracies."""
    draw_flatness(result, path)
    draw_accuracies(result, path.with_stem(f"{path.stem}_accuracy"))


def with_role(rows: list[dict], role: str) -> dict:
    return next(row for row in rows if row["role"] == role)


def of_runs(row: dict, name: str) -> np.ndarray:
    return np.array([run[name] for run in row["runs"]])


# --- accuracies ---------------------------------------------------------------------


def draw_accuracies(result: dict, path: Path) -> None:
    """Every method of one task, with both optimizers, the best above."""
    comparisons = result["comparisons"]
    tasks = [one["task"] for one in comparisons]
    task = SHOWN if SHOWN in tasks else tasks[0]
    rows = [row for one in comparisons if one["task"] == task for row in one["methods"]]
    lines = [
        Line(
            label(row),
            of_runs(row, "test_accuracy"),
            report.STYLES[row["role"]]["color"],
        )
        for row in rows
    ]
    lines.sort(key=lambda line: -line.values.mean())
    chart(lines, accuracy_claim(comparisons, rows, task), path)


def label(row: dict) -> str:
    """With the optimizer in front, and the length of what has no other name."""
    optimizer = {"sgd": "SGD", "adamw": "AdamW"}[row["optimizer"]]
    if row["ascent"] is None:
        length = f"{optimizer}, {row['epochs']} epochs"
        return f"{length} (best)" if row["role"] == "best" else length
    return f"{optimizer} + {row['name'].removeprefix(f'{optimizer}, ')}"


def accuracy_claim(comparisons: list[dict], rows: list[dict], task: str) -> str:
    """What the best row gains over its optimizer at the best length."""
    first = next(one for one in comparisons if one["task"] == task)
    images = first["title"].split(",")[0]
    top = max(rows, key=lambda row: row["summary"]["test_accuracy"][0])
    noise = f"{images}, {100 * first['label_noise']:.0f} % of the training labels wrong"
    gained = top["summary"]["gain_over_best_length"]
    if gained is None:
        return f"{noise}: nothing beats {label(top)}"
    told = report.plus_minus(gained, 1, "+")
    base = label(top).split(" + ")[0]
    return f"{noise}.\n{label(top)}: {told} points over {base} at its best length"


# --- the held-out loss around each solution -----------------------------------------


def draw_flatness(result: dict, path: Path) -> None:
    """A panel for each comparison: base and SAM, along random directions."""
    comparisons = result["comparisons"]
    figure, axes = pictures.new(3.0, 1, len(comparisons), squeeze=False)
    for one, comparison in zip(axes[0], comparisons, strict=True):
        draw_landscape(one, comparison, result["landscape_distances"])
    axes[0, 0].set_ylabel("held-out loss")
    figure.supxlabel(
        "distance along random directions: median, and the middle 80 %", fontsize=10
    )
    pictures.title(
        figure,
        "The held-out loss around the solutions. Flatter: it rises less to both ends",
    )
    pictures.save(figure, path)


def draw_landscape(axes: Axes, comparison: dict, distances: list[float]) -> None:
    for row in comparison["methods"]:
        if row["role"] not in ("base", *DRAWN):
            continue
        style = report.STYLES[row["role"]]
        losses = np.concatenate([run["landscape"] for run in row["runs"]])
        low, median, high = np.percentile(losses, [10, 50, 90], axis=0)
        axes.fill_between(distances, low, high, color=style["color"], alpha=0.1, lw=0)
        axes.plot(distances, median, label=row["role"], **style)
    images = comparison["title"].split(" at ")[0].split(",")[0]
    axes.set_title(f"{images}, {flatness_claim(comparison['methods'])}")
    axes.set_xticks([-1, 0, 1])
    axes.legend(loc="upper center", fontsize=8, handlelength=1.2)


def flatness_claim(rows: list[dict]) -> str:
    """Says "flatter" only where the rise is smaller by two standard errors or more."""
    base = with_role(rows, "base")
    sharpness_aware = [row for row in rows if row["role"] in DRAWN]
    top = min(sharpness_aware, key=lambda row: row["summary"]["rise"][0])
    difference, error = top["summary"]["rise_over_base"]
    ours, theirs = top["summary"]["rise"][0], base["summary"]["rise"][0]
    verdict = "not flatter"
    if error is not None and difference < -2 * error:
        verdict = f"{100 * (1 - ours / theirs):.0f} % flatter"
    return f"{base['name']}:\n{top['role']} is\n{verdict}"
