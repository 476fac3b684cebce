"""What every method costs, counted and then timed, on three small networks.

Networks: a multilayer perceptron, a convolutional network with BatchNorm, a decoder
that scans over its layers; steps as the README shows them, the loss returned. All is
a multiple of the base optimizer's step (SGD with momentum, AdamW for the decoder).

- FLOPs, as XLA counts them. It counts the body of a loop once, so bodies are multiplied
  by their trips: a body unrolled twice tells what one trip has (and for the rounds of
  the random generator the program's text, integer operations). Where a method skips,
  each branch is compiled alone (on a step that is known) and weighted by how often it
  is taken. The whole decoder unrolled must give the same.
- Evaluations of the loss that really ran, in batches: a callback in the loss counts the
  examples, over steps under `jit`.
- Traces of the loss in Python; temporary memory of the compiled step.
- All-reduces a step on 8 simulated devices, of the first network: with a sharded batch
  under plain `jit` (one climb for all), and with one climb for each device
  (`axis_name=, mesh=`).
- Time, against the base in adjacent turns of one run: the median of the paired ratios,
  and the middle half of them. `optax.contrib.sam` (opaque mode) stands beside, and SAM
  is timed against it too, in fresh processes: each moves the ratio by some hundredths.

BatchNorm's averages are left out: only what a step computes is counted. Writes
cost.json; about half an hour on two cores, a third of it to compile. `--only counts`,
`--only times` or `--only contrib` leaves the other parts as the file has them.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from optax import contrib
from rich.console import Console
from scipy import stats

import optax_sam
from benchmarks.cost.decoder import Decoder
from benchmarks.lib import hlo, methods, report
from benchmarks.lib.data import CLASSES, Examples
from benchmarks.lib.methods import BY_NAME, EVERY, Setting
from benchmarks.lib.networks import ConvNet, Mlp

STEPS = 10  # each turn starts from the same state: a fifth of the steps climb in all
ROUNDS = 9
CONTRIB_PROCESSES, CONTRIB_ROUNDS = 12, 15  # a ratio to be known to a hundredth
RHO, SUB_BATCHES = 0.05, 4
DEVICES = 8
CONTRIB = "optax.contrib.sam"
NAMES = (*BY_NAME, CONTRIB)
PARTS = ("counts", "times", "contrib")
CLIMBS, STAYS = STEPS, 1  # steps on which all methods that skip do and do not climb
#: The largest ratio to the base, in FLOPs.
BARS = {
    "SAM": 2.03,
    "LookSAM": 1.25,
    "climb by 1/4": 1.30,
    "momentum SAM": 1.03,
    "random perturbation": 1.03,
}


#: For what is counted and not timed: XLA optimizes as ever, LLVM does not.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


BRANCHES = (
    r" conditional\(.*(?:branch_computations=\{%?([\w.\-]+), %?([\w.\-]+)\}"
    r"|true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+))"
)


# --- networks -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A loss of each example, and what it is given. `losses(unroll)` unrolls loops."""

    name: str
    losses: Callable[[int], methods.Losses]
    params: Any
    batch: Any
    optimizer: optax.GradientTransformation
    depth: int = 1  # trips of its loops

    @property
    def size(self) -> int:
        return len(jax.tree.leaves(self.batch)[0])


def images(count: int, side: int):
    x, y = jax.random.split(jax.random.key(1))
    pixels = jax.random.normal(x, (count, side, side, 1))
    return Examples(pixels, jax.random.randint(y, (count,), 0, CLASSES))


def classifier(name: str, model: nn.Module, batch) -> Network:
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), batch.images[:1])
    params = variables.pop("params")

    def losses(params, batch):
        logits, _ = model.apply(
            {"params": params, **variables},
            batch.images,
            train=True,
            mutable=["batch_stats"],
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)

    sgd = optax.sgd(0.01, momentum=0.9)
    return Network(name, lambda unroll: losses, params, batch, sgd)


