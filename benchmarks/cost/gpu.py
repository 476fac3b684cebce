"""What SAM costs on one accelerator: time and memory of a step, against the base.

Networks: WideResNet-28-10 and ViT-S at CIFAR's shapes, a decoder of 100 million
parameters; compute in float32 and bfloat16, parameters in float32. Inputs are synthetic
(random numbers): only time and memory are measured, nothing is learned. Methods take
turns within one run, and the ratio to the base is the median over the rounds of the
paired ratios. Theory allows SAM 2.00.

`--surface` trains instead: the accuracy of task B of flatness.py (MNIST at 14x14,
40 % wrong labels) over m x rho x seed, all radii and seeds side by side.

Writes gpu.json and gpu_surface.json. Each takes at most 8 minutes on one GPU: what
does not fit is printed as "not run". `--smoke` does both on any machine.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
from rich.console import Console
from rich.table import Table

import optax_sam
from benchmarks.lib import evaluation, models, report, statistics, training
from benchmarks.lib.tasks import MNIST

MINUTES = 8.0
ROUNDS, STEPS = 7, 5  # LookSAM climbs on one of five
RHO = 0.05
METHODS = (
    "base",
    "SAM",
    "SAM, scanned",
    "m-SAM 1/2",
    "m-SAM 1/8",
    "LookSAM",
    "LookSAM, scanned",
    "momentum SAM",
    "optax.contrib.sam",
)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

SURFACE_M = (100, 50, 20, 10, 5, 2, 1)
SURFACE_RHO = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
SURFACE_SEEDS = range(600, 620)
SURFACE_LR_DECAY = {"sgd": (0.03, 0.02), "adamw": (0.003, 5.0)}
SURFACE_EPOCHS = 60


@dataclasses.dataclass(frozen=True)
class Network:
    """A model, its synthetic batch, and the optimizer that people train it with."""

    name: str
    model: Callable[..., Any]
    inputs: Callable[[Any], tuple[jax.Array, jax.Array]]
    optimizer: optax.GradientTransformation


class State(NamedTuple):
    params: Any
    batch_stats: Any
    opt_state: Any


def images(count: int):
    def make(key):
        x, y = jax.random.split(key)
        pixels = jax.random.normal(x, (count, 32, 32, 3))
        return pixels, jax.random.randint(y, (count,), 0, 10)

    return make


def text(count: int, length: int, vocabulary: int):
    def make(key):
        tokens = jax.random.randint(key, (count, length + 1), 0, vocabulary)
        return tokens[:, :-1], tokens[:, 1:]

    return make


SGD, ADAMW = optax.sgd(0.1, momentum=0.9), optax.adamw(1e-3)
NETWORKS = (
    Network("WideResNet-28-10", models.WideResNet, images(256), SGD),
    Network("ViT-S", models.Vit, images(512), ADAMW),
    Network("decoder, 100M", models.Decoder, text(16, 512, 16384), ADAMW),
)
TINY = (
    Network(
        "decoder, tiny",
        lambda dtype: models.Decoder(64, 16, 2, 2, dtype=dtype),
        text(8, 8, 64),
        ADAMW,
    ),
)


# --- one training step of each method -----------------------------------------------


def loss_of(model):
    def loss(params, batch, batch_stats):
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch[0],
            train=True,
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return losses.mean(), updated.get("batch_stats", {})

    return loss


def step_of(method: str, network: Network, loss, batch_size: int):
    """The optimizer, and a step (state, batch) -> (state, loss value)."""
    if method == "optax.contrib.sam":
        return contrib_step(network, loss)
    if method == "LookSAM":
        return look_sam_step(network, loss)
    if method == "LookSAM, scanned":
        return scanned_look_sam_step(network, loss)
    if method == "momentum SAM":
        return momentum_sam_step(network, loss)
    grad_fn = jax.value_and_grad(loss, has_aux=True)
    if method != "base":
        ascent = optax_sam.steepest_ascent(RHO)
        grad_fn = optax_sam.value_and_grad(
            loss, ascent, has_aux=True, scan_passes=method.endswith("scanned")
        )
    if method.startswith("m-SAM"):
        m = batch_size // int(method.split("/")[1])
        grad_fn = optax_sam.m_sharpness(grad_fn, microbatch_size=m)
    tx = network.optimizer

    def step(state: State, batch):
        (value, batch_stats), grads = grad_fn(state.params, batch, state.batch_stats)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, batch_stats, opt_state), value

    return tx, step


def look_sam_step(network: Network, loss):
    product = optax_sam.look_sam(RHO, k=STEPS, has_aux=True)
    tx = optax.chain(product, network.optimizer)

    def step(state: State, batch):
        def here(params):
            return loss(params, batch, state.batch_stats)

        (value, stats), grads = jax.value_and_grad(here, has_aux=True)(state.params)
        updates, opt_state = tx.update(
            grads, state.opt_state, state.params, value_fn=here
        )
        params = optax.apply_updates(state.params, updates)
        return State(params, stats, opt_state), value

    return tx, step


def scanned_look_sam_step(network: Network, loss):
    product = optax_sam.look_sam(RHO, k=STEPS, scan_passes=True)
    init, grad_fn = optax_sam.stateful_value_and_grad(loss, product, has_aux=True)
    optimizer = network.optimizer

    def both(params):
        return init(params), optimizer.init(params)

    def step(state: State, batch):
        own, inner = state.opt_state
        out, grads, own = grad_fn(own, state.params, batch, state.batch_stats)
        updates, inner = optimizer.update(grads, inner, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, out[1], (own, inner)), out[0]

    return optax.GradientTransformation(both, optimizer.update), step


def momentum_sam_step(network: Network, loss):
    """One pass; BatchNorm's averages are left out, as the product drops aux."""
    product = optax_sam.momentum_sam(RHO, has_aux=True)
    tx = optax.chain(product, network.optimizer)

    def step(state: State, batch):
        updates, opt_state = tx.update(
            None,
            state.opt_state,
            state.params,
            value_fn=lambda params: loss(params, batch, state.batch_stats),
        )
        params = optax.apply_updates(state.params, updates)
        value = optax.tree.get(opt_state, "last_loss")
        return State(params, state.batch_stats, opt_state), value

    return tx, step


