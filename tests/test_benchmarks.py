"""The data, the training loop and the main demonstration in `benchmarks/`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import evaluation
import flax.linen as nn
import jax
import jax.numpy as jnp
import label_noise
import numpy as np
import pytest
import report
import tasks
import training
from training import Kind, Settings

ROOT = Path(__file__).parents[1]
REPORTED = json.loads((report.RESULTS / "label_noise.json").read_text(encoding="utf-8"))


def numbered(size):
    """Images that tell their number, also after centring and scaling."""
    images = np.arange(size, dtype=np.float32).reshape(size, 1, 1, 1)
    return tasks.Examples(images, (np.arange(size) * 7 % 10).astype(np.int32))


@pytest.mark.parametrize(("train", "noise"), [(50, 0.4), (60, 0.25), (30, 0.0)])
def test_exactly_that_share_of_the_training_labels_is_wrong(train, noise):
    data = numbered(200)
    cut = tasks.split(data, train, 40, noise, seed=3)
    everything = np.concatenate([part.images.ravel() for part in cut[:3]])
    where = np.argsort(np.argsort(everything))  # the numbers, as no two are equal
    true = np.split(data.labels[where], [train, train + 40])
    np.testing.assert_array_equal(cut.train.labels != true[0], cut.wrong)
    assert cut.wrong.sum() == round(noise * train)
    np.testing.assert_array_equal(cut.validation.labels, true[1])
    np.testing.assert_array_equal(cut.test.labels, true[2])
    assert set(cut.train.labels) <= set(range(10))


def test_parts_are_disjoint_and_drawn_anew_for_each_seed():
    data = numbered(200)
    drawn = []
    for seed in (0, 1):
        cut = tasks.split(data, 50, 40, 0.4, seed)
        everything = np.concatenate([part.images.ravel() for part in cut[:3]])
        assert len(np.unique(everything)) == 200
        where = np.argsort(np.argsort(everything))
        drawn.append([set(part) for part in np.split(where, [50, 90])])
    for first, second in zip(*drawn, strict=True):
        assert first != second
    again = tasks.split(data, 50, 40, 0.4, seed=1)
    np.testing.assert_array_equal(again.train.images, cut.train.images)
    np.testing.assert_array_equal(again.train.labels, cut.train.labels)


def test_images_are_scaled_by_the_training_images():
    cut = tasks.DIGITS.split(tasks.DIGITS.load(), seed=0)
    assert [len(part.labels) for part in cut[:3]] == [500, 400, 897]
    assert abs(cut.train.images.mean()) < 1e-5
    assert abs(cut.train.images.std() - 1) < 1e-5
    assert cut.wrong.sum() == 200


@pytest.mark.parametrize("stride", [1, 2])
def test_shifted_slices_are_a_convolution(stride):
    x = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
    ours = tasks.Conv3x3(5, stride)
    flax = nn.Conv(5, (3, 3), stride, padding=1, use_bias=False)
    params = ours.init(jax.random.key(1), x)
    np.testing.assert_allclose(ours.apply(params, x), flax.apply(params, x), atol=1e-5)


def test_one_program_for_all_settings_and_lengths():
    task = label_noise.tiny(label_noise.COMPARISONS[0]).task
    kind = Kind(ascent="sam", microbatch=10)
    data = jax.device_put(task.split(task.load(), 0).train)

    def trained(settings, epochs):
        states = list(training.run(task, kind, settings, epochs, 7, data))
        assert [epoch for epoch, _, _ in states] == list(range(1, epochs + 1))
        return states[-1][1], [float(loss) for _, _, loss in states]

    network, losses = trained(Settings(0.1, 0.01, 0.1), 8)
    assert losses[-1] < losses[0]
    for leaf in jax.tree.leaves(network.batch_stats):
        assert leaf.dtype == jnp.float32
    again, _ = trained(Settings(0.1, 0.01, 0.1), 8)
    other, _ = trained(Settings(0.2, 0.0, 0.0), 2)
    assert training.compiled_epoch(task, kind)._cache_size() == 1
    first, same, different = (
        n.params["Dense_0"]["bias"] for n in (network, again, other)
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, different)


def test_the_rise_of_a_landscape():
    bowls = np.array([[3.0, 1.0, 5.0], [2.0, 1.0, 2.0], [9.0, 1.0, 9.0]])
    assert evaluation.rise(bowls) == 3.0


def test_flatter_is_said_only_where_it_is():
    def row(name, rise, difference, ascent):
        summary = {"rise": (rise, 0.1), "rise_over_base": difference}
        role = "SAM" if ascent else "base"
        return {
            "name": name,
            "role": role,
            "ascent": ascent,
            "rho": 0.1,
            "summary": summary,
        }

    base = row("SGD", 2.0, None, None)
    clear = label_noise.flatness_claim([base, row("SAM", 1.0, (-1.0, 0.1), "sam")])
    assert clear.startswith("SAM is 50% flatter than SGD")
    for difference in ((-0.15, 0.1), (0.5, 0.1)):
        rows = [base, row("SAM", 2 + difference[0], difference, "sam")]
        assert "not flatter" in label_noise.flatness_claim(rows)


def test_what_is_reported_was_run_as_it_is_written():
    assert REPORTED["seeds"] == label_noise.parse_seeds(label_noise.SEEDS)
    pairs = zip(REPORTED["comparisons"], label_noise.COMPARISONS, strict=True)
    for found, comparison in pairs:
        assert found["title"] == comparison.title
        for row, method in zip(found["methods"], comparison.methods, strict=True):
            assert row["name"] == method.name
            assert row["epochs"] == method.epochs
            assert Settings(row["lr"], row["decay"], row["rho"]) == method.settings
            kind = Kind(row["optimizer"], row["ascent"], row["microbatch"])
            assert kind == method.kind
            assert [run["seed"] for run in row["runs"]] == REPORTED["seeds"]


def test_the_reported_means_are_those_of_the_reported_runs():
    for comparison in REPORTED["comparisons"]:
        rows = comparison["methods"]
        base = label_noise.with_role(rows, "base")
        best = label_noise.with_role(rows, "best")
        for row in rows:
            said = row["summary"]
            for name in label_noise.MEASURES:
                again = report.mean_and_error(label_noise.of_runs(row, name))
                np.testing.assert_allclose(said[name], again, rtol=1e-3)
            for name, other in (("gain", base), ("gain_over_best_length", best)):
                again = label_noise.gain(row, other, "test_accuracy")
                assert (said[name] is None) == (again is None)
                if again is not None:
                    np.testing.assert_allclose(said[name], again, atol=1e-3)
            for run in row["runs"]:
                again = evaluation.rise(np.array(run["landscape"]))
                np.testing.assert_allclose(run["rise"], again, rtol=1e-3)


def script(*options):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(ROOT / "benchmarks/label_noise.py"), *options]
    return subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_whole_path_on_tiny_sizes(tmp_path):
    done = script("--smoke", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "m-SAM, m = 10" in done.stdout
    result = json.loads((tmp_path / "label_noise.json").read_text(encoding="utf-8"))
    assert [c["task"] for c in result["comparisons"]] == ["digits", "mnist", "mnist"]
    for row in (row for c in result["comparisons"] for row in c["methods"]):
        for run in row["runs"]:
            assert np.isfinite(np.array(run["landscape"])).all()
            assert run["lambda_max_held_out"] is not None
    picture = (tmp_path / "label_noise.png").read_bytes()

    again = script("--redraw", "--out", str(tmp_path))
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "label_noise.png").read_bytes() == picture


@pytest.mark.slow
def test_mnist_is_inside_a_package():
    data = tasks.MNIST.load()
    assert data.images.shape == (5000, 14, 14, 1)
    np.testing.assert_array_equal(np.bincount(data.labels), [500] * 10)
    cut = tasks.MNIST.split(data, seed=0)
    assert [len(part.labels) for part in cut[:3]] == [1000, 1000, 3000]
    assert cut.wrong.sum() == 400


@pytest.mark.slow
def test_help_explains_itself():
    done = script("--help")
    assert done.returncode == 0
    for word in ("digits", "mnist", "--smoke", "--seeds", "--redraw", "two cores"):
        assert word in done.stdout
