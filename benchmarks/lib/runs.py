"""Runs that need not be repeated: done side by side, kept in the JSON of a script.

A *cell* is a NamedTuple with a `method` and all else that is the same for every seed.
Tables hold, for each cell and seed, a dictionary of what was measured. Points of a grid
are compared on validation images of the tuning seeds.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib import report

# The small kernels of one run do not keep two cores busy, those of two runs do.
SIDE_BY_SIDE = 2
SAVE_EVERY = 20.0  # seconds


class Runs:
    """Tables of runs, and the file that they are kept in."""

    def __init__(self, path: Path, cell_type: type, tables: Iterable[str], progress):
        self.path, self.progress, self.saved = path, progress, time.monotonic()
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.tables = {name: read(old.get(name, []), cell_type) for name in tables}
        self.asked: dict[str, set] = {name: set() for name in self.tables}

    def run(self, table: str, cells, seeds, work: Callable, text: str) -> None:
        """`work(cell, seed)` for all that is missing; one thread compiles a method."""
        found = self.tables[table]
        asked = [(cell, seed) for cell in dict.fromkeys(cells) for seed in seeds]
        self.asked[table].update(asked)
        jobs = [(cell, seed) for cell, seed in asked if seed not in found.get(cell, {})]
        first = {cell.method: (cell, seed) for cell, seed in jobs}
        rest = [job for job in jobs if job not in first.values()]
        bar = self.progress.add_task(text, total=len(jobs))
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            for wave in (list(first.values()), rest):
                todo = {pool.submit(work, *job): job for job in wave}
                for done in as_completed(todo):
                    cell, seed = todo[done]
                    found.setdefault(cell, {})[seed] = done.result()
                    words = f"{text}: {cell.method}"
                    self.progress.update(bar, advance=1, description=words)
                    self.save_now_and_then()
        self.save()

    def best(self, cells: Iterable[Any], seeds) -> Any:
        """The cell with the highest mean validation accuracy, the first of equals."""

        def validation(cell) -> float:
            found = self.tables["runs"][cell]
            return rounded_mean([found[seed]["validation"] for seed in seeds])

        return max(cells, key=validation)

    def promising(self, cells: Iterable[Any], seed: int, count: int) -> list:
        """The best few on the validation images of one seed, the best first."""

        def validation(cell) -> float:
            return rounded_mean([self.tables["runs"][cell][seed]["validation"]])

        return sorted(cells, key=validation, reverse=True)[:count]

    def save_now_and_then(self) -> None:
        if time.monotonic() - self.saved > SAVE_EVERY:
            self.save()

    def finish(self, header: dict) -> None:
        """What was not asked for, of an earlier start with other grids, goes."""
        for name, table in self.tables.items():
            kept = {
                cell: {s: r for s, r in found.items() if (cell, s) in self.asked[name]}
                for cell, found in table.items()
            }
            self.tables[name] = {cell: found for cell, found in kept.items() if found}
        self.save(header)

    def save(self, more: dict | None = None) -> None:
        part = self.path.with_suffix(".part")
        tables = {name: written(table) for name, table in self.tables.items()}
        report.write_json(part, {**report.provenance(), **(more or {}), **tables})
        part.replace(self.path)
        self.saved = time.monotonic()


def rounded_mean(values) -> float:
    """So that what was read from the file ties as it did in the run."""
    return round(float(np.mean(values)), 3)


def product(*axes) -> tuple[tuple[float, float], ...]:
    """All points of a grid, in the order of its axes."""
    return tuple(itertools.product(*axes))


def written(table: dict) -> list[dict]:
    """One row for each cell: its numbers, the seeds, and a list for each measure."""
    rows = []
    for cell, found in table.items():
        seeds = sorted(found)
        columns = {
            name: [found[seed][name] for seed in seeds] for name in found[seeds[0]]
        }
        rows.append({**cell._asdict(), "seeds": seeds, **columns})
    return rows


def read(rows: list[dict], cell_type: type) -> dict:
    table: dict = {}
    for row in rows:
        columns = dict(row)
        cell = cell_type(*(columns.pop(name) for name in cell_type._fields))
        seeds = columns.pop("seeds")
        table[cell] = {
            seed: {name: column[i] for name, column in columns.items()}
            for i, seed in enumerate(seeds)
        }
    return table


def at_edge(grid: list, cell, names=("lr", "decay", "rho")) -> list[str]:
    """Which of the chosen numbers are the smallest or the largest of their grid."""
    found = []
    for name in names:
        values = {getattr(point, name) for point in grid}
        if len(values) > 1 and getattr(cell, name) in (min(values), max(values)):
            found.append(name)
    return found


def column(result: dict, table: str, cell: dict, name: str) -> np.ndarray:
    """A measure of the result's seeds, in their order; KeyError if it was not run.

    The seeds of a table are "seeds", or its own: those of "looks" are "looks_seeds".
    """
    seeds = result.get(f"{table}_seeds", result["seeds"])
    for row in result.get(table, []):
        if all(row[key] == value for key, value in cell.items()):
            at = {seed: i for i, seed in enumerate(row["seeds"])}
            return np.array([row[name][at[seed]] for seed in seeds])
    raise KeyError(f"{table}: {cell}")
