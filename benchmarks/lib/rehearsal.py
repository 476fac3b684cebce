"""The path of a study on a few images, which spends none of what is to test it."""

import dataclasses
import functools
import subprocess
from pathlib import Path

from benchmarks.lib import report
from benchmarks.lib.blind import Committed
from benchmarks.lib.choose import Choice
from benchmarks.lib.fixed_sets import Examples, Source
from benchmarks.lib.grids import Axis, fixed
from benchmarks.lib.store import Store
from benchmarks.lib.study import Bench, Study

POOL, VALIDATION, TEST, MORE = 600, 400, 400, 200
CONFIG = (
    "user.name=rehearsal",
    "user.email=rehearsal@localhost",
    "commit.gpgsign=false",
)
AUTHOR = [word for one in CONFIG for word in ("-c", one)]


def tiny(study: Study, model) -> Study:
    """The same path in seconds: few images, a small network, no search to speak of."""
    point = {"lr": fixed(0.1), "decay": Axis((0.001,), low=0.001)}
    tasks = {
        name: dataclasses.replace(
            task,
            base={n: fixed(axis.start[0]) for n, axis in task.base.items()} | point,
            rho={name: fixed(0.1) for name in task.rho},
        )
        for name, task in study.tasks.items()
    }
    return dataclasses.replace(
        study,
        name=f"{study.name}_smoke",
        source=source(study.source),
        tasks=tasks,
        model=model,
        train=128,
        batch=64,
        epochs=1,
        shortest=1,
        longest=2,
        tuning_seeds=study.tuning_seeds[:1],
        seeds=study.seeds[:2],
    )


def source(real: Source) -> Source:
    """Cut anew from images of the real pool alone; its tests are those of the same
    names."""
    return Source(functools.partial(few, real), POOL, VALIDATION, TEST)


def few(real: Source) -> tuple[Examples, dict[str, Examples]]:
    examples, more = real.read()
    pool, size = real.indices()[0], POOL + VALIDATION + TEST
    chosen = pool[:size]
    rest = pool[size : size + MORE]
    return part(examples, chosen), {name: part(examples, rest) for name in more}


def part(examples: Examples, indices) -> Examples:
    """At half the height and width."""
    return Examples(examples.images[indices, ::2, ::2], examples.labels[indices])


def chosen(study: Study, folder: Path, tell=print) -> Committed:
    """Settings of a tiny study, in a repository that `folder` is made to be."""
    store = folder / f"{study.name}.json"
    store.unlink(missing_ok=True)
    settings = Choice(Bench(study), Store(store), tell).run()
    path = folder / f"{study.name}_settings" / "settings.json"
    report.write_json(path, all_sound(settings))
    commit(path)
    return Committed(path)


def all_sound(settings: dict) -> dict:
    """As if every network were: a rehearsal shows all tables."""
    tasks = settings["tasks"].items()
    return settings | {"tasks": {task: of | {"sound": True} for task, of in tasks}}


def commit(path: Path) -> None:
    """In a repository that the folder of the file is made to be."""
    for command in (
        ["init", "-q"],
        ["add", "--", path.name],
        [*AUTHOR, "commit", "-q", "--allow-empty", "-m", "Settings of a rehearsal"],
    ):
        subprocess.run(["git", *command], cwd=path.parent, check=True)
