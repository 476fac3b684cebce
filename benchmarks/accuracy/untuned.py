"""How much does no tuning cost? Five rules that set rho, the same for every task.

SAM with rho 0.05, ASAM with 0.5, LE-SAM with a budget that is a share of the loss, SAM
with a radius that is a share of the norm of the weights, and momentum SAM with one rho.
The first two numbers are published; --tune chooses the others on the validation images
of two tasks, and freezes all of them in benchmarks/settings/untuned.json. Learning rate
and decay of a rule are those of the tuned base: nothing more is tuned for it. Beside
them stand SAM and ASAM, tuned. Three commands, in this order, after other_tasks --tune:

    python -m benchmarks.accuracy.untuned --tune     # validation images alone
    git add benchmarks/settings/untuned.json && git commit   # before any test
    python -m benchmarks.accuracy.untuned --report   # new seeds, test images
    python -m benchmarks.accuracy.untuned            # table and picture of the JSON

--report refuses rules that are not committed, or are not these. Kill it at any time and
start it again, twice if there are two cores. An hour or so, two more for the tasks of
fashion.py, and as many for those of fine_tuning_imagenet.py.

Nothing is tuned twice: all settings but the rules' numbers are those that the studies
on the fixed sets chose blind, other_tasks.py, mnist_5k.py, label_noise.py, fashion.py
and fine_tuning_imagenet.py. Those of the two tasks that choose have to be there for
--tune; what else is not there yet is taken up when it is, and the rules are frozen by
then. A task whose base does not beat both baselines is not shown.

Before any run that reports it was fixed what is said of a rule: that it keeps most of
the gain, if its median share of tuned SAM's gain is more than half (over the tasks that
chose no number, and where tuned SAM gains two standard errors or more), and that it
hurts, if its gain over the base is negative after Holm's correction within the table.
"""

import dataclasses
from pathlib import Path

from benchmarks.accuracy import (
    fashion,
    fine_tuning_imagenet,
    label_noise,
    mnist_5k,
    other_tasks,
)
from benchmarks.lib import commands, rehearsal, report, untuned_runs
from benchmarks.lib.commands import tell
from benchmarks.lib.grids import Axis, fixed
from benchmarks.lib.networks import Mlp
from benchmarks.lib.store import Store
from benchmarks.lib.study import Study
from benchmarks.lib.untuned_picture import draw
from benchmarks.lib.untuned_results import Found, table
from benchmarks.lib.untuned_runs import Place, Plan

NAME = "untuned"
SEEDS = tuple(range(4000, 4008))
FEWER = SEEDS[:5]  # of the tasks on which a run takes minutes
SIDE_BY_SIDE = 2  # the small kernels of one run do not keep two cores busy


def plan(folder: Path) -> Plan:
    """All tasks, those of other_tasks.py first: they take the least time."""
    smaller = [with_seeds(study) for study in other_tasks.studies(folder)]
    short, long = with_seeds(mnist_5k.STUDY), with_seeds(label_noise.STUDY)
    large = with_seeds(fashion.full(folder), FEWER)
    tuned = with_seeds(fine_tuning_imagenet.full(folder), FEWER)
    return Plan(
        NAME,
        places={
            task: Place(study, task, study.name, other_tasks.NAME)
            for study in smaller
            for task in study.tasks
        }
        | {
            "MNIST CNN, 40 % wrong": its_own(short, mnist_5k.SGD),
            "MNIST CNN, 40 % wrong, AdamW": its_own(short, mnist_5k.ADAMW),
            "MNIST CNN, 40 %, longer": its_own(long, label_noise.SGD),
            "MNIST CNN, 40 %, longer, AdamW": its_own(long, label_noise.ADAMW),
            "Fashion CNN, clean": its_own(large, "clean"),
            "Fashion CNN, 40 % wrong": its_own(large, "40 % wrong"),
            "EfficientNet, head alone": its_own(tuned, fine_tuning_imagenet.HEAD),
            "EfficientNet, fine-tuned": its_own(tuned, fine_tuning_imagenet.WHOLE),
            "EfficientNet, from scratch": its_own(tuned, fine_tuning_imagenet.SCRATCH),
        },
        choosing=("MNIST CNN, 40 % wrong", "Fashion MLP, clean"),
    )


def its_own(study: Study, task: str) -> Place:
    """Of a study that has a script of its own name."""
    return Place(study, task, study.name, study.name)


def with_seeds(study: Study, seeds: tuple[int, ...] = SEEDS) -> Study:
    return dataclasses.replace(study, seeds=seeds)


# --- the commands -------------------------------------------------------------------


def tune(whole: Plan, out: Path, path: Path) -> None:
    """Search on validation images, and write what is frozen; the settings of the tasks
    that choose are beside it."""
    store = Store(out / f"{whole.name}.json")
    report.write_json(path, untuned_runs.chosen(whole, path.parent, store, tell))


def show(whole: Plan, out: Path) -> None:
    """Table and picture, of the file alone."""
    store = commands.begun(reported(whole, out))
    found = Found(store)
    tell(table(found))
    draw(found, out / f"{whole.name}.png")


def reported(whole: Plan, out: Path) -> Store:
    return Store(out / f"{whole.name}_report.json")


def tiny(whole: Plan) -> Plan:
    """The same path in seconds: two tasks, few images, small networks, no search."""
    chooses, other = (
        small_place(study) for study in (other_tasks.MNIST, mnist_5k.STUDY)
    )
    rules = tuple(
        dataclasses.replace(rule, number=fixed(0.1))
        if isinstance(rule.number, Axis)
        else rule
        for rule in whole.rules
    )
    return dataclasses.replace(
        whole,
        name=f"{NAME}_smoke",
        places={chooses.task: chooses, other.task: other},
        choosing=(chooses.task,),
        rules=rules,
    )


def small_place(study: Study) -> Place:
    """The first task of a study, under another name than that study's own smoke run."""
    task = next(iter(study.tasks))
    alone = dataclasses.replace(
        with_seeds(study), name=f"{NAME}_{study.name}", tasks={task: study.tasks[task]}
    )
    small = rehearsal.tiny(alone, Mlp((8,)))
    return its_own(small, task)


def smoke(whole: Plan, out: Path) -> None:
    """All commands in a row, anew; no image that tests a study is read."""
    small = tiny(whole)
    for name in (small.name, f"{small.name}_report"):
        (out / f"{name}.json").unlink(missing_ok=True)
    folder = out / f"{small.name}_settings"
    for place in small.places.values():
        settings = rehearsal.chosen(place.study, out, tell).settings
        report.write_json(folder / f"{place.settings}.json", settings)
    tune(small, out, folder / f"{small.name}.json")
    for path in sorted(folder.glob("*.json")):
        rehearsal.commit(path)
    run(small, out, folder)
    show(small, out)


def run(whole: Plan, out: Path, folder: Path) -> None:
    """The report; the settings are in `folder`."""
    permits = untuned_runs.permits(whole, folder)
    untuned_runs.run(whole, permits, reported(whole, out), tell, SIDE_BY_SIDE)


def main() -> None:
    options = report.parse(commands.parser_with_data(__doc__, NAME))
    whole = plan(options.data)
    if options.smoke:
        smoke(whole, options.out)
    elif options.tune:
        tune(whole, options.out, options.settings)
        tell(f"Wrote {options.settings.name}: commit it, then --report.")
    elif options.report:
        run(whole, options.out, options.settings.parent)
        tell("All runs are there: the same without --report makes table and picture.")
    else:
        show(whole, options.out)


if __name__ == "__main__":
    main()
