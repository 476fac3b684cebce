"""The results of a study as text of 80 columns."""

import textwrap
from collections.abc import Iterator

import numpy as np

from benchmarks.lib import results, statistics
from benchmarks.lib.results import Accuracy, Results
from benchmarks.lib.statistics import Gain

WIDTH = 80
COLUMNS = (results.STEPS, results.GRADIENTS, results.LENGTH)
NOT_RUN = "not run"
MARKS = {
    statistics.CERTAIN: "*",
    statistics.LOSS: "*",
    statistics.SUGGESTIVE: "~",
    f"{statistics.SUGGESTIVE} {statistics.LOSS}": "~",
    statistics.NONE: " ",
}


def table(found: Results) -> str:
    """Accuracies, gains with verdicts, and how to read them."""
    lines = [*accuracies(found), *gains(found)]
    for note in notes(found):
        lines += textwrap.wrap(note, WIDTH)
    return "\n".join(lines)


def accuracies(found: Results) -> Iterator[str]:
    columns = f"{'test':>16}{'official test':>18}{'validation':>13}{'s':>7}"
    for task in found.tasks:
        yield from headed(task, 20, columns)
        for row in found.rows(task):
            yield f"{row:20}" + of_row(found, task, row)
        yield ""


def headed(name: str, width: int, columns: str) -> Iterator[str]:
    """The head of a table; a name too wide for its column has a line of its own."""
    if len(name) > width:
        yield name
        name = ""
    yield f"{name:{width}}{columns}"


def of_row(found: Results, task: str, row: str) -> str:
    if not found.complete(task, row):
        return f"{missing(found, task, row):>16}"
    tests = [
        plain(found.accuracy(task, row, part)) if part in found.head["images"] else ""
        for part in ("test", "official")
    ]
    validation, seconds = (
        found.mean(task, row, what) for what in ("validation", "seconds")
    )
    return f"{tests[0]:>16}{tests[1]:>18}{validation:13.2f}{seconds:7.0f}"


def missing(found: Results, task: str, row: str) -> str:
    done = len(found.runs(task, row))
    return f"{done} of {len(found.head['seeds'])} seeds" if done else NOT_RUN


def gains(found: Results) -> Iterator[str]:
    verdicts = found.verdicts()
    for task in found.tasks:
        names = "".join(f"{name:>16}" for name in COLUMNS)
        yield from headed(f"{task}, gain", 15, f"{names}  verdict")
        for row in found.methods(task):
            of_row = found.gains(task, row)
            if of_row is None:
                yield f"{row:15}{NOT_RUN:>16}"
                continue
            cells = "".join(f"{signed(of_row[name]):>16}" for name in COLUMNS)
            yield f"{row:15}{cells}  {verdicts[task, row].word}"
        yield ""


def notes(found: Results) -> Iterator[str]:
    head = found.head
    for task in found.unsound:
        yield (
            f"{task}: not shown. On validation images its network does not beat both "
            "baselines by two standard errors."
        )
    sizes = ", ".join(f"{name} {size:,}" for name, size in head["images"].items())
    yield (
        f"Mean of {len(head['seeds'])} seeds ± standard error over seeds ± that of "
        f"the test images, by bootstrap ({sizes} images). Gains are in points, in "
        "pairs, on the first test set: over the base at as many steps, as many "
        "gradients, and the length chosen on validation images. The verdict is on the "
        "smallest of them (a gain has to be one over every base; the p-value of a loss "
        "is multiplied by their number), with Holm's correction over all methods and "
        'tasks at 0.05; "suggestive" is two standard errors from zero, and no more.'
    )
    for task in found.tasks:
        of_task = head["settings"]["tasks"][task]
        yield f"{task}: nominated on validation images: {of_task['nominated']}."
        if (best := found.best_base(task)) != task:
            yield f"{task}: its chosen length is that of {best}, the better base."
        yield from bounds(task, of_task["rows"])
    yield f"Settings: git blob {head['settings_blob']}."


def bounds(task: str, rows: dict[str, dict]) -> Iterator[str]:
    """Choices that are not inside of what was tried."""
    words = {"at_edge": "AT THE EDGE of the grid", "at_bound": "at a bound"}
    for what, word in words.items():
        found = [
            f"{n} ({', '.join(row[what])})" for n, row in rows.items() if row[what]
        ]
        if found:
            yield f"{task}: {word}: {'; '.join(found)}."


# --- numbers ------------------------------------------------------------------------


def plain(one: Accuracy) -> str:
    return f"{one.mean:.2f} {error(one.seeds)} {error(one.images)}"


def signed(one: Gain) -> str:
    return f"{one.mean:+.2f} {error(one.seeds)} {error(one.images)}"


def error(value: float) -> str:
    """Four characters: "±.12", "±1.2"; "±?" of a single value."""
    if not np.isfinite(value):
        return "±?"
    text = f"±{value:.2f}"
    return f"±{text[2:]}" if text.startswith("±0.") else f"±{value:.1f}"
