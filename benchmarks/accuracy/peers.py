"""SAM side by side with other libraries' SAM: speed, memory, and where it arrives.

`optax_sam.sam`, `optax.contrib.sam` (opaque mode) and, where PyTorch and
pytorch_optimizer are installed (never required), pytorch_optimizer's `SAM`, each
beside the plain optimizer of its framework: SGD with momentum, at SAM's settings (so
its accuracy is not that of a tuned base). Tasks, settings and
shapes are those of flatness.py's SAM: the multilayer perceptron on MNIST and the
conv net with BatchNorm on the digits, in a Python loop of single steps on the CPU. All
libraries start from the same weights and see the same batches. (The convolution is
nine slices and one matrix product in JAX, and PyTorch's own in PyTorch.)

- Steps per second: all methods in turn, the order reversed every second round; ratios
  are taken within a round, and their median and middle half are shown.
- Memory: the peak resident size of a fresh process for each, and by how much it rose
  over what was there before the first step (JAX's compiler is in it). PyTorch's process
  has JAX loaded too, for the data and the first weights.
- Test accuracy at the end, of some seeds, and the difference to `optax_sam` in pairs.
  Rounding alone drives two programs of the same steps apart: how far says the
  difference of `optax.contrib.sam`.
- Agreement: how far apart the weights of `optax_sam` and pytorch_optimizer are after
  some steps in float64, as a share of their norm. Whatever is not rounding shows there.

The load of the machine before the times is in the JSON: on a busy machine they say
little. PyTorch has one thread, with which it was the faster there. Writes peers.json;
five to ten minutes on two cores. To have PyTorch in it:
`pip install torch pytorch_optimizer`.
"""

import argparse
import dataclasses
import functools
import importlib.util
import itertools
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
from optax import contrib

import optax_sam
from benchmarks.accuracy import peers_report
from benchmarks.accuracy.peers_jobs import (
    CONTRIB,
    JAX_METHODS,
    METHODS,
    OURS,
    TORCH,
    TORCH_METHODS,
    Job,
    batches,
    jobs,
)
from benchmarks.lib import evaluation, report, training
from benchmarks.lib.data import CLASSES, Examples, Split
from benchmarks.lib.tasks import MNIST, Task
from benchmarks.lib.training import Network

PEERS = ("torch", "pytorch_optimizer")
SEEDS = tuple(range(1300, 1324))
ROUNDS, STEPS_OF_A_TURN = 15, 40
MEMORY_STEPS = 20
AGREEMENT = (1, 10, 100)  # steps
# Two threads wait for each other at every operation: with tensors of this size that was
# 30 to 70 times slower than one on two cores that were shared.
TORCH_THREADS = 1
Tick = Callable[[str], None]  # tells what was done


# --- one training, in either framework ----------------------------------------------


class JaxTraining:
    """A jitted step as the README shows it, called from Python."""

    def __init__(self, name: str, job: Job, seed: int, data: Examples):
        self.name, self.job, self.data = name, job, data
        key = jax.random.key(seed)
        self.network = training.initial(job.task)(key, data.images[:1])
        tx, self.step_fn = program(name, job)
        self.state = tx.init(self.network.params)

    def step(self, rows: np.ndarray) -> None:
        batch = Examples(self.data.images[rows], self.data.labels[rows])
        self.network, self.state = self.step_fn(self.network, self.state, batch)

    def wait(self) -> None:
        jax.block_until_ready(self.network)

    def accuracy(self, test: Examples) -> float:
        return 100 * float(evaluation.accuracy(self.job.task)(self.network, test))

    def in_float64(self) -> "JaxTraining":
        """The same start; JAX has to have 64 bits enabled."""
        self.network, self.data = (
            jax.tree.map(float64, tree) for tree in (self.network, self.data)
        )
        self.state = program(self.name, self.job)[0].init(self.network.params)
        return self

    def kernels(self) -> list[np.ndarray]:
        """Of all layers, from the first to the last."""
        layers = [self.network.params[name] for name in sorted(self.network.params)]
        return [np.asarray(layer["kernel"]) for layer in layers if "kernel" in layer]


def float64(leaf):
    return leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf


@functools.cache
def program(name: str, job: Job):
    tx = transformation(name, job)
    return tx, jax.jit(jax_step(name, job.task, tx))


def transformation(name: str, job: Job):
    optimizer = training.optimizer(training.Kind(), job.settings, job.steps)
    if name == OURS:
        return optax.chain(optax_sam.sam(job.settings.rho), optimizer)
    if name == CONTRIB:
        climb = optax.chain(contrib.normalize(), optax.sgd(job.settings.rho))
        return contrib.sam(optimizer, climb, opaque_mode=True)
    return optax.with_extra_args_support(optimizer)


