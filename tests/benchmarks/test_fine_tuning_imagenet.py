"""Fine-tuning from ImageNet: what is frozen, what is seen, and all commands."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from benchmarks.accuracy import fine_tuning_imagenet as script
from benchmarks.lib import baselines, fixed_sets, loop
from benchmarks.lib.data import Examples
from benchmarks.lib.fine_tuned import PIXELS, Enlarged, Features
from benchmarks.lib.study import Bench

TUNED = script.tiny(fixed_sets.FASHION).model
WEIGHTS = script.random_weights


def images(count=64, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.normal(size=(count, 14, 14, 1)).astype(np.float32)
    return Examples(pixels, rng.integers(0, 10, count).astype(np.int32))


def initial(seed):
    return loop.initial(TUNED)(jax.random.key(seed), images(1).images)


@pytest.mark.slow  # a study's machinery, not the library
def test_it_starts_from_the_weights_with_a_head_of_its_own():
    first, second = initial(0), initial(1)
    for made in (first, second):
        jax.tree.map(
            np.testing.assert_array_equal, made["backbone"], WEIGHTS()["params"]
        )
    kernels = [made["head"]["kernel"] for made in (first, second)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1


@pytest.mark.slow  # a study's machinery, not the library
def test_the_statistics_are_those_that_came_with_the_weights():
    params, batch = initial(0), images()
    first, second = (
        TUNED.apply({"params": params}, batch.images[part], train=True, mutable=["any"])
        for part in (slice(0, 2), slice(0, 64))
    )
    assert first[1] == {}
    # Not those of the batch, or the first two would depend on the others.
    np.testing.assert_allclose(first[0], second[0][:2], atol=1e-5)
    moved = {**params, "backbone": jax.tree.map(lambda x: 1.1 * x, params["backbone"])}
    plain = TUNED.apply({"params": moved}, batch.images[:2], train=False)
    assert np.abs(plain - first[0]).max() > 1e-3


@pytest.mark.slow
def test_all_leaves_are_trained():
    kind = loop.Kind(TUNED, "SAM", batch=16)
    found = loop.train(kind, loop.Settings(0.1, 1e-5, 0.05), 2, 0, images())
    assert found.batch_stats == {}
    key = jax.random.split(jax.random.key(0), 3)[0]
    before = loop.initial(TUNED)(key, images(1).images)
    for old, new in zip(
        jax.tree.leaves(before), jax.tree.leaves(found.params), strict=True
    ):
        assert np.abs(np.asarray(old) - np.asarray(new)).max() > 0


def test_a_head_on_the_features_is_the_network():
    params, batch = initial(0), images()
    small = dataclasses.replace(TUNED, model=TUNED.model.clone(chunk=24))
    features = Features(small)(batch.images)
    assert features.shape == (64, 8)
    alone = script.Head().apply({"params": {"head": params["head"]}}, features, False)
    whole = TUNED.apply({"params": params}, batch.images, train=False)
    np.testing.assert_allclose(alone, whole, atol=1e-5)


def test_a_grey_image_in_the_colours_of_imagenet():
    grey = (np.full((1, 28, 28, 1), 191.0) - PIXELS["mean"]) / PIXELS["deviation"]
    found = Enlarged(64)(grey.astype(np.float32))
    assert found.shape == (1, 64, 64, 3)
    np.testing.assert_allclose(found, (191 - 127) / 128, atol=1e-5)


def test_the_pixels_are_those_of_the_pool():
    source = fixed_sets.part_of_fashion()
    if not fixed_sets.FASHION.is_dir():
        pytest.skip("no dataset-fashion-mnist here")
    drawn = source.read()[0].images[source.indices()[0]].astype(float)
    assert drawn.mean() == pytest.approx(PIXELS["mean"], rel=1e-5)
    assert drawn.std() == pytest.approx(PIXELS["deviation"], rel=1e-5)


def test_it_chooses_and_tests_on_the_first_of_fashions_images():
    whole = fixed_sets.fashion().indices()
    part = fixed_sets.part_of_fashion().indices()
    assert list(map(len, part)) == [20_000, 2_000, 10_000]
    for few, all_ in zip(part, whole, strict=True):
        np.testing.assert_array_equal(few, all_[: len(few)])


# --- what the runner has learned for it ---------------------------------------------


def test_a_task_has_a_model_and_views_of_its_own():
    study = script.full(fixed_sets.FASHION)
    models = {task: study.kind(task, "base", 1).model for task in study.tasks}
    assert models[script.WHOLE] is study.model
    assert isinstance(models[script.HEAD], script.Head)
    assert models[script.SCRATCH] == study.model.model
    head, whole = study.tasks[script.HEAD], study.tasks[script.WHOLE]
    assert head.view is whole.view_of_baselines
    assert whole.view is head.view_of_baselines is None


@pytest.mark.slow
def test_networks_and_baselines_see_what_their_task_says(monkeypatch):
    def read():
        return images(200), {}

    def doubled(pixels):
        return 2 * pixels

    study = script.tiny(fixed_sets.FASHION)
    task = dataclasses.replace(study.tasks[script.HEAD], view=doubled)
    study = dataclasses.replace(
        study,
        source=fixed_sets.Source(read, 150, 20, 30),
        tasks={"one": task},
        train=32,
    )
    bench, seen = Bench(study), {}

    def train(kind, settings, epochs, seed, data):
        seen["network"] = data.images
        return loop.Network(None, None)

    def fitted(name, settings, data):
        seen["baseline"] = data.images

    right = loop.Outcome(np.ones(20, bool), 0.0)
    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(loop, "evaluate", lambda *_: right)
    monkeypatch.setattr(baselines, "fitted", fitted)
    monkeypatch.setattr(baselines, "right", lambda model, part: right.right)
    bench.work(study.key("one", "base", 1, {"lr": 0.1, "decay": 0.0}, 0))
    bench.work(study.key("one", baselines.LOGISTIC, 0, {"C": 1.0}, 0))
    np.testing.assert_allclose(seen["network"], 2 * seen["baseline"], rtol=1e-6)


def test_a_slow_model_is_given_fewer_images_at_a_time():
    model = TUNED.model.clone(chunk=24)
    sizes = [len(part.labels) for part in loop.chunks(model, images(60))]
    assert sizes == [24, 24, 12]
    assert len(list(loop.chunks(script.Head(), images(60)))) == 1


@pytest.mark.slow
def test_all_commands_in_a_row(tmp_path, monkeypatch, capsys):
    if not fixed_sets.FASHION.is_dir():
        pytest.skip("no dataset-fashion-mnist here")
    command = [script.NAME, "--smoke", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    script.main()
    said = capsys.readouterr().out
    assert "not run" not in said
    written = json.loads((tmp_path / f"{script.NAME}_smoke_report.json").read_text())
    for task in written["settings"]["tasks"].values():
        assert set(task["baselines"]) == {baselines.NEIGHBOURS, baselines.LOGISTIC}
    assert {run["key"]["task"] for run in written["runs"]} == set(script.BASE)


@pytest.mark.slow
def test_an_estimate(monkeypatch, capsys):
    study = script.tiny(fixed_sets.FASHION)
    script.estimate(dataclasses.replace(study, train=64))
    assert "hours in all" in capsys.readouterr().out