def decoder(name: str, model: Decoder, count: int, length: int) -> Network:
    shape = (count, length + 1)
    text = jax.random.randint(jax.random.key(1), shape, 0, model.vocabulary)

    def unrolled(unroll: int):
        def losses(params, text):
            logits = model.logits(params, text[:, :-1], unroll)
            of_token = optax.softmax_cross_entropy_with_integer_labels
            return of_token(logits, text[:, 1:]).mean(1)

        return losses

    params = jax.jit(model.init)(jax.random.key(0))
    return Network(name, unrolled, params, text, optax.adamw(1e-3), model.depth)


def networks() -> list[Network]:
    return [
        classifier("MLP", Mlp((256, 256)), images(512, 14)),
        classifier("conv net", ConvNet((16, 32)), images(256, 8)),
        decoder("decoder", Decoder(), 32, 32),
    ]


def tiny_networks() -> list[Network]:
    return [
        classifier("MLP", Mlp((16,)), images(64, 4)),
        decoder("decoder", Decoder(width=16, heads=2), 16, 8),
    ]


# --- steps --------------------------------------------------------------------------


def setting(network: Network, **options) -> Setting:
    """`options` are those of the products: what is a sub-batch."""
    return Setting(
        RHO,
        key=jax.random.key(fair_seed()),
        m=network.size // SUB_BATCHES,
        start=STEPS - STEPS // EVERY,
        options=options,
    )


@functools.cache
def fair_seed() -> int:
    """With this key random steps are a fifth of all steps, as they should be."""
    seed = 0
    while True:
        keys = [jax.random.fold_in(jax.random.key(seed), t) for t in range(STEPS)]
        if sum(float(jax.random.uniform(k)) < 1 / EVERY for k in keys) * EVERY == STEPS:
            return seed
        seed += 1


def build(name: str, network: Network, losses: methods.Losses, **options):
    """The state to start from, and a step: (params, state, batch) -> the same, loss."""
    if name == CONTRIB:
        return contrib_step(network, losses)
    if name == "m-SAM" and not options:
        return m_sam_step(network, losses)
    method, optimizer = BY_NAME[name], network.optimizer
    if options:  # then all of them take their gradients themselves
        method = dataclasses.replace(method, inside=True)
    tx = methods.transformation(method, setting(network, **options), optimizer)
    return tx.init(network.params), methods.step(method, tx, losses)


def contrib_step(network: Network, losses):
    climb = optax.chain(contrib.normalize(), optax.sgd(RHO))
    tx = contrib.sam(network.optimizer, climb, opaque_mode=True)

    def step(params, state, batch):
        def loss_fn(params, _=None):
            return jnp.mean(losses(params, batch))

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params, grad_fn=jax.grad(loss_fn))
        return optax.apply_updates(params, updates), state, loss

    return tx.init(network.params), step


