"""Does SAM help a language model? Characters of Jane Austen's novels, a small decoder.

Ten million parameters, windows of 256 characters, AdamW; SAM, Functional SAM (Singh et
al. 2025), climbs preconditioned by Adam's second moment, and momentum SAM. AdamW's
learning rate, decay and length are chosen on text of its own, then each method's rho;
the report is on text that chose nothing, with new seeds, in nats per character: over
AdamW at as many steps, as many gradients, and its best length. There is no dropout.

For a GPU. In this order; --tune and --report again and again, in parts of --minutes:

    python -m benchmarks.accuracy.language_model --time     # how long it all takes
    python -m benchmarks.accuracy.language_model --tune
    git add benchmarks/settings/language_model.json && git commit
    python -m benchmarks.accuracy.language_model --report
    python -m benchmarks.accuracy.language_model            # the table

A part stops in time and saves the run that is under way. Finished runs are kept in
language_model.json, those of the report in language_model_report.json. The novels are
those of Debian's package r-cran-janeaustenr, read with the extra `text`. --smoke trains
a tiny model on a part of one novel, to show that it learns, and no more.
"""

import argparse
import dataclasses
import functools
from pathlib import Path

import jax.numpy as jnp

from benchmarks.accuracy import language_model_report
from benchmarks.lib import austen, commands, rehearsal, report, resume
from benchmarks.lib.blind import Committed
from benchmarks.lib.grids import fixed
from benchmarks.lib.language import BASE, BLOCK, BOTH, GRADIENTS
from benchmarks.lib.language_study import BASE_ROWS, Bench, Study, tune
from benchmarks.lib.models import Decoder
from benchmarks.lib.reporting import check
from benchmarks.lib.resume import Clock
from benchmarks.lib.store import Key, Store

NAME = "language_model"


def full(folder: Path) -> Study:
    return Study(
        functools.partial(austen.text, folder),
        functools.partial(austen.test_text, folder),
    )


def tiny(folder: Path) -> Study:
    """The same path in seconds: a small model, on text of one novel that trains."""

    def pieces():
        whole = austen.text(folder, "northangerabbey")
        return whole.train[:30_000], whole.symbols

    def text() -> austen.Text:
        train, symbols = pieces()
        return austen.Text(train[:26_000], train[26_000:28_000], symbols)

    full_study = full(folder)
    base = {"lr": fixed(0.02), "decay": fixed(0.1)}
    return dataclasses.replace(
        full_study,
        text=text,
        test=lambda permit: pieces()[0][28_000:],
        name=f"{NAME}_smoke",
        model=Decoder(96, 16, 1, 2),
        context=32,
        batch=8,
        steps=20,
        shortest=20,
        longest=40,
        base=base,
        rho={BOTH: fixed(0.05)},
        seeds=full_study.seeds[:2],
    )


# --- the report ---------------------------------------------------------------------


def run_report(bench: Bench, permit: Committed, store: Store) -> bool:
    """Every chosen row on new seeds; whether all runs are there now."""
    study = bench.study
    check(study, permit.settings)
    test = study.test(permit)
    store.describe(
        {
            "study": study.name,
            "settings_blob": permit.blob,
            "settings": permit.settings,
            "seeds": list(study.seeds),
            "characters": len(test),
            "block": BLOCK * study.context,
            **report.provenance(),
        }
    )
    keys = list(language_model_report.keys(store.head))
    return resume.complete(
        store, keys, functools.partial(bench.work, test=test), bench.tell
    )


def show(store: Store) -> None:
    """The table, of the file alone."""
    print(language_model_report.table(commands.begun(store)))


# --- how long it takes --------------------------------------------------------------


def timed(bench: Bench) -> dict:
    """Seconds to compile a step of the base, and to make one."""
    study = bench.study
    point = {name: axis.start[0] for name, axis in study.base.items()}
    key: Key = study.key(BASE, study.steps, point, study.tuning_seeds[0])
    return resume.timed(lambda: bench.started(key), bench.clock)


def of_time(row: dict, study: Study) -> str:
    """A gradient of any method is one of the base; a search takes about twice the
    points that it starts with, and the chosen length is taken as twice the steps."""
    run = row["step"] * study.steps / 60  # minutes of the base
    methods = sum(GRADIENTS[name] for name in study.rho)
    reported = (methods + sum(BASE_ROWS.values()) + 2) * len(study.seeds)
    points = {name: len(axis.start) for name, axis in study.rho.items()}
    tuned = sum(2 * n * GRADIENTS[name] for name, n in points.items())
    of_base = 2
    for axis in study.base.values():
        of_base *= len(axis.start)
    tuned += of_base * (1 + 2)  # at both lengths
    return (
        f"{row['parameters'] / 1e6:.1f} M parameters, compiled in {row['compile']:.0f} "
        f"s, {1000 * row['step']:.1f} ms a step of the base, {run:.1f} minutes a run: "
        f"about {tuned * len(study.tuning_seeds) * run:.0f} minutes to choose, "
        f"{reported * run:.0f} to report"
    )


# --- commands -----------------------------------------------------------------------


def smoke(options: argparse.Namespace) -> None:
    """All commands in a row, anew, on text that trains."""
    study, out = tiny(options.data), options.out
    try:
        bench = Bench(study, Clock(), out)
    except (FileNotFoundError, ImportError) as error:
        print(f"Skipped: {error}")
        return
    found = [out / f"{study.name}{end}.json" for end in ("", "_report")]
    for path in found:
        path.unlink(missing_ok=True)
    print(of_time(timed(bench), study))
    settings = out / f"{study.name}_settings" / "settings.json"
    tune(bench, Store(found[0]), settings)
    rehearsal.commit(settings)
    run_report(bench, Committed(settings), Store(found[1]))
    print(f"Guessing takes {float(jnp.log(bench.text.symbols)):.2f} nats.")
    show(Store(found[1]))


def arguments() -> argparse.Namespace:
    parser = commands.parser(__doc__, NAME, studies=())
    add = parser.add_argument
    add("--time", action="store_true", help="measure how long it takes, train nothing")
    add("--minutes", type=resume.minutes, default=9.0, help="of this part (default 9)")
    add("--data", type=Path, default=austen.FOLDER)
    return report.parse(parser)


def main() -> None:
    options = arguments()
    clock, study, out = Clock(options.minutes), full(options.data), options.out
    reported = Store(out / f"{NAME}_report.json")
    if options.smoke:
        smoke(options)
        return
    if not (options.time or options.tune or options.report):
        show(reported)
        return
    permit = Committed(options.settings) if options.report else None
    bench = Bench(study, clock, out)
    resume.keep_programs(out / NAME / "programs")
    if options.time:
        print(of_time(timed(bench), study))
    elif options.tune:
        tune(bench, Store(out / f"{NAME}.json"), options.settings)
    elif permit and run_report(bench, permit, reported):
        show(reported)


if __name__ == "__main__":
    main()
