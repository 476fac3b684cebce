"""Gains in pairs with both their errors, and what may be said of them.

A gain is a mean of differences seed by seed. It is uncertain because there are few
seeds, and because there are few test images, which all seeds share: the two are shown
apart, and a verdict takes them together.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from scipy import stats

RESAMPLED = 1000
LEVEL = 0.05
CERTAIN, SUGGESTIVE, NONE = "gain", "suggestive", "no gain"
LOSS = "loss"


@dataclasses.dataclass(frozen=True)
class Gain:
    """In points of accuracy, or in the unit of the differences; `seeds` and `images`
    are standard errors."""

    mean: float
    seeds: float
    images: float
    p: float  # two-sided, of no difference

    @property
    def error(self) -> float:
        """Both errors together."""
        return float(np.hypot(self.seeds, self.images))


def gain(ours: np.ndarray, theirs: np.ndarray) -> Gain:
    """Of per-image correctness, (seeds, images) each, the same seeds in pairs."""
    return of_differences(100 * (ours.astype(float) - theirs.astype(float)))


def of_differences(differences: np.ndarray) -> Gain:
    """Of differences in pairs, (seeds, images): images, or whatever all seeds share."""
    of_seeds, of_images = differences.mean(1), differences.mean(0)
    seeds = float(stats.sem(of_seeds)) if len(of_seeds) > 1 else float("nan")
    found = (float(differences.mean()), seeds, error_of_images(of_images))
    return Gain(*found, p_value(*found, len(of_seeds)))


def mean_and_error(values) -> tuple[float, float]:
    """The mean over seeds and its standard error (NaN for one value)."""
    values = np.asarray(values, float)
    error = float(stats.sem(values)) if len(values) > 1 else float("nan")
    return float(values.mean()), error


def error_of_images(of_images: np.ndarray) -> float:
    """The bootstrap's standard error of a mean over images: a difference in pairs goes
    in, so what is drawn again is the pair."""
    if np.ptp(of_images) == 0:  # where scipy warns
        return 0.0
    found = stats.bootstrap(
        (of_images,),
        np.mean,
        n_resamples=RESAMPLED,
        batch=50,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(found.standard_error)


def p_value(mean: float, seeds: float, images: float, count: int) -> float:
    """Student's t with as many degrees of freedom as the seeds leave."""
    error = np.hypot(seeds, images)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / error, count - 1))


def holm(p_values: list[float]) -> list[float]:
    """Holm's corrected p-values (1979): the chance of one false claim stays below."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.maximum.accumulate(np.array(p_values)[order] * factors)
    return np.minimum(corrected, 1)[np.argsort(order)].tolist()


def smallest(over: Iterable[Gain]) -> Gain:
    """Of the gains of one method over several bases, with the p-value of a verdict.

    A gain has to be one over every base: its p-value is the largest of all. A loss may
    be one over any of them: its p-value is multiplied by their number.
    """
    gains = list(dict.fromkeys(over))  # two bases may be the same
    least = min(gains, key=lambda one: one.mean)
    if least.mean > 0:
        return dataclasses.replace(least, p=max(one.p for one in gains))
    return dataclasses.replace(least, p=min(1.0, least.p * len(gains)))


def verdicts(gains: list[Gain], planned: int = 0) -> list[tuple[str, float]]:
    """A word and the corrected p-value for each gain of one table.

    "suggestive" is what lies two standard errors from zero and is not certain after
    Holm's correction. If more gains are `planned` than are there, the correction is
    for all of them.
    """
    to_come = [1.0] * (planned - len(gains))
    corrected = holm([one.p for one in gains] + to_come)[: len(gains)]
    return [(word(one, p), p) for one, p in zip(gains, corrected, strict=True)]


def word(one: Gain, corrected: float) -> str:
    direction = CERTAIN if one.mean > 0 else LOSS
    if corrected < LEVEL:
        return direction
    if abs(one.mean) > 2 * one.error:
        return SUGGESTIVE if one.mean > 0 else f"{SUGGESTIVE} {LOSS}"
    return NONE


def beats(ours: np.ndarray, theirs: np.ndarray, errors: float = 2) -> bool:
    """Whether one classifier beats another by so many standard errors, on one set of
    images that both have seen."""
    difference = ours.astype(float) - theirs.astype(float)
    return bool(difference.mean() > errors * stats.sem(difference))


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of another gain that is kept, and its interval."""

    of: float
    low: float
    high: float


def share(
    ours: np.ndarray, whole: np.ndarray, base: np.ndarray, chance: float
) -> Share | None:
    """The gain of `ours` over that of `whole`, of per-image correctness, (seeds,
    images) each, with Fieller's interval (1954), which leaves out `chance`.

    In it are all x for which the mean of `ours - base - x (whole - base)` may be zero:
    it lies within t of its errors, over seeds and images together. None where the gain
    of `whole` is below two standard errors or may itself be zero: then the share may be
    anything.
    """
    gained = gain(whole, base)
    if gained.mean < 2 * gained.error:
        return None
    differences = np.stack([one.astype(float) - base for one in (ours, whole)])
    kept, all_of_it = differences.mean((1, 2))
    covariance = sum(np.cov(of) / of.shape[1] for of in both_means(differences))
    bound = stats.t.isf(chance / 2, len(base) - 1) ** 2
    a = all_of_it**2 - bound * covariance[1, 1]
    b = kept * all_of_it - bound * covariance[0, 1]
    c = kept**2 - bound * covariance[0, 0]
    if a <= 0:
        return None
    reach = np.sqrt(b**2 - a * c)
    return Share(
        float(kept / all_of_it), float((b - reach) / a), float((b + reach) / a)
    )


def both_means(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each seed and of each image, from (differences, seeds, images)."""
    return differences.mean(2), differences.mean(1)
