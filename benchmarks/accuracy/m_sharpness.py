"""Accuracy and sharpness against m, the number of examples that climb together.

Task B of label_noise.py: 1,000 MNIST images at 14x14 pixels, 40 % of the labels wrong,
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
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullLocator
from rich.console import Console
from rich.table import Table

from benchmarks.lib import evaluation, report, training
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
NAMES = {"sgd": "SGD", "adamw": "AdamW"}
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
            text = f"{NAMES[optimizer]}, m = {m}, rho {rho:g}"
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


# --- what came out ------------------------------------------------------------------


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
            gain = None if whole is None else report.mean_and_error(accuracy - whole)
            whole = accuracy if whole is None else whole
            rows.append(
                {
                    **here,
                    "choice": choice,
                    "validation_accuracy": report.mean_and_error(validation),
                    "test_accuracy": report.mean_and_error(accuracy),
                    "lambda_max_held_out": report.mean_and_error(flatness),
                    "gain": gain,
                }
            )
    return rows


def print_table(rows: list[dict], console: Console) -> None:
    table = Table(title="Test accuracy against m: mean ± standard error")
    for name in ("optimizer", "rho", "m"):
        table.add_column(name)
    for name in ("accuracy, %", "gain over m = 100", "λ_max, held-out"):
        table.add_column(name, justify="right")
    for row in sorted(rows, key=lambda r: (r["optimizer"], r["choice"], -r["m"])):
        table.add_row(
            NAMES[row["optimizer"]],
            f"{row['choice']}, {row['rho']:g}",
            str(row["m"]),
            report.plus_minus(row["test_accuracy"], 2),
            report.plus_minus(row["gain"], 2, "+"),
            report.plus_minus(row["lambda_max_held_out"], 1),
        )
    console.print(table)


def finding(best: list[dict]) -> str:
    """What the curve of the best radii shows; m is chosen on validation images."""
    top = max(best, key=lambda r: r["validation_accuracy"][0])
    if top["gain"] is None:
        return f"with ρ tuned for each m,\nnone is better than m = {top['m']}"
    return (
        f"with ρ tuned for each m, m = {top['m']}\n"
        f"gains {report.plus_minus(top['gain'], 1, '+')} points over m = {best[0]['m']}"
    )


def picture(rows: list[dict], path: Path) -> None:
    report.picture_style()
    optimizers = list(dict.fromkeys(row["optimizer"] for row in rows))
    figure, grid = plt.subplots(
        2, len(optimizers), figsize=(5.5 * len(optimizers), 7.5), squeeze=False
    )
    looks = {
        "fixed": {"color": "#0072b2", "marker": "o", "ls": "--"},
        "best": {"color": "#009e73", "marker": "s", "ls": "-"},
    }
    labels = {"fixed": f"ρ = {FIXED_RHO} for all m", "best": "best ρ for each m"}
    measures = ("test_accuracy", "lambda_max_held_out")
    for column, optimizer in enumerate(optimizers):
        for line, measure in enumerate(measures):
            axes = grid[line, column]
            for choice, look in looks.items():
                mine = [
                    r
                    for r in rows
                    if (r["optimizer"], r["choice"]) == (optimizer, choice)
                ]
                mean, error = np.array([r[measure] for r in mine]).T
                ms = [r["m"] for r in mine]
                axes.errorbar(ms, mean, error, capsize=3, label=labels[choice], **look)
            axes.set_xscale("log")
            axes.invert_xaxis()
            axes.set_xticks(ms, [str(m) for m in ms])
            axes.xaxis.set_minor_locator(NullLocator())
            if line:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_locator(NullLocator())
                axes.set_xlabel("m, examples that climb together")
        best = [r for r in rows if (r["optimizer"], r["choice"]) == (optimizer, "best")]
        grid[0, column].set_title(f"{NAMES[optimizer]}: {finding(best)}")
    grid[0, 0].set_ylabel("test accuracy, %")
    grid[1, 0].set_ylabel("λ_max of the held-out loss")
    grid[0, 0].legend(frameon=False)
    for line in grid:
        report.same_limits(line, "y")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = report.parser(__doc__, "m_sharpness.json")
    parser.add_argument("--seeds", default=SEEDS, help="FIRST-LAST")
    options = report.parse(parser)
    path = options.out / "m_sharpness.json"
    if options.redraw:
        old = json.loads(path.read_text(encoding="utf-8"))
        rhos = {int(m): tuple(of_m) for m, of_m in old["rhos"].items()}
        rows = summarize(old["runs"], rhos)
        print_table(rows, Console())
        report.write_json(path, old | {"summary": rows})
        picture(rows, path.with_suffix(".png"))
        return print(f"Wrote {path} and its picture, .png")
    first, last = map(int, options.seeds.split("-"))
    seeds, rhos, optimizers, epochs = range(first, last + 1), RHOS, LR_DECAY, EPOCHS
    if options.smoke:
        seeds, rhos, optimizers, epochs = (
            range(2),
            {100: (0.05, 0.2), 50: (0.05,)},
            ["sgd"],
            1,
        )
    start, console = time.perf_counter(), Console()
    with report.progress_bar() as progress:
        runs = train_all(optimizers, rhos, epochs, list(seeds), progress)
    rows = summarize(runs, rhos)
    print_table(rows, console)
    result = {
        **report.provenance(),
        "seconds": time.perf_counter() - start,
        "epochs": epochs,
        "lr_decay": LR_DECAY,
        "rhos": rhos,
        "summary": rows,
        "runs": runs,
    }
    report.write_json(path, result)
    picture(rows, path.with_suffix(".png"))
    print(f"{result['seconds']:.0f} s. Wrote {path} and its picture, .png")


if __name__ == "__main__":
    main()
