"""Claims of the SAM and ASAM papers, tried at a size that two cores can train.

The task of climbs.py: an MLP on 2,000 images of Fashion-MNIST's pool, 40 % of the
labels wrong, SGD. Learning rate, decay and rho of every method are those that climbs.py
chose on validation images and that are committed; what is shown was measured on new
seeds, tested on images that chose nothing.

  a  the norm of the climb: p = 2 against p = 1, p = infinity and a random direction
  b  the second-order term: accuracy with and without it, the cosine of both gradients
  c  the Hessian's largest eigenvalues along training
  d  accuracy, train-test gap and weight norm at 0.5 to 4 times the epochs
  e  accuracy against rho for SAM and ASAM, and what rescaling two layers changes

Beside each claim stands the result here. "agrees" means that the difference, seed
by seed, exceeds two standard errors in the paper's direction, "disagrees" the reverse,
and all else is "no difference seen". It is one small task: no verdict on a paper.

Writes paper_figures.json and a picture for each claim. Finished runs are kept: start it
again and it goes on. `--smoke` does a little of everything in half a minute.
"""

import argparse
import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import optax_sam
from benchmarks.accuracy import (
    climbs,
    paper_claims,
    paper_figures_pictures,
    paper_figures_report,
)
from benchmarks.lib import commands, fixed_sets, loop, rehearsal, report
from benchmarks.lib.blind import Committed
from benchmarks.lib.fixed_sets import Examples
from benchmarks.lib.networks import Mlp
from benchmarks.lib.reporting import check
from benchmarks.lib.runs import Runs
from benchmarks.lib.study import BASE, Bench, Study
from benchmarks.lib.training import jit
from optax_sam import adaptive_ascent, measure, steepest_ascent

TASK = climbs.SGD
# By the name that a figure has for it, the row of the settings.
METHODS = {
    "SGD": BASE,
    "SAM": "SAM",
    "p = 1": "p = 1",
    "p = ∞": "p = ∞",
    "random": "random",
    "second order": "second order",
    "ASAM": "ASAM",
}
# The response to rho, in multiples of what was chosen.
LADDER = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
LENGTHS = (0.5, 1, 2, 4)
EIGENVALUES = 5
COSINE_BATCHES = 5
# Powers of two change no digit of a weight, so that rounding plays no part.
FACTORS = (1, 2, 4, 8)
OF_SAM, INVARIANT, PUBLISHED = "SAM", "ASAM, η = 0, all leaves", "ASAM as published"


