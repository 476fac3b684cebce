"""What a SAM step costs on a TPU pod slice, counted on a machine without a TPU.

XLA's compiler for TPUs (`pip install -e '.[demo,tpu]'`) compiles one training step of a
small network for each topology, for parameters that are replicated and for parameters
that are fully sharded over the data axis. Counted in the compiled program, per chip and
step: FLOPs as a multiple of plain SGD's, collectives and their bytes, and memory.

    python -m benchmarks.pods.pod_compile
    python -m benchmarks.pods.pod_compile --topologies v5e:2x4 --steps base sam m-sam
    python -m benchmarks.pods.pod_compile --smoke

How to read it:

- XLA counts the body of a loop once. The micro-batches are a loop, and so are scanned
  passes (`-scanned`), so their FLOPs, and the collectives inside of them if there are
  any, are multiplied by the trips. (That counts the few operations outside of the loop
  too often, by about 1 %.)
- "program" is the size of the chip's program, "compile" the seconds that it took, once,
  on the machine at hand.
- Bytes are those of the whole arrays: what an all-reduce sums, what an all-gather has
  gathered, what a reduce-scatter starts from.
- One collective may carry several arrays. A gather of very small shards is carried out
  as an all-reduce of arrays padded with zeros; it is counted as the gather that it is.
- TPUs multiply in bfloat16 by default, so under plain `jit` XLA gathers half the bytes;
  `shard_map` takes the parameters whole, in float32: fewer gathers, as many bytes.
- Memory is the chip's main memory. This network is so small that its activations stay
  in the cores' own, so what micro-batches save there does not show.
- It says nothing about time.
"""

import os

# Before JAX is imported: there is no TPU to look for, and others may compile too.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
os.environ.setdefault("TPU_LOG_DIR", "disabled")

import argparse
import importlib.metadata
import importlib.util
import json
import math
import re
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

import optax_sam
from benchmarks.lib import hlo, report

TOPOLOGIES = ("v5e:2x4", "v5e:16x16", "v5p:4x4x4", "v4:4x4x4", "v6e:16x16")
PLACEMENTS = {"replicated": PartitionSpec(), "fully sharded": PartitionSpec("data")}
LAYERS, WIDTH = 4, 256
BATCH_PER_CHIP = 512
TRIPS = 4  # micro-batches on each chip
PASSES = 2  # trips of the loop over them, with scan_passes
RHO, LR = 0.05, 0.1
SMOKE = {"topologies": ["v5e:2x4"], "steps": ["base", "m-sam"]}

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter")


# --- the network and the steps -------------------------------------------------------


def loss_fn(params, batch):
    hidden, targets = batch
    for weight in params.values():
        hidden = hidden + jax.nn.relu(hidden @ weight)
    return jnp.mean((hidden - targets) ** 2)


def base(mesh):
    del mesh
    return by_gradient(jax.value_and_grad(loss_fn))


def sam(mesh):
    del mesh
    return by_transformation(optax.chain(optax_sam.sam(RHO), optax.sgd(LR)))


def sam_scanned(mesh):
    del mesh
    return by_gradient(gradient(scan_passes=True))


def gradient(scan_passes=False):
    ascent = optax_sam.steepest_ascent(RHO)
    return optax_sam.value_and_grad(loss_fn, ascent, scan_passes=scan_passes)


def m_sam(mesh, microbatch_size=None, scan_passes=False):
    grad_fn = gradient(scan_passes)
    return by_gradient(
        optax_sam.m_sharpness(
            grad_fn, axis_name="data", mesh=mesh, microbatch_size=microbatch_size
        )
    )


