"""Which method to take: accuracy against cost, for every method of the library.

The task of label_noise.py with SGD (MNIST, a small CNN, 40 % of the training labels
wrong), every method with settings of its own, chosen on validation images with --tune
and committed. What was chosen runs on twenty new seeds and is tested on
2,000 images that chose nothing.

The question: which method keeps nine tenths of SAM's gain at 1.2 gradients a step or
fewer? Two are nominated, on validation images. The shares have simultaneous 95 %
intervals, over seeds and test images, for both methods and three tasks (this one, and
Fashion-MNIST with and without wrong labels): "reached" is said if the lower end lies
above 0.9. Where SAM's own gain is below two standard errors there are differences and
no shares.

Writes which_method.json and which_method.png. Kill it at any time and start it again.
Half an hour on two cores. With --method FILE it compares a method of yours with SAM,
on validation images alone: see own_method.py.
"""

from pathlib import Path

from benchmarks.accuracy import mnist_5k, own_method, which_method_report
from benchmarks.lib import rehearsal, report, reporting
from benchmarks.lib.blind import Committed
from benchmarks.lib.results import Results
from benchmarks.lib.store import Store

SETTINGS = mnist_5k.SETTINGS / "which_method.json"
SEEDS = range(2000, 2020)
STUDY = mnist_5k.study((mnist_5k.SGD,), tuple(mnist_5k.RHO), SEEDS)
FEW = mnist_5k.study((mnist_5k.SGD,), ("SAM", "LookSAM", "momentum SAM"), SEEDS)
SIDE_BY_SIDE = 2


def main() -> None:
    parser = report.parser(__doc__, "which_method.json")
    parser.add_argument(
        "--method", type=Path, help="a file with a method of yours: see own_method.py"
    )
    parser.add_argument(
        "--tune", action="store_true", help="choose the settings, on validation images"
    )
    parser.add_argument("--settings", type=Path, default=SETTINGS)
    options = report.parse(parser)
    if options.method:
        own_method.compare(options.method, options.out, options.smoke)
        return
    if options.tune:
        mnist_5k.tune(STUDY, options.out, options.settings)
        return
    path = options.out / "which_method.json"
    if not options.redraw:
        measure(options.smoke, path, options.settings)
    found = Results(Store(path))
    print(which_method_report.table(found))
    which_method_report.draw(found, path.with_suffix(".png"))
    print(f"Wrote {path} and its picture, .png")


def measure(smoke: bool, path: Path, settings: Path) -> None:
    """Every run; a smoke run takes few methods and chooses its settings first."""
    study = mnist_5k.tiny(FEW) if smoke else STUDY
    if smoke:
        path.unlink(missing_ok=True)
        permit = rehearsal.chosen(study, path.parent, mnist_5k.tell)
    else:
        permit = Committed(settings)
    reporting.run(study, permit, Store(path), mnist_5k.tell, SIDE_BY_SIDE)


if __name__ == "__main__":
    main()
