"""The table of fashion_paper.py: errors on the official test, beside the paper's."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks.lib import statistics
from benchmarks.lib.results_table import NOT_RUN, error
from benchmarks.lib.study import unpacked

TEST = 10_000


class Row(NamedTuple):
    """A method of methods.BY_NAME, and how many times the epochs it has."""

    method: str
    times: int


ROWS = {
    "base": Row("base", 1),
    "base, 2x epochs": Row("base", 2),
    "SAM": Row("SAM", 1),
}
GRADIENTS = 1 + 2 + 2  # of a batch, in one step of each row: twice the epochs, twice
PAPER = "Paper, WRN-28-10: 4.57 ± 0.07 without SAM, 3.98 ± 0.05 with it."
Runs = dict[str, list[dict]]  # by row, those that are there, in the order of the seeds


def table(title: str, runs: Runs, seeds: int, test: int = TEST) -> str:
    """Errors in %, gains in points; a row counts when all of its seeds are there."""
    lines = [f"{title}, official test", f"{'':18}{'error in %':>16}{'s':>8}"]
    whole = {row for row, found in runs.items() if len(found) == seeds}
    for row, found in runs.items():
        if row in whole:
            seconds = np.mean([run["seconds"] for run in found])
            lines.append(f"{row:18}{wrong(found, test):>16}{seconds:8.0f}")
        else:
            there = f"{len(found)} of {seeds} seeds" if found else NOT_RUN
            lines.append(f"{row:18}{there:>16}")
    if whole == set(runs):
        lines += gains(runs, test)
    note = f"Mean of {seeds} seeds ± standard error over seeds ± of {test:,} images."
    return "\n".join([*lines, note, PAPER])


def right(found: list[dict], test: int) -> np.ndarray:
    """Per-image correctness, (seeds, images)."""
    return np.stack([unpacked(run["right"], test) for run in found])


def wrong(found: list[dict], test: int) -> str:
    errors = 100 * (1 - right(found, test))
    mean, seeds = statistics.mean_and_error(errors.mean(1))
    images = statistics.error_of_images(errors.mean(0))
    return f"{mean:.2f} {error(seeds)} {error(images)}"


def gains(runs: Runs, test: int) -> Iterator[str]:
    """SAM's, and what may be said of the smaller one."""
    found = {
        row: statistics.gain(right(runs["SAM"], test), right(runs[row], test))
        for row in runs
        if row != "SAM"
    }
    for row, one in found.items():
        cell = f"{one.mean:+.2f} {error(one.seeds)} {error(one.images)}"
        yield f"{'SAM over ' + row:25}{cell}"
    word, _ = statistics.verdicts([statistics.smallest(found.values())])[0]
    yield f"Verdict on the smaller gain: {word}."


def of_time(row: dict, epochs: int, within: float, seeds: int) -> str:
    """What --time found of one network; a gradient of SAM is one of the base."""
    all_runs = GRADIENTS * seeds * row["epoch"] / 60  # minutes, for each epoch
    return (
        f"{row['network']:10} {row['parameters'] / 1e6:5.1f} M parameters, compiled in "
        f"{row['compile']:.0f} s, {1000 * row['step']:.1f} ms a step of the base: all "
        f"runs at {epochs} epochs take {all_runs * epochs:.0f} minutes; "
        f"{within:.0f} minutes allow {int(within / all_runs)} epochs"
    )
