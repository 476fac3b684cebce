"""What a program of SAM weighs: the model in it once, twice or three times.

The network is a decoder of 12 layers, stacked and either unrolled (the program grows
with them) or scanned over (the temporary memory does). Its step, by SGD with momentum,
stands beside those of SAM and its relatives, each with straight-line passes and with
`scan_passes=True`, and of `optax.contrib.sam`. Counted in the compiled program, by
XLA's compilers for a CPU and for a TPU (which needs no TPU, but the extra `tpu`):

- instructions of the optimized HLO, and on a TPU bytes of the program. (StableHLO is no
  measure: a jitted function called twice stands there once, and is compiled twice.)
- temporary memory, with parameters and state donated, and what it has more than the
  base in copies of the parameters.
- equations of the jaxpr.
- seconds to compile, over the base's in the same process: the median of three fresh
  processes, in each of which every step is compiled once.
- seconds of a step on this CPU, against the base in adjacent turns of one run: the
  median of the paired ratios.

Nothing was run on a GPU or a TPU. Writes program.json; half an hour on two cores, for
most of which XLA compiles.

    python -m benchmarks.cost.program
    python -m benchmarks.cost.program --only cpu
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib
from rich.table import Table

import optax_sam
from benchmarks.cost.decoder import Decoder
from benchmarks.lib import hlo, report
from optax_sam import every_k

DECODER = Decoder(width=128, depth=12, heads=4, vocabulary=256)
BATCH, LENGTH = 8, 64
RHO, K, STEPS, TURNS, PROCESSES = 0.05, 5, 5, 7, 3
LAYERS = {"unrolled": DECODER.depth, "scanned": 1}
TOPOLOGY = "v5e:2x2"  # of which one chip is used
#: Before JAX is imported: there is no TPU to look for, and others may compile too.
TPU = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}
PLATFORMS = ("cpu", "tpu")
CONTRIB, SCANNED = "optax.contrib.sam", ", scanned"

#: Products by their names; each is made with and without `scan_passes`.
PRODUCTS: dict[str, Callable[..., Any]] = {
    "SAM": lambda **o: optax_sam.sam(RHO, **o),
    "every 5th step": lambda **o: optax_sam.sam(RHO, when=every_k(K), **o),
    "LookSAM": lambda **o: optax_sam.look_sam(RHO, K, **o),
    "3 ascent steps": lambda **o: optax_sam.sam(RHO, num_steps=3, **o),
    "GSAM": lambda **o: optax_sam.gsam(RHO, **o),
}
NAMES = ("base", CONTRIB, *(p + s for p in PRODUCTS for s in ("", SCANNED)))


class Step(NamedTuple):
    """A training step: `step(params, state, batch) -> (params, state, loss)`."""

    init: Callable[[Any], Any]
    step: Callable[..., Any]


def optimizer() -> optax.GradientTransformation:
    return optax.sgd(0.1, momentum=0.9)


def loss_of(unroll: int, decoder: Decoder = DECODER) -> Callable[[Any, Any], jax.Array]:
    def loss(params: Any, text: jax.Array) -> jax.Array:
        logits = decoder.logits(params, text[:, :-1], unroll)
        of_token = optax.softmax_cross_entropy_with_integer_labels
        return of_token(logits, text[:, 1:]).mean()

    return loss


def make(name: str, loss: Callable[[Any, Any], jax.Array]) -> Step:
    """The step of that name."""
    if name == CONTRIB:
        climb = optax.chain(contrib.normalize(), optax.sgd(RHO))
        return given(contrib.sam(optimizer(), climb, opaque_mode=True), loss)
    if name == "base":
        return given(optax.with_extra_args_support(optimizer()), loss)
    product = PRODUCTS[name.removesuffix(SCANNED)]
    options = {"scan_passes": True} if name.endswith(SCANNED) else {}
    init, grad_fn = optax_sam.stateful_value_and_grad(loss, product(**options))
    tx = optimizer()

    def step(params: Any, state: Any, batch: Any) -> Any:
        value, grads, own = grad_fn(state[0], params, batch)
        updates, state = tx.update(grads, state[1], params)
        return optax.apply_updates(params, updates), (own, state), value

    return Step(lambda params: (init(params), tx.init(params)), step)


def given(tx: Any, loss: Callable[[Any, Any], jax.Array]) -> Step:
    """A step that takes the clean gradient itself."""

    def step(params: Any, state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, batch)
        grad_fn = lambda p, _: jax.grad(loss)(p, batch)  # noqa: E731
        updates, state = tx.update(grads, state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state, value

    return Step(tx.init, step)


def arguments(step: Step, decoder: Decoder = DECODER, place: Any = None) -> Any:
    """The shapes of parameters, state and batch."""
    params = jax.eval_shape(decoder.init, jax.random.key(0))
    batch = jax.ShapeDtypeStruct((BATCH, LENGTH + 1), jnp.int32)
    args = params, jax.eval_shape(step.init, params), batch

    def placed(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

    return jax.tree.map(placed, args)


def lower(step: Step, args: Any) -> Any:
    return jax.jit(step.step, donate_argnums=(0, 1)).lower(*args)


def counts(name: str, unroll: int, place: Any = None) -> dict[str, float]:
    """What the compiled program of a step weighs, and how long that took."""
    step = make(name, loss_of(unroll))
    args = arguments(step, place=place)
    began = time.perf_counter()
    compiled = lower(step, args).compile()
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    return {
        "instructions": hlo.instructions(compiled.as_text()),
        "equations": hlo.equations(jax.make_jaxpr(step.step)(*args).jaxpr),
        "program_bytes": memory.generated_code_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "parameter_bytes": sum(x.size * 4 for x in jax.tree.leaves(args[0])),
        "compile_seconds": seconds,
    }


def tpu() -> Any:
    """One chip, for the compiler."""
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY)
    return SingleDeviceSharding(topology.devices[0])


def compile_all(platform: str, layers: str, names: list[str]) -> dict[str, Any]:
    """The counts of these steps, in this process."""
    place = tpu() if platform == "tpu" else None
    warm_up(place)
    return {name: counts(name, LAYERS[layers], place) for name in names}


def warm_up(place: Any) -> None:
    """So that the first step does not pay for the start of the compiler."""
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=place)
    jax.jit(lambda x: x @ x).lower(x).compile()


def alone(platform: str, layers: str, names: list[str]) -> dict[str, Any]:
    """The same, in a fresh process."""
    module = "benchmarks.cost.program"
    command = [sys.executable, "-m", module, "--worker", platform, layers, *names]
    env = os.environ | (TPU if platform == "tpu" else {"JAX_PLATFORMS": "cpu"})
    done = subprocess.run(
        command, cwd=report.ROOT, env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{platform}, {layers}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compiled(
    platform: str, layers: str, names: list[str], processes: int, tick: Any
) -> dict[str, Any]:
    """The counts of a process, and the median of the seconds of several."""
    runs = []
    for number in range(processes):
        order = names[number % len(names) :] + names[: number % len(names)]
        runs.append(alone(platform, layers, order))
        tick(f"{platform}, {layers}: process {number + 1}")
    rows = {name: dict(runs[0][name]) for name in names}
    for name, row in rows.items():
        row["compile_seconds"] = [run[name]["compile_seconds"] for run in runs]
        more = row["temporary_bytes"] - rows["base"]["temporary_bytes"]
        row["copies_more"] = more / row["parameter_bytes"]
        for key in ("instructions", "program_bytes", "equations"):
            row[f"{key}_ratio"] = row[key] / (rows["base"][key] or 1)
        pairs = [run[name]["compile_seconds"] for run in runs]
        base = [run["base"]["compile_seconds"] for run in runs]
        ratios = [a / b for a, b in zip(pairs, base, strict=True)]
        row["compile_ratio"] = statistics.median(ratios)
    return rows


def turn(name: str, unroll: int) -> Callable[[], float]:
    """A function that takes some steps, and returns the seconds of one."""
    step = make(name, loss_of(unroll))
    start = jax.jit(DECODER.init)(jax.random.key(0))
    shape = (BATCH, LENGTH + 1)
    batch = jax.random.randint(jax.random.key(1), shape, 0, DECODER.vocabulary)
    jitted, first = jax.jit(step.step), step.init(start)

    def run() -> float:
        params, state = start, first
        begin = time.perf_counter()
        for _ in range(STEPS):
            params, state, value = jitted(params, state, batch)
        jax.block_until_ready((params, value))
        return (time.perf_counter() - begin) / STEPS

    run()  # compile and warm up
    return run


def times(layers: str, names: list[str], turns: int) -> dict[str, float]:
    """Each step's seconds over the base's, right before or after it."""
    run = {name: turn(name, LAYERS[layers]) for name in names}
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for number in range(turns):
        for name in names:
            if number % 2:
                own, other = run[name](), run["base"]()
            else:
                other, own = run["base"](), run[name]()
            ratios[name].append(own / other)
    return {name: statistics.median(found) for name, found in ratios.items()}


# --- what comes out ------------------------------------------------------------------


def table(platform: str, layers: str, rows: dict[str, Any]) -> Table:
    on = "a CPU" if platform == "cpu" else "a TPU (compiled only)"
    out = Table(title=f"Decoder, layers {layers}, {on}: over the base")
    out.add_column("step", no_wrap=True)
    size = "size" if platform == "cpu" else "bytes"
    for name in (size, "equations", "memory", "copies", "compile", "time"):
        out.add_column(name, justify="right", no_wrap=True)
    base = rows["base"]["temporary_bytes"]
    key = "instructions_ratio" if platform == "cpu" else "program_bytes_ratio"
    for name, row in rows.items():
        out.add_row(
            name,
            f"{row[key]:.2f}",
            f"{row['equations_ratio']:.2f}",
            f"{row['temporary_bytes'] / base:.2f}",
            f"{row['copies_more']:+.2f}",
            f"{row['compile_ratio']:.2f}",
            f"{row['time_ratio']:.2f}" if "time_ratio" in row else "not run",
        )
    return out


def markdown(found: dict[str, Any], layers: str) -> str:
    """A table of docs/large_models.md: all of it over the base's."""
    cpu, tpu = (found[platform][layers] for platform in PLATFORMS)
    lines = [
        "| step | CPU: instructions | compile | time | copies more "
        "| TPU: program | compile | copies more |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in cpu:
        cells = [
            f"{cpu[name]['instructions_ratio']:.2f}",
            f"{cpu[name]['compile_ratio']:.2f}",
            f"{cpu[name]['time_ratio']:.2f}",
            f"{cpu[name]['copies_more']:+.2f}",
            f"{tpu[name]['program_bytes_ratio']:.2f}",
            f"{tpu[name]['compile_ratio']:.2f}",
            f"{tpu[name]['copies_more']:+.2f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def memory_over(rows: dict[str, Any], name: str) -> float:
    ratio: float = rows[name]["temporary_bytes"] / rows["base"]["temporary_bytes"]
    return ratio


def measure(options: argparse.Namespace, path: Any) -> dict[str, Any]:
    names = ["base", "SAM", "SAM" + SCANNED] if options.smoke else list(NAMES)
    processes, turns = (1, 2) if options.smoke else (PROCESSES, TURNS)
    platforms = [options.only] if options.only else list(PLATFORMS)
    layers = ["scanned"] if options.smoke else list(LAYERS)
    if options.smoke and not options.only:
        platforms = ["cpu"]
    found = report.earlier(path)["rows"] if options.only and path.exists() else {}
    result = report.provenance() | {
        "decoder": DECODER._asdict(),
        "batch": BATCH,
        "length": LENGTH,
        "topology": TOPOLOGY,
        "rows": found,
    }
    with report.progress_bar() as progress:
        bar = progress.add_task("", total=len(platforms) * len(layers) * processes)

        def tick(text: str) -> None:
            progress.update(bar, advance=1, description=text)

        for platform in platforms:
            for kind in layers:
                rows = compiled(platform, kind, names, processes, tick)
                if platform == "cpu":
                    for name, ratio in times(kind, names, turns).items():
                        rows[name]["time_ratio"] = ratio
                found.setdefault(platform, {})[kind] = rows
                report.write_json(path, result)
    return result


def main() -> None:
    parser = report.parser(__doc__ or "", "program.json")
    parser.add_argument("--only", choices=PLATFORMS, help="one of the compilers")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = report.parse(parser)
    if options.worker:
        platform, layers, *names = options.worker
        print(json.dumps(compile_all(platform, layers, names)))
        return
    path, console = options.out / "program.json", report.console(100)
    if not options.redraw:
        measure(options, path)
    for platform, kinds in json.loads(path.read_text(encoding="utf-8"))["rows"].items():
        for layers, rows in kinds.items():
            console.print(table(platform, layers, rows))
    console.print(f"Wrote {path}")


if __name__ == "__main__":
    main()
