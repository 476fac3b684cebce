"""Can the best rho be read off one sweep, without tuning it?

For every task on which SAM, ASAM and m-SAM were tuned, in which_method_small.json,
generalization.json and fine_tuning.json: the base is trained again with its tuned
settings, half way, `radius_sweep` climbs by 31 radii, and each of PREDICTORS says a
radius. Then over the tasks, and for each method: the rank correlation (Spearman) of
what was predicted with what was tuned, its p-value (two-sided, by permutation), and
that after Holm's correction for all predictors and methods tried. Beside it, how many
tuned radii lie within a factor of two of the prediction, after one factor for all
tasks; a constant, the same radius for all tasks, is the rival.

Half way, because at the start the gradients are those of random weights, and at the end
the tasks without wrong labels are fitted: losses and gradients have vanished there.
Predictors, radii and this point were fixed before any correlation was computed.
Everything is on training images and of the base alone; three tuning seeds, of which
predictions are averaged (geometrically). Batches are those of the training: of the
task's batch size for SAM and ASAM, sub-batches of m examples for m-SAM.

A task counts once: flatness.json and m_sharpness.json have radii tuned on data and
networks that are among these already. The tuned radii come from grids of three or four
points, laid around a first guess, and many lie at an edge.

Writes which_rho.json and which_rho.png; takes some minutes on one core.
"""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.table import Table
from scipy.stats import rankdata

from benchmarks.accuracy import (
    fine_tuning,
    generalization,
    which_method_small,
    which_rho_picture,
)
from benchmarks.lib import methods, report, training, tuning
from benchmarks.lib.data import Examples, loaded
from benchmarks.lib.statistics import holm
from optax_sam import adaptive_ascent, climb_only, measure, steepest_ascent

METHODS = ("SAM", "ASAM", "m-SAM")
SEEDS = 3  # the first of the tuning seeds
EXAMPLES = 500  # at most, cut into batches
#: Far wider than any grid, so that predictions are not cut off.
RHOS = {
    "SAM": np.geomspace(0.003, 30, 31),
    "ASAM": np.geomspace(0.03, 300, 31),
    "m-SAM": np.geomspace(0.003, 30, 31),
}
CONSTANT = "one rho for all tasks"
LEVEL = 0.05  # of the corrected p-value
PERMUTATIONS = 20_000
SOURCES = ("which_method_small", "generalization", "fine_tuning")


@dataclasses.dataclass(frozen=True)
class Point:
    """A network half way through the base's training, and what it is trained on.

    `losses(params, batch)` gives one loss per example; `where` is the expression for
    the leaves that are trained and climb.
    """

    params: Any
    data: Examples
    losses: Callable
    where: str = ""


@dataclasses.dataclass(frozen=True)
class Bench:
    """A task with tuned radii: `tuned[method]`, and where to train its base again."""

    source: str
    task: str
    batch: int
    m: int
    rows: dict[str, dict]
    seeds: list[int]
    half_way: Callable[[int], Point]


# --- the tasks, and their networks half way -----------------------------------------


def benches() -> Iterator[Bench]:
    """Every task with its tuned radii, from the committed results."""
    found = {source: report.committed(f"{source}.json") for source in SOURCES}
    for grid in which_method_small.GRIDS:
        rows = rows_of(found["which_method_small"], "methods", grid.task.name)
        half_way = functools.partial(classifier, grid.task, "sgd", rows["base"])
        yield bench(found, "which_method_small", grid.task, rows, grid.m, half_way)
    for one in generalization.BENCHES:
        if is_twice(one):
            continue
        rows = rows_of(found["generalization"], "summary", one.task.name)
        half_way = functools.partial(classifier, one.task, one.optimizer, rows["base"])
        yield bench(found, "generalization", one.task, rows, one.m, half_way)
    sizes = fine_tuning.Sizes()
    for way in fine_tuning.WAYS:
        rows = rows_of(found["fine_tuning"], "summary", way)
        half_way = functools.partial(fine_tuned, sizes, way, rows["base"])
        task = dataclasses.replace(sizes.task, name=way, batch=sizes.batch)
        yield bench(found, "fine_tuning", task, rows, fine_tuning.M, half_way)


def bench(found, source: str, task, rows, m: int, half_way) -> Bench:
    seeds = found[source]["tuning_seeds"][:SEEDS]
    return Bench(source, task.name, task.batch, m, rows, seeds, half_way)


