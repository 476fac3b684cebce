"""What every network of the studies is held against, and the network itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.lib import baselines, loop
from benchmarks.lib.fixed_sets import Examples
from benchmarks.lib.small_cnn import SmallCnn

pytestmark = pytest.mark.slow  # a study's machinery, not the library


def clouds(count, seed):
    """Ten classes around the axes of a plane of pixels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count).astype(np.int32)
    flat = np.eye(16)[labels] + rng.normal(0, 0.25, (count, 16))
    return Examples(flat.reshape(-1, 4, 4, 1).astype(np.float32), labels)


@pytest.mark.parametrize("metric", baselines.METRICS)
def test_nearest_neighbours_against_numpy(metric):
    train, test = clouds(200, 0), clouds(100, 1)
    a, b = baselines.flat(train).astype(float), baselines.flat(test).astype(float)
    gaps = b[:, None] - a[None]
    norms = np.linalg.norm(b, axis=1)[:, None] * np.linalg.norm(a, axis=1)[None]
    distances = {
        "euclidean": np.sqrt((gaps**2).sum(-1)),
        "manhattan": np.abs(gaps).sum(-1),
        "cosine": 1 - b @ a.T / norms,
    }[metric]
    nearest = train.labels[np.argsort(distances, axis=1)[:, :3]]
    votes = np.array([np.bincount(row, minlength=10).argmax() for row in nearest])
    model = baselines.fitted(baselines.NEIGHBOURS, {"k": 3.0, "metric": metric}, train)
    np.testing.assert_array_equal(baselines.right(model, test), votes == test.labels)


def test_logistic_regression_is_at_the_minimum_of_its_loss():
    """C times the sum of the losses, and half the squared weights: a zero gradient."""
    train, c = clouds(300, 0), 0.1
    model = baselines.fitted(baselines.LOGISTIC, {"C": c}, train)
    x, one_hot = baselines.flat(train), np.eye(10)[train.labels]
    chance = model.predict_proba(x)
    gradient = c * (chance - one_hot).T @ x + model.coef_
    assert np.abs(gradient).max() < 0.01
    assert baselines.right(model, clouds(500, 1)).mean() > 0.8


def test_baselines_take_the_labels_as_they_are():
    train = clouds(200, 0)
    wrong = train._replace(labels=(train.labels + 1) % 10)
    settings = {"k": 1, "metric": "euclidean"}
    model = baselines.fitted(baselines.NEIGHBOURS, settings, wrong)
    assert baselines.right(model, wrong).all()
    assert not baselines.right(model, train).any()


def test_the_network_has_two_million_operations_an_image():
    """As XLA counts them, and by hand: two for each weight and output pixel, but for
    the taps of a 3x3 kernel that fall beyond the image."""
    model = SmallCnn()
    image = jnp.zeros((1, 28, 28, 1))
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), image, train=False)
    )
    network = loop.Network(variables["params"], variables["batch_stats"])
    compiled = jax.jit(lambda n, x: model.apply(n._asdict(), x, train=False)).lower(
        network, image
    )
    counted = compiled.compile().cost_analysis()["flops"]
    layers = [(14, 1, 16), (14, 16, 16), (7, 16, 32), (7, 32, 32)]
    by_hand = sum(2 * side**2 * 9 * a * b for side, a, b in layers) + 2 * 32 * 10
    assert by_hand == pytest.approx(2.4e6, rel=0.05)
    assert 0.85 * by_hand < counted < 1.1 * by_hand


def test_the_network_can_be_trained_and_has_its_averages_apart():
    data = clouds(64, 0)
    found = loop.train(
        loop.Kind(SmallCnn((8,), (2,)), batch=16),
        loop.Settings(0.1, 0.0),
        20,
        0,
        data,
    )
    assert "BatchNorm_0" in found.batch_stats
    outcome = loop.evaluate(SmallCnn((8,), (2,)), found, data)
    assert outcome.right.mean() > 0.3  # chance is 0.1
    assert outcome.loss < np.log(10)
