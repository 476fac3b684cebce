"""What untuned.py runs: the search that freezes the rules, and their report.

A task is tuned here, by the search of every study, or by another study whose settings
are committed. The report runs the base, the tuned methods and every rule on new seeds,
for committed settings only; a key holds the hash of the rules' file and that of the
file which the base is from.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

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
    """A task of a study, and the file, without its ending, that has its settings."""

    study: Study
    task: str
    settings: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """`own` is tuned here, `others` has tasks of other studies by the name they have
    in the table; on the validation images of `choosing` numbers are chosen."""

    name: str
    own: tuple[Study, ...]
    others: dict[str, Place]
    choosing: tuple[str, ...]
    rules: tuple[Rule, ...] = rules.RULES

    @property
    def places(self) -> dict[str, Place]:
        here = {
            task: Place(study, task, self.name)
            for study in self.own
            for task in study.tasks
        }
        return here | self.others


# --- what is frozen -----------------------------------------------------------------


def chosen(plan: Plan, store: Store, tell: Callable[[str], None]) -> dict:
    """All searches on validation images; the settings to commit."""
    rules.register()
    choices = [Choice(Bench(study), store, tell) for study in plan.own]
    tasks = {}
    for choice in choices:
        tasks |= choice.run()["tasks"]
    return {
        "study": plan.name,
        "tuning_seeds": sorted({s for one in plan.own for s in one.tuning_seeds}),
        "choosing": list(plan.choosing),
        "rules": {
            rule.name: rules.frozen(rule, evaluated(plan, rule, choices))
            for rule in plan.rules
        },
        "tasks": tasks,
    }


def evaluated(plan: Plan, rule: Rule, choices: list[Choice]):
    """The mean accuracy on the validation images of the tasks that choose."""
    of = {task: choice for choice in choices for task in choice.study.tasks}
    return rules.over_tasks([of_task(of[task], task, rule) for task in plan.choosing])


def of_task(choice: Choice, task: str, rule: Rule):
    """Each number with the base's learning rate and decay."""
    epochs = choice.study.epochs
    base = choice.base[task, epochs].best

    def evaluate(points: list[Point]) -> list[float]:
        full = [base | point for point in points]
        return choice.values(task, rule.method, epochs, full)

    return evaluate


# --- what is reported ---------------------------------------------------------------


def permits(plan: Plan, folder: Path) -> dict[str, Committed]:
    """Of the rules, and of every other file that is there by now."""
    names = dict.fromkeys(place.settings for place in plan.places.values())
    paths = {name: folder / f"{name}.json" for name in names}
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
    rules.register()
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
    rules.check(permits[plan.name].settings["rules"], plan.rules)
    for place in plan.places.values():
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
    """The base, the tuned methods, and the rules with all but rho from the base."""
    base = tuned[BASE]
    of_rules = {
        name: base | {"method": of["method"]} | with_rho(base, of["number"])
        for name, of in frozen.items()
    }
    found = {BASE: base, **{row: tuned[of] for row, of in TUNED.items()}, **of_rules}
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