class Cell(NamedTuple):
    """What is the same for all seeds of a run."""

    method: str
    lr: float
    decay: float
    rho: float
    epochs: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is done; a smoke run does a little of everything."""

    study: Study
    look: int = 4  # epochs between two looks at the Hessian
    seeds: tuple[int, ...] = tuple(range(5200, 5210))
    look_seeds: int = 6  # the first of them, for what takes long
    ladder: tuple[float, ...] = LADDER


def full(folder: Path) -> Plan:
    return Plan(climbs.full(folder))


def tiny(plan: Plan) -> Plan:
    task = plan.study.tasks[TASK]
    rho = {name: task.rho[name] for name in METHODS.values() if name != BASE}
    tasks = {TASK: dataclasses.replace(task, rho=rho)}
    study = rehearsal.tiny(dataclasses.replace(plan.study, tasks=tasks), Mlp((8, 8)))
    study = dataclasses.replace(study, name="paper_figures_smoke", epochs=2)
    return Plan(study, 1, study.seeds, 2, LADDER[:2])


def chosen(plan: Plan, settings: dict) -> dict[str, Cell]:
    """What the settings have for each method of a figure."""
    check(dataclasses.replace(plan.study, seeds=plan.seeds), settings)
    of_task = settings["tasks"][TASK]
    if not of_task["sound"]:
        raise ValueError(
            f"The network of {plan.study.name!r} does not beat both baselines on "
            "validation images, and a network that does not is not shown: choose a "
            "larger one, and --tune it."
        )
    found = {}
    for name, row in METHODS.items():
        of, epochs = of_task["rows"][row]["settings"], of_task["rows"][row]["epochs"]
        found[name] = Cell(name, of["lr"], of["decay"], of.get("rho", 0.0), epochs)
    return found


# --- one run ------------------------------------------------------------------------


def kind_of(plan: Plan, cell: Cell) -> loop.Kind:
    return plan.study.kind(TASK, METHODS[cell.method], cell.epochs)


def numbers(cell: Cell) -> loop.Settings:
    return loop.Settings(cell.lr, cell.decay, cell.rho)


def run(plan: Plan, bench: Bench, cell: Cell, seed: int) -> dict[str, float]:
    kind, data = kind_of(plan, cell), jax.device_put(bench.training(TASK, seed))
    network = loop.train(kind, numbers(cell), cell.epochs, seed, data)
    found = {
        name: 100 * float(loop.evaluate(kind.model, network, part).right.mean())
        for name, part in (("train", data), ("test", bench.tests["test"]))
    }
    return found | {"weight_norm": float(optax.tree.norm(network.params))}


# --- along training, and at its end -------------------------------------------------


def mean_loss(model, params, batch: Examples):
    return jnp.mean(loop.training_losses(model, params, batch))


@functools.cache
def spectrum(model):
    @jit
    def of(params, data: Examples):
        return measure.hessian_eigenvalues(
            lambda p: mean_loss(model, p, data), params, k=EIGENVALUES
        )

    return of


@functools.cache
def cosines(model, batch: int):
    """Between SAM's gradient and the one that keeps the second-order term."""

    @jit
    def of(params, data: Examples, rho):
        loss, ascent = functools.partial(mean_loss, model), steepest_ascent(rho)
        both = [
            optax_sam.value_and_grad(loss, ascent, second_order=kept)
            for kept in (False, True)
        ]

        def of_batch(part):
            a, b = (grad_fn(params, part)[1] for grad_fn in both)
            return optax.tree.vdot(a, b) / optax.tree.norm(a) / optax.tree.norm(b)

        count = min(COSINE_BATCHES, len(data.labels) // batch)
        parts = jax.tree.map(
            lambda x: x[: count * batch].reshape(-1, batch, *x.shape[1:]), data
        )
        return jax.lax.map(of_batch, parts).mean()

    return of


@functools.cache
def rises(model):
    """How far each climb raises the training loss, after w1 * c and w2 / c."""

    @jit
    def of(params, data: Examples, c, rho, of_asam):
        first, second = params["Dense_0"], params["Dense_1"]
        rescaled = params | {
            "Dense_0": jax.tree.map(lambda x: x * c, first),
            "Dense_1": second | {"kernel": second["kernel"] / c},
        }
        loss = functools.partial(mean_loss, model, batch=data)
        value, grads = jax.value_and_grad(loss)(rescaled)

        def rise(ascent):
            e, _ = ascent.update(grads, ascent.init(rescaled), rescaled)
            return loss(optax.apply_updates(rescaled, e)) - value

        climbs_of = {
            OF_SAM: steepest_ascent(rho),
            INVARIANT: adaptive_ascent(of_asam, eta=0.0, mask=True),
            PUBLISHED: adaptive_ascent(of_asam, eta=0.01),
        }
        return {name: rise(ascent) for name, ascent in climbs_of.items()}

    return of


def looks(plan: Plan, bench: Bench, cell: Cell, seed: int, rhos) -> dict:
    """Eigenvalues and cosines at every look, and the rises at the end; `rhos` are
    those of SAM and ASAM."""
    kind, data = kind_of(plan, cell), jax.device_put(bench.training(TASK, seed))
    held_out = jax.tree.map(lambda leaf: leaf[: len(data.labels)], bench.tests["test"])
    each = len(data.labels) // kind.batch  # steps of an epoch
    found = {"looked_at": [], "train": [], "held_out": [], "cosine": []}
    weights = loop.along(kind, numbers(cell), cell.epochs, seed, data)
    for step, params in enumerate(weights, 1):
        if step % (plan.look * each):
            continue
        found["looked_at"].append(step // each)
        for name, part in (("train", data), ("held_out", held_out)):
            found[name].append(spectrum(kind.model)(params, part).tolist())
        cosine = cosines(kind.model, kind.batch)(params, data, rhos[0])
        found["cosine"].append(float(cosine))
    ends = [rises(kind.model)(params, data, float(c), *rhos) for c in FACTORS]
    names = (OF_SAM, INVARIANT, PUBLISHED)
    return found | {f"rise, {n}": [float(end[n]) for end in ends] for n in names}


# --- all of it ----------------------------------------------------------------------


def cells(plan: Plan, found: dict[str, Cell]) -> tuple[list[Cell], list[Cell]]:
    """Those that are looked at along the way, and all that are trained."""
    control = found["SAM"]._replace(method="SGD", rho=0.0)  # at SAM's settings
    several = [found["SGD"], control, found["SAM"]]
    longer = [
        cell._replace(epochs=int(length * cell.epochs))
        for cell, length in itertools.product(several, LENGTHS)
    ]
    ladders = [
        found[method]._replace(rho=rho)
        for method in ("SAM", "ASAM")
        for rho in ladder(plan, found[method])
    ]
    return several, [*found.values(), *longer, *ladders]


def ladder(plan: Plan, cell: Cell) -> list[float]:
    return [float(f"{cell.rho * factor:.6g}") for factor in plan.ladder]


def measure_all(plan: Plan, permit: Committed, path: Path) -> None:
    found = chosen(plan, permit.settings)
    several, everything = cells(plan, found)
    bench = Bench(plan.study, permit)
    rhos = found["SAM"].rho, found["ASAM"].rho
    look_seeds = plan.seeds[: plan.look_seeds]
    with report.progress_bar() as progress:
        runs = Runs(path, Cell, ("runs", "looks"), progress)
        work = functools.partial(run, plan, bench)
        runs.run("runs", everything, plan.seeds, work, "new seeds")
        look = functools.partial(looks, plan, bench, rhos=rhos)
        runs.run("looks", several, look_seeds, look, "Hessians")
        runs.finish(
            {
                "settings_blob": permit.blob,
                "seeds": plan.seeds,
                "looks_seeds": look_seeds,
                "epochs": plan.study.epochs,
                "lengths": LENGTHS,
                "label_noise": plan.study.tasks[TASK].noise,
                "factors": FACTORS,
                "ladders": {m: ladder(plan, found[m]) for m in ("SAM", "ASAM")},
                "chosen": {name: cell._asdict() for name, cell in found.items()},
                "control": several[1]._asdict(),
            }
        )


def show(path: Path) -> None:
    console = report.console()
    result = json.loads(path.read_text(encoding="utf-8"))
    result |= {"claims": paper_claims.claims(result)}
    report.write_json(path, result)
    paper_figures_report.print_tables(result, console)
    for picture in paper_figures_pictures.draw(result, path):
        console.print(f"Wrote {picture}, and its dark variant")
    console.print(f"Wrote {path}")


def smoke(plan: Plan, out: Path) -> None:
    if commands.skipped(plan.study):
        return
    small, path = tiny(plan), out / "paper_figures.json"
    path.unlink(missing_ok=True)
    measure_all(small, rehearsal.chosen(small.study, out), path)
    show(path)


def arguments() -> argparse.Namespace:
    parser = report.parser(__doc__, "paper_figures.json")
    add = parser.add_argument
    add("--data", type=Path, default=fixed_sets.FASHION)
    add("--settings", type=Path, default=commands.SETTINGS / "climbs.json")
    return report.parse(parser)


def main() -> None:
    options = arguments()
    plan, path = full(options.data), options.out / "paper_figures.json"
    if options.smoke:
        smoke(plan, options.out)
        return
    if not options.redraw:
        measure_all(plan, Committed(options.settings), path)
    show(path)


if __name__ == "__main__":
    main()
