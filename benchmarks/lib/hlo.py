"""Reading a compiled program: XLA's text, cut into its computations."""

import math
import re
from typing import Any

import jax

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
    total = 0
    for loop in filter(None, map(LOOP.search, text.splitlines())):
        body, trips = loop.groups()
        rounds = inside(bodies, body)
        if " shift-left(" in rounds:
            total += (int(trips) - 1) * sum(map(size, INTEGER.findall(rounds)))
    return total


def size(dimensions: str) -> int:
    return math.prod(map(int, filter(None, dimensions.split(","))))


def inside(bodies: dict[str, list[str]], name: str) -> str:
    """The lines of a computation, and of those that it calls."""
    text = "\n".join(bodies[name])
    return text + "".join(inside(bodies, called) for called in CALLS.findall(text))


#: An instruction of any computation, those inside of fusions too.
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = ", re.MULTILINE)


def instructions(text: str) -> int:
    """How many a compiled program has."""
    return len(INSTRUCTION.findall(text))


def equations(jaxpr: Any) -> int:
    """How many a jaxpr has, those of the jaxprs in it included."""
    inner = [x for e in jaxpr.eqns for x in jax.tree.leaves(list(e.params.values()))]
    inner = [getattr(x, "jaxpr", x) for x in inner]
    return len(jaxpr.eqns) + sum(equations(x) for x in inner if hasattr(x, "eqns"))


#: What a loop or a conditional runs.
BRANCHES = re.compile(
    r"(?:body|true_computation|false_computation)=%?([\w.\-]+)"
    r"|branch_computations=\{([^}]*)\}"
)


def inside_control_flow(text: str, operation: str) -> int:
    """How often an operation stands inside of a loop or of a conditional."""
    bodies, _ = computations(text)
    found = 0
    for line in text.splitlines():
        for one, several in BRANCHES.findall(line):
            names = [one] if one else re.findall(r"[\w.\-]+", several)
            found += sum(inside(bodies, n).count(operation) for n in names)
    return found
