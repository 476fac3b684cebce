"""SAM on Fashion-MNIST, the SAM paper's own data set, with settings chosen blind.

A small CNN with BatchNorm on 10,000 images for 30 epochs with random flips, once with
true labels and once with 40 % of them wrong. Momentum SAM and LookSAM are the two cheap
methods that which_method.py nominated. Three commands, in this order:

    python -m benchmarks.accuracy.fashion --tune     # validation images alone
    git add benchmarks/settings/fashion.json && git commit   # before any test
    python -m benchmarks.accuracy.fashion --report   # new seeds, test images
    python -m benchmarks.accuracy.fashion            # table and picture of the JSON

Of the 60,000 training images 20,000 are trained on, 10,000 choose and 30,000 test; the
official 10,000 are a second test. --report refuses settings that are not committed.
Kill it at any time and start it again, twice if there are two cores: finished runs are
kept in fashion.json, those of the report in fashion_report.json. Hours on two cores.
The images are those of Debian's package dataset-fashion-mnist.
"""

from pathlib import Path

from benchmarks.accuracy.which_method_report import answers
from benchmarks.lib import commands, fixed_sets, rehearsal, results_table
from benchmarks.lib.grids import Axis
from benchmarks.lib.networks import Mlp
from benchmarks.lib.results import Results
from benchmarks.lib.results_picture import draw
from benchmarks.lib.small_cnn import SmallCnn
from benchmarks.lib.study import Study, Task

BASE = {
    "lr": Axis((0.05, 0.1, 0.2)),
    "decay": Axis((0.0005, 0.0015, 0.0045), ratio=3),
}
RHO = {
    "SAM": Axis((0.05, 0.1, 0.2), low=0.005),
    "m-SAM": Axis((0.05, 0.1, 0.2), low=0.005),
    "momentum SAM": Axis((0.5, 1.0, 2.0), low=0.05),
    "ASAM": Axis((0.5, 1.0, 2.0), low=0.05),
    "LookSAM": Axis((0.05, 0.1, 0.2), low=0.005),
}


def full(folder: Path) -> Study:
    return Study(
        "fashion",
        fixed_sets.fashion(folder),
        tasks={"clean": Task(0.0, BASE, RHO), "40 % wrong": Task(0.4, BASE, RHO)},
        model=SmallCnn(),
        train=10_000,
        epochs=30,
        shortest=8,
        longest=120,
        flips=True,
    )


def small(
    name: str, source: fixed_sets.Source, tasks: dict[str, Task], **more
) -> Study:
    """A tenth of the images, and an MLP: a second a run; the methods of these tasks are
    searched on the base's whole grid."""
    return Study(
        name,
        source,
        tasks,
        model=Mlp(),
        train=2_000,
        epochs=20,
        shortest=5,
        longest=80,
        from_best=False,
        **more,
    )


def tiny(study: Study) -> Study:
    """The same path in seconds: few images, a small network, no search to speak of."""
    return rehearsal.tiny(study, SmallCnn((4,), (4,)))


def table(found: Results) -> str:
    """That of every study, and what the nominated methods keep of SAM's gain."""
    kept = [f"{task}: {a}" for task in found.tasks for a in answers(found, task)]
    return "\n".join([results_table.table(found), *kept])


def main() -> None:
    commands.on_fashion(__doc__, "fashion", full, tiny, draw, table)


if __name__ == "__main__":
    main()
