"""What `scan_passes` promises of the program, counted on a decoder of 12 layers.

The same as `benchmarks/cost/program.py`, which has the seconds as well; what XLA's
compiler for TPUs makes of it is counted in `test_tpu.py`.
"""

import functools
import json
import re
from pathlib import Path

import jax
import pytest

import optax_sam
from benchmarks.cost import program
from benchmarks.cost.program import (
    CONTRIB,
    LAYERS,
    SCANNED,
    arguments,
    loss_of,
    lower,
    make,
)
from benchmarks.lib import report
from benchmarks.lib.hlo import instructions

ROOT = Path(__file__).parents[2]
slow = pytest.mark.slow

#: The largest program, in instructions of the optimized HLO over the base's.
SIZES = {
    ("unrolled", "SAM"): 1.2,
    ("unrolled", "every 5th step"): 1.2,
    ("unrolled", "LookSAM"): 1.4,
    ("unrolled", "3 ascent steps"): 1.25,
    ("scanned", "SAM"): 1.45,
    ("scanned", "every 5th step"): 1.45,
}
#: The most temporary memory beyond the base's, in copies of the parameters.
COPIES = {"SAM": 1.2, "every 5th step": 1.2}


@functools.cache
def counted(name, layers):
    """Not `counts` itself, which traces once more to count equations."""
    step = make(name, loss_of(LAYERS[layers]))
    args = arguments(step)
    compiled = lower(step, args).compile()
    parameters = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(args[0]))
    memory = compiled.memory_analysis().temp_size_in_bytes
    return instructions(compiled.as_text()), memory / parameters


@slow
@pytest.mark.parametrize(("layers", "name"), SIZES)
def test_the_model_is_in_the_program_once(layers, name):
    base, _ = counted("base", layers)
    found, _ = counted(name + SCANNED, layers)
    assert found <= SIZES[layers, name] * base


@slow
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", ["SAM", CONTRIB])
def test_straight_line_passes_double_it(layers, name):
    """What the bars are held against: Optax's own SAM is no smaller."""
    assert counted(name, layers)[0] >= 1.9 * counted("base", layers)[0]


@slow
@pytest.mark.parametrize("name", COPIES)
def test_one_more_copy_of_the_parameters(name):
    """Where layers are scanned; without the loop the activations are there twice."""
    _, base = counted("base", "scanned")
    assert counted(name + SCANNED, "scanned")[1] - base <= COPIES[name]
    assert counted("SAM", "scanned")[1] > 1.8 * base


def test_the_model_stands_in_the_text_once():
    """Products of matrices, in the program before XLA has seen it."""
    loss = loss_of(1)

    def products(step):
        return str(jax.make_jaxpr(step.step)(*arguments(step))).count("dot_general[")

    base = products(make("base", loss))
    for name in ("SAM", "every 5th step", "3 ascent steps", "GSAM"):
        assert products(make(name + SCANNED, loss)) == base


def test_gradient_functions_too():
    loss, (params, _, batch) = loss_of(1), arguments(make("base", loss_of(1)))

    def size(fn):
        return str(jax.make_jaxpr(fn)(params, batch)).count("dot_general[")

    for options in ({}, {"num_steps": 3}, {"diagnostics": True}):
        ascent = optax_sam.steepest_ascent(0.1)
        scanned = optax_sam.value_and_grad(loss, ascent, scan_passes=True, **options)
        split = optax_sam.m_sharpness(scanned, microbatch_size=2)
        assert size(scanned) == size(split) == size(jax.value_and_grad(loss))


def test_the_tables_of_the_pages_are_the_results_of_the_script():
    path = report.RESULTS / "program.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    page = (ROOT / "docs" / "large_models.md").read_text(encoding="utf-8")
    for layers in LAYERS:
        assert program.markdown(rows, layers) in page


def test_memory_on_the_page_of_costs_is_the_result_of_the_script():
    path = report.RESULTS / "program.json"
    scanned = json.loads(path.read_text(encoding="utf-8"))["rows"]["cpu"]["scanned"]
    page = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    straight, looped = (
        f"{program.memory_over(scanned, name):.2f} times"
        for name in ("SAM", "SAM" + SCANNED)
    )
    needs = rf"needs {straight} the base's\s+temporary memory, and {looped} with"
    assert re.search(needs, page)
