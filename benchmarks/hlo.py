"""Reading a compiled program: XLA's text, cut into its computations."""

import math
import re

LOOP = re.compile(r" while\(.*body=%?([\w.\-]+)(?:.*known_trip_count\D*(\d+))?")
INTEGER = re.compile(r"= u32\[([\d,]*)\].* (?:add|or|xor|subtract|shift-[\w\-]+)\(")
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


def rounds_not_counted(text: str) -> int:
    """Operations of JAX's random generator that XLA leaves out of its FLOPs.

    Threefry's rounds are a loop on the CPU, and XLA counts the body of a loop once.
    """
    bodies, _ = computations(text)

    def operations(name: str) -> int:
        return sum(
            math.prod(map(int, filter(None, found[1].split(","))))
            for line in bodies[name]
            if (found := INTEGER.search(line))
        ) + sum(map(operations, CALLS.findall("\n".join(bodies[name]))))

    loops = filter(None, map(LOOP.search, text.splitlines()))
    of_generator = [
        (body, trips)
        for body, trips in (loop.groups() for loop in loops)
        if " shift-left(" in inside(bodies, body)
    ]
    return sum((int(trips) - 1) * operations(body) for body, trips in of_generator)


def inside(bodies: dict[str, list[str]], name: str) -> str:
    """The lines of a computation, and of those that it calls."""
    text = "\n".join(bodies[name])
    return text + "".join(inside(bodies, called) for called in CALLS.findall(text))
