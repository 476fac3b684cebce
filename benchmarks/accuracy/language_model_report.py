"""The table of language_model.py: nats per character, gains over AdamW, verdicts."""

import textwrap
from collections.abc import Iterator

import numpy as np

from benchmarks.lib import statistics
from benchmarks.lib.language import GRADIENTS
from benchmarks.lib.language_study import BASE_ROWS, CHOSEN, TWICE
from benchmarks.lib.results_table import NOT_RUN, WIDTH
from benchmarks.lib.statistics import Gain
from benchmarks.lib.store import Key, Store

COLUMNS = ("equal steps", "equal gradients", "chosen length")


def keys(head: dict) -> Iterator[Key]:
    """Seed by seed, so that what is there early is a whole comparison; each once,
    though the chosen length may be one of the others."""
    found: list[Key] = []
    for seed in head["seeds"]:
        for row in head["settings"]["rows"].values():
            if (key := key_of(head, row, seed)) not in found:
                found.append(key)
                yield key


def key_of(head: dict, row: dict, seed: int) -> Key:
    return {
        "study": head["study"],
        "settings_blob": head["settings_blob"],
        "method": row["method"],
        "steps": row["steps"],
        "settings": row["settings"],
        "seed": seed,
    }


class Results:
    """What a report found; a row counts when all of its seeds are there."""

    def __init__(self, store: Store):
        self.store, self.head = store, store.head
        self.rows = self.head["settings"]["rows"]

    def runs(self, row: str) -> list[dict]:
        """Those that are there, in the order of the seeds."""
        named = [key_of(self.head, self.rows[row], s) for s in self.head["seeds"]]
        return [found for key in named if (found := self.store.find(key))]

    def complete(self, row: str) -> bool:
        return len(self.runs(row)) == len(self.head["seeds"])

    def losses(self, row: str) -> np.ndarray:
        """Of each block, (seeds, blocks)."""
        return np.array([found["test"] for found in self.runs(row)])

    def methods(self) -> list[str]:
        return [name for name in self.rows if name not in (*BASE_ROWS, CHOSEN)]

    def gains(self, row: str) -> dict[str, Gain] | None:
        """In nats that are saved; None before all of its runs and theirs are there."""
        base, *_ = BASE_ROWS
        enough = TWICE if GRADIENTS[self.rows[row]["method"]] > 1 else base
        over = dict(zip(COLUMNS, (base, enough, CHOSEN), strict=True))
        if not all(map(self.complete, (row, *over.values()))):
            return None
        ours = self.losses(row)
        return {
            name: statistics.of_differences(self.losses(theirs) - ours)
            for name, theirs in over.items()
        }


def table(store: Store) -> str:
    """Losses of all rows, gains with verdicts, and how to read them."""
    found = Results(store)
    lines = [f"{'':31}{'test':>21}{'validation':>13}{'s':>7}"]
    lines += [f"{row:31}{of_row(found, row)}" for row in found.rows]
    lines += ["", f"{'gain':31}" + "".join(f"{name:>24}" for name in COLUMNS)]
    lines += gains(found)
    for note in notes(found):
        lines += textwrap.wrap(note, WIDTH)
    return "\n".join(lines)


def of_row(found: Results, row: str) -> str:
    runs = found.runs(row)
    if not found.complete(row):
        there = f"{len(runs)} of {len(found.head['seeds'])} seeds" if runs else NOT_RUN
        return f"{there:>21}"
    losses = found.losses(row)
    mean, seeds = statistics.mean_and_error(losses.mean(1))
    blocks = statistics.error_of_images(losses.mean(0))
    validation, seconds = (
        np.mean([run[what] for run in runs]) for what in ("validation", "seconds")
    )
    cell = f"{mean:.4f} {error(seeds)} {error(blocks)}"
    return f"{cell:>21}{validation:13.4f}{seconds:7.0f}"


def gains(found: Results) -> Iterator[str]:
    of_all = {row: found.gains(row) for row in found.methods()}
    smallest = [statistics.smallest(one.values()) for one in of_all.values() if one]
    words = iter(statistics.verdicts(smallest, len(of_all)))
    for row, one in of_all.items():
        if one is None:
            yield f"{row:31}{NOT_RUN:>24}"
            continue
        cells = "".join(f"{signed(one[name]):>24}" for name in COLUMNS)
        yield f"{row:31}{cells}  {next(words)[0]}"


def notes(found: Results) -> Iterator[str]:
    head = found.head
    yield (
        f"Nats per character, mean of {len(head['seeds'])} seeds ± standard error over "
        f"seeds ± over blocks of {head['block']:,} characters of the test text, by "
        f"bootstrap ({head['characters']:,} characters). Gains are in nats saved, in "
        "pairs: over AdamW at as many steps, as many gradients, and the length chosen "
        "on other text. The verdict is on the smallest of them, with Holm's "
        'correction over all methods at 0.05; "suggestive" is two standard errors '
        "from zero, and no more."
    )
    bounds = [
        f"{name} ({', '.join(row['at_bound'])})"
        for name, row in found.rows.items()
        if row["at_bound"]
    ]
    if bounds:
        yield f"Chosen at a bound: {'; '.join(bounds)}."
    yield f"Settings: git blob {head['settings_blob']}."


def signed(one: Gain) -> str:
    return f"{one.mean:+.4f} {error(one.seeds)} {error(one.images)}"


def error(value: float) -> str:
    """Six characters: "±.0012"; "±?" of a single value."""
    return f"±{value:.4f}".replace("±0.", "±.") if np.isfinite(value) else "±?"
