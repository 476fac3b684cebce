"""Does SAM add to other regularizers, or does it do the same work again?

An MLP on 2,000 images of Fashion-MNIST's pool, 40 % of the labels wrong, 20 epochs of
SGD. For each technique four cells: the base, SAM, the technique, and both. The base of
the technique "weight decay" has none; that of all others has it, tuned. Every cell is
searched over learning rate and decay, over rho with SAM, and over the strength of the
technique, by the rules of "Studies" in CONTRIBUTING.md:

    python -m benchmarks.accuracy.regularizers --tune     # validation images alone
    git add benchmarks/settings/regularizers.json && git commit   # before any test
    python -m benchmarks.accuracy.regularizers --report   # new seeds, test images
    python -m benchmarks.accuracy.regularizers            # table and picture

Gains are differences of test accuracy in pairs, over seeds and test images together;
interaction = both - SAM - technique + base. A word for each technique, by this rule:

  complementary  both gain more than the better one alone
  overlapping    not so, and the interaction is negative
  unclear        all else

after Holm's correction over both differences of all techniques; with "perhaps" it is
two standard errors from zero and no more.

Dropout acts on the hidden layers, with one mask for both gradients of SAM; augmentation
shifts each image by up to so many pixels; weight averaging is an exponential average
over so many steps; SWA keeps the learning rate at a share of its peak in the last
quarter of the training, and tests the mean of the weights there. Kill it at any time
and start it again, twice if there are two cores.
"""

import dataclasses
from pathlib import Path

from benchmarks.accuracy import fashion, regularizers_report
from benchmarks.lib import commands, fixed_sets, rehearsal, techniques
from benchmarks.lib.grids import Axis, fixed
from benchmarks.lib.networks import Mlp
from benchmarks.lib.study import Study, Task
from benchmarks.lib.techniques import BY_NAME

NOISE = 0.4
RHO = {"SAM": Axis((0.1,), low=0.005)}
LR = Axis((0.025, 0.05, 0.1))
BASE = {"lr": LR, "decay": Axis((0.01, 0.03, 0.09), ratio=3)}
STRENGTHS = {
    techniques.DROPOUT: Axis((0.25,), low=0.03, high=0.9),  # of the hidden units
    techniques.SHIFTS: Axis((2.0,), low=1.0, high=techniques.FARTHEST),  # pixels
    techniques.SMOOTHING: Axis((0.2,), low=0.01, high=0.9),
    techniques.AVERAGE: Axis((16.0,), low=2.0),  # steps
    techniques.SWA: Axis((0.25,), low=0.01, high=1.0),  # of the learning rate
}
# With decay and strength to be searched as well, learning rates start at two places.
WITH = {"lr": Axis((0.05, 0.1)), "decay": Axis((0.01, 0.03), ratio=3)}


def tasks() -> dict[str, Task]:
    """Without decay, with it, and with a technique beside it."""
    found = {
        regularizers_report.NO_DECAY: Task(NOISE, {"lr": LR, "decay": fixed(0.0)}, RHO),
        regularizers_report.DECAY: Task(NOISE, BASE, RHO),
    }
    return found | {
        name: Task(NOISE, WITH | {"strength": axis}, RHO, technique=BY_NAME[name])
        for name, axis in STRENGTHS.items()
    }


def full(folder: Path) -> Study:
    return fashion.small(
        "regularizers",
        fixed_sets.fashion(folder),
        tasks(),
        tuning_seeds=(100, 101, 102),
        seeds=tuple(range(5000, 5010)),
    )


def tiny(study: Study) -> Study:
    """The same path in seconds: few images, a small network, no search to speak of."""
    few = (regularizers_report.NO_DECAY, regularizers_report.DECAY, techniques.SWA)
    tasks = {name: study.tasks[name] for name in few}
    return rehearsal.tiny(dataclasses.replace(study, tasks=tasks), Mlp((8,)))


def main() -> None:
    shown = regularizers_report.draw, regularizers_report.table
    commands.on_fashion(__doc__, "regularizers", full, tiny, *shown)


if __name__ == "__main__":
    main()
