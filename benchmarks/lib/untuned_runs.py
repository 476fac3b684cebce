"""What untuned.py runs: the search that freezes the rules, and their report.

Every task is tuned by another study, whose settings are a file. The report runs the
base, the tuned methods and every rule on new seeds, for committed settings only; a key
holds the hash of the rules' file and that of the file which the base is from.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.lib import report, reporting, rules
from benchmarks.lib.blind import Committed
from benchmarks.lib.choose import Choice
from benchmarks.lib.grids import Point
from benchmarks.lib.rules import Rule
from benchmarks.lib.store import Key, Store
from benchmarks.lib.study import BASE, Bench, Study

TUNED = {"SAM, tuned": "SAM", "ASAM, tuned": "ASAM"}  # rows, and what they are of


@dataclasses.dataclass(frozen=True)
class Place:
    """A task of a study, the file, without its ending, that has its settings, and the
    script that tunes them."""

    study: Study
    task: str
    settings: str
    script: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """The tasks by the name they have in the table; on the validation images of
    `choosing` numbers are chosen."""

    name: str
    places: dict[str, Place]
    choosing: tuple[str, ...]
    rules: tuple[Rule, ...] = rules.RULES


# --- what is frozen -----------------------------------------------------------------


class Choosing(NamedTuple):
    """A task that chooses numbers, and the row of its tuned base."""

    choice: Choice
    task: str
    base: dict


def chosen(plan: Plan, folder: Path, store: Store, tell: Callable[[str], None]) -> dict:
    """All searches on validation images; the settings to commit."""
    bases = [tuned_base(plan, task, folder) for task in plan.choosing]
    places = [plan.places[task] for task in plan.choosing]
    tasks = [
        Choosing(Choice(Bench(place.study), store, tell), place.task, base)
        for place, base in zip(places, bases, strict=True)
    ]
    return {
        "study": plan.name,
        "tuning_seeds": sorted({s for p in places for s in p.study.tuning_seeds}),
        "choosing": list(plan.choosing),
        "rules": {
            rule.name: rules.frozen(rule, evaluated(rule, tasks)) for rule in plan.rules
        },
    }


def tuned_base(plan: Plan, name: str, folder: Path) -> dict:
    """The row of the base in the settings of a task that chooses numbers."""
    place = plan.places[name]
    path = folder / f"{place.settings}.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{path.name} is not in {folder}, and has the learning rate and decay of "
            f"{name!r}, with which numbers are chosen. First run python -m "
            f"benchmarks.accuracy.{place.script} --tune, which writes it."
        )
    settings = json.loads(path.read_text(encoding="utf-8"))
    return settings["tasks"][place.task]["rows"][BASE]


def evaluated(rule: Rule, tasks: list[Choosing]):
    """The mean accuracy on the validation images of the tasks that choose."""
    return rules.over_tasks([of_task(one, rule) for one in tasks])


def of_task(one: Choosing, rule: Rule):
    """Each number with the base's learning rate and decay."""

    def evaluate(points: list[Point]) -> list[float]:
        full = [one.base["settings"] | point for point in points]
        return one.choice.values(one.task, rule.method, one.base["epochs"], full)

    return evaluate


# --- what is reported ---------------------------------------------------------------


def permits(plan: Plan, folder: Path) -> dict[str, Committed]:
    """Of the rules, and of every other file that is there by now."""
    names = [plan.name, *(place.settings for place in plan.places.values())]
    paths = {name: folder / f"{name}.json" for name in dict.fromkeys(names)}
    return {
        name: Committed(path)
        for name, path in paths.items()
        if name == plan.name or path.exists()
    }


