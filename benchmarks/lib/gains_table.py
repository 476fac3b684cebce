"""The tasks of several studies in one table: a line each, over both bases."""

import textwrap
from collections.abc import Iterator

from benchmarks.lib import results
from benchmarks.lib.results import Results
from benchmarks.lib.results_table import MARKS, NOT_RUN, WIDTH

NOTE = (
    "Gains in points over the base at as many steps / over the base of the length "
    'that validation images chose. "*" is certain for the smallest of the gains after '
    'Holm\'s correction within its study, "~" two standard errors from zero and no '
    "more."
)


def table(found: list[Results]) -> str:
    """Nothing if no network is sound."""
    rows = [(one, task) for one in found for task in one.tasks]
    names = dict.fromkeys(name for one, task in rows for name in one.methods(task))
    if not rows:
        return ""
    lines = [f"{'task':32}" + "".join(f"{name:>15} " for name in names)]
    lines += [f"{task:32}" + "".join(cells(one, task, names)) for one, task in rows]
    lines = [line.rstrip() for line in lines]
    return "\n".join([*lines, "", *textwrap.wrap(NOTE, WIDTH)])


def cells(found: Results, task: str, names) -> Iterator[str]:
    verdicts = found.verdicts()
    for name in names:
        gains = found.gains(task, name) if name in found.methods(task) else None
        if gains is None:
            yield f"{NOT_RUN:>15} "
            continue
        both = (gains[over].mean for over in (results.STEPS, results.LENGTH))
        shown = " / ".join(f"{mean:+.2f}" for mean in both)
        yield f"{shown:>15}{MARKS[verdicts[task, name].word]}"
