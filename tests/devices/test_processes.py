"""Two processes of four devices each give the numbers of one process with eight."""

import json
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
import two_processes

PROCESSES = 2


def results_of_all():
    """What each process prints in its last line."""
    command = [sys.executable, Path(two_processes.__file__)]
    port = str(processes.free_port())
    # No proxy and no cluster of the machine's own shall answer for the loopback.
    running = processes.start(
        [[*command, str(rank), str(PROCESSES), port] for rank in range(PROCESSES)],
        JAX_PLATFORMS="cpu",
        no_proxy="127.0.0.1",
    )
    printed = processes.finish(running)
    return [json.loads(out.splitlines()[-1]) for out in printed]


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(x64):
    first, second = results_of_all()
    assert first["devices"] == second["devices"] == 8
    assert first == second
    one = two_processes.train()
    np.testing.assert_allclose(first["numbers"], one, rtol=0, atol=1e-11)