def run(
    plan: Plan,
    permits: dict[str, Committed],
    store: Store,
    tell: Callable[[str], None],
    threads: int = 1,
) -> None:
    """All that is missing, task by task, the small ones first."""
    check(plan, permits)
    benches = made(plan, permits)
    store.describe(head(plan, permits, benches))
    missing = [key for key in keys(store.head) if store.find(key) is None]
    number = itertools.count(1)

    def work(key: Key) -> dict:
        name = str(key["task"])
        found = benches[name].work(key | {"task": plan.places[name].task})
        del found["right"]["validation"]  # the table needs it of test images alone
        tell(
            f"{next(number)}/{len(missing)} {name}, {key['method']}, seed "
            f"{key['seed']}: {found['test']:.2f} in {found['seconds']:.1f} s"
        )
        return found

    reporting.together(threads, store, missing, work)


def check(plan: Plan, permits: dict[str, Committed]) -> None:
    """The rules are those of the plan, and no seed that reports chose anything."""
    frozen = permits[plan.name].settings
    rules.check(frozen["rules"], plan.rules)
    for place in plan.places.values():
        reporting.check_seeds(place.study, frozen)
        if place.settings in permits:
            reporting.check(place.study, permits[place.settings].settings)


def made(plan: Plan, permits: dict[str, Committed]) -> dict[str, Bench]:
    """By task, one bench a study; of the tests the first alone."""
    found: dict[int, Bench] = {}
    for place in plan.places.values():
        study = place.study
        if place.settings in permits and id(study) not in found:
            bench = Bench(study, permits[place.settings])
            bench.tests = {"test": bench.tests["test"]}
            found[id(study)] = bench
    return {
        name: found[id(place.study)]
        for name, place in plan.places.items()
        if id(place.study) in found
    }


def head(plan: Plan, permits: dict[str, Committed], benches: dict[str, Bench]) -> dict:
    frozen = permits[plan.name]
    return {
        "study": plan.name,
        "rules_blob": frozen.blob,
        "rules": frozen.settings["rules"],
        "choosing": frozen.settings["choosing"],
        "tasks": {
            name: reported(place, permits[place.settings], frozen, benches[name])
            for name, place in plan.places.items()
            if place.settings in permits
        },
        "not_tuned": {
            name: place.settings
            for name, place in plan.places.items()
            if place.settings not in permits
        },
        **report.provenance(),
    }


def reported(place: Place, permit: Committed, frozen: Committed, bench: Bench) -> dict:
    """What the table needs to know of one task."""
    settings = permit.settings["tasks"][place.task]
    return {
        "settings": place.settings,
        "settings_blob": permit.blob,
        "sound": settings["sound"],
        "seeds": list(place.study.seeds),
        "images": len(bench.tests["test"].labels),
        "rows": rows(settings["rows"], frozen.settings["rules"]),
    }


def rows(tuned: dict[str, dict], frozen: dict[str, dict]) -> dict[str, dict]:
    """The base, the methods that were tuned, and the rules with all but rho from the
    base."""
    base = tuned[BASE]
    of_rules = {
        name: base | {"method": of["method"]} | with_rho(base, of["number"])
        for name, of in frozen.items()
    }
    of_tuned = {row: tuned[of] for row, of in TUNED.items() if of in tuned}
    found = {BASE: base, **of_tuned, **of_rules}
    names = ("method", "epochs", "settings")
    return {row: {name: of[name] for name in names} for row, of in found.items()}


def with_rho(base: dict, rho: float) -> dict:
    return {"settings": base["settings"] | {"rho": rho}}


def keys(head: dict) -> Iterator[Key]:
    """Of the tasks whose network is sound; row by row, so that a process compiles few
    programs at a time."""
    for task, of in head["tasks"].items():
        if of["sound"]:
            for row in of["rows"]:
                for seed in of["seeds"]:
                    yield key(head, task, row, seed)


def key(head: dict, task: str, row: str, seed: int) -> Key:
    of = head["tasks"][task]
    return {
        "study": head["study"],
        "rules_blob": head["rules_blob"],
        "settings_blob": of["settings_blob"],
        "task": task,
        **of["rows"][row],
        "seed": seed,
    }
