"""The claims that paper_figures.py tries, and what its JSON says to each."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks.lib import statistics
from benchmarks.lib.data import CLASSES
from benchmarks.lib.runs import column

CONTROL = "SGD, SAM's settings"


# --- what was measured --------------------------------------------------------------


def cell(result: dict, name: str, length: float = 1, rho: float | None = None) -> dict:
    found = result["control"] if name == CONTROL else result["chosen"][name]
    changed = {"epochs": int(length * found["epochs"])}
    return found | changed | ({} if rho is None else {"rho": rho})


def measured(result: dict, name: str, measure: str, **where) -> np.ndarray:
    return column(result, "runs", cell(result, name, **where), measure)


def test(result: dict, name: str, **where) -> np.ndarray:
    return measured(result, name, "test", **where)


def looks(result: dict, name: str, measure: str) -> np.ndarray:
    """Seeds, then looks along training, then what was seen."""
    return column(result, "looks", cell(result, name), measure)


def gap(result: dict, name: str, **where) -> np.ndarray:
    """Training accuracy less that on test images with as many wrong labels."""
    noise, right = result["label_noise"], test(result, name, **where)
    as_noisy = (1 - noise) * right + noise / (CLASSES - 1) * (100 - right)
    return measured(result, name, "train", **where) - as_noisy


def cosine(result: dict, first: float, last: float) -> np.ndarray:
    """Its mean over the looks in that part of the training."""
    at = looks(result, "SAM", "looked_at")[0] / result["epochs"]
    return looks(result, "SAM", "cosine")[:, (first <= at) & (at <= last)].mean(1)


def last_eigenvalues(result: dict, name: str, where: str) -> np.ndarray:
    return looks(result, name, where)[:, -1]


def ratio(result: dict, name: str, where: str) -> np.ndarray:
    values = last_eigenvalues(result, name, where)
    return values[:, 0] / values[:, -1]


def change(result: dict, climb: str) -> np.ndarray:
    """Of the rise, as a share of it, at the largest factor."""
    rise = column(result, "looks", cell(result, "SGD"), f"rise, {climb}")
    return np.abs(rise[:, -1] / rise[:, 0] - 1)


# --- claims -------------------------------------------------------------------------


class Claim(NamedTuple):
    """The paper says that the first is larger than the second."""

    part: str
    paper: str
    what: str
    first: Callable[[dict], np.ndarray]
    second: Callable[[dict], np.ndarray]


FORET, KWON = "Foret et al. 2021", "Kwon et al. 2021"
CLAIMS = (
    Claim(
        "a",
        f"The 2-norm gives a lower test error than the infinity-norm ({FORET}, "
        "appendix C.5, figure 6).",
        "test accuracy: p = 2, p = ∞",
        lambda r: test(r, "SAM"),
        lambda r: test(r, "p = ∞"),
    ),
    Claim(
        "a",
        "The adversarial climb gives a lower test error than a random one of fixed "
        f"norm ({FORET}, appendix C.5, figure 6).",
        "test accuracy: p = 2, random",
        lambda r: test(r, "SAM"),
        lambda r: test(r, "random"),
    ),
    Claim(
        "b",
        "The updates with and without the second-order term have a cosine of about 1 "
        "in the first half of training and a smaller one near convergence "
        f"({FORET}, appendix C.4, figure 5).",
        "cosine: first half, last quarter",
        lambda r: cosine(r, 0, 0.5),
        lambda r: cosine(r, 0.75, 1),
    ),
    Claim(
        "b",
        "Without the second-order term the test error is the lower one "
        f"({FORET}, appendix C.4, figure 4; one network, reason unclear).",
        "test accuracy: without, with",
        lambda r: test(r, "SAM"),
        lambda r: test(r, "second order"),
    ),
    Claim(
        "c",
        "At the end of training SAM has the smaller λ_max, about 1.0 against 24 "
        f"({FORET}, section 4.2, figure 3).",
        "λ_max, training: SGD, SAM",
        lambda r: last_eigenvalues(r, "SGD", "train")[:, 0],
        lambda r: last_eigenvalues(r, "SAM", "train")[:, 0],
    ),
    Claim(
        "c",
        "The same, on held-out data (the paper's is of the training loss).",
        "λ_max, held-out: SGD, SAM",
        lambda r: last_eigenvalues(r, "SGD", "held_out")[:, 0],
        lambda r: last_eigenvalues(r, "SAM", "held_out")[:, 0],
    ),
    Claim(
        "c",
        "And the smaller λ_max / λ_5, 2.6 against up to 11.4 "
        f"({FORET}, section 4.2, figure 3).",
        "λ_max / λ_5, training: SGD, SAM",
        lambda r: ratio(r, "SGD", "train"),
        lambda r: ratio(r, "SAM", "train"),
    ),
    Claim(
        "d",
        "SAM's gain grows with the length of the training: ResNet-50 on ImageNet "
        f"+0.4, +0.9, +1.4 points at 100, 200, 400 epochs ({FORET}, table 2).",
        "gain over SGD: 4 times the epochs, once",
        lambda r: test(r, "SAM", length=4) - test(r, "SGD", length=4),
        lambda r: test(r, "SAM") - test(r, "SGD"),
    ),
    Claim(
        "d",
        "The same, over SGD with SAM's learning rate and decay.",
        "gain over SGD at SAM's settings: 4 times the epochs, once",
        lambda r: test(r, "SAM", length=4) - test(r, CONTROL, length=4),
        lambda r: test(r, "SAM") - test(r, CONTROL),
    ),
    Claim(
        "d",
        "At equal gradients SAM is ahead for two networks of three: -0.2, +0.7, +1.1 "
        f"points for 100 epochs against 200 of the base ({FORET}, table 2).",
        "test accuracy: SAM, SGD with twice the epochs",
        lambda r: test(r, "SAM"),
        lambda r: test(r, "SGD", length=2),
    ),
    Claim(
        "d",
        "With wrong labels SAM too fits them when it trains for long, and gets worse "
        "(Andriushchenko and Flammarion 2022, figure 12).",
        "SAM's test accuracy: once, 4 times the epochs",
        lambda r: test(r, "SAM"),
        lambda r: test(r, "SAM", length=4),
    ),
    Claim(
        "d",
        "Vision transformers trained with SAM have the larger weights (Chen et al. "
        "2022, read in a summary).",
        "weight norm: SAM, SGD",
        lambda r: measured(r, "SAM", "weight_norm"),
        lambda r: measured(r, "SGD", "weight_norm"),
    ),
    Claim(
        "d",
        "The same, against SGD with SAM's learning rate and decay.",
        "weight norm: SAM, SGD at SAM's settings",
        lambda r: measured(r, "SAM", "weight_norm"),
        lambda r: measured(r, CONTROL, "weight_norm"),
    ),
    Claim(
        "e",
        "ASAM is ahead of SAM: 84.74 against 84.16 for a WideResNet-28-10 on CIFAR-100 "
        "(Becker et al. 2024, table 3).",
        "test accuracy: ASAM, SAM",
        lambda r: test(r, "ASAM"),
        lambda r: test(r, "SAM"),
    ),
    Claim(
        "e",
        "Rescaled layers that leave the network as it is change SAM's sharpness and "
        f"not ASAM's ({KWON}).",
        "change of the loss's rise, as a share: SAM, ASAM",
        lambda r: change(r, "SAM"),
        lambda r: change(r, "ASAM, η = 0, all leaves"),
    ),
)


def verdict(difference: tuple[float, float]) -> str:
    mean, error = difference
    if mean > 2 * error:
        return "agrees"
    return "disagrees" if mean < -2 * error else "no difference seen"


def claims(result: dict) -> list[dict]:
    rows = []
    for claim in CLAIMS:
        row = {"part": claim.part, "paper": claim.paper, "what": claim.what}
        try:
            first, second = claim.first(result), claim.second(result)
        except KeyError:
            rows.append(row | {"verdict": "not run"})
            continue
        difference = statistics.mean_and_error(first - second)
        rows.append(
            row
            | {
                "first": statistics.mean_and_error(first),
                "second": statistics.mean_and_error(second),
                "difference": difference,
                "verdict": verdict(difference),
            }
        )
    return rows
