"""The protocol of the SAM paper: its step, its runs, its table."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.accuracy import fashion_paper, fashion_paper_report
from benchmarks.accuracy.fashion_paper import DECAY, PAD, SMALL, Data, Study
from benchmarks.lib import fixed_sets
from benchmarks.lib.fixed_sets import Examples
from benchmarks.lib.resume import Clock
from benchmarks.lib.store import Store
from benchmarks.lib.study import packed


def test_crops_are_windows_of_the_padded_image():
    images = np.arange(1, 1 + 60_000, dtype=np.int32).reshape(2000, 5, 6, 1)
    found = np.asarray(fashion_paper.cropped(jnp.asarray(images), jax.random.key(0)))
    padded = np.pad(images, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 6), (1, 2))
    same = (windows[:, :, :, 0] == found[:, None, None, :, :, 0]).all((-1, -2))
    assert same.any((1, 2)).all()
    places = same[same.sum((1, 2)) == 1].reshape(-1, 2 * PAD + 1, 2 * PAD + 1)
    assert places.any(0).all()  # each of the 81 corners is drawn


class Linear:
    """A model with the interface of Flax's."""

    def apply(self, variables, images, train, mutable):
        return images.reshape(len(images), -1) @ variables["params"]["w"], {}


def test_the_penalty_of_all_parameters_is_in_the_loss():
    rng = np.random.default_rng(0)
    params = {"w": jnp.float32(rng.normal(size=(4, 10)))}
    batch = Examples(rng.normal(size=(6, 2, 2, 1)), np.arange(6))

    def mean(params):
        return fashion_paper.losses(Linear(), params, batch).mean()

    def plain(params):
        logits = batch.images.reshape(6, 4) @ params["w"]
        label = jax.nn.one_hot(batch.labels, 10)
        return optax.softmax_cross_entropy(logits, label).mean()

    both = jax.tree.map(
        lambda a, b: a - b, jax.grad(mean)(params), jax.grad(plain)(params)
    )
    np.testing.assert_allclose(both["w"], DECAY * params["w"], atol=1e-6)


def test_the_step_is_that_of_the_papers_code():
    """Climb, clip to norm 5, Nesterov's momentum, a cosine without a warm-up."""
    curvature, w = np.array([30.0, 2.0]), np.array([1.0, 1.0])
    tx = fashion_paper.transformation("SAM", 4)
    params, state = jnp.float32(w), tx.init(jnp.float32(w))

    def loss(w):
        return 0.5 * jnp.sum(curvature.astype(np.float32) * w**2)

    trace = np.zeros(2)
    for step in range(3):
        updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=loss)
        params = optax.apply_updates(params, updates)
        g = curvature * w
        g = curvature * (w + 0.05 * g / np.linalg.norm(g))
        g = g * min(1, 5 / np.linalg.norm(g))
        trace = g + 0.9 * trace
        w = w - 0.1 * 0.5 * (1 + np.cos(np.pi * step / 4)) * (g + 0.9 * trace)
        np.testing.assert_allclose(params, w, rtol=1e-5)


def test_the_network_is_the_papers():
    def init():
        image = jnp.zeros((1, 28, 28, 1))
        return Study().model.init(jax.random.key(0), image, train=False)["params"]

    size = sum(x.size for x in jax.tree.leaves(jax.eval_shape(init)))
    assert round(size / 1e6, 1) == 36.5  # Zagoruyko and Komodakis 2016, table 1
    with pytest.raises(ValueError, match="6n \\+ 4"):
        _ = Study("27-10").model


