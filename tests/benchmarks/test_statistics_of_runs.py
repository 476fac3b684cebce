"""Errors and corrections against their closed forms."""

import numpy as np
import pytest

from benchmarks.lib import statistics, study


def test_holm_by_hand():
    # Holm 1979: 3 x 0.01, 2 x 0.02, then not below the one before; never above 1.
    assert statistics.holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert statistics.holm([0.9, 0.8]) == [1, 1]


def test_the_error_of_the_images_is_that_of_a_mean():
    rng = np.random.default_rng(0)
    differences = rng.choice([-1.0, 0.0, 1.0], 4000, p=[0.1, 0.7, 0.2])
    expected = differences.std() / 4000**0.5
    assert statistics.error_of_images(differences) == pytest.approx(expected, rel=0.1)
    assert statistics.error_of_images(np.ones(5)) == 0


def test_a_gain_is_in_pairs_and_has_both_errors():
    rng = np.random.default_rng(1)
    theirs = rng.random((4, 1000)) < 0.8
    ours = theirs.copy()
    ours[:, :50] = True  # seeds gain alike, on the same images
    found = statistics.gain(ours, theirs)
    each = 100 * (ours.mean(1) - theirs.mean(1))
    assert found.mean == pytest.approx(each.mean())
    assert found.seeds == pytest.approx(each.std(ddof=1) / 2)
    assert found.images > 0
    assert found.error == pytest.approx(np.hypot(found.seeds, found.images))


def test_words():
    def one(mean, p):
        return statistics.Gain(mean, 0.1, 0.0, p)

    pairs = [one(1.0, 0.001), one(0.3, 0.03), one(-0.3, 0.04), one(0.1, 0.3)]
    words = [word for word, _ in statistics.verdicts(pairs)]
    assert words == ["gain", "suggestive", "suggestive loss", "no gain"]


def gain(mean, p):
    return statistics.Gain(mean, 0.1, 0.0, p)


def test_a_gain_is_one_over_every_base():
    found = statistics.smallest([gain(0.5, 0.2), gain(0.3, 0.01)])
    assert (found.mean, found.p) == (0.3, 0.2)


def test_a_loss_may_be_one_over_any_base():
    """The same base twice is one."""
    found = statistics.smallest([gain(-0.3, 0.01), gain(0.1, 0.3), gain(-0.3, 0.01)])
    assert (found.mean, found.p) == (-0.3, 0.02)
    assert statistics.smallest([gain(-0.1, 0.4)] * 3).p == 0.4
    assert statistics.smallest([gain(0.0, 0.7), gain(1, 0)]).p == 1


def test_what_is_still_to_come_counts():
    """One of 16 rows that is there is not certain because it came first."""
    (alone,) = statistics.verdicts([gain(0.3, 0.03)])
    (first,) = statistics.verdicts([gain(0.3, 0.03)], planned=16)
    assert alone == ("gain", 0.03)
    assert first == ("suggestive", pytest.approx(0.48))


def test_one_bit_an_image_and_back():
    right = np.random.default_rng(0).random(1001) < 0.9
    np.testing.assert_array_equal(study.unpacked(study.packed(right), 1001), right)
