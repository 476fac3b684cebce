"""No convolution is left inside a loop or a conditional where the texts say so."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import quick_jit

import optax_sam
from benchmarks.cost import convolutions
from benchmarks.cost.convolutions import PART, SIDE, loss, parameters, steps
from benchmarks.lib import hlo, report

BATCH = 2 * PART
INSIDE = {
    "gradient": False,
    "SAM": False,
    "SAM, scan_passes=True": True,
    "m-SAM, a loop": True,
    "m-SAM, unroll=True": False,
    "every_k(5), a condition": True,
    "every_k(5), two compiled steps": False,
}


def problem():
    key = jax.random.key(1)
    images = jax.random.normal(key, (BATCH, SIDE, SIDE, 1))
    return parameters(key), (images, jnp.arange(BATCH) % 10)


@pytest.mark.slow
def test_convolutions_inside_of_loops_and_conditions():
    for name, several in steps().items():
        texts = [run.as_text() for run, _ in convolutions.compiled(several, *problem())]
        found = [hlo.inside_control_flow(text, "convolution") for text in texts]
        assert all(text.count("convolution") for text in texts)
        assert (max(found) > 0) == INSIDE[name], name


def test_the_table_of_the_page_is_the_result_of_the_script():
    result = json.loads((report.RESULTS / "convolutions.json").read_text())
    assert [row["way"] for row in result["rows"]] == list(INSIDE)
    page = Path(__file__).parents[2] / "docs" / "convolutions.md"
    assert convolutions.markdown(result["rows"]) in page.read_text()
    assert convolutions.markdown_of_epochs(result["epochs"]) in page.read_text()


@pytest.mark.parametrize("unroll", [2, True])
@pytest.mark.parametrize("at_once", [None, 2])
def test_an_unrolled_loop_computes_the_same(unroll, at_once, x64):
    def square(w, x):
        return jnp.mean(jnp.tanh(x @ w) ** 2)

    w, x = (
        jnp.array([0.5, -1.0]),
        jnp.asarray(np.random.default_rng(0).normal(size=(8, 2))),
    )
    grad_fn = optax_sam.value_and_grad(square, optax_sam.steepest_ascent(0.3))
    options = {"microbatch_size": 2, "at_once": at_once}
    got, want = (
        quick_jit(optax_sam.m_sharpness(grad_fn, **options, unroll=u))(w, x)
        for u in (unroll, 1)
    )
    np.testing.assert_allclose(got[1], want[1], rtol=1e-14)
    tx = optax_sam.m_sam(0.3, **options, unroll=unroll)
    step = quick_jit(lambda s: tx.update(None, s, w, value_fn=square, batch=x)[0])
    np.testing.assert_allclose(step(tx.init(w)), want[1], rtol=1e-14)


@pytest.mark.parametrize("bad", [0, 1.5, "2"])
def test_unroll_that_counts_nothing_is_refused(bad):
    with pytest.raises((TypeError, ValueError), match="unroll"):
        optax_sam.m_sam(0.1, microbatch_size=2, unroll=bad)


def test_two_compiled_steps_share_one_state():
    """The recipe: chosen in Python, one state, and the numbers of the condition."""
    params, batch = problem()
    tx = {now: optax_sam.sam(0.1, when=now) for now in (True, False)}
    every = optax_sam.sam(0.1, when=optax_sam.every_k(3))

    def compiled(tx):
        return quick_jit(lambda p, s: tx.update(None, s, p, value_fn=loss, batch=batch))

    step, condition = {now: compiled(tx[now]) for now in tx}, compiled(every)
    state, other = tx[True].init(params), every.init(params)
    w = v = params
    for t in range(4):
        g, state = step[t % 3 == 0](w, state)
        h, other = condition(v, other)
        w, v = (
            jax.tree.map(lambda p, x: p - 0.1 * x, p, x) for p, x in ((w, g), (v, h))
        )
    for a, b in zip(jax.tree.leaves(w), jax.tree.leaves(v), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
