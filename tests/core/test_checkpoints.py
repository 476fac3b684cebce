"""A run that is killed and resumed from orbax is the run that never was, to the bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[1] / "crash_and_resume.py"
ROOT = SCRIPT.parent.parent


def run(folder, devices, *arguments, dies=False):
    path = os.pathsep.join([str(ROOT), str(SCRIPT.parent)])
    done = subprocess.run(
        [sys.executable, SCRIPT, folder, str(devices), *arguments],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (-signal.SIGKILL if dies else 0), done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The runs that nobody kills, on one device and on eight."""
    folder = tmp_path_factory.mktemp("whole")
    return {n: run(folder / str(n), n)["ends"] for n in (1, 8)}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What lay in memory when the checkpoint was written, and its folder."""
    folder = tmp_path_factory.mktemp("killed")
    return {
        n: (
            run(folder / str(n), n, "--kill-at", "5", dies=True)["saved"],
            folder / str(n),
        )
        for n in (1, 8)
    }


@pytest.mark.parametrize("devices", [1, 8])
def test_resumed_on_the_same_devices(devices, whole, killed):
    saved, folder = killed[devices]
    resumed = run(folder, devices)
    assert resumed["first"] == 3
    assert len(resumed["ends"]) > 15
    assert resumed["restored"] == saved
    assert resumed["ends"] == whole[devices]


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8)])
def test_resumed_on_other_devices(before, after, whole, killed):
    saved, folder = killed[before]
    resumed = run(folder, after)
    assert resumed["first"] == 3
    assert resumed["restored"] == saved
    for name, end in resumed["ends"].items():
        np.testing.assert_allclose(
            end, whole[before][name], rtol=0, atol=1e-11, err_msg=name
        )
