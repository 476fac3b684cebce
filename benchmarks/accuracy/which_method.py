"""Which method to take: accuracy against cost, for the methods of the library.

The task of label_noise.py (MNIST, a small CNN, SGD, 40 % of the training labels wrong),
every method with learning rate, decay and radius of its own, chosen on validation
images; what was chosen runs on twenty new seeds and is tested on 2,000 images that
chose nothing. The commands, in this order:

    python -m benchmarks.accuracy.which_method --tune     # validation images alone
    git add benchmarks/settings/which_method.json && git commit   # before any test
    python -m benchmarks.accuracy.which_method --report   # new seeds, test images
    python -m benchmarks.accuracy.which_method            # table and picture

The question: which method keeps nine tenths of SAM's gain at 1.2 gradients a step or
fewer? Two are nominated, on validation images. The shares have simultaneous 95 %
intervals, over seeds and test images, for both methods, three tasks (this one, and
Fashion-MNIST with and without wrong labels), and two bases (of as many steps, and of
the length chosen on validation images): "reached" is said if the lower end lies above
0.9. Where SAM's own gain is below two standard errors, or may be none at the
level of those intervals, there are differences and no shares.

Kill it at any time and start it again. An hour and half an hour on two cores. With
--method FILE it compares a method of yours with SAM, on validation images alone: see
own_method.py.
"""

import dataclasses
from pathlib import Path

from benchmarks.accuracy import label_noise, mnist_5k, own_method, which_method_report
from benchmarks.lib import commands, report
from benchmarks.lib.grids import Axis
from benchmarks.lib.study import Study

# Where the searches for rho start; they go on from there.
SMALL = Axis((0.1,), low=0.005)
SELDOM = Axis((0.2,), low=0.01)  # of those that climb on a part of the steps
LARGE = Axis((1.0,), low=0.05)
RHO = {
    **label_noise.RHO,
    "GSAM": SMALL,
    "WSAM": SMALL,
    "LE-SAM": SMALL,  # its budget, in units of the loss
    "F-SAM": SMALL,
    "ESAM": SMALL,
    "climb by 1/5": SMALL,
    "LookSAM": SMALL,
    "every 5th step": SELDOM,
    "random 1/5 of steps": SELDOM,
    "last 1/5 of steps": SELDOM,
    "momentum SAM": LARGE,
    "stale SAM": SMALL,
    "random perturbation": LARGE,
}
TASK = dataclasses.replace(label_noise.STUDY.tasks[label_noise.SGD], rho=RHO)
STUDY = dataclasses.replace(
    label_noise.STUDY,
    name="which_method",
    tasks={label_noise.SGD: TASK},
    seeds=tuple(range(2000, 2020)),
)
FEW = ("SAM", "LookSAM", "momentum SAM")  # of a smoke run


def tiny(whole: Study) -> Study:
    tasks = {
        name: dataclasses.replace(task, rho={one: task.rho[one] for one in FEW})
        for name, task in whole.tasks.items()
    }
    return mnist_5k.tiny(dataclasses.replace(whole, tasks=tasks))


def main() -> None:
    parser = commands.parser(__doc__, "which_method")
    parser.add_argument(
        "--method", type=Path, help="a file with a method of yours: see own_method.py"
    )
    options = report.parse(parser)
    if options.method:
        own_method.compare(options.method, options.out, options.smoke)
        return
    commands.run(
        options,
        STUDY,
        tiny(STUDY),
        which_method_report.draw,
        mnist_5k.SIDE_BY_SIDE,
        which_method_report.table,
    )


if __name__ == "__main__":
    main()
