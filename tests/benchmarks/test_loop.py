"""The training loop of the studies: its schedule, its flips, its programs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from benchmarks.lib import loop, methods, training
from benchmarks.lib.fixed_sets import Examples
from benchmarks.lib.loop import Kind, Settings
from benchmarks.lib.small_cnn import SmallCnn

pytestmark = pytest.mark.slow  # a study's machinery, not the library

TINY = SmallCnn((4,), (4,))
SETTINGS = Settings(lr=0.1, decay=0.001, rho=0.05)


def images(count=32, seed=0):
    rng = np.random.default_rng(seed)
    pictures = rng.normal(size=(count, 8, 8, 1)).astype(np.float32)
    return Examples(pictures, rng.integers(0, 10, count).astype(np.int32))


def test_the_schedule_against_its_closed_form():
    """Up in a line over a twentieth of the steps, then half a cosine to zero."""
    found = [float(training.warm_up_and_cosine(0.4, 200)(t)) for t in range(201)]
    expected = [0.4 * t / 10 for t in range(10)]
    expected += [0.2 * (1 + np.cos(np.pi * (t - 10) / 190)) for t in range(10, 201)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[10] == pytest.approx(0.4)
    assert found[200] == pytest.approx(0, abs=1e-6)


def test_half_of_the_images_are_mirrored_and_labels_stay():
    batch = images(4000)
    found = loop.flipped(batch, jax.random.key(0))
    same = (found.images == batch.images).all((1, 2, 3))
    mirrored = (found.images == batch.images[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(same, ~mirrored)
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / 4000**0.5
    np.testing.assert_array_equal(found.labels, batch.labels)


def test_every_epoch_has_each_image_once():
    order = loop.order_of(size=20, batch=6, epochs=3, seed=5)
    assert order.shape == (9, 6)  # two images fill no batch
    for epoch in order.reshape(3, 18):
        assert len(set(epoch)) == 18
    np.testing.assert_array_equal(order, loop.order_of(20, 6, 3, 5))
    assert (order != loop.order_of(20, 6, 3, 6)).any()


def leaves(network):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(network)])


@pytest.mark.parametrize("method", ["base", "SAM", "m-SAM", "momentum SAM", "ASAM"])
def test_a_run_is_reproducible_by_its_seed(method):
    kind = Kind(TINY, method, batch=16, m=8, flips=True)
    data = images()
    once, again, other = (
        leaves(loop.train(kind, SETTINGS, 2, seed, data)) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - other).max() > 1e-3
    without = leaves(loop.train(kind, SETTINGS._replace(rho=0.0), 2, 3, data))
    assert (np.abs(once - without).max() > 1e-6) == (method != "base")


def test_one_program_for_each_kind_whatever_the_numbers():
    kind = Kind(TINY, "SAM", batch=16)
    for lr, decay, rho, epochs in [(0.1, 0, 0.1, 1), (0.2, 1e-3, 0.2, 2), (1, 1, 1, 3)]:
        loop.train(kind, Settings(lr, decay, rho), epochs, epochs, images())
    _, step = loop.compiled(kind)
    assert step._cache_size() == 1
    assert loop.compiled(Kind(TINY, "SAM", batch=16))[1] is step
    assert loop.compiled(Kind(TINY, "base", batch=16))[1] is not step


def test_steps_of_the_base_against_numpy():
    """Momentum 0.9 with coupled L2 on matrices, a linear model, one batch a step."""

    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(10)(x.reshape(len(x), -1))

    data, seed, epochs = images(8), 2, 4
    settings = Settings(lr=0.3, decay=0.05)
    found = loop.train(Kind(Linear(), batch=8), settings, epochs, seed, data).params
    weights = jax.random.split(jax.random.key(seed), 3)[0]
    start = Linear().init(weights, jnp.asarray(data.images[:1]), train=False)["params"]
    kernel, bias = (np.array(start["Dense_0"][n]) for n in ("kernel", "bias"))
    x, one_hot = data.images.reshape(8, -1), np.eye(10)[data.labels]
    momentum = [np.zeros_like(kernel), np.zeros_like(bias)]
    for step in range(epochs):
        logits = x @ kernel + bias
        chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        error = (chance - one_hot) / 8
        gradients = [x.T @ error + 0.05 * kernel, error.sum(0)]  # none on the bias
        momentum = [0.9 * m + g for m, g in zip(momentum, gradients, strict=True)]
        rate = float(training.warm_up_and_cosine(0.3, epochs)(step))
        kernel, bias = kernel - rate * momentum[0], bias - rate * momentum[1]
    np.testing.assert_allclose(found["Dense_0"]["kernel"], kernel, atol=2e-5)
    np.testing.assert_allclose(found["Dense_0"]["bias"], bias, atol=2e-5)


def test_averages_are_those_of_the_training_images(monkeypatch):
    """The mean over chunks of each chunk's mean and variance."""
    monkeypatch.setattr(loop, "CHUNK", 16)
    data = images()
    network = loop.train(Kind(TINY, batch=16), SETTINGS, 1, 0, data)
    kernel = network.params["Conv_0"]["kernel"]
    seen = jax.lax.conv_general_dilated(
        data.images, kernel, (4, 4), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    parts = np.split(np.asarray(seen), 2)
    of = network.batch_stats["BatchNorm_0"]
    means = np.mean([part.mean((0, 1, 2)) for part in parts], axis=0)
    variances = np.mean([part.var((0, 1, 2)) for part in parts], axis=0)
    np.testing.assert_allclose(of["mean"], means, atol=1e-5)
    np.testing.assert_allclose(of["var"], variances, atol=1e-5)


def test_only_a_method_that_starts_late_knows_the_length(monkeypatch):
    mine = methods.Method("last word", lambda s: optax_sam.sam(s.rho), 2)
    monkeypatch.setitem(methods.BY_NAME, mine.name, mine)
    steps = {
        name: Kind(None, name).of_length(10).steps
        for name in ("base", "SAM", mine.name, "last 1/5 of steps")
    }
    assert steps == {"base": 0, "SAM": 0, mine.name: 0, "last 1/5 of steps": 10}
