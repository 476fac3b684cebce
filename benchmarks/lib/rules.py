"""Rules that set a radius without tuning it for the task.

Each is one number for all tasks: a published one, or one that the validation images of
a few tasks choose together. Learning rate and decay are those of the tuned base.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
import optax

import optax_sam
from benchmarks.lib import methods
from benchmarks.lib.grids import Axis, Point, search
from benchmarks.lib.methods import Method

LONGEST = 1.0  # no climb of LE-SAM is longer, as in methods.py
OF_LOSS, OF_WEIGHTS = "LE-SAM, share of the loss", "SAM, share of the weights"


def ascent_of_weights(share) -> optax.GradientTransformation:
    """SAM's climb with a radius that is a share of the norm of all parameters."""
    unit = optax_sam.steepest_ascent(1.0)

    def update(grads, params=None):
        radius = share * optax.tree.norm(params)
        direction = unit.update(grads, unit.init(params), params)[0]
        return jax.tree.map(lambda leaf: (radius * leaf).astype(leaf.dtype), direction)

    return optax.stateless(update)


METHODS = (
    # It takes its gradients inside, where the loss is known that it has a share of.
    Method(
        OF_LOSS,
        lambda s: optax_sam.le_sam(s.rho, rho_max=LONGEST, of_loss=True, **s.options),
        2,
        inside=True,
    ),
    Method(
        OF_WEIGHTS,
        lambda s: optax_sam.sharpness_aware(ascent_of_weights(s.rho), **s.options),
        2,
    ),
)
methods.register(*METHODS)


@dataclasses.dataclass(frozen=True)
class Rule:
    """A method and its one number: published, or an axis on which it is chosen."""

    name: str
    method: str
    number: float | Axis
    formula: str


RULES = (
    Rule("SAM 0.05", "SAM", 0.05, "rho = 0.05"),
    Rule("ASAM 0.5", "ASAM", 0.5, "rho = 0.5"),
    Rule(
        "share of the loss",
        OF_LOSS,
        Axis((0.05, 0.1, 0.2)),
        f"LE-SAM, rho = min(number x loss / gradient's norm, {LONGEST:g})",
    ),
    Rule(
        "share of the weights",
        OF_WEIGHTS,
        Axis((0.005, 0.01, 0.02)),
        "SAM, rho = number x norm of the weights",
    ),
    Rule("momentum SAM", "momentum SAM", Axis((0.5, 1.0, 2.0)), "rho = number"),
)


def frozen(rule: Rule, evaluate: Callable[[list[Point]], list[float]]) -> dict:
    """The rule with its number, as it is committed.

    `evaluate` says for each number how good it is, over the tasks that choose.
    """
    if not isinstance(rule.number, Axis):
        return {"method": rule.method, "number": rule.number, "published": True}
    found = search({"rho": rule.number}, evaluate)
    return {
        "method": rule.method,
        "number": found.best["rho"],
        "published": False,
        "validation": found.value,
        "tried": sorted(point["rho"] for point, _ in found.tried),
        "at_bound": found.at_bound(),
    }


def over_tasks(each: list[Callable[[list[Point]], list[float]]]):
    """The mean over tasks of what each says of the points."""

    def evaluate(points: list[Point]) -> list[float]:
        return np.mean([of(points) for of in each], axis=0).round(4).tolist()

    return evaluate


def check(committed: dict[str, dict], rules: tuple[Rule, ...]) -> None:
    """What was frozen are these rules, each with its method and published number."""
    if list(committed) != [rule.name for rule in rules]:
        raise ValueError(
            f"The settings have the rules {list(committed)}, and this study reports "
            f"{[rule.name for rule in rules]}: freeze those with --tune, and commit "
            "the file, before any run that reports."
        )
    for rule in rules:
        have = committed[rule.name]
        published = not isinstance(rule.number, Axis)
        same = have["method"] == rule.method and have["published"] == published
        if not same or (published and have["number"] != rule.number):
            raise ValueError(
                f"The rule {rule.name!r} is {rule.formula} with {rule.method}, and the "
                f"settings have {have}: what was frozen by --tune is reported, and "
                "nothing else."
            )