def kinds(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@pytest.mark.slow
def test_a_step_in_bfloat16_keeps_the_state_in_float32():
    init, step = fashion_paper.compiled(Study("10-1").model, "SAM")
    key = jax.random.key(0)
    state = jax.eval_shape(init, key, jnp.zeros((1, 28, 28, 1)))
    data = Examples(jnp.zeros((9, 28, 28, 1), jnp.uint8), jnp.zeros(9, jnp.int32))
    after = jax.eval_shape(step, state, data, jnp.arange(4), key, 0, 10)
    assert kinds(after) == kinds(state)
    assert {x.dtype for x in jax.tree.leaves(state[0])} == {jnp.dtype("float32")}


def test_a_comparison_is_complete_seed_by_seed():
    keys = Study(epochs=20).keys()
    assert [key["seed"] for key in keys] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    rows = [(key["method"], key["epochs"]) for key in keys[:3]]
    assert rows == [("base", 20), ("base", 40), ("SAM", 20)]


def runs(wrong):
    """Two seeds for each row, so many of 1,000 images wrong."""
    found = {}
    for row, counts in wrong.items():
        right = [np.arange(1000) >= count for count in counts]
        found[row] = [{"right": packed(r), "seconds": 60.0} for r in right]
    return found


def test_the_table_beside_the_papers_row():
    wrong = {"base": (50, 52), "base, 2x epochs": (46, 48), "SAM": (40, 42)}
    text = fashion_paper_report.table("WRN-16-4", runs(wrong), 2, 1000)
    lines = [line.split() for line in text.splitlines()]
    assert lines[2][:3] == ["base", "5.10", "±.10"]
    assert lines[4][:3] == ["SAM", "4.10", "±.10"]
    assert lines[5][:4] == ["SAM", "over", "base", "+1.00"]
    assert lines[6][5] == "+0.60"
    assert "4.57 ± 0.07 without SAM, 3.98 ± 0.05 with it" in text


def test_no_gain_before_all_rows_are_complete():
    found = runs({"base": (50, 52), "base, 2x epochs": (46,), "SAM": ()})
    text = fashion_paper_report.table("WRN-16-4", found, 2, 1000)
    assert "1 of 2 seeds" in text
    assert "not run" in text
    assert "SAM over" not in text


def test_how_many_epochs_the_minutes_allow():
    # An epoch of ten seconds, 5 epochs of gradients for each, 3 seeds: 2.5 minutes.
    row = {"network": "WRN-16-4", "parameters": 2.7e6, "compile": 30.0}
    row |= {"step": 0.04, "epoch": 10.0}
    text = fashion_paper_report.of_time(row, 200, 25, 3)
    assert "at 200 epochs take 500 minutes" in text
    assert "25 minutes allow 10 epochs" in text


def test_a_smoke_run_without_the_images_says_so_and_ends(tmp_path, capsys, monkeypatch):
    command = ["x", "--smoke", "--data", str(tmp_path), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    fashion_paper.main()
    assert capsys.readouterr().out.startswith("Skipped")


def found(path):
    """By key, all that does not depend on the clock."""
    return {
        json.dumps(run["key"]): (run["found"]["right"], run["found"]["training_loss"])
        for run in json.loads(path.read_text())["runs"]
    }


class Ticking:
    """Every look takes seconds; the first part ends in the middle of the second run."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        self.seconds += 25
        return self.seconds


@pytest.mark.slow
def test_the_whole_path_also_in_parts(tmp_path, monkeypatch, capsys):
    if not fixed_sets.FASHION.is_dir():
        pytest.skip("no dataset-fashion-mnist here")
    monkeypatch.setattr("sys.argv", ["x", "--smoke", "--out", str(tmp_path)])
    fashion_paper.main()
    said = capsys.readouterr().out
    assert "SAM over base, 2x epochs" in said
    assert "a step of the base" in said
    whole = found(tmp_path / "fashion_paper_smoke.json")
    assert len(whole) == 6
    assert not list(tmp_path.rglob("*.npz"))

    monkeypatch.setattr(fashion_paper, "EVERY", 1)
    train, _ = fixed_sets.official()
    data = fashion_paper.few(train)
    data = Data(jax.device_put(data.train), data.test)
    study = Study(SMALL, 1, 16, "float32", "fashion_paper_smoke", (0, 1))
    parts, lines, saved = 0, [], 0
    while not fashion_paper.run(
        study, data, Clock(5, Ticking()), tmp_path / "parts", lines.append
    ):
        parts += 1
        saved += len(list(tmp_path.rglob("*.npz")))
    assert parts > 1
    assert saved > 0
    assert "runs are there: the same command goes on." in "".join(lines)
    assert found(tmp_path / "parts" / "fashion_paper_smoke.json") == whole
    assert study.runs(Store(tmp_path / "parts" / "fashion_paper_smoke.json"))["SAM"]
