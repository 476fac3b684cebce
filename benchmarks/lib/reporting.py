"""Runs of a report: every chosen row on new seeds, for settings that are committed.

A key holds the hash of the settings, so that runs of other settings are never mixed in.
The file says beside its runs all that a table needs to be made of it.
"""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from benchmarks.lib import report
from benchmarks.lib.blind import Committed
from benchmarks.lib.store import Key, Store
from benchmarks.lib.study import BASELINES, Bench, Study


def run(
    study: Study,
    permit: Committed,
    store: Store,
    tell: Callable[[str], None] = print,
    threads: int = 1,
) -> None:
    """All that is missing, row by row: a row counts when all of its seeds are there.

    Of the committed settings only the tasks and methods of `study` are run.
    """
    check(study, permit.settings)
    check_rows(study, permit.settings)
    bench = Bench(study, permit)
    store.describe(head(study, permit, bench))
    missing = [one for one in keys(store.head) if store.find(one) is None]
    number = itertools.count(1)

    def work(key: Key) -> dict:
        found = bench.work(key)
        del found["right"]["validation"]  # the table needs it of test images alone
        tell(
            f"{next(number)}/{len(missing)} {key['task']}, {key['method']}, "
            f"{key['epochs']} epochs, seed {key['seed']}: {found['test']:.2f} in "
            f"{found['seconds']:.0f} s"
        )
        return found

    together(threads, store, missing, work)


def together(threads: int, store: Store, missing: list[Key], work) -> None:
    """Some runs side by side: every second thread starts from the end, so that two of
    them seldom compile the same program."""
    with ThreadPoolExecutor(threads) as pool:
        running = [
            pool.submit(Store(store.path).run, missing[:: -1 if k % 2 else 1], work)
            for k in range(threads)
        ]
    for one in running:
        one.result()
    store.read()


def check(study: Study, settings: dict) -> None:
    """The settings are those of this study, and their seeds none of the new ones."""
    if settings["study"] != study.name:
        raise ValueError(
            f"These settings were chosen for the study {settings['study']!r}, and this "
            f"is {study.name!r}: give --settings the file that its --tune wrote."
        )
    check_seeds(study, settings)


def check_seeds(study: Study, settings: dict) -> None:
    """No seed that reports chose any of these settings."""
    if both := set(settings["tuning_seeds"]) & set(study.seeds):
        raise ValueError(
            f"Seeds {sorted(both)} chose the settings and are among those that "
            f"report, {study.seeds}: report on seeds that chose nothing."
        )


def check_rows(study: Study, settings: dict) -> None:
    """All that the study runs was chosen."""
    for task, of in study.tasks.items():
        rows = settings["tasks"].get(task, {"rows": {}})["rows"]
        if missing := [name for name in ("base", *of.rho) if name not in rows]:
            raise ValueError(
                f"Of {task!r} nothing was chosen for {', '.join(missing)}, and a row "
                "without settings cannot be reported: run --tune, which goes on from "
                "what it has, and commit the file that it writes."
            )


def head(study: Study, permit: Committed, bench: Bench) -> dict:
    return {
        "study": study.name,
        "settings_blob": permit.blob,
        "settings": part(permit.settings, study),
        "seeds": list(study.seeds),
        "images": {name: len(part.labels) for name, part in bench.tests.items()},
        **report.provenance(),
    }


def part(settings: dict, study: Study) -> dict:
    """The tasks and methods of the study; of the base all rows, and all baselines."""

    def of_task(name: str) -> dict:
        found, rho = settings["tasks"][name], study.tasks[name].rho
        rows = {n: r for n, r in found["rows"].items() if r["method"] in ("base", *rho)}
        return found | {"rows": rows}

    return settings | {"tasks": {name: of_task(name) for name in study.tasks}}


def keys(head: dict) -> Iterator[Key]:
    """Row by row, so that a process compiles few programs; then tasks, then seeds."""
    tasks = {task: rows(of) for task, of in head["settings"]["tasks"].items()}
    for name in dict.fromkeys(name for of_task in tasks.values() for name in of_task):
        for task, of_task in tasks.items():
            if name in of_task:
                for seed in head["seeds"]:
                    one = key(head, task, of_task[name], seed)
                    if one["task"] == task:
                        yield one


def rows(of_task: dict) -> dict[str, dict]:
    """By name: what was chosen for the networks, then for the baselines."""
    baselines = {
        name: {"method": name, "epochs": 0, **chosen}
        for name, chosen in of_task["baselines"].items()
    }
    return of_task["rows"] | baselines


def key(head: dict, task: str, row: dict, seed: int) -> Key:
    """Baselines are run once for all tasks of the same images."""
    if row["method"] in BASELINES:
        task = head["settings"]["tasks"][task].get("baselines_of", task)
    return {
        "study": head["study"],
        "settings_blob": head["settings_blob"],
        "task": task,
        "method": row["method"],
        "epochs": row["epochs"],
        "settings": row["settings"],
        "seed": seed,
    }
