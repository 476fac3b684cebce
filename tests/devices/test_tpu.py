"""The counts of `test_collectives.py` for whole pods, by XLA's TPU compiler.

It needs no TPU, but libtpu: `pip install libtpu`, or the extra `tpu`. Without it these
tests fail; they are run where the extra is installed, with `pytest -m tpu -n 0`.
As a script, this file prints the counts for one topology.
"""

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh
from test_collectives import (
    BATCH_NORM_SAM,
    SAM,
    SPLIT,
    WHOLE,
    counts,
    flops,
    loss,
    step_with,
    structs,
)

import optax_sam
from benchmarks.cost import program

pytestmark = [pytest.mark.slow, pytest.mark.tpu]

PODS = {"v5e:2x4": 8, "v5e:16x16": 256}
#: So many examples on each device that climbs do not show, in one sub-batch or in four;
#: few where parameters are split, or XLA hides their gathers in loops around products.
MANY, FEW, TRIPS = 2048, 16, 4
#: So that each parameter can be split over 256 devices.
DIMS = (256, 512, 256)
SCANNED = optax_sam.value_and_grad(
    loss, optax_sam.steepest_ascent(0.1), scan_passes=True
)


def measure(topology):
    """Collectives and FLOPs of a step on each device of a pod."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    mesh = Mesh(np.array(devices.devices), ("data",))

    def step_of(grad_fn, placed, on_each):
        args = structs(mesh, placed, SPLIT, on_each * mesh.size, DIMS)
        places = jax.tree.map(lambda x: x.sharding, args[0])
        step = jax.jit(step_with(grad_fn), out_shardings=(places, None))
        compiled = step.lower(*args).compile()
        return counts(compiled) | {"flops": flops(compiled)}

    def m_sam(grad_fn, microbatch_size=None):
        options = {"axis_name": "data", "mesh": mesh}
        return optax_sam.m_sharpness(
            grad_fn, microbatch_size=microbatch_size, **options
        )

    size = MANY // TRIPS
    programs = {
        "gradient descent": (jax.value_and_grad(loss), WHOLE, MANY),
        "SAM": (SAM, WHOLE, MANY),
        "m-SAM": (m_sam(SAM), WHOLE, MANY),
        "m-SAM in a loop": (m_sam(SAM, size), WHOLE, MANY),
        "m-SAM, scanned": (m_sam(SCANNED), WHOLE, MANY),
        "m-SAM in a loop, scanned": (m_sam(SCANNED, size), WHOLE, MANY),
        "m-SAM with BatchNorm": (m_sam(BATCH_NORM_SAM, size), WHOLE, MANY),
        "SAM, sharded": (SAM, SPLIT, FEW),
        "m-SAM, sharded": (m_sam(SAM), SPLIT, FEW),
        "m-SAM in a loop, sharded": (m_sam(SAM, FEW // TRIPS), SPLIT, FEW),
    }
    found = {name: step_of(*program) for name, program in programs.items()}
    return found | {"devices": mesh.size}


@functools.cache
def measured(topology):
    """In a process of its own: a compiler for TPUs and simulated CPUs do not mix."""
    env = {
        "JAX_PLATFORMS": "cpu",
        # Each program is compiled once, and only to be read.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TPU_SKIP_MDS_QUERY": "1",
        # Or two of them at once abort, one on the other's lock file.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        # benchmarks, and problems.py
        "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[2:0:-1])),
    }
    done = subprocess.run(
        [sys.executable, __file__, topology],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        pytest.fail(f"Is libtpu installed (extra `tpu`)?\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


pods = pytest.mark.parametrize("topology", PODS)


def collectives_of(topology, name):
    found = dict(measured(topology)[name])
    del found["flops"]
    return found


@pods
def test_number_of_devices(topology):
    assert measured(topology)["devices"] == PODS[topology]


@pods
@pytest.mark.parametrize(
    ("name", "all_reduces"),
    [
        ("gradient descent", 1),
        ("SAM", 2),
        ("m-SAM", 1),
        ("m-SAM in a loop", 1),
        ("m-SAM, scanned", 1),
        ("m-SAM in a loop, scanned", 1),
        ("m-SAM with BatchNorm", 1),
    ],
)
def test_all_reduces_of_a_step(topology, name, all_reduces):
    assert collectives_of(topology, name) == {"all-reduce": all_reduces}


@pods
@pytest.mark.parametrize("name", ["m-SAM", "m-SAM in a loop"])
def test_fully_sharded_m_sam_needs_half_of_what_sam_does(topology, name):
    """XLA may gather small parameters by an all-reduce, so all are counted too."""
    sam = collectives_of(topology, "SAM, sharded")
    m_sam = collectives_of(topology, f"{name}, sharded")
    assert m_sam.get("all-gather", 0) <= sam.get("all-gather", 0) / 2
    assert sum(m_sam.values()) <= sum(sam.values()) / 2
    assert math.isfinite(sum(sam.values()))


@pods
@pytest.mark.parametrize(("name", "trips"), [("m-SAM", 1), ("m-SAM in a loop", TRIPS)])
def test_flops_of_a_device(topology, name, trips):
    """XLA counts the body of a loop once."""
    one = measured(topology)["gradient descent"]["flops"]
    found = measured(topology)[name]["flops"]
    assert trips * found / one == pytest.approx(2, abs=0.02)


# --- The model in the program once: a decoder of 12 layers, on one chip -------------

#: The largest program over the base's, in bytes.
BYTES = {
    "unrolled": {
        "SAM": 1.2,
        "every 5th step": 1.2,
        "LookSAM": 1.4,
        "3 ascent steps": 1.25,
    },
    "scanned": {"SAM": 1.45, "every 5th step": 1.45},
}
#: The most temporary memory beyond the base's, in copies of the parameters.
COPIES = {"SAM": 1.2, "every 5th step": 1.2}


@functools.cache
def weighed(layers):
    names = [name + program.SCANNED for name in BYTES[layers]]
    return program.alone("tpu", layers, ["base", *names])


@pytest.mark.parametrize(
    ("layers", "name"), [(layers, name) for layers in BYTES for name in BYTES[layers]]
)
def test_bytes_of_a_program_of_scanned_passes(layers, name):
    rows = weighed(layers)
    found = rows[name + program.SCANNED]["program_bytes"]
    assert found <= BYTES[layers][name] * rows["base"]["program_bytes"]


@pytest.mark.parametrize("layers", BYTES)
@pytest.mark.parametrize("name", COPIES)
def test_memory_of_scanned_passes(layers, name):
    rows = weighed(layers)
    found = rows[name + program.SCANNED]
    more = found["temporary_bytes"] - rows["base"]["temporary_bytes"]
    assert more <= COPIES[name] * found["parameter_bytes"]


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
