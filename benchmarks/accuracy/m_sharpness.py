"""Accuracy and sharpness against m, the number of examples that climb together.

Task B of flatness.py: 1,000 MNIST images at 14x14 pixels, 40 % of the labels wrong,
a multilayer perceptron (no BatchNorm, so that m changes nothing but the climb), batches
of 100. Every m is trained at the same rho and at its own best rho, which is chosen on
validation images: at one rho a small m looks better than it is, because its climbs are
larger compared with the average gradient. Both curves belong in the picture.

Learning rate and weight decay are those that were tuned for SAM (m = 100) on other
seeds. Training, validation and test images are drawn anew for each seed. Writes
m_sharpness.json and m_sharpness.png; takes a few minutes on two cores.
"""

import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from benchmarks.accuracy import m_sharpness_report
from benchmarks.lib import evaluation, report, statistics, training
from benchmarks.lib.tasks import MNIST
from benchmarks.lib.training import Kind, Settings

SEEDS = "520-525"
EPOCHS = 60
FIXED_RHO = 0.05
# For each m the radii to choose from: the best one falls with m, and soon behind it
# training collapses.
RHOS = {
    100: (0.05, 0.2, 0.3, 0.4),
    50: (0.05, 0.2, 0.3, 0.4),
    20: (0.05, 0.1, 0.2, 0.3),
    10: (0.05, 0.1, 0.15, 0.2),
    5: (0.05, 0.1, 0.15),
    2: (0.025, 0.05, 0.1),
}
LR_DECAY = {"sgd": (0.03, 0.02), "adamw": (0.003, 5.0)}
SIDE_BY_SIDE = 2


def train_all(optimizers, rhos, epochs: int, seeds: list[int], progress) -> list[dict]:
    """One row for each (optimizer, m, rho, seed)."""
    cells = [
        (optimizer, m, rho) for optimizer in optimizers for m in rhos for rho in rhos[m]
    ]
    jobs = list(itertools.product(cells, seeds))
    bar = progress.add_task("data", total=len(jobs))
    data = MNIST.load()
    splits = {seed: jax.device_put(MNIST.split(data, seed)) for seed in seeds}
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        work = {
            pool.submit(train, *cell, epochs, seed, splits[seed]): cell
            for cell, seed in jobs
        }
        for done in as_completed(work):
            optimizer, m, rho = work[done]
            done.result()
            text = f"{m_sharpness_report.NAMES[optimizer]}, m = {m}, rho {rho:g}"
            progress.update(bar, advance=1, description=text)
    return [done.result() for done in work]


def train(optimizer: str, m: int, rho: float, epochs: int, seed: int, split) -> dict:
    kind = Kind(optimizer, ascent="sam", microbatch=m)
    settings = Settings(*LR_DECAY[optimizer], rho)
    *_, last = training.run(MNIST, kind, settings, epochs, seed, split.train)
    network = last[1]
    held_out = jax.tree.map(lambda leaf: leaf[: MNIST.train], split.test)
    accuracy, eigenvalue = (
        evaluation.accuracy(MNIST),
        evaluation.largest_eigenvalue(MNIST),
    )
    return {
        "optimizer": optimizer,
        "m": m,
        "rho": rho,
        "seed": seed,
        "validation_accuracy": 100 * float(accuracy(network, split.validation)),
        "test_accuracy": 100 * float(accuracy(network, split.test)),
        "lambda_max_held_out": float(eigenvalue(network, held_out)),
    }


# --- results ------------------------------------------------------------------------


def values(runs: list[dict], name: str, **which) -> np.ndarray:
    """The figures of the seeds, in their order."""
    chosen = [r for r in runs if all(r[key] == value for key, value in which.items())]
    return np.array([r[name] for r in sorted(chosen, key=lambda r: r["seed"])])


def chosen_rho(runs: list[dict], optimizer: str, m: int, choice: str, rhos) -> float:
    """The one radius for all m, or the best of this m on validation images."""

    def validation(rho: float) -> float:
        here = {"optimizer": optimizer, "m": m, "rho": rho}
        return values(runs, "validation_accuracy", **here).mean()

    return FIXED_RHO if choice == "fixed" else max(rhos[m], key=validation)


def summarize(runs: list[dict], rhos) -> list[dict]:
    """Means for each optimizer, choice of rho and m; gains in pairs over m = batch."""
    rows = []
    optimizers = dict.fromkeys(run["optimizer"] for run in runs)
    for optimizer, choice in itertools.product(optimizers, ("fixed", "best")):
        whole = None
        for m in sorted(rhos, reverse=True):
            rho = chosen_rho(runs, optimizer, m, choice, rhos)
            here = {"optimizer": optimizer, "m": m, "rho": rho}
            accuracy = values(runs, "test_accuracy", **here)
            flatness = values(runs, "lambda_max_held_out", **here)
            validation = values(runs, "validation_accuracy", **here)
            gain = (
                None if whole is None else statistics.mean_and_error(accuracy - whole)
            )
            whole = accuracy if whole is None else whole
            rows.append(
                {
                    **here,
                    "choice": choice,
                    "validation_accuracy": statistics.mean_and_error(validation),
                    "test_accuracy": statistics.mean_and_error(accuracy),
                    "lambda_max_held_out": statistics.mean_and_error(flatness),
                    "gain": gain,
                }
            )
    return rows


def main() -> None:
    parser = report.parser(__doc__, "m_sharpness.json")
    parser.add_argument("--seeds", default=SEEDS, help="FIRST-LAST")
    options = report.parse(parser)
    path = options.out / "m_sharpness.json"
    if options.redraw:
        old = json.loads(path.read_text(encoding="utf-8"))
        rhos = {int(m): tuple(of_m) for m, of_m in old["rhos"].items()}
        rows = summarize(old["runs"], rhos)
        report.write_json(path, old | {"summary": rows})
        return show(old | {"summary": rows}, path)
    first, last = map(int, options.seeds.split("-"))
    seeds, rhos, optimizers, epochs = range(first, last + 1), RHOS, LR_DECAY, EPOCHS
    if options.smoke:
        seeds, rhos, optimizers, epochs = (
            range(2),
            {100: (0.05, 0.2), 50: (0.05,)},
            ["sgd"],
            1,
        )
    start = time.perf_counter()
    with report.progress_bar() as progress:
        runs = train_all(optimizers, rhos, epochs, list(seeds), progress)
    result = {
        **report.provenance(),
        "seconds": time.perf_counter() - start,
        "epochs": epochs,
        "lr_decay": LR_DECAY,
        "rhos": rhos,
        "summary": summarize(runs, rhos),
        "runs": runs,
    }
    report.write_json(path, result)
    print(f"{result['seconds']:.0f} s")
    show(result, path)


def show(result: dict, path: Path) -> None:
    m_sharpness_report.print_table(result["summary"], Console())
    m_sharpness_report.draw(result, path.with_suffix(".png"))
    print(f"Wrote {path} and its pictures, .png and -dark.png")


if __name__ == "__main__":
    main()
