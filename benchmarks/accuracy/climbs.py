"""Which climb? Norms, a random direction, the second-order term, ASAM, and smaller m.

An MLP on 2,000 images of Fashion-MNIST's pool, 40 % of the labels wrong, 20 epochs of
SGD, for some of the climbs of AdamW too. Each is searched over learning rate, decay and
rho of its own, by the rules of "Studies" in CONTRIBUTING.md:

    python -m benchmarks.accuracy.climbs --tune     # validation images alone
    git add benchmarks/settings/climbs.json && git commit   # before any test
    python -m benchmarks.accuracy.climbs --report   # new seeds, test images
    python -m benchmarks.accuracy.climbs            # table and picture

p = 1 and p = infinity climb the steepest way in a ball of that norm. "second order"
keeps the term that SAM drops; at about four gradients a step it is held against a base
that has two. "m = 16" is m-SAM with climbs of 16 examples, "m = 128" is SAM. Beside the
gains over the base stand those over SAM, in pairs. Kill it at any time and start it
again, twice if there are two cores.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import optax_sam
from benchmarks.accuracy import climbs_report, fashion
from benchmarks.lib import commands, fixed_sets, methods, rehearsal
from benchmarks.lib.grids import Axis
from benchmarks.lib.methods import Method
from benchmarks.lib.networks import Mlp
from benchmarks.lib.study import Study, Task
from optax_sam import steepest_ascent

NAME = "climbs"
SGD, ADAMW = "SGD", "AdamW"
NOISE = 0.4
SIZES = (64, 32, 16, 8, 4)
RADIUS = Axis((0.1,), low=0.005)


def second_order(rho) -> optax.GradientTransformationExtraArgs:
    """SAM with the term that it drops, by differentiating through the climb."""

    def update(updates, state, params, *, value_fn, **extra):
        exact = optax_sam.value_and_grad(
            value_fn, steepest_ascent(rho), second_order=True
        )
        return exact(params)[1], state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def random_direction(s: methods.Setting):
    """As published: all directions are equally likely."""
    return optax_sam.random_perturbation(
        s.rho, key=s.key, sampler=jax.random.normal, **s.options
    )


def m_sam_of(m: int) -> Method:
    def make(s: methods.Setting):
        return optax_sam.m_sam(s.rho, microbatch_size=m, **s.options)

    return Method(of_size(m), make, 2, inside=True)


def of_size(m: int) -> str:
    return f"m = {m}"


METHODS = (
    Method(
        "p = 1",
        lambda s: optax_sam.sharpness_aware(steepest_ascent(s.rho, ord=1)),
        2,
    ),
    Method(
        "p = ∞",
        lambda s: optax_sam.sharpness_aware(steepest_ascent(s.rho, ord=jnp.inf)),
        2,
    ),
    Method("random", random_direction, 1, inside=True),
    Method("second order", lambda s: second_order(s.rho), 4),
    *map(m_sam_of, SIZES),
)
methods.register(*METHODS)

OF_M = {of_size(m): RADIUS for m in SIZES}
RHO = {
    "SAM": RADIUS,
    "ASAM": Axis((0.5,), low=0.05),
    "p = 1": Axis((1.0,), low=0.02),
    "p = ∞": Axis((0.001,), low=0.00002),
    "random": Axis((1.0,), low=0.05),
    "second order": RADIUS,
    **OF_M,
}
BASE = {
    SGD: {"lr": Axis((0.05, 0.1)), "decay": Axis((0.01, 0.03), ratio=3)},
    ADAMW: {"lr": Axis((0.001, 0.002)), "decay": Axis((0.3, 0.9), ratio=3)},
}


def full(folder: Path) -> Study:
    return fashion.small(
        NAME,
        fixed_sets.fashion(folder),
        tasks={
            SGD: Task(NOISE, BASE[SGD], RHO),
            ADAMW: Task(NOISE, BASE[ADAMW], {"SAM": RADIUS, **OF_M}, "adamw"),
        },
        tuning_seeds=(100, 101, 102),
        seeds=tuple(range(5100, 5110)),
    )


def tiny(study: Study) -> Study:
    """The same path in seconds: few images and climbs, a small network, no search to
    speak of."""
    few = {
        name: dataclasses.replace(task, rho={n: task.rho[n] for n in ("SAM", "m = 64")})
        for name, task in study.tasks.items()
    }
    return rehearsal.tiny(dataclasses.replace(study, tasks=few), Mlp((8,)))


def main() -> None:
    shown = climbs_report.draw, climbs_report.table
    commands.on_fashion(__doc__, NAME, full, tiny, *shown)


if __name__ == "__main__":
    main()
