"""What is committed in benchmarks/results, for the tests that read it."""

import json
from pathlib import Path

from benchmarks.lib.results import Results
from benchmarks.lib.store import Store

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def result(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def study(name) -> Results:
    """What a study by the stricter rules reported."""
    return Results(Store(RESULTS / f"{name}_report.json"))


def gains_of(found: Results):
    """All that it compares."""
    for task in found.tasks:
        for method in found.methods(task):
            yield from found.gains(task, method).values()
