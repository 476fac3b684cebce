"""SAM on Fashion-MNIST, the SAM paper's own data set, with settings chosen blind.

A small CNN with BatchNorm on 10,000 images for 30 epochs with random flips, once with
true labels and once with 40 % of them wrong. Three commands, in this order:

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

import argparse
import sys
from pathlib import Path

from benchmarks.lib import fixed_sets, rehearsal, report, reporting
from benchmarks.lib.blind import Committed
from benchmarks.lib.choose import Choice
from benchmarks.lib.grids import Axis
from benchmarks.lib.results import Results
from benchmarks.lib.results_picture import draw
from benchmarks.lib.results_table import table
from benchmarks.lib.small_cnn import SmallCnn
from benchmarks.lib.store import Store
from benchmarks.lib.study import Bench, Study, Task

SETTINGS = Path(__file__).parents[1] / "settings" / "fashion.json"


BASE = {
    "lr": Axis((0.05, 0.1, 0.2)),
    "decay": Axis((0.0005, 0.0015, 0.0045), ratio=3),
}
RHO = {
    "SAM": Axis((0.05, 0.1, 0.2), low=0.005),
    "m-SAM": Axis((0.05, 0.1, 0.2), low=0.005),
    "momentum SAM": Axis((0.5, 1.0, 2.0), low=0.05),
    "ASAM": Axis((0.5, 1.0, 2.0), low=0.05),
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


def tiny(study: Study) -> Study:
    """The same path in seconds: few images, a small network, no search to speak of."""
    return rehearsal.tiny(study, SmallCnn((4,), (4,)))


def main() -> None:
    options = parse_options()
    study = full(options.data)
    if options.smoke:
        smoke(tiny(study), options.out)
    elif options.tune:
        tune(study, options.out, options.settings)
        tell(f"Wrote {options.settings.name}: commit it, then --report.")
    elif options.report:
        permit = Committed(options.settings)
        reporting.run(study, permit, reported(study, options.out), tell)
        tell("All runs are there: the same without --report makes table and picture.")
    else:
        show(study, options.out)


def tune(study: Study, out: Path, path: Path) -> None:
    """Search on validation images, and write what was chosen."""
    store = Store(out / f"{study.name}.json")
    write(path, Choice(Bench(study), store, tell).run())


def write(path: Path, settings: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    report.write_json(path, settings)


def reported(study: Study, out: Path) -> Store:
    """Apart from the runs that chose, so that both files stay small."""
    return Store(out / f"{study.name}_report.json")


def show(study: Study, out: Path) -> None:
    """Table and picture, of the file alone."""
    store = reported(study, out)
    if not store.head:
        sys.exit(
            f"{store.path.name} is not in {out}: nothing was reported yet. Run --tune, "
            "commit the settings, run --report; or name the folder with --out."
        )
    found = Results(store)
    tell(table(found))
    draw(found, out / f"{study.name}.png")


def smoke(study: Study, out: Path) -> None:
    """All commands in a row, anew; no image that tests the study itself is read."""
    try:
        fixed_sets.tuning_sets(study.source)
    except FileNotFoundError as error:
        tell(f"Skipped: {error}")
        return
    (out / f"{study.name}_report.json").unlink(missing_ok=True)
    permit = rehearsal.chosen(study, out, tell)
    reporting.run(study, permit, reported(study, out), tell)
    show(study, out)


def tell(line: str) -> None:
    print(line, flush=True)


def parse_options() -> argparse.Namespace:
    parser = report.parser(__doc__)
    parser.add_argument("--data", type=Path, default=fixed_sets.FASHION)
    parser.add_argument("--settings", type=Path, default=SETTINGS)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--tune", action="store_true", help="choose, on validation images"
    )
    what.add_argument(
        "--report", action="store_true", help="run what was chosen on test images"
    )
    return report.parse(parser)


if __name__ == "__main__":
    main()
