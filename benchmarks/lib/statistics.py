"""Gains in pairs with both their errors, and what may be said of them.

A gain is a mean of differences seed by seed. It is uncertain because there are few
seeds, and because there are few test images, which all seeds share: the two are shown
apart, and a verdict takes them together.
"""

import dataclasses

import numpy as np
from scipy import stats

RESAMPLED = 1000
SHARES = 4_000  # intervals of several shares at once end far out
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


def smaller(first: Gain, second: Gain) -> Gain:
    """The gain of which a verdict speaks."""
    return min(first, second, key=lambda one: one.mean)


def verdicts(gains: list[Gain]) -> list[tuple[str, float]]:
    """A word and the corrected p-value for each gain of one table.

    "suggestive" is what lies two standard errors from zero and is not certain after
    Holm's correction.
    """
    corrected = holm([one.p for one in gains])
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
    ours: np.ndarray,
    whole: np.ndarray,
    base: np.ndarray,
    chance: float,
    draws: int = SHARES,
) -> Share | None:
    """The gain of `ours` over that of `whole`, of per-image correctness, (seeds,
    images) each; seeds and images are drawn again together, all three in one.

    The interval leaves out `chance`, half on each side; it is wider than it has to be,
    since what is drawn twice varies twice. None where the gain of `whole` is below two
    standard errors, or its own interval of that kind has zero in it: then the share may
    be anything.
    """
    gained = gain(whole, base)
    if gained.mean < 2 * gained.error:
        return None
    differences = [one.astype(np.float32) - base for one in (ours, whole)]
    rng = np.random.default_rng(0)
    means = np.concatenate(
        [drawn_again(differences, 250, rng) for _ in range(draws // 250)], axis=1
    )
    if np.quantile(means[1], chance / 2) <= 0:
        return None
    low, high = np.quantile(means[0] / means[1], [chance / 2, 1 - chance / 2])
    of = differences[0].mean() / differences[1].mean()
    return Share(float(of), float(low), float(high))


def drawn_again(differences: list[np.ndarray], count: int, rng) -> np.ndarray:
    """Means over seeds and images that were drawn again, (differences, count)."""
    seeds, images = differences[0].shape
    of_seeds = rng.multinomial(seeds, [1 / seeds] * seeds, size=count) / seeds
    of_images = rng.multinomial(images, [1 / images] * images, size=count) / images
    return np.stack([((of_seeds @ one) * of_images).sum(1) for one in differences])
