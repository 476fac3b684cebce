"""A search over a grid that never ends at an edge.

The grid of the start is tried whole. Then the neighbours of the best point, one up and
one down on each axis, are tried, beyond the grid too, until all of them are worse: so
the point that is chosen is inside of what was tried, on every axis. An axis is a
geometric series; a bound, where a number has one, is the only end.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable

from sklearn.model_selection import ParameterGrid

Point = dict[str, float]
Evaluate = Callable[[list[Point]], list[float]]  # higher is better; may keep results


@dataclasses.dataclass(frozen=True)
class Axis:
    """The values of the start; further ones follow by the ratio, up to the bounds."""

    start: tuple[float, ...]
    ratio: float = 2.0
    low: float = 0.0
    high: float = float("inf")

    def around(self, value: float) -> list[float]:
        """The next value down and up, where there is one."""
        pair = (neat(value / self.ratio), neat(value * self.ratio))
        return [one for one in pair if self.low <= one <= self.high]


def fixed(value: float) -> Axis:
    """A number that is not searched over."""
    return Axis((value,), low=value, high=value)


@dataclasses.dataclass
class Found:
    """Every point that was tried, with its value, and the best of them."""

    axes: dict[str, Axis]
    tried: list[tuple[Point, float]]

    @property
    def best(self) -> Point:
        """The first of equals."""
        return max(self.tried, key=lambda pair: pair[1])[0]

    @property
    def value(self) -> float:
        return max(value for _, value in self.tried)

    def missing(self) -> list[Point]:
        """Neighbours of the best that were not tried."""
        return self.untried(neighbours(self.axes, self.best))

    def untried(self, points: Iterable[Point]) -> list[Point]:
        known = [point for point, _ in self.tried]
        return [point for point in points if point not in known]

    def at_bound(self) -> list[str]:
        """The axes on which the best has no neighbour on one side; those of a single
        value are not searched."""
        best, axes = self.best, self.axes.items()
        searched = {name: axis for name, axis in axes if axis.low < axis.high}
        return [n for n, axis in searched.items() if len(axis.around(best[n])) < 2]

    def at_edge(self) -> list[str]:
        """The axes on which a neighbour was not tried: none after a search."""
        missing, best = self.missing(), self.best
        return [n for n in self.axes if any(p[n] != best[n] for p in missing)]

    def add(self, points: list[Point], evaluate: Evaluate) -> None:
        points = self.untried(points)
        self.tried += zip(points, evaluate(points), strict=True)


def search(axes: dict[str, Axis], evaluate: Evaluate, at_least: int = 0) -> Found:
    """The grid, then neighbours of the best until all are worse.

    If fewer than `at_least` points were tried, those nearest to the best follow, so
    that nothing is tuned on more points than what it is compared with.
    """
    found = Found(axes, [])
    found.add(grid(axes), evaluate)
    while True:
        while points := found.missing():
            found.add(points, evaluate)
        short = at_least - len(found.tried)
        more = nearest(found)[: max(short, 0)]
        if not more:
            return found
        found.add(more, evaluate)


def grid(axes: dict[str, Axis]) -> list[Point]:
    """All points of the start, in the order of the axes."""
    points = ParameterGrid(
        {name: [neat(v) for v in axis.start] for name, axis in axes.items()}
    )
    return sorted(
        ({name: point[name] for name in axes} for point in points),
        key=lambda point: tuple(point.values()),
    )


def neighbours(axes: dict[str, Axis], point: Point) -> list[Point]:
    return [
        point | {name: value}
        for name, axis in axes.items()
        for value in axis.around(point[name])
    ]


def nearest(found: Found) -> list[Point]:
    """Points that were not tried, fewest steps from the best first."""
    best, reach = found.best, 3
    lines = [_line(axis, best[name], reach) for name, axis in found.axes.items()]
    ranked = sorted(
        itertools.product(*lines), key=lambda steps: sum(abs(k) for k, _ in steps)
    )
    names = list(found.axes)
    points = [dict(zip(names, (v for _, v in s), strict=True)) for s in ranked]
    return found.untried(points)


def _line(axis: Axis, value: float, reach: int) -> list[tuple[int, float]]:
    steps = {neat(value * axis.ratio**k): k for k in range(-reach, reach + 1)}
    return [(k, v) for v, k in steps.items() if axis.low <= v <= axis.high]


def neat(value: float) -> float:
    """Without the digits that a chain of products leaves behind."""
    return float(f"{value:.6g}")
