"""Runs that stop before the time is up go on with the same bits."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.lib.resume import (
    START,
    STOP,
    Checkpoint,
    Clock,
    OutOfTime,
    drive,
    minutes,
)

TOTAL = 12


class Ticking:
    """A clock on which every look takes that long."""

    def __init__(self, tick):
        self.seconds, self.tick = 0.0, tick

    def __call__(self):
        self.seconds += self.tick
        return self.seconds


@jax.jit
def step(state, number):
    return {"w": jnp.sin(state["w"] + number), "count": state["count"] + 1}


def start():
    return {"w": jnp.float32([0.1, 0.2]), "count": jnp.int32(0)}


def numbers(state):
    return np.asarray(state["w"]).tobytes(), int(state["count"])


def clock(seconds, tick=1.0):
    return Clock(seconds / 60, now=Ticking(tick))


def test_in_parts_it_ends_with_the_same_bits(tmp_path):
    whole, _ = drive(start(), step, TOTAL, Clock(), Checkpoint(tmp_path / "a.npz"))
    part, parts = Checkpoint(tmp_path / "b.npz"), 0
    while True:
        try:
            limited = clock(START + 50, tick=20)
            state, _ = drive(start(), step, TOTAL, limited, part, every=1)
            break
        except OutOfTime:
            parts += 1
    assert parts == 2
    assert numbers(state) == numbers(whole)
    assert numbers(state)[1] == TOTAL  # no step was made twice


def test_it_stops_before_the_limit(tmp_path):
    limited = clock(600)
    with pytest.raises(OutOfTime):
        drive(start(), step, 10**6, limited, Checkpoint(tmp_path / "a.npz"), every=1)
    assert 600 - 2 * STOP < limited.now.seconds < 600


def test_no_run_is_begun_without_the_time_to_compile_it(tmp_path):
    def unreachable(state, number):
        raise AssertionError

    kept = Checkpoint(tmp_path / "a.npz")
    with pytest.raises(OutOfTime):
        drive(start(), unreachable, TOTAL, clock(START), kept)
    assert not kept.path.exists()


def test_killed_it_goes_on_from_the_last_save(tmp_path):
    kept = Checkpoint(tmp_path / "a.npz")

    def dies(state, number):
        if number == 8:
            raise KeyboardInterrupt
        return step(state, number)

    with pytest.raises(KeyboardInterrupt):
        drive(start(), dies, TOTAL, Clock(), kept, every=3, save=0)
    assert kept.restore(start())[0] == 6
    state, _ = drive(start(), step, TOTAL, Clock(), kept)
    whole, _ = drive(start(), step, TOTAL, Clock(), Checkpoint(tmp_path / "b.npz"))
    assert numbers(state) == numbers(whole)


def test_the_seconds_of_all_parts_are_counted(tmp_path):
    kept = Checkpoint(tmp_path / "a.npz")
    kept.save(5, 100.0, start())
    _, seconds = drive(start(), step, TOTAL, Clock(), kept)
    assert 100 <= seconds < 110


def test_nothing_is_left_of_a_run_that_was_kept_elsewhere(tmp_path):
    kept = Checkpoint(tmp_path / "folder" / "a.npz")
    kept.save(1, 0.0, start())
    assert [path.name for path in kept.path.parent.iterdir()] == ["a.npz"]
    kept.remove()
    kept.remove()
    assert list(kept.path.parent.iterdir()) == []


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    kept = Checkpoint(tmp_path / "a.npz")
    kept.save(1, 0.0, start())
    with pytest.raises(ValueError, match="other shapes"):
        kept.restore(start() | {"w": jnp.zeros(3)})
    with pytest.raises(ValueError, match="other shapes"):
        kept.restore(start() | {"more": jnp.zeros(3)})


def test_minutes_in_which_nothing_could_be_done_are_refused():
    assert minutes("9") == 9
    with pytest.raises(argparse.ArgumentTypeError, match="at least 2"):
        minutes("1.5")