def rows_of(result: dict, table: str, task: str) -> dict[str, dict]:
    """The base and the three methods, as they were tuned."""
    rows = {row["method"]: row for row in result[table] if row["task"] == task}
    return {name: rows[name] for name in ("base", *METHODS)}


def is_twice(one: generalization.Bench) -> bool:
    """Whether which_method_small.py tunes on the same data, network and optimizer."""
    bare = dataclasses.replace(one.task, name=generalization.MNIST.name)
    return bare == generalization.MNIST and one.optimizer == "sgd"


def classifier(task, optimizer: str, base: dict, seed: int) -> Point:
    split = jax.device_put(task.split(loaded(task.load), seed))
    settings = training.Settings(base["lr"], base["decay"])
    run = training.run(
        task, training.Kind(optimizer), settings, base["epochs"], seed, split.train
    )
    network = next(net for done, net, _ in run if 2 * done >= base["epochs"])
    return Point(network.params, split.train, generalization.losses(task.model))


def fine_tuned(sizes, way: str, base: dict, seed: int) -> Point:
    model, parts = sizes.task.model, fine_tuning.parts(sizes, seed)
    losses, where = fine_tuning.losses(model), fine_tuning.head_last(model, way)
    optimizer = fine_tuning.optimizer(where)
    init, epoch = tuning.compiled_epoch(
        losses, methods.BY_NAME["base"], optimizer, 1, sizes.batch
    )
    params, state = parts.params, init(parts.params)
    rng, size = np.random.default_rng(seed), len(parts.train.labels)
    settings = training.Settings(base["lr"], base["decay"])
    steps = base["epochs"] * (size // sizes.batch)
    for _ in range(base["epochs"] // 2):
        order = rng.permutation(size)[: size // sizes.batch * sizes.batch]
        order = order.reshape(-1, sizes.batch)
        params, state = epoch(params, state, parts.train, order, settings, steps)
    return Point(params, parts.train, losses, where)


# --- the sweep ----------------------------------------------------------------------


@functools.cache
def compiled_sweep(losses, method: str, where: str):
    """One program for all seeds of a task."""

    def ascent_of_rho(rho):
        ascent = (
            adaptive_ascent(rho, eta=0.01) if method == "ASAM" else steepest_ascent(rho)
        )
        return climb_only(ascent, where) if where else ascent

    @training.jit
    def sweep(params, batches, rhos):
        def loss_fn(params, batch):
            return jnp.mean(losses(params, batch))

        return measure.radius_sweep(
            loss_fn, params, ascent_of_rho, rhos, batches=batches
        )

    return sweep


def sweep_of(point: Point, method: str, size: int) -> dict[str, np.ndarray]:
    """The curves over RHOS, and the norm of the weights that climb."""
    count = min(EXAMPLES, len(point.data.labels)) // size
    batches = jax.tree.map(
        lambda x: x[: count * size].reshape(count, size, *x.shape[1:]), point.data
    )
    sweep = compiled_sweep(point.losses, method, point.where)
    found = sweep(point.params, batches, RHOS[method])
    chosen = climb_only(optax.identity(), point.where).update(
        point.params, climb_only(optax.identity(), point.where).init(point.params)
    )[0]
    curves = {
        name: np.asarray(getattr(found, name).mean, float)
        for name in ("loss", "rise", "predicted_rise", "cosine", "climb_norm")
    }
    return curves | {"weights": float(optax.tree.norm(chosen))}


# --- what it predicts ---------------------------------------------------------------


def crossing(rhos: np.ndarray, values: np.ndarray, level: float) -> float:
    """The first radius at which rising values reach the level, between two on a
    logarithmic scale; the smallest, or the largest, where that lies outside."""
    reached = np.flatnonzero(~(values < level))  # what is not finite is beyond it
    if len(reached) == 0:
        return float(rhos[-1])
    i = reached[0]
    if i == 0:
        return float(rhos[0])
    low, high = values[i - 1], values[i]
    share = (level - low) / (high - low) if np.isfinite(high) else 1.0
    return float(rhos[i - 1] * (rhos[i] / rhos[i - 1]) ** share)


def over_linear(rhos, curves, factor: float) -> float:
    return crossing(rhos, curves["rise"] / curves["predicted_rise"], factor)


def turned(rhos, curves, cosine: float) -> float:
    return crossing(rhos, -curves["cosine"], -cosine)


def share_of_loss(rhos, curves, share: float) -> float:
    return crossing(rhos, curves["rise"] / curves["loss"], share)


def share_of_weights(rhos, curves, share: float) -> float:
    """For ASAM too the climb's own length, which its rho is not."""
    return crossing(rhos, curves["climb_norm"] / curves["weights"], share)


#: Fixed before any correlation was looked at: from the curves to a radius.
PREDICTORS: dict[str, Callable[[np.ndarray, dict], float]] = {
    "rise = 1.5 x linear": functools.partial(over_linear, factor=1.5),
    "rise = 2 x linear": functools.partial(over_linear, factor=2.0),
    "cosine = 0.9": functools.partial(turned, cosine=0.9),
    "cosine = 0.5": functools.partial(turned, cosine=0.5),
    "rise = 10 % of the loss": functools.partial(share_of_loss, share=0.1),
    "rise = 50 % of the loss": functools.partial(share_of_loss, share=0.5),
    "rise = 100 % of the loss": functools.partial(share_of_loss, share=1.0),
    "climb = 1 % of the weights": functools.partial(share_of_weights, share=0.01),
}


def measured(one: Bench, points: list[Point]) -> Iterator[dict]:
    """One row for each method: curves of the first seed, predictions of all."""
    for method in METHODS:
        size = one.m if method == "m-SAM" else one.batch
        curves = [sweep_of(point, method, size) for point in points]
        rhos = RHOS[method]
        predicted = {
            name: geometric_mean(predict(rhos, seen) for seen in curves)
            for name, predict in PREDICTORS.items()
        }
        row = one.rows[method]
        yield {
            "source": f"{one.source}.json",
            "task": one.task,
            "method": method,
            "examples_that_climb_together": size,
            "tuned": row["rho"],
            "at_edge": "rho" in row["at_edge"],
            "predicted": predicted,
            "curves": {
                name: curves[0][name].tolist()
                for name in ("loss", "rise", "predicted_rise", "cosine")
            },
        }


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(np.mean([math.log(value) for value in values]))


# --- what it is worth ---------------------------------------------------------------


def worth(rows: list[dict]) -> list[dict]:
    """For each method and predictor: correlation, p-values, and closeness."""
    found = []
    for method in METHODS:
        mine = [row for row in rows if row["method"] == method]
        tuned = np.array([row["tuned"] for row in mine])
        for name in PREDICTORS:
            predicted = np.array([row["predicted"][name] for row in mine])
            correlation, p = spearman(predicted, tuned)
            found.append(
                {
                    "method": method,
                    "predictor": name,
                    "tasks": len(mine),
                    "spearman": correlation,
                    "p": p,
                    "within_two": within_two(predicted, tuned),
                }
            )
        found.append(
            {
                "method": method,
                "predictor": CONSTANT,
                "tasks": len(mine),
                "within_two": within_two(np.ones_like(tuned), tuned),
            }
        )
    tested = [row for row in found if "p" in row]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = p
    return found


def spearman(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The rank correlation, and how often ranks drawn at random have as large a one.

    By permutation: with so few tasks and so many ties the usual formula is off. Where
    all ranks are equal the correlation is undefined, NaN, and p is 1.
    """
    ranks, other = (rankdata(x) - (len(x) + 1) / 2 for x in (a, b))
    size = np.sqrt((ranks @ ranks) * (other @ other))
    if size == 0:
        return np.nan, 1.0
    shuffled = np.tile(other, (PERMUTATIONS, 1))
    shuffled = np.random.default_rng(0).permuted(shuffled, axis=1)
    found, random = ranks @ other / size, shuffled @ ranks / size
    as_large = np.sum(np.abs(random) >= abs(found) - 1e-9)
    return float(found), float((1 + as_large) / (1 + PERMUTATIONS))


def within_two(predicted: np.ndarray, tuned: np.ndarray) -> int:
    """How many radii are hit up to a factor of two, the median ratio taken out."""
    off = np.log2(tuned / predicted)
    return int(np.sum(np.abs(off - np.median(off)) <= 1 + 1e-6))


def at_tuned(result: dict) -> dict[str, list[float]]:
    """The smallest, the median and the largest value at the tuned radii of all rows.

    Not asked beforehand: a description, of the curves of the first seed.
    """
    found: dict[str, list[float]] = {"cosine": [], "rise_over_linear": []}
    found["rise_over_loss"] = []
    for row in result["rows"]:
        seen = {name: np.array(v, float) for name, v in row["curves"].items()}
        curves = (
            seen["cosine"],
            seen["rise"] / seen["predicted_rise"],
            seen["rise"] / seen["loss"],
        )
        rhos = np.log(result["rhos"][row["method"]])
        for values, curve in zip(found.values(), curves, strict=True):
            values.append(float(np.interp(np.log(row["tuned"]), rhos, curve)))
    return {name: [min(v), float(np.median(v)), max(v)] for name, v in found.items()}


def at_tuned_text(result: dict) -> str:
    """The ranges in a sentence, for the page and the picture."""
    seen = result["at_tuned"]
    low, _, high = seen["cosine"]
    text = f"At the tuned radii the cosine is {low:.2f} to {high:.2f}"
    least, _, most = seen["rise_over_linear"]
    return f"{text}, the rise {least:.1f} to {most:.0f} times the linear one"


def verdict(result: dict) -> str:
    """One sentence, by the rule: corrected p below LEVEL, and more hits than a
    constant has."""
    hits = {
        row["method"]: row["within_two"]
        for row in result["worth"]
        if row["predictor"] == CONSTANT
    }
    good = [
        row
        for row in result["worth"]
        if row.get("p_holm", 1) < LEVEL
        and row["spearman"] > 0
        and row["within_two"] > hits[row["method"]]
    ]
    if not good:
        return "No predictor passes."
    names = "; ".join(f"{row['method']}: {row['predictor']}" for row in good)
    return f"What passes: {names}."


def page_table(result: dict) -> str:
    """The table of docs/which_rho.md: correlation (corrected p), hits."""
    by = {(row["method"], row["predictor"]): row for row in result["worth"]}
    lines = ["| predicted radius | " + " | ".join(METHODS) + " |"]
    lines += ["|---" * (1 + len(METHODS)) + "|"]
    for name in (*PREDICTORS, CONSTANT):
        cells = " | ".join(cell(by[method, name]) for method in METHODS)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def cell(row: dict) -> str:
    hits = f"{row['within_two']} of {row['tasks']}"
    if "p" not in row:
        return hits
    if row["spearman"] is None:  # all ranks equal
        return f"undefined; {hits}"
    return f"{row['spearman']:+.2f} (p {row['p_holm']:.2f}); {hits}"


def print_table(result: dict, console) -> None:
    table = Table(title="Spearman with the tuned radius (Holm's p); hits within 2x")
    head, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page_table(result).splitlines()
    ]
    for name in head:
        table.add_column(name)
    for line in lines:
        table.add_row(*line)
    console.print(table)
    console.print(f"{at_tuned_text(result)}.")
    console.print(verdict(result))


# --- options ------------------------------------------------------------------------


def measure_all(chosen: list[Bench]) -> dict:
    start, rows = time.perf_counter(), []
    with report.progress_bar() as progress:
        bar = progress.add_task("tasks", total=len(chosen))
        for one in chosen:
            progress.update(bar, description=one.task)
            points = [one.half_way(seed) for seed in one.seeds]
            rows += measured(one, points)
            progress.advance(bar)
    return {
        **report.provenance(),
        "seconds": time.perf_counter() - start,
        "point": "half of the base's tuned training",
        "seeds": {one.source: one.seeds for one in chosen},
        "rhos": {method: rhos.tolist() for method, rhos in RHOS.items()},
        "rows": rows,
    }


def main() -> None:
    options = report.parse(report.parser(__doc__, "which_rho.json"))
    path, console = options.out / "which_rho.json", report.console()
    if not options.redraw:
        chosen = list(benches())
        if options.smoke:
            small = [chosen[i] for i in (1, 6, -2)]
            chosen = [dataclasses.replace(b, seeds=b.seeds[:1]) for b in small]
        report.write_json(path, measure_all(chosen))
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = result.pop("rows")
    result |= {"worth": worth(rows), "rows": rows}
    result["at_tuned"] = at_tuned(result)
    result["rows"] = result.pop("rows")  # the long part at the end
    report.write_json(path, result)
    result = json.loads(path.read_text(encoding="utf-8"))
    print_table(result, console)
    text = at_tuned_text(result)
    which_rho_picture.draw(result, path.with_suffix(".png"), text)
    console.print(f"Wrote {path} and its pictures, .png and -dark.png")


if __name__ == "__main__":
    main()
