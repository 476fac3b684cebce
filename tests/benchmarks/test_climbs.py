"""The climbs that a study compares: closed forms, and all commands."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from benchmarks.accuracy import climbs, climbs_report, which_method_report
from benchmarks.lib import fixed_sets, methods

pytestmark = pytest.mark.slow  # a study's machinery, not the library

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}
BATCH = jnp.array([[1.0, 0.5], [2.0, -1.0], [-1.0, 1.5], [0.5, 2.0]])


def losses(params, batch):
    return jnp.tanh(batch @ params["w"] + params["b"]) ** 2


def loss_fn(params, batch):
    return jnp.mean(losses(params, batch))


def gradient(method, rho):
    """What a step of SGD with rate 1 subtracts."""
    setting = methods.Setting(rho, key=jax.random.key(0))
    tx = methods.transformation(method, setting, optax.sgd(1.0))
    step = methods.step(method, tx, losses)
    found, _, _ = step(PARAMS, tx.init(PARAMS), BATCH)
    return jax.tree.map(jnp.subtract, PARAMS, found)


def close(ours, theirs):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_second_order_term_is_that_of_the_chain_rule():
    def of_the_climbed(params):
        grads = jax.grad(loss_fn)(params, BATCH)
        scale = 0.3 / optax.tree.norm(grads)
        return loss_fn(optax.tree.add_scale(params, scale, grads), BATCH)

    method = methods.BY_NAME["second order"]
    close(gradient(method, 0.3), jax.grad(of_the_climbed)(PARAMS))
    first = gradient(methods.BY_NAME["SAM"], 0.3)
    assert abs(first["w"] - gradient(method, 0.3)["w"]).max() > 3e-4


@pytest.mark.parametrize("m", [1, 2])
def test_m_of_a_name_is_the_size_of_a_climb(m):
    def of(part):
        grads = jax.grad(loss_fn)(PARAMS, part)
        scale = 0.3 / optax.tree.norm(grads)
        return jax.grad(loss_fn)(optax.tree.add_scale(PARAMS, scale, grads), part)

    parts = [of(part) for part in BATCH.reshape(-1, m, 2)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *parts)
    close(gradient(climbs.m_sam_of(m), 0.3), mean)


@pytest.mark.parametrize(("name", "order"), [("p = 1", 1), ("p = ∞", np.inf)])
def test_norms_are_those_of_the_name(name, order):
    """The gradient at the climbed point, whose distance has that norm."""
    grads = jax.grad(loss_fn)(PARAMS, BATCH)
    ascent = optax_sam.steepest_ascent(0.2, ord=order)
    climb, _ = ascent.update(grads, ascent.init(PARAMS), PARAMS)
    flat = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(climb)])
    assert float(jnp.linalg.norm(flat, order)) == pytest.approx(0.2, rel=1e-5)
    climbed = optax.tree.add(PARAMS, climb)
    close(gradient(methods.BY_NAME[name], 0.2), jax.grad(loss_fn)(climbed, BATCH))


def test_all_commands_in_a_row(tmp_path, monkeypatch, capsys):
    if not fixed_sets.FASHION.is_dir():
        pytest.skip("no dataset-fashion-mnist here")
    monkeypatch.setattr("sys.argv", ["climbs", "--smoke", "--out", str(tmp_path)])
    climbs.main()
    said = capsys.readouterr().out
    assert "not run" not in said
    assert said.count("over SAM ") == 2
    assert max(map(len, said[said.index("SGD  ") :].splitlines())) <= 80
    assert (tmp_path / "climbs_smoke.png").exists()


@pytest.mark.parametrize("script", [climbs_report, which_method_report])
def test_without_a_sound_network_nothing_is_drawn(script, tmp_path):
    script.draw(SimpleNamespace(tasks=[]), tmp_path / "none.png")
    assert not [*tmp_path.iterdir()]
