"""Other regularizers: their closed forms, and SAM beside them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.accuracy import regularizers, regularizers_report
from benchmarks.lib import fixed_sets, loop, statistics, techniques, training
from benchmarks.lib.fixed_sets import Examples
from benchmarks.lib.loop import Kind, Settings
from benchmarks.lib.networks import Mlp
from benchmarks.lib.techniques import BY_NAME

pytestmark = pytest.mark.slow  # a study's machinery, not the library

MODEL = Mlp((16,))
KEY = jax.random.key(0)


def examples(count=64):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, 6, 6, 1)).astype(np.float32)
    return Examples(images, rng.integers(0, 10, count).astype(np.int32))


def parameters():
    return MODEL.init(KEY, examples(1).images, train=False)["params"]


def leaves(network):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(network)])


# --- each against its closed form ---------------------------------------------------


def test_shifts_are_whole_pixels_up_to_the_strength():
    """A bright dot in the middle of 15 x 15 ends up at most two pixels from there."""
    images = np.zeros((2000, 15, 15, 1), np.float32)
    images[:, 7, 7] = 1
    found = techniques.shifted(jnp.asarray(images), 2.0, KEY)
    _, rows, columns, _ = np.nonzero(np.asarray(found))
    assert len(rows) == 2000
    assert set(rows) == set(columns) == {5, 6, 7, 8, 9}
    counts = np.unique(rows * 15 + columns, return_counts=True)[1]
    assert len(counts) == 25
    assert np.abs(counts / 80 - 1).max() < 0.5  # 25 places, about equally often


def test_smoothing_is_cross_entropy_with_the_mean_over_all_classes():
    batch, params = examples(), parameters()
    found = techniques.smoothed(MODEL, params, batch, 0.3, KEY)
    logits = MODEL.apply({"params": params}, batch.images, train=True)
    logs = np.asarray(jax.nn.log_softmax(logits))
    right = logs[np.arange(64), batch.labels]
    np.testing.assert_allclose(found, -0.7 * right - 0.3 * logs.mean(1), rtol=1e-5)


def test_dropout_keeps_the_mean_of_a_linear_layer():
    """Behind the last hidden layer everything is linear: over many masks the logits
    are those without dropout, and their units are dropped as often as they should."""
    batch, params = examples(1), parameters()
    inside = techniques.DroppedMlp(MODEL.features)
    keys = jax.random.split(KEY, 4000)
    logits = jax.vmap(lambda k: inside.apply({"params": params}, batch.images, 0.4, k))
    found = np.asarray(logits(keys)).mean((0, 1))
    whole = MODEL.apply({"params": params}, batch.images, train=False)[0]
    np.testing.assert_allclose(found, whole, atol=0.1)


def test_averages_against_numpy():
    """Of four steps: exponential over two of them, and the mean of the last quarter."""
    weights = np.array([3.0, 5.0, 1.0, 7.0])
    for name, strength, expected in [
        (techniques.AVERAGE, 2.0, ((3 + 5) / 2 / 2 + 1 / 2) / 2 + 7 / 2),
        (techniques.SWA, 0.5, 7.0),
    ]:
        mean = jnp.array(0.0)
        for number, weight in enumerate(weights):
            mean = loop.average(
                BY_NAME[name], mean, jnp.array(weight), number, 4, strength
            )
        assert float(mean) == pytest.approx(expected)
    mean = jnp.array(0.0)
    for number in range(8):  # the last quarter are two steps
        mean = loop.average(
            BY_NAME[techniques.SWA], mean, jnp.array(1.0 * number), number, 8, 0.5
        )
    assert float(mean) == pytest.approx((6 + 7) / 2)


def test_the_learning_rate_of_swa_stays_high():
    schedule = techniques.high_to_the_end(0.4, 400, 0.25)
    as_ever = training.warm_up_and_cosine(0.4, 300)
    for step in (0, 7, 15, 100):  # warm after 15 steps of 300
        assert float(schedule(step)) == pytest.approx(float(as_ever(step)))
    for step in (290, 300, 399):
        assert float(schedule(step)) == pytest.approx(0.1)


# --- in the loop --------------------------------------------------------------------


def trained(name=None, method="base", rho=0.0, strength=0.0):
    technique = BY_NAME[name] if name else techniques.NONE
    kind = Kind(MODEL, method, batch=16, technique=technique)
    return leaves(
        loop.train(kind, Settings(0.1, 0.001, rho, strength), 2, 0, examples())
    )


@pytest.mark.parametrize(
    ("name", "nothing", "some"),
    [
        (techniques.DROPOUT, 0.0, 0.5),
        (techniques.SHIFTS, 0.0, 1.0),
        (techniques.SMOOTHING, 0.0, 0.5),
        (techniques.AVERAGE, 1.0, 4.0),
    ],
)
def test_without_strength_it_is_the_training_without(name, nothing, some):
    np.testing.assert_allclose(trained(name, strength=nothing), trained(), atol=1e-6)
    assert np.abs(trained(name, strength=some) - trained()).max() > 1e-4


@pytest.mark.parametrize("name", BY_NAME)
def test_both_gradients_of_sam_see_the_same(name):
    """A climb of no length changes nothing: one mask, one shift for both gradients."""
    base = trained(name, strength=0.5)
    np.testing.assert_allclose(trained(name, "SAM", 1e-12, 0.5), base, atol=1e-6)
    assert np.abs(trained(name, "SAM", 0.2, 0.5) - base).max() > 1e-4


# --- the study ----------------------------------------------------------------------


def gain(mean):
    """Ten seeds, an error of 0.1."""
    return statistics.Gain(mean, 0.1, 0.0, statistics.p_value(mean, 0.1, 0.0, 10))


WORDS = {  # both over the better one, the interaction
    (0.5, -0.7): "complementary",
    (0.3, -0.7): "perhaps complementary",  # p = 0.015, and 0.11 after the correction
    (0.1, -0.7): "overlapping",
    (0.1, -0.3): "perhaps overlapping",
    (-0.5, -0.1): "unclear",
}


def test_the_words_follow_the_rule():
    squares = {
        word: regularizers_report.Square(*map(gain, (1, 1, 1, *two)))
        for two, word in WORDS.items()
    }
    assert regularizers_report.verdicts(squares) == {word: word for word in squares}


def test_one_technique_alone_needs_less():
    one = {"it": regularizers_report.Square(*map(gain, (1, 1, 1, 0.3, 0)))}
    assert regularizers_report.verdicts(one) == {"it": "complementary"}
    of_six = regularizers_report.verdicts(one, planned=6)
    assert of_six == {"it": "perhaps complementary"}


def test_all_commands_in_a_row(tmp_path, monkeypatch, capsys):
    if not fixed_sets.FASHION.is_dir():
        pytest.skip("no dataset-fashion-mnist here")
    monkeypatch.setattr("sys.argv", ["regularizers", "--smoke", "--out", str(tmp_path)])
    regularizers.main()
    said = capsys.readouterr().out
    assert "not run" not in said
    assert said.count("both over the better one alone") == 2
    assert max(map(len, said[said.index("no decay  ") :].splitlines())) <= 80
    assert (tmp_path / "regularizers_smoke.png").exists()
