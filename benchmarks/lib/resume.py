"""Training runs longer than the time at hand: stopped cleanly, and gone on with later.

A command gets so many minutes. Before they are up the run in progress is saved whole,
and the same command, given again, goes on with the same bits. Killed at any other time,
a run goes on from what was saved last.
"""

import argparse
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.lib.models import count
from benchmarks.lib.store import Key, Store, named

START = 100.0  # seconds: with less no run is begun, nor what follows its last step
STOP = 20.0  # what is kept for saving, and for the steps that are under way
SAVE = 120.0  # between two saves
TIMED = 20  # steps


class OutOfTime(Exception):
    """The minutes are nearly up; all that was done is saved."""


class Clock:
    """Counts down from when it was made; None is no limit."""

    def __init__(self, minutes: float | None = None, now=time.monotonic):
        self.now = now
        self.end = None if minutes is None else now() + 60 * minutes

    def need(self, seconds: float) -> None:
        """Raise OutOfTime if less is left."""
        if self.short_of(seconds):
            raise OutOfTime

    def short_of(self, seconds: float) -> bool:
        return self.end is not None and self.end - self.now() < seconds


class Checkpoint:
    """The state of one run in one file, which is complete or is not there."""

    def __init__(self, path: Path):
        self.path = Path(path)

    @classmethod
    def of(cls, folder: Path, key: Key) -> "Checkpoint":
        """That of the run with this key."""
        name = hashlib.sha256(named(key).encode()).hexdigest()[:16]
        return cls(folder / f"{name}.npz")

    def save(self, number: int, seconds: float, state: Any) -> None:
        """After so many steps and seconds."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, np.int64(number), np.float64(seconds), *leaves(state))
        part.replace(self.path)

    def restore(self, like: Any) -> tuple[int, float, Any]:
        """Steps, seconds and state; those of the start where nothing was saved."""
        if not self.path.exists():
            return 0, 0.0, like
        with np.load(self.path) as file:
            number, seconds, *found = (file[name] for name in file.files)
        own = leaves(like)
        if [(x.shape, x.dtype) for x in found] != [(x.shape, x.dtype) for x in own]:
            raise ValueError(
                f"{self.path.name} was saved by a run of other shapes: it belongs to "
                "an older version of the script. Remove the file to start anew."
            )
        tree = jax.tree.structure(like)
        return int(number), float(seconds), jax.device_put(tree.unflatten(found))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def minutes(text: str) -> float:
    """The type of an option --minutes."""
    found = float(text)
    if 60 * found < START + STOP:
        raise argparse.ArgumentTypeError(
            f"{text} minutes are too few to begin a run: give at least "
            f"{(START + STOP) / 60:g}."
        )
    return found


def leaves(state: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def drive(
    state: Any,
    step: Callable[[Any, int], Any],
    total: int,
    clock: Clock,
    kept: Checkpoint,
    every: int = 50,
    save: float = SAVE,
) -> tuple[Any, float]:
    """`state = step(state, number)` for all numbers below `total`, from where an
    earlier part has stopped; the last state, and the seconds that all parts took.

    The clock is looked at after every so many steps, when the device has made them.
    When the last is made there is time to evaluate, or the next part begins with that.
    """
    clock.need(START)
    first, before, state = kept.restore(state)
    began = saved = time.monotonic()
    for number in range(first, total + 1):
        if number > first and (number % every == 0 or number == total):
            jax.block_until_ready(state)
            now = time.monotonic()
            out = clock.short_of(START if number == total else STOP)
            if out or now - saved >= save:
                kept.save(number, before + now - began, state)
                saved = now
            if out:
                raise OutOfTime
        if number < total:
            state = step(state, number)
    return state, before + time.monotonic() - began


def complete(store: Store, keys: list[Key], work: Callable[[Key], dict], tell) -> bool:
    """Make what is missing, as far as the minutes go; whether all is there now."""
    try:
        store.run(keys, work)
    except OutOfTime:
        done = sum(store.find(key) is not None for key in keys)
        tell(f"{done} of {len(keys)} runs are there: the same command goes on.")
        return False
    return True


def keep_programs(folder: Path) -> None:
    """Compiled programs are kept there, so that the next part need not compile."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))


def timed(start: Callable[[], tuple], clock: Clock) -> dict[str, float]:
    """The size of the network, and the seconds until its first step is done and for
    each step after it.

    `start` returns the state, with the parameters first, and a step as `drive` takes
    it; what else it returns is left alone.
    """
    clock.need(60)
    begin = time.perf_counter()
    state, step, *_ = start()
    size = count(state[0])
    state = jax.block_until_ready(step(state, 0))
    compiling, begin = time.perf_counter() - begin, time.perf_counter()
    for number in range(TIMED):
        state = step(state, number)
    jax.block_until_ready(state)
    each = (time.perf_counter() - begin) / TIMED
    return {"parameters": size, "compile": compiling, "step": each}