def contrib_step(network: Network, loss):
    climb = optax.chain(contrib.normalize(), optax.sgd(RHO))
    tx = contrib.sam(network.optimizer, climb, opaque_mode=True)

    def step(state: State, batch):
        def grad_fn(params, _):
            return jax.grad(loss, has_aux=True)(params, batch, state.batch_stats)[0]

        clean = jax.value_and_grad(loss, has_aux=True)
        (value, stats), grads = clean(state.params, batch, state.batch_stats)
        updates, opt_state = tx.update(
            grads, state.opt_state, state.params, grad_fn=grad_fn
        )
        params = optax.apply_updates(state.params, updates)
        return State(params, stats, opt_state), value

    return tx, step


@dataclasses.dataclass
class Running:
    """A compiled step with its state: call it to take a few steps, timed."""

    compiled: Any
    state: State
    batch: Any
    compile_seconds: float

    def seconds(self, steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            self.state, value = self.compiled(self.state, self.batch)
        jax.block_until_ready((self.state, value))
        return (time.perf_counter() - start) / steps


def prepare(method: str, network: Network, dtype) -> Running:
    model = network.model(dtype=dtype)
    batch = network.inputs(jax.random.key(1))
    tx, step = step_of(method, network, loss_of(model), len(batch[0]))

    @jax.jit
    def init(key):
        variables = model.init(key, batch[0][:1], train=False)
        params = variables["params"]
        return State(params, variables.get("batch_stats", {}), tx.init(params))

    state = init(jax.random.key(0))
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    running = Running(compiled, state, batch, time.perf_counter() - start)
    running.seconds(2)  # warm up
    return running


# --- timing -------------------------------------------------------------------------


def time_network(network: Network, dtype: str, deadline: float, rounds: int, steps):
    """A row for each method, in turns within one run; None is "not run"."""
    running: dict[str, Running] = {}
    for method in METHODS:
        if time.monotonic() < deadline:
            running[method] = prepare(method, network, DTYPES[dtype])
    times: dict[str, list[float]] = {method: [] for method in running}
    for _ in range(rounds):
        if time.monotonic() > deadline and times["base"]:
            break
        for method, one in running.items():
            times[method].append(one.seconds(steps))
    rows = []
    for method in METHODS:
        row = {"network": network.name, "dtype": dtype, "method": method}
        if method not in running:
            rows.append({**row, "status": "not run"})
            continue
        ratios = [a / b for a, b in zip(times[method], times["base"], strict=True)]
        rows.append({**row, **figures(running[method], times[method], ratios)})
    return rows


def figures(one: Running, times: list[float], ratios: list[float]) -> dict:
    memory = one.compiled.memory_analysis()
    return {
        "status": "run",
        "parameters": models.count(one.state.params),
        "batch": len(one.batch[0]),
        "milliseconds": median(times) * 1e3,
        "ratio": median(ratios),
        "ratios": ratios,
        "temp_megabytes": memory.temp_size_in_bytes / 1e6,
        "state_megabytes": memory.argument_size_in_bytes / 1e6,
        "compile_seconds": one.compile_seconds,
    }


def timings(networks, minutes: float, rounds: int, steps: int, dtypes) -> list[dict]:
    deadline = time.monotonic() + 60 * minutes
    console, rows = Console(), []
    for network in networks:
        for dtype in dtypes:
            with console.status(f"{network.name}, {dtype}"):
                if time.monotonic() < deadline:
                    rows += time_network(network, dtype, deadline, rounds, steps)
                else:
                    rows += [
                        {"network": network.name, "dtype": dtype, "method": method}
                        | {"status": "not run"}
                        for method in METHODS
                    ]
            jax.clear_caches()
    return rows


def print_timings(rows: list[dict]) -> None:
    table = Table(title=f"One training step on {jax.devices()[0].device_kind}")
    columns = ("network", "dtype", "method", "ms", "ratio", "temp MB", "state MB")
    columns += ("compile s",)
    for name in columns:
        table.add_column(name, justify="left" if name in columns[:3] else "right")
    for row in rows:
        cells = ["not run", "", "", "", ""]
        if row["status"] == "run":
            cells = [
                f"{row['milliseconds']:.1f}",
                f"{row['ratio']:.3f}",
                f"{row['temp_megabytes']:.0f}",
                f"{row['state_megabytes']:.0f}",
                f"{row['compile_seconds']:.1f}",
            ]
        table.add_row(row["network"], row["dtype"], row["method"], *cells)
    Console(width=100).print(table)


# --- the surface of task B ----------------------------------------------------------


def surface(seeds, ms, rhos, epochs: int, optimizers, minutes: float) -> list[dict]:
    """Validation and test accuracy of every (optimizer, m, rho, seed)."""
    data = MNIST.load()
    splits = [MNIST.split(data, seed) for seed in seeds]
    train, validation, test = (
        jax.tree.map(lambda *x: np.stack(x), *[getattr(s, part) for s in splits])
        for part in ("train", "validation", "test")
    )
    # Seeds along one axis, radii along the other: one program for each m.
    over_seeds = jax.vmap(uncompiled(evaluation.accuracy(MNIST)))
    accuracy = jax.jit(jax.vmap(over_seeds, in_axes=(0, None)))
    deadline, rows = time.monotonic() + 60 * minutes, []
    for optimizer in optimizers:
        for m in ms:
            row = {"optimizer": optimizer, "m": m}
            if time.monotonic() > deadline:
                rows.append({**row, "status": "not run"})
                continue
            start = time.perf_counter()
            state = train_surface(optimizer, m, rhos, seeds, epochs, train)
            rows.append(
                {
                    **row,
                    "status": "run",
                    "rho": list(rhos),
                    "validation": np.asarray(accuracy(state, validation)).tolist(),
                    "test": np.asarray(accuracy(state, test)).tolist(),
                    "seconds": time.perf_counter() - start,
                }
            )
            print_surface(rows[-1:])
    return rows


def uncompiled(function):
    """The function that was jitted, to be jitted as a part of something larger."""
    return function.__wrapped__


def train_surface(optimizer: str, m: int, rhos, seeds, epochs: int, train):
    """All radii along one axis, all seeds along the next: one program."""
    lr, decay = SURFACE_LR_DECAY[optimizer]
    kind = training.Kind(optimizer, ascent="sam", microbatch=m)
    settings = training.Settings(lr, decay, jnp.asarray(rhos))
    steps = epochs * MNIST.train // MNIST.batch
    keys = jax.vmap(jax.random.key)(jnp.array(seeds))
    network = jax.vmap(uncompiled(training.initial(MNIST)))(keys, train.images[:, :1])
    network = jax.tree.map(lambda x: jnp.stack([x] * len(rhos)), network)
    tx = training.optimizer(kind, settings._replace(rho=0.0), steps)
    opt_state = jax.vmap(jax.vmap(tx.init))(network.params)
    one = uncompiled(training.compiled_epoch(MNIST, kind))
    over_seeds = jax.vmap(one, in_axes=(0, 0, 0, 0, None, None))
    by_rho = training.Settings(None, None, 0)
    epoch = jax.jit(jax.vmap(over_seeds, in_axes=(0, 0, None, None, by_rho, None)))
    rngs = [np.random.default_rng(seed) for seed in seeds]
    for _ in range(epochs):
        order = np.stack([rng.permutation(MNIST.train) for rng in rngs])
        order = order.reshape(len(seeds), -1, MNIST.batch)
        network, opt_state, _ = epoch(network, opt_state, train, order, settings, steps)
    return network


def print_surface(rows: list[dict]) -> None:
    for row in rows:
        name = f"{row['optimizer']:6} m = {row['m']:3}"
        if row["status"] != "run":
            print(name, "not run")
            continue
        test, chosen = (
            np.array(row["test"]),
            np.array(row["validation"]).mean(1).argmax(),
        )
        fixed = row["rho"].index(0.05)
        best = statistics.mean_and_error(100 * test[chosen])
        at = statistics.mean_and_error(100 * test[fixed])
        print(
            f"{name}: rho 0.05 {report.plus_minus(at, 2)};"
            f" best rho (validation) {row['rho'][chosen]:g}"
            f" {report.plus_minus(best, 2)}  ({row['seconds']:.0f} s)"
        )


def run_timings(smoke: bool, only: str, minutes: float) -> tuple[dict, list[dict]]:
    networks = [n for n in (TINY if smoke else NETWORKS) if only in n.name]
    rounds, steps = (1, 1) if smoke else (ROUNDS, STEPS)
    if smoke:
        minutes = 2.0  # what has not been compiled by then is "not run"
    dtypes = ["float32"] if smoke else list(DTYPES)
    rows = timings(networks, minutes, rounds, steps, dtypes)
    print_timings(rows)
    return {"rho": RHO, "rounds": rounds, "steps": steps, "inputs": "synthetic"}, rows


def run_surface(smoke: bool, minutes: float) -> tuple[dict, list[dict]]:
    tiny = (range(600, 602), (50,), (0.05, 0.3), 1, ("sgd",))
    full = (SURFACE_SEEDS, SURFACE_M, SURFACE_RHO, SURFACE_EPOCHS, SURFACE_LR_DECAY)
    seeds, ms, rhos, epochs, optimizers = tiny if smoke else full
    rows = surface(list(seeds), ms, rhos, epochs, optimizers, minutes)
    return {"seeds": list(seeds), "epochs": epochs, "lr_decay": SURFACE_LR_DECAY}, rows


def merged(path: Path, rows: list[dict], device: str) -> list[dict]:
    """These rows, and those of an earlier run on the same device not made again."""

    def which(row: dict) -> tuple:
        names = ("network", "dtype", "method", "optimizer", "m")
        return tuple(row.get(name) for name in names)

    earlier = json.loads(path.read_text()) if path.exists() else {"device": None}
    old = earlier["rows"] if earlier["device"] == device else []
    by_name = {which(row): row for row in old}
    for row in rows:
        if row["status"] == "run" or which(row) not in by_name:
            by_name[which(row)] = row
    return list(by_name.values())


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--surface", action="store_true", help="train, do not time")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="at most")
    parser.add_argument(
        "--only",
        default="",
        help="networks whose name has this in it; the others' rows are kept",
    )
    options = report.parse(parser)
    done = {}
    if options.smoke or not options.surface:
        done["gpu.json"] = run_timings(options.smoke, options.only, options.minutes)
    if options.smoke or options.surface:
        done["gpu_surface.json"] = run_surface(options.smoke, options.minutes)
    for name, (settings, rows) in done.items():
        device = jax.devices()[0].device_kind
        result = {**report.provenance(), "device": device, "settings": settings}
        rows = merged(options.out / name, rows, device)
        report.write_json(options.out / name, {**result, "rows": rows})
        print(f"Wrote {options.out / name}")


if __name__ == "__main__":
    main()