def m_sam_micro(mesh):
    return m_sam(mesh, BATCH_PER_CHIP // TRIPS)


def m_sam_scanned(mesh):
    return m_sam(mesh, scan_passes=True)


def contrib_sam(mesh):
    del mesh
    climb = optax.chain(optax.contrib.normalize(), optax.sgd(RHO))
    return by_transformation(
        optax.contrib.sam(optax.sgd(LR), climb, opaque_mode=True), "grad_fn"
    )


STEPS = {
    "base": (base, 1),
    "sam": (sam, 1),
    "sam-scanned": (sam_scanned, PASSES),
    "m-sam": (m_sam, 1),
    "m-sam-scanned": (m_sam_scanned, PASSES),
    "m-sam-micro": (m_sam_micro, TRIPS),
    "contrib-sam": (contrib_sam, 1),
}


def by_gradient(grad_fn):
    """A step of SGD with this gradient."""

    def step(params, batch):
        value, grads = grad_fn(params, batch)
        return value, jax.tree.map(lambda p, g: p - LR * g, params, grads)

    return step


def by_transformation(tx, argument="value_fn"):
    """A step with this optimizer, which is given the loss or its gradient."""

    def step(params, batch):
        value, grads = jax.value_and_grad(loss_fn)(params, batch)
        if argument == "value_fn":
            extra = {argument: lambda p: loss_fn(p, batch)}
        else:
            extra = {argument: lambda p, _: jax.grad(loss_fn)(p, batch)}
        updates, _ = tx.update(grads, tx.init(params), params, **extra)
        return value, optax.apply_updates(params, updates)

    return step


# --- compiling and counting ----------------------------------------------------------


def compile_step(make, placement: PartitionSpec, mesh: Mesh):
    def shape(rows, spec):
        place = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct((rows, WIDTH), jnp.float32, sharding=place)

    params = {f"layer{i}": shape(WIDTH, placement) for i in range(LAYERS)}
    batch = (shape(BATCH_PER_CHIP * mesh.size, PartitionSpec("data")),) * 2
    out = (NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, placement))
    jitted = jax.jit(make(mesh), out_shardings=out, donate_argnums=0)
    return jitted.lower(params, batch).compile()


def count(compiled, trips: int, chips: int) -> dict:
    """All counts of one compiled step, per chip."""
    memory = compiled.memory_analysis()
    row = {
        "flops": compiled.cost_analysis()["flops"] * trips,
        "loop_trips": trips,
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "program_bytes": memory.generated_code_size_in_bytes,
    }
    text = compiled.as_text()
    for name, sizes in collectives(text, trips, chips).items():
        row[name] = len(sizes)
        row[f"{name}_bytes"] = sum(sizes)
    other = r" (?:all-to-all|collective-permute)(?:-start)?\("
    row["other_collectives"] = len(re.findall(other, text))
    return row


def collectives(text: str, trips: int, chips: int) -> dict[str, list[int]]:
    """The bytes of every collective that one step runs, by kind."""
    found, looped, copies = {}, computations_in_loops(text), copied(text)
    for computation, line in lines(text):
        match = re.search(
            r"(\S+) = (.*?) (all-reduce|all-gather|reduce-scatter)(-start)?\((.*?)\)",
            line,
        )
        if not match:
            continue
        name, shapes, kind, start, operands = match.groups()
        size = sum(map(bytes_of, re.findall(r"(\w+)\[([\d,]*)\]", shapes)))
        if kind == "all-gather" and start:  # its type has the shards as well
            size = size * chips // (chips + 1)
        if kind == "reduce-scatter":
            size *= chips
        if kind == "all-reduce" and "all-reduce-scatter" in computation:
            kind = "reduce-scatter"
        elif all(is_padded(operand, copies) for operand in operands.split(", ")):
            kind = "all-gather"
        # One that overlaps with computation stands in several fused computations, and
        # its channel tells that it is one; elsewhere channels may be shared.
        channel = re.search(r"channel_id=(\d+)", line)[1]
        found[kind, channel if "fus" in computation else name] = [size] * (
            trips if computation in looped else 1
        )
    out = {name: [] for name in COLLECTIVES}
    for (kind, _), sizes in found.items():
        out[kind] += sizes
    return out


def copied(text: str) -> dict[str, str]:
    """Of every copy, what it is a copy of."""
    return dict(re.findall(r"%(\S+) = .*? copy(?:-start|-done)?\(%([^,)]+)", text))


def is_padded(name: str, copies: dict[str, str]) -> bool:
    """Whether this is a shard that was written into an array of zeros."""
    name = name.removeprefix("%")
    while name in copies:
        name = copies[name]
    return "dynamic-update-slice" in name


def lines(text: str):
    """Every line of the program, with the name of the computation it stands in."""
    bodies, _ = hlo.computations(text)
    return ((name, line) for name, body in bodies.items() for line in body)


