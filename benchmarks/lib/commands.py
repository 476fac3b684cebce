"""The commands of a study: --tune, --report, and neither, for what was reported.

`<name>.json` keeps the runs that chose, `<name>_report.json` those of the report, apart
so that both stay small, and `<name>.png` is its picture.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.lib import fixed_sets, rehearsal, report, reporting
from benchmarks.lib.blind import Committed
from benchmarks.lib.choose import Choice
from benchmarks.lib.results import Results
from benchmarks.lib.results_table import table as plain_table
from benchmarks.lib.store import Store
from benchmarks.lib.study import Bench, Study

SETTINGS = Path(__file__).parents[1] / "settings"  # those that are committed
Draw = Callable[[Results, Path], None]
Table = Callable[[Results], str]


def parser(
    description: str, name: str, studies: Sequence[str] | None = None
) -> argparse.ArgumentParser:
    """The options of every study; a script may add its own. `studies` are those of
    which a report is committed, if they are not the one of this name."""
    studies = (name,) if studies is None else studies
    made = report.parser(description, *(f"{one}_report.json" for one in studies))
    made.add_argument("--settings", type=Path, default=SETTINGS / f"{name}.json")
    what = made.add_mutually_exclusive_group()
    what.add_argument(
        "--tune", action="store_true", help="choose, on validation images"
    )
    what.add_argument(
        "--report", action="store_true", help="run what was chosen on test images"
    )
    return made


def parser_with_data(
    description: str, name: str, studies: Sequence[str] | None = None
) -> argparse.ArgumentParser:
    """The same with --data, the folder of Fashion-MNIST."""
    made = parser(description, name, studies)
    made.add_argument("--data", type=Path, default=fixed_sets.FASHION)
    return made


def on_fashion(
    description: str,
    name: str,
    full: Callable[[Path], Study],
    tiny: Callable[[Study], Study],
    draw: Draw,
    table: Table = plain_table,
) -> None:
    """All of a script whose study is made of the folder of Fashion-MNIST."""
    options = report.parse(parser_with_data(description, name))
    study = full(options.data)
    run(options, study, tiny(study), draw, table=table)


def run(
    options: argparse.Namespace,
    study: Study,
    tiny: Study,
    draw: Draw,
    threads: int = 1,
    table: Table = plain_table,
) -> None:
    """What was asked for; `tiny` is the study of a smoke run."""
    out, store = options.out, reported(study, options.out)
    if options.smoke:
        smoke(tiny, out, draw, threads, table)
    elif options.tune:
        tune(study, out, options.settings)
        tell(f"Wrote {options.settings.name}: commit it, then --report.")
    elif options.report:
        reporting.run(study, Committed(options.settings), store, tell, threads)
        tell("All runs are there: the same without --report makes table and picture.")
    else:
        show(study, out, draw, table)


def tune(study: Study, out: Path, path: Path) -> None:
    """Search on validation images, and write what was chosen."""
    settings = Choice(Bench(study), Store(out / f"{study.name}.json"), tell).run()
    report.write_json(path, settings)


def reported(study: Study, out: Path) -> Store:
    return Store(out / f"{study.name}_report.json")


def begun(store: Store) -> Store:
    """The same, if it has been reported to."""
    if not store.head:
        sys.exit(
            f"{store.path.name} is not in {store.path.parent}: nothing was reported "
            "yet. Run --tune, commit the settings, run --report; or name the folder "
            "with --out."
        )
    return store


def show(study: Study, out: Path, draw: Draw, table: Table = plain_table) -> None:
    """Table and picture, of the file alone."""
    store = begun(reported(study, out))
    found = Results(store)
    tell(table(found))
    draw(found, out / f"{study.name}.png")


def smoke(
    study: Study, out: Path, draw: Draw, threads: int = 1, table: Table = plain_table
) -> None:
    """All commands in a row, anew; no image that tests the study itself is read."""
    if skipped(study):
        return
    (out / f"{study.name}_report.json").unlink(missing_ok=True)
    permit = rehearsal.chosen(study, out, tell)
    reporting.run(study, permit, reported(study, out), tell, threads)
    show(study, out, draw, table)


def skipped(study: Study) -> bool:
    """Whether its images are not here, which is said."""
    try:
        fixed_sets.tuning_sets(study.source)
    except FileNotFoundError as error:
        tell(f"Skipped: {error}")
        return True
    return False


def tell(line: str) -> None:
    print(line, flush=True)
