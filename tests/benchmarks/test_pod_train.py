"""`pods/pod_train.py` over two processes, killed in the middle and resumed."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import processes
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 40, 10
TIMEOUT = 240


def start(out, count, devices, *options):
    """The processes of one run, each with its share of simulated devices."""
    command = [
        *(sys.executable, "-m", "benchmarks.pods.pod_train"),
        *("--steps", str(STEPS), "--devices", str(devices), "--out", str(out)),
        *options,
    ]
    if count > 1:
        address = f"127.0.0.1:{processes.free_port()}"
        command += ["--coordinator", address, "--processes", str(count)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    ranks = [["--rank", str(rank)] if count > 1 else [] for rank in range(count)]
    return processes.start([command + rank for rank in ranks], PYTHONPATH=path)


def finish(running):
    return processes.finish(running, TIMEOUT)


def metrics(out):
    return json.loads((out / "pod_train.json").read_text())


def wait_for_checkpoint(folder, running):
    """Until a step's folder has its final name, which Orbax gives when it is whole."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        if folder.exists() and any(path.name.isdigit() for path in folder.iterdir()):
            return
        assert all(process.poll() is None for process in running)
        time.sleep(0.01)
    raise TimeoutError("no checkpoint was written")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    printed = finish(start(out, 2, 4))
    return metrics(out), printed


def test_killed_and_resumed(uninterrupted, tmp_path):
    folder = tmp_path / "checkpoints"
    options = ("--checkpoint", str(folder), "--every", str(EVERY))
    running = start(tmp_path, 2, 4, *options)
    try:
        wait_for_checkpoint(folder, running)
        assert all(process.poll() is None for process in running)
    finally:
        processes.kill(running)
    assert not (tmp_path / "pod_train.json").exists()

    first, _ = finish(start(tmp_path, 2, 4, *options))
    assert "resumed after step" in first
    expected, _ = uninterrupted
    resumed = metrics(tmp_path)
    assert resumed["params_sha256"] == expected["params_sha256"]
    assert resumed["history"] == expected["history"]


def test_one_process_has_the_same_numbers(uninterrupted, tmp_path):
    finish(start(tmp_path, 1, 8))
    expected, _ = uninterrupted
    alone = metrics(tmp_path)
    assert (alone["devices"], alone["processes"]) == (8, 1)
    assert (expected["devices"], expected["processes"]) == (8, 2)
    losses, expected_losses = (
        np.array([row["loss"] for row in run["history"]]) for run in (alone, expected)
    )
    # The order of the sums differs, and training magnifies it.
    np.testing.assert_allclose(losses[:1], expected_losses[:1], rtol=1e-5)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-3)


def test_only_process_0_prints(uninterrupted):
    _, (first, second) = uninterrupted
    assert "8 devices (cpu) in 2 processes" in first
    # Gloo's own lines, cut anywhere: its threads write at the same time.
    ours = [line for line in first.splitlines() if "Gloo" not in line]
    assert len(ours) > 5
    assert not set(ours) & set(second.splitlines())