def computations_in_loops(text: str) -> set[str]:
    calls, bodies = {}, set()
    for computation, line in lines(text):
        called = re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", line)
        calls.setdefault(computation, set()).update(called)
        bodies.update(re.findall(r"body=%?([\w.\-]+)", line))
    seen = set()
    while bodies:
        name = bodies.pop()
        seen.add(name)
        bodies |= calls.get(name, set()) - seen
    return seen


def bytes_of(shape: tuple[str, str]) -> int:
    dtype, sizes = shape
    return BYTES.get(dtype, 4) * math.prod(int(n) for n in sizes.split(",") if n)


def measure(topology_name: str, steps: list[str], progress) -> list[dict]:
    topology = topologies.get_topology_desc(platform="tpu", topology_name=topology_name)
    mesh = Mesh(np.array(topology.devices).reshape(-1), ("data",))
    rows = []
    for placement, spec in PLACEMENTS.items():
        flops = None
        for name in steps:
            progress(f"{topology_name}, {placement}, {name}")
            make, trips = STEPS[name]
            began = time.perf_counter()
            row = count(compile_step(make, spec, mesh), trips, mesh.size)
            flops = flops or row["flops"]
            rows.append(
                {
                    "topology": topology_name,
                    "chips": mesh.size,
                    "parameters": placement,
                    "step": name,
                    "flops_ratio": row["flops"] / flops,
                    **row,
                    "compile_seconds": round(time.perf_counter() - began, 2),
                }
            )
    return rows


# --- what comes out ------------------------------------------------------------------


def table(rows: list[dict]) -> Table:
    out = Table(title="One training step, per chip. Collectives: count, MiB")
    for name in ("topology", "chips", "parameters", "step"):
        out.add_column(name)
    memory = ("temp MiB", "args MiB", "program MiB")
    for name in ("FLOPs", *COLLECTIVES, *memory, "compile"):
        out.add_column(name, justify="right")
    last = None
    for row in rows:
        place = (row["topology"], str(row["chips"]), row["parameters"])
        if last not in (None, place):
            out.add_section()
        out.add_row(
            *(place if place != last else ("", "", "")),
            row["step"],
            f"{row['flops_ratio']:.2f}x",
            *(
                f"{row[c]}  {mib(row[c + '_bytes'])}" if row[c] else "-"
                for c in COLLECTIVES
            ),
            mib(row["temporary_bytes"]),
            mib(row["argument_bytes"]),
            mib(row["program_bytes"]),
            f"{row['compile_seconds']:.1f} s",
        )
        last = place
    return out


def mib(size: int) -> str:
    return f"{size / 2**20:.2f}"


def arguments() -> argparse.Namespace:
    parser = report.parser(__doc__)
    add = parser.add_argument
    add("--topologies", nargs="+", default=list(TOPOLOGIES), metavar="NAME")
    add(
        "--steps",
        nargs="+",
        default=list(STEPS),
        choices=STEPS,
        metavar="STEP",
        help=f"of {', '.join(STEPS)}; base is always among them",
    )
    args = report.parse(parser)
    if args.smoke:
        vars(args).update(SMOKE)
    args.steps = ["base", *(name for name in args.steps if name != "base")]
    return args


def main() -> None:
    args = arguments()
    if importlib.util.find_spec("libtpu") is None:
        sys.exit(
            "XLA's compiler for TPUs is missing. It needs no TPU, but Linux on x86-64: "
            "pip install 'optax-sam[tpu]'  (the package libtpu)"
        )
    console, began, rows = report.console(140), time.perf_counter(), []
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        "{task.description}",
    )
    with Progress(*columns, console=console) as bar:
        total = len(args.topologies) * len(PLACEMENTS) * len(args.steps)
        task = bar.add_task("", total=total, completed=-1)
        for name in args.topologies:
            rows += measure(
                name,
                args.steps,
                lambda text: bar.update(task, description=text, advance=1),
            )
        bar.update(task, description="done", advance=1)
    console.print(table(rows))
    seconds = time.perf_counter() - began
    packages = ("jax", "jaxlib", "optax", "libtpu")
    results = {
        "command": report.command(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "network": {"layers": LAYERS, "width": WIDTH, "batch_per_chip": BATCH_PER_CHIP},
        "seconds": round(seconds, 1),
        "rows": rows,
    }
    path = args.out / "pod_compile.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"{len(rows)} programs in {seconds:.0f} s, {path}")


if __name__ == "__main__":
    main()
