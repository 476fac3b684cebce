"""SAM's gain on nine smaller tasks, with settings chosen blind.

By the rules of "Studies" in CONTRIBUTING.md, beside the larger mnist_5k.py and
fashion.py and on their fixed sets: a small CNN on 1,500 images of MNIST, an MLP on
2,000 of Fashion-MNIST, and on 200; true and wrong labels, SGD and AdamW. Three studies,
as each has one number of images to train on: other_tasks_mnist, other_tasks_fashion,
other_tasks_few. Three commands, in this order, each for all three studies:

    python -m benchmarks.accuracy.other_tasks --tune     # validation images alone
    git add benchmarks/settings && git commit            # before any test
    python -m benchmarks.accuracy.other_tasks --report   # new seeds, test images
    python -m benchmarks.accuracy.other_tasks            # tables and picture

--settings names the folder of the three files; --report refuses settings that are not
committed. The verdicts of a table have Holm's correction within that table. Kill it at
any time and start it again, twice if there are two cores.

untuned.py takes the settings of its smaller tasks from here.
"""

import argparse
import dataclasses
from pathlib import Path

from benchmarks.accuracy import fashion, label_noise, mnist_5k
from benchmarks.lib import (
    commands,
    fixed_sets,
    gains_picture,
    gains_table,
    rehearsal,
    report,
)
from benchmarks.lib.fixed_sets import Source
from benchmarks.lib.grids import Axis
from benchmarks.lib.networks import Mlp
from benchmarks.lib.results import Results
from benchmarks.lib.results_table import NOT_RUN
from benchmarks.lib.study import Study, Task

NAME = "other_tasks"
SEEDS = tuple(range(4100, 4108))
RHO = label_noise.RHO  # where the searches start


def base(lr: tuple[float, ...], decay: tuple[float, ...]) -> dict[str, Axis]:
    return {"lr": Axis(lr), "decay": Axis(decay, ratio=3)}


CLEAN = base((0.1, 0.2, 0.4), (0.001, 0.003, 0.009))
SMALL_BATCH = base((0.025, 0.05, 0.1), (0.001, 0.003, 0.009))
NOISY = base((0.1, 0.2, 0.4), (0.01, 0.03, 0.09))
ADAMW_CLEAN = base((0.002, 0.004, 0.008), (0.1, 0.3, 0.9))
ADAMW_NOISY = base((0.002, 0.004, 0.008), (0.3, 0.9, 2.7))
SIDE_BY_SIDE = 2  # the small kernels of one run do not keep two cores busy

# On 1,500 of the images, as mnist_5k.py.
MNIST = dataclasses.replace(
    mnist_5k.STUDY,
    name=f"{NAME}_mnist",
    tasks={
        "MNIST CNN, clean": Task(0.0, CLEAN, RHO),
        "MNIST CNN, clean, AdamW": Task(0.0, ADAMW_CLEAN, RHO, "adamw"),
        "MNIST CNN, 20 % wrong": Task(0.2, NOISY, RHO),
        "MNIST CNN, 60 % wrong": Task(0.6, NOISY, RHO),
    },
    from_best=False,
    seeds=SEEDS,
)


def small_fashion(source: Source) -> Study:
    """Those of the MLP."""
    return fashion.small(
        f"{NAME}_fashion",
        source,
        tasks={
            "Fashion MLP, clean": Task(0.0, CLEAN, RHO),
            "Fashion MLP, 20 % wrong": Task(0.2, NOISY, RHO),
            "Fashion MLP, 40 % wrong": Task(0.4, NOISY, RHO),
            "Fashion MLP, 40 % wrong, AdamW": Task(0.4, ADAMW_NOISY, RHO, "adamw"),
        },
        seeds=SEEDS,
    )


def few_of_fashion(source: Source) -> Study:
    """A hundredth of the images: 400 steps of 40. Which 200 a seed draws matters, so
    three seeds choose."""
    return Study(
        f"{NAME}_few",
        source,
        tasks={"Fashion MLP, 200 images": Task(0.0, SMALL_BATCH, RHO)},
        model=Mlp(),
        train=200,
        epochs=80,
        shortest=20,
        longest=320,
        batch=40,
        m=8,
        tuning_seeds=(100, 101, 102),
        from_best=False,
        seeds=SEEDS,
    )


def studies(folder: Path) -> tuple[Study, ...]:
    """Those first whose runs take the least time."""
    source = fixed_sets.fashion(folder)
    return few_of_fashion(source), small_fashion(source), MNIST


def tiny(study: Study) -> Study:
    """The same path in seconds: one task, few images, a small network, no search to
    speak of."""
    first = dict(list(study.tasks.items())[:1])
    return rehearsal.tiny(dataclasses.replace(study, tasks=first), Mlp((8,)))


# --- the commands -------------------------------------------------------------------


def run(options: argparse.Namespace, study: Study) -> list[Results]:
    """What was asked for, of one study; what there is to draw."""
    found: list[Results] = []
    settings = options.settings / f"{study.name}.json"
    commands.run(
        argparse.Namespace(**vars(options) | {"settings": settings}),
        study,
        tiny(study),
        lambda results, _: found.append(results),
        SIDE_BY_SIDE,
    )
    return found


def begun(whole: tuple[Study, ...], out: Path) -> tuple[Study, ...]:
    """Those that were reported to; if there are none all, which say what to do."""
    found = tuple(one for one in whole if commands.reported(one, out).head)
    for one in whole:
        if found and one not in found:
            commands.tell(f"{', '.join(one.tasks)}: {NOT_RUN}.")
    return found or whole


def parse() -> argparse.Namespace:
    names = [one.name for one in studies(fixed_sets.FASHION)]
    parser = commands.parser_with_data(__doc__, NAME, names)
    parser.set_defaults(settings=commands.SETTINGS)
    return report.parse(parser)


def main() -> None:
    options = parse()
    whole = studies(options.data)
    if not (options.smoke or options.tune or options.report):
        whole = begun(whole, options.out)
    found = [one for study in whole for one in run(options, study)]
    if found:
        commands.tell(gains_table.table(found))
        name = f"{NAME}_smoke" if options.smoke else NAME
        gains_picture.draw(found, options.out / f"{name}.png")


if __name__ == "__main__":
    main()