def m_sam_step(network: Network, losses):
    """In place of `jax.value_and_grad`, which returns the loss."""
    grad_fn = optax_sam.m_sharpness(
        sam_gradient(losses), microbatch_size=network.size // SUB_BATCHES
    )
    tx = network.optimizer

    def step(params, state, batch):
        loss, grads = grad_fn(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    return tx.init(network.params), step


def sam_gradient(losses):
    def loss_fn(params, batch):
        return jnp.mean(losses(params, batch))

    return optax_sam.value_and_grad(loss_fn, optax_sam.steepest_ascent(RHO))


def on_step(step, t: int | None):
    """The step as it is at time t: XLA then drops the branch that is not taken."""
    if t is None:
        return step

    def at(params, state, batch):
        return step(params, optax.tree.set(state, step=jnp.int32(t)), batch)

    return at


def branches(name: str) -> dict[int | None, float]:
    """The times that stand for each branch, and how often it is taken."""
    if name in BY_NAME and BY_NAME[name].skips:
        return {CLIMBS: 1 / EVERY, STAYS: 1 - 1 / EVERY}
    return {None: 1.0}


# --- counts -------------------------------------------------------------------------


def flops(name: str, network: Network) -> float:
    """A step's, on average: branches by their shares, loop bodies by their trips."""
    if name.startswith("random 1/5"):
        # XLA cannot know its dice. Its branches are those of another condition.
        other = "every 5th step"
        dice = counted(name, network, 1, None) - counted(other, network, 1, None)
        return flops(other, network) + dice
    total = sum(
        share
        * with_trips(lambda unroll, t=t: counted(name, network, unroll, t), network)
        for t, share in branches(name).items()
    )
    if name == "m-SAM":  # a loop over the sub-batches, around those over the layers
        total += (SUB_BATCHES - 1) * with_trips(
            lambda unroll: sub_batch_flops(network, unroll), network
        )
    return total


def with_trips(count: Callable[[int], float], network: Network) -> float:
    """What XLA counts with each body once, and the bodies of the other trips."""
    once = count(1)
    return (
        once if network.depth == 1 else once + (network.depth - 1) * (count(2) - once)
    )


@functools.cache
def program(name: str, network: Network, unroll: int = 1, t: int | None = None):
    """The counts of a compiled step: FLOPs, and bytes of temporary memory."""
    state, step = build(name, network, network.losses(unroll))
    at = on_step(step, t)
    compiled = compile_quickly(at, network.params, state, network.batch)
    if t is not None and " conditional(" in compiled.as_text():
        raise RuntimeError(f"{name}: XLA kept both branches of step {t}")
    memory = compiled.memory_analysis().temp_size_in_bytes
    counted_once = compiled.cost_analysis()["flops"]
    return counted_once + hlo.rounds_not_counted(compiled.as_text()), memory


def counted(name: str, network: Network, unroll: int, t: int | None) -> float:
    return program(name, network, unroll, t)[0]


def sub_batch_flops(network: Network, unroll: int) -> float:
    part = jax.tree.map(lambda x: x[: network.size // SUB_BATCHES], network.batch)
    grad_fn = sam_gradient(network.losses(unroll))
    compiled = compile_quickly(grad_fn, network.params, part)
    return compiled.cost_analysis()["flops"]


def compile_quickly(function, *args, **options):
    jitted = jax.jit(function, compiler_options=QUICK, **options)
    return jitted.lower(*args).compile()


class Counted:
    """Losses that count their traces, and the examples that they really saw."""

    def __init__(self, losses: methods.Losses):
        self.losses, self.traces, self.examples = losses, 0, 0

    def __call__(self, params, batch):
        self.traces += 1
        values = self.losses(params, batch)
        jax.debug.callback(self.ran, values)
        return values

    def ran(self, values) -> None:
        self.examples += values.size


def evaluations(name: str, network: Network) -> tuple[float, int]:
    """Batches of examples seen in a step under `jit`, on average; and the traces."""
    losses = Counted(network.losses(1))
    state, step = build(name, network, losses)
    jitted, params = jax.jit(step, compiler_options=QUICK), network.params
    for _ in range(STEPS):
        params, state, _ = jitted(params, state, network.batch)
    jax.block_until_ready(params)
    jax.effects_barrier()
    return losses.examples / STEPS / network.size, losses.traces


def all_reduces(name: str, network: Network, own_climbs: bool) -> float | None:
    """A step's, on average, with the batch sharded over simulated devices."""
    if own_climbs and name in ("base", CONTRIB):
        return None
    mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("data",))
    options = {"axis_name": "data", "mesh": mesh} if own_climbs else {}
    if name == "m-SAM":
        if not own_climbs:
            return None  # its sub-batches are the devices' own
        name = "SAM"
    state, step = build(name, network, network.losses(1), **options)
    whole, split = (
        NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",))
    )
    args = [
        jax.tree.map(lambda x, place=place: shape(x, place), tree)
        for tree, place in (
            (network.params, whole),
            (state, whole),
            (network.batch, split),
        )
    ]
    return all_reduces_in(compile_quickly(step, *args, out_shardings=whole).as_text())


def shape(x, sharding) -> jax.ShapeDtypeStruct:
    x = jnp.asarray(x)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def all_reduces_in(text: str) -> float:
    """Of an HLO module; in loops with their trips, in branches with their shares."""
    bodies, entry = hlo.computations(text)

    def of(name: str) -> float:
        total = 0.0
        for line in bodies[name]:
            if loop := hlo.LOOP.search(line):
                total += float(loop[2] or "inf") * of(loop[1])
            elif branches := re.search(BRANCHES, line):
                stays, climbs = branches[1] or branches[4], branches[2] or branches[3]
                total += of(climbs) / EVERY + of(stays) * (1 - 1 / EVERY)
            elif re.search(r" all-reduce(?:-start)?\(", line):
                total += 1
            else:
                total += sum(map(of, hlo.CALLS.findall(line)))
        return total

    return of(entry)


# --- time ---------------------------------------------------------------------------


def turn(name: str, network: Network) -> Callable[[], float]:
    """A function that takes STEPS steps from the start, and returns the seconds."""
    start, step = build(name, network, network.losses(1))
    jitted = jax.jit(step)

    def run() -> float:
        params, state = network.params, start
        begin = time.perf_counter()
        for _ in range(STEPS):
            params, state, loss = jitted(params, state, network.batch)
        jax.block_until_ready((params, loss))
        return time.perf_counter() - begin

    run()  # compile and warm up
    return run


def timings(made: Callable[[], list[Network]], number: int, names, rounds: int) -> dict:
    """Every method in turn with the base."""
    network = made()[number]
    turns = {name: turn(name, network) for name in names}
    seconds = {name: [] for name in names if name != "base"}
    for n, (name, found) in itertools.product(range(rounds), seconds.items()):
        found.append(in_turn(turns[name], turns["base"], n))
    base = [other for found in seconds.values() for _, other in found]
    return {"base": {"milliseconds": milliseconds(base)}} | {
        name: {
            "time": quartiles(found),
            "milliseconds": milliseconds([own for own, _ in found]),
        }
        for name, found in seconds.items()
    }


def against_contrib(made, number: int, processes: int, tick) -> dict[str, dict]:
    """SAM in turn with Optax's own: the mean over processes of the median ratios."""
    medians = []
    for _ in range(processes):
        medians.append(alone(median_over_contrib, made, number))
        tick(f"network {number + 1}: SAM and {CONTRIB}")
    interval = stats.ttest_1samp(medians, 1).confidence_interval(0.95)
    over = {"mean": statistics.mean(medians), "interval": interval, "medians": medians}
    return {"SAM": {"over_contrib": over}}


def median_over_contrib(made: Callable[[], list[Network]], number: int) -> float:
    network = made()[number]
    ours, theirs = turn("SAM", network), turn(CONTRIB, network)
    found = [in_turn(ours, theirs, turns) for turns in range(CONTRIB_ROUNDS)]
    return statistics.median(own / other for own, other in found)


def alone(function, *args):
    """In a fresh process: with one device, as a user has it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(function, *args).result()


def in_turn(first, second, number: int) -> tuple[float, float]:
    """The seconds of both, one right after the other; every other time the reverse."""
    if number % 2:
        return first(), second()
    other = second()
    return first(), other


def milliseconds(seconds: list[float]) -> float:
    return 1e3 / STEPS * statistics.median(seconds)


def quartiles(found: list[tuple[float, float]]) -> dict:
    ratios = [a / b for a, b in found]
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return {"median": median, "middle_half": (low, high), "ratios": ratios}


# --- all of it ----------------------------------------------------------------------


def counts(network: Network, names, sharded: bool, tick) -> dict[str, dict]:
    rows, base = {}, flops("base", network)
    for name in names:
        ran, traces = evaluations(name, network)
        rows[name] = {
            "flops": flops(name, network) / base,
            "evaluations": ran,
            "traces": traces,
            "temp_megabytes": program(name, network)[1] / 1e6,
        }
        for key, own in (("all_reduces", False), ("all_reduces_own_climbs", True)):
            rows[name][key] = all_reduces(name, network, own) if sharded else None
        tick(f"{network.name}: counting {name}")
    return rows


def check_unrolled(network: Network) -> float:
    """SAM's FLOPs with loops by their trips, over those of the unrolled program."""
    return flops("SAM", network) / counted("SAM", network, network.depth, None)


def missed(result: dict) -> list[str]:
    """The bars that were not met, in words."""
    found = []
    for network, rows in result["networks"].items():
        for name, bar in result["bars"].items():
            if name in rows and rows[name]["flops"] > bar:
                found.append(f"{network}, {name}: {rows[name]['flops']:.3f} > {bar}")
        over = rows.get("SAM", {}).get("over_contrib")
        if result["bars"] and over and over["interval"][0] > 1:
            found.append(f"{network}: SAM {over['mean']:.3f} times {CONTRIB}")
    return found


def print_tables(result: dict, console: Console) -> None:
    for network, rows in result["networks"].items():
        table = report.table(
            f"{network}: one step, over the base's",
            "method",
            "FLOPs",
            "loss\nevaluations",
            "traces",
            "temp\nMB",
            "all-reduces,\none climb",
            "all-reduces,\nown climbs",
            "time",
            "its middle\nhalf",
        )
        for name, row in rows.items():
            timed = row.get("time")
            table.add_row(
                name,
                f"{row['flops']:.3f}",
                f"{row['evaluations']:.2f}",
                str(row["traces"]),
                f"{row['temp_megabytes']:.2f}",
                *(
                    "" if row[key] is None else f"{row[key]:g}"
                    for key in ("all_reduces", "all_reduces_own_climbs")
                ),
                f"{timed['median']:.2f}" if timed else "",
                "{:.2f} to {:.2f}".format(*timed["middle_half"]) if timed else "",
            )
        console.print(table)
        if over := rows["SAM"].get("over_contrib"):
            low, high = over["interval"]
            console.print(
                f"SAM takes {over['mean']:.3f} ({low:.3f} to {high:.3f}) times as "
                f"long as {CONTRIB}; "
                f"the base's step takes {rows['base']['milliseconds']:.1f} ms"
            )
    console.print(
        f"SAM's FLOPs on the decoder, loop bodies by their trips, are "
        f"{result['over_unrolled']:.4f} times those of the unrolled program"
    )
    for text in missed(result):
        console.print(f"bar missed: {text}")


def main() -> None:
    parser = report.parser(__doc__, "cost.json")
    parser.add_argument("--only", choices=PARTS, help="one of the parts")
    options = report.parse(parser)
    path, console = options.out / "cost.json", report.console(130)
    if not options.redraw:
        measure(options, path)
    print_tables(json.loads(path.read_text(encoding="utf-8")), console)
    console.print(f"Wrote {path}")


def measure(options: argparse.Namespace, path: Path) -> None:
    """Written after each network, so that what is there can be looked at."""
    jax.config.update("jax_num_cpu_devices", DEVICES)
    made, names, bars = networks, NAMES, BARS
    rounds, processes = ROUNDS, CONTRIB_PROCESSES
    if options.smoke:
        made, names, bars = tiny_networks, ("base", "SAM", "LookSAM", CONTRIB), {}
        rounds, processes = 2, 2
    chosen = made()
    scanned = chosen[-1]
    if options.smoke:
        chosen = chosen[:1]
    parts = [options.only] if options.only else PARTS
    old = report.earlier(path) if options.only else {}
    rows = old.get("networks") or {n.name: {m: {} for m in names} for n in chosen}
    found = {"steps": STEPS, "rounds": rounds, "bars": bars, "networks": rows}
    with report.progress_bar() as progress:
        work = {
            "counts": len(names),
            "times": 1,
            "contrib": processes,
        }
        bar = progress.add_task("", total=len(chosen) * sum(work[p] for p in parts))

        def tick(text: str) -> None:
            progress.update(bar, advance=1, description=text)

        def timed(number: int) -> dict[str, dict]:
            tick(f"network {number + 1}: every method in turn with the base")
            return alone(timings, made, number, names, rounds)

        do = {
            "counts": lambda i: counts(chosen[i], names, i == 0, tick),
            "times": timed,
            "contrib": lambda i: against_contrib(made, i, processes, tick),
        }
        for number, part in itertools.product(range(len(chosen)), parts):
            for name, row in do[part](number).items():
                # A method may be newer than the earlier rows.
                rows[chosen[number].name].setdefault(name, {}).update(row)
            report.write_json(path, {**old, **report.provenance(), **found})
    if "counts" in parts:
        found["over_unrolled"] = check_unrolled(scanned)
    report.write_json(path, {**old, **report.provenance(), **found})


if __name__ == "__main__":
    main()
