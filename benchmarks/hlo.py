"""Reading a compiled program: XLA's text, cut into its computations."""

import re

LOOP = re.compile(r" while\(.*body=%?([\w.\-]+)(?:.*known_trip_count\D*(\d+))?")
CALLS = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation by its name, and the name of the entry."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            name = head[2]
            entry = name if head[1] else entry
            bodies[name] = []
        elif name:
            bodies[name].append(line)
    return bodies, entry