def jax_step(name: str, task: Task, tx):
    def step(network: Network, state, batch: Examples):
        def loss_fn(params, _=None):
            return training.training_loss(
                task.model, params, batch, network.batch_stats
            )

        def value_fn(params, _=None):
            return loss_fn(params)[0]

        (_, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(network.params)
        second = {
            OURS: {"value_fn": value_fn},
            CONTRIB: {"grad_fn": jax.grad(value_fn)},
        }
        updates, state = tx.update(grads, state, network.params, **second.get(name, {}))
        return Network(optax.apply_updates(network.params, updates), stats), state

    return step


def start(name: str, job: Job, seed: int, data: Examples):
    if name not in TORCH_METHODS:
        return JaxTraining(name, job, seed, data)
    from benchmarks.accuracy import peers_torch

    peers_torch.torch.set_num_threads(TORCH_THREADS)
    return peers_torch.TorchTraining(name == TORCH, job, seed, data)


# --- what is measured ---------------------------------------------------------------


def turn(name: str, job: Job, split: Split, steps: int) -> Callable[[], float]:
    """A function that goes on for some steps, and returns the seconds."""
    here, rows = start(name, job, 0, split.train), batches(job, 0)

    def run() -> float:
        begin = time.perf_counter()
        for i in range(steps):
            here.step(rows[i % len(rows)])
        here.wait()
        return time.perf_counter() - begin

    run()  # compile and warm up
    return run


def timings(names, job: Job, split: Split, rounds: int, tick) -> dict[str, list[float]]:
    """Steps per second of each method in each round."""
    turns = {}
    for name in names:
        turns[name] = turn(name, job, split, STEPS_OF_A_TURN)
        tick(f"{job.name}: {name}")
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 else names[::-1]:
            found[name].append(STEPS_OF_A_TURN / turns[name]())
        tick(f"{job.name}: round {number + 1}")
    return found


def final_accuracy(name: str, job: Job, split: Split, seed: int) -> float:
    here = start(name, job, seed, split.train)
    for rows in batches(job, seed):
        here.step(rows)
    return here.accuracy(split.test)


def accuracies(name: str, job: Job, data: Examples, seeds, tick) -> list[float]:
    found = []
    for seed in seeds:
        found.append(final_accuracy(name, job, job.task.split(data, seed), seed))
        tick(f"{job.name}: seed {seed}, {name}")
    return found


def agreement(job: Job, split: Split) -> dict[str, float]:
    """After so many steps of SAM in float64, from the same weights: the distance of
    both frameworks' weights, as a share of their norm."""
    found = {}
    with jax.enable_x64(True):
        ours, theirs = (
            start(name, job, 0, split.train).in_float64() for name in (OURS, TORCH)
        )
        for step, rows in enumerate(batches(job, 0)[: max(AGREEMENT)], 1):
            ours.step(rows)
            theirs.step(rows)
            if step in AGREEMENT:
                found[str(step)] = distance(ours.kernels(), theirs.kernels())
    return found


def distance(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    pairs = zip(ours, theirs, strict=True)
    apart = np.concatenate([np.ravel(one - other) for one, other in pairs])
    whole = np.concatenate([np.ravel(one) for one in ours])
    return float(np.linalg.norm(apart) / np.linalg.norm(whole))


def memory_of_this_process(name: str, job: Job) -> dict[str, float]:
    # Noise of the right shape: the reading of the images would be the peak.
    side, rng = (14 if job.task.name == MNIST.name else 8), np.random.default_rng(0)
    images = rng.standard_normal((job.task.train, side, side, 1), np.float32)
    data = Examples(images, rng.integers(0, CLASSES, len(images)).astype(np.int32))
    here = start(name, job, 0, data)
    before = peak()
    for rows in batches(job, 0)[:MEMORY_STEPS]:
        here.step(rows)
    here.wait()
    return {"peak_megabytes": peak(), "rise_megabytes": peak() - before}


def peak() -> float:
    """Of this process alone. Linux's ru_maxrss begins with that of its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if found:
            return int(found[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def memory(name: str, job: Job, smoke: bool) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.accuracy.peers"]
    command += ["--memory-of", name, "--network", job.name]
    done = subprocess.run(
        command + ["--smoke"] * smoke,
        cwd=report.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


# --- all of it ----------------------------------------------------------------------


class Plan(NamedTuple):
    """Every method, of those whose library is here, on every network."""

    jobs: dict[str, Job]
    data: dict[str, Examples]
    names: tuple[str, ...]
    seeds: tuple[int, ...]
    rounds: int
    smoke: bool

    def first_split(self, network: str) -> Split:
        return self.jobs[network].task.split(self.data[network], 0)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [*itertools.product(self.jobs, self.names)]


@dataclasses.dataclass
class Measured:
    """What was found: a row for each network and method, by what was measured."""

    rows: dict[str, dict[str, dict]]
    agreement: dict[str, dict | None]
    load: Sequence[float] | None = None  # of the machine, before the times


def of_memory(plan: Plan, found: Measured, tick: Tick) -> None:
    for network, name in plan.pairs:
        found.rows[network][name] |= memory(name, plan.jobs[network], plan.smoke)
        tick(f"{network}: memory of {name}")


def of_accuracy(plan: Plan, found: Measured, tick: Tick) -> None:
    for network, name in plan.pairs:
        found.rows[network][name]["test_accuracy"] = accuracies(
            name, plan.jobs[network], plan.data[network], plan.seeds, tick
        )


def of_agreement(plan: Plan, found: Measured, tick: Tick) -> None:
    for network, job in plan.jobs.items() if TORCH in plan.names else ():
        found.agreement[network] = agreement(job, plan.first_split(network))
        tick(f"{network}: in float64")


def of_times(plan: Plan, found: Measured, tick: Tick) -> None:
    found.load = os.getloadavg()
    for network, job in plan.jobs.items():
        split = plan.first_split(network)
        rates = timings(plan.names, job, split, plan.rounds, tick)
        for name, of_turns in rates.items():
            found.rows[network][name]["steps_per_second"] = of_turns


# The times last: what is to be timed then finds the machine as calm as it gets.
PARTS = {
    "memory": of_memory,
    "accuracy": of_accuracy,
    "agreement": of_agreement,
    "times": of_times,
}


def planned(smoke: bool) -> Plan:
    chosen = {job.name: job for job in jobs(smoke)}
    data = {name: job.task.load() for name, job in chosen.items()}
    torch_here = all(importlib.util.find_spec(name) for name in PEERS)
    names = METHODS if torch_here else JAX_METHODS
    seeds, rounds = (SEEDS[:2], 3) if smoke else (SEEDS, ROUNDS)
    return Plan(chosen, data, names, seeds, rounds, smoke)


def ticks(plan: Plan) -> dict[str, int]:
    """How often each part tells that something was done."""
    pairs, networks = len(plan.pairs), len(plan.jobs)
    return {
        "memory": pairs,
        "accuracy": pairs * len(plan.seeds),
        "agreement": networks * (TORCH in plan.names),
        "times": pairs + networks * plan.rounds,
    }


def begun(plan: Plan, path: Path, only: list[str] | None) -> Measured:
    """With `only`, what an earlier run found of the other parts."""
    if not only:
        empty = {network: {name: {} for name in plan.names} for network in plan.jobs}
        return Measured(empty, dict.fromkeys(plan.jobs))
    old = report.earlier(path)
    networks = {network: old["networks"][network] for network in plan.jobs}
    for network, of in networks.items():
        there = [name for name, row in of["methods"].items() if row]
        if sorted(there) != sorted(plan.names):
            sys.exit(
                f"{path} has {', '.join(there)} for {network}, and here there would be "
                f"{', '.join(plan.names)}: leave --only out, so that all are measured."
            )
    return Measured(
        {network: of["methods"] for network, of in networks.items()},
        {network: of.get("agreement") for network, of in networks.items()},
        old["load_average_before_the_times"],
    )


def measure(options: argparse.Namespace) -> dict:
    plan = planned(options.smoke)
    found = begun(plan, options.out / "peers.json", options.only)
    with report.progress_bar() as progress:
        parts = [part for part in PARTS if part in (options.only or PARTS)]
        total = sum(ticks(plan)[part] for part in parts)
        bar = progress.add_task("", total=total)

        def tick(text: str) -> None:
            progress.update(bar, advance=1, description=text)

        for part in parts:
            PARTS[part](plan, found, tick)
    return written(plan, found, options.only)


def written(plan: Plan, found: Measured, only: list[str] | None) -> dict:
    """The JSON, but for its summary."""
    made = report.provenance()
    made["versions"] |= {name: report.version(name) for name in PEERS}
    return {
        **made,
        **({"only": only} if only else {}),
        "load_average_before_the_times": found.load,
        "seeds": plan.seeds,
        "rounds": plan.rounds,
        "steps_of_a_turn": STEPS_OF_A_TURN,
        "networks": {
            network: {
                "task": job.task.name,
                "batch": job.task.batch,
                **job.settings._asdict(),
                "epochs": job.epochs,
                "agreement": found.agreement[network],
                "methods": {name: found.rows[network].get(name) for name in METHODS},
            }
            for network, job in plan.jobs.items()
        },
    }


def main() -> None:
    parser = report.parser(__doc__, "peers.json")
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--network", help=argparse.SUPPRESS)
    parser.add_argument(
        "--only", choices=PARTS, nargs="+", help="the other parts stay as they are"
    )
    options = report.parse(parser)
    if options.memory_of:
        job = next(j for j in jobs(options.smoke) if j.name == options.network)
        print(json.dumps(memory_of_this_process(options.memory_of, job)))
        return
    path = options.out / "peers.json"
    if not options.redraw:
        report.write_json(path, measure(options))
    result = json.loads(path.read_text(encoding="utf-8"))
    result["summary"] = peers_report.summary(result)
    report.write_json(path, result)
    console = report.console(130)
    peers_report.print_tables(result, console)
    console.print(f"Wrote {path}")


if __name__ == "__main__":
    main()
