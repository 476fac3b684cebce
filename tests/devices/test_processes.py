"""Two processes of four devices each give the numbers of one process with eight."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import two_processes

PROCESSES = 2


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def results_of_all():
    """What each process prints in its last line."""
    script, port = Path(two_processes.__file__), str(free_port())
    # No proxy and no cluster of the machine's own shall answer for the loopback.
    env = os.environ | {"JAX_PLATFORMS": "cpu", "no_proxy": "127.0.0.1"}
    started = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(PROCESSES), port],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(PROCESSES)
    ]
    try:
        outs = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, err) in zip(started, outs, strict=True):
        assert process.returncode == 0, err[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in outs]


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(x64):
    first, second = results_of_all()
    assert first["devices"] == second["devices"] == 8
    assert first == second
    one = two_processes.train()
    np.testing.assert_allclose(first["numbers"], one, rtol=0, atol=1e-11)
