"""A search that ends inside of what it tried."""

import math

from benchmarks.lib.grids import Axis, Found, fixed, neighbours, search

AXES = {"lr": Axis((0.1, 0.2)), "rho": Axis((0.05, 0.1, 0.2), low=0.01)}


def peak_at(**where):
    """Values that fall with the distance from a point, in factors."""

    def evaluate(points):
        return [-sum(abs(math.log(p[n] / v)) for n, v in where.items()) for p in points]

    return evaluate


def test_an_edge_is_searched_on_until_both_neighbours_are_worse():
    found = search(AXES, peak_at(lr=1.6, rho=0.1))
    assert found.best == {"lr": 1.6, "rho": 0.1}
    tried = [point for point, _ in found.tried]
    assert all(one in tried for one in neighbours(AXES, found.best))
    assert found.at_edge() == found.at_bound() == []


def test_an_edge_is_named():
    evaluate = peak_at(lr=0.1, rho=0.1)
    points = [{"lr": lr, "rho": 0.1} for lr in (0.1, 0.2)]
    found = Found(AXES, list(zip(points, evaluate(points), strict=True)))
    assert found.at_edge() == ["lr", "rho"]


def test_a_number_that_is_fixed_is_neither_searched_nor_at_a_bound():
    axes = {"lr": Axis((1.0,)), "decay": fixed(1e-5)}
    found = search(axes, lambda points: [-abs(p["lr"] - 4) for p in points], 7)
    assert {point["decay"] for point, _ in found.tried} == {1e-5}
    assert found.best == {"lr": 4.0, "decay": 1e-5}
    assert found.at_edge() == found.at_bound() == []
    assert len(found.tried) == 7


def test_a_bound_ends_the_search_and_is_said():
    found = search(AXES, peak_at(lr=0.2, rho=0.001))
    assert found.best == {"lr": 0.2, "rho": 0.0125}
    assert found.at_bound() == ["rho"]
    assert found.at_edge() == []


def test_as_many_points_as_asked_for_and_none_twice():
    found = search(AXES, peak_at(lr=0.2, rho=0.1), at_least=20)
    tried = [tuple(point.values()) for point, _ in found.tried]
    assert len(tried) == len(set(tried)) == 20
    assert len(search(AXES, peak_at(lr=0.2, rho=0.1)).tried) < 20
