"""Convolutions on a CPU: what a loop or a condition costs, and the cure.

XLA's pass that makes a convolution fast on a CPU sees only what stands outside of loops
and conditionals (jax issue 12868), so the same gradient takes many times longer inside
them. A small network with three convolutions, whose step is timed against the gradient
of the whole batch; in every turn each step runs once, so that ratios are of one moment.
Beside the times, the convolutions that stand inside a loop or a conditional of the
compiled program. Accelerators are not concerned.

Also an epoch of SAM on the digits, as the other scripts here train: their network has
its convolutions as products of matrices, and so may stand inside `lax.scan`.

Writes convolutions.json; takes a minute on two cores.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
from rich.table import Table

from benchmarks.lib import hlo, networks, report, tasks, training
from optax_sam import every_k, m_sharpness, sam, steepest_ascent, value_and_grad

BATCH, PART, SIDE, K, TURNS = 128, 32, 14, 5, 15
WIDTHS = (1, 16, 32, 64)


def parameters(key: jax.Array) -> dict[str, jax.Array]:
    params = {}
    for i, (before, after) in enumerate(itertools.pairwise(WIDTHS)):
        shape, size = (3, 3, before, after), (2 / (9 * before)) ** 0.5
        params[f"conv{i}"] = size * jax.random.normal(jax.random.fold_in(key, i), shape)
    params["head"] = 0.1 * jax.random.normal(key, (WIDTHS[-1], 10))
    return params


def loss(params: dict[str, jax.Array], batch: Any) -> jax.Array:
    h, labels = batch
    for i in range(len(WIDTHS) - 1):
        stride = 1 if i < 2 else 2
        h = jax.lax.conv_general_dilated(
            h,
            params[f"conv{i}"],
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        h = jax.nn.relu(h)
    logits = jnp.mean(h, (1, 2)) @ params["head"]
    hot = jax.nn.one_hot(labels, 10)
    return -jnp.mean(jnp.sum(hot * jax.nn.log_softmax(logits), 1))


def in_the_optimizer(when: Any) -> Callable[..., Any]:
    tx = sam(when=when)

    def step(params: Any, batch: Any, state: Any) -> Any:
        return tx.update(None, state, params, value_fn=loss, batch=batch)

    step.init = tx.init
    return step


def steps() -> dict[str, list[Callable[..., Any]]]:
    """For each way the compiled steps that it takes in turn, and how often each."""
    by_sam = value_and_grad(loss, steepest_ascent())

    def parts(**options: Any) -> Callable[..., Any]:
        return m_sharpness(by_sam, microbatch_size=PART, **options)

    two = [in_the_optimizer(True), *[in_the_optimizer(False)] * (K - 1)]
    return {
        "gradient": [jax.value_and_grad(loss)],
        "SAM": [by_sam],
        "SAM, scan_passes=True": [
            value_and_grad(loss, steepest_ascent(), scan_passes=True)
        ],
        "m-SAM, a loop": [parts()],
        "m-SAM, unroll=True": [parts(unroll=True)],
        "every_k(5), a condition": [in_the_optimizer(every_k(K))] * K,
        "every_k(5), two compiled steps": two,
    }


def measure(turns: int, batch_size: int) -> list[dict[str, Any]]:
    key = jax.random.key(0)
    images = jax.random.normal(key, (batch_size, SIDE, SIDE, 1))
    batch, params = (images, jnp.arange(batch_size) % 10), parameters(key)
    programs, rows = {}, []
    for name, several in steps().items():
        programs[name] = compiled(several, params, batch)
        texts = {id(run): run.as_text() for run, _ in programs[name]}
        slow = [hlo.inside_control_flow(t, "convolution") for t in texts.values()]
        rows.append({"way": name, "convolutions inside": sum(slow), "seconds": []})
    for turn in range(turns + 1):  # the first turn warms up
        for row in rows:
            seconds = one_turn(programs[row["way"]])
            if turn:
                row["seconds"].append(seconds)
    for row in rows:
        pairs = zip(row["seconds"], rows[0]["seconds"], strict=True)
        row["over the gradient"] = statistics.median(a / b for a, b in pairs)
    return rows


def compiled(several: list[Any], params: Any, batch: Any) -> list[Any]:
    """The programs of the steps, each with its arguments; step t is the t-th."""
    programs, made = {}, []
    for t, step in enumerate(several):
        args = (params, batch)
        if hasattr(step, "init"):
            state = step.init(params)
            counts = state.step is not None
            args = (*args, state._replace(step=jnp.asarray(t)) if counts else state)
        if step not in programs:
            programs[step] = jax.jit(step).lower(*args).compile()
        made.append((programs[step], args))
    return made


def one_turn(program: list[Any]) -> float:
    """Seconds of a step, the mean over the steps that are taken in turn."""
    begin = time.perf_counter()
    for run, args in program:
        jax.block_until_ready(run(*args))
    return (time.perf_counter() - begin) / len(program)


# --- The network of the other scripts, an epoch of SAM ------------------------------


class Native(nn.Module):
    """XLA's own convolution, in place of `networks.Conv3x3`."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Conv(self.features, (3, 3), self.stride, use_bias=False)(x)


def epochs() -> dict[str, Callable[[], Any]]:
    """An epoch for each way to train, compiled and run once."""
    data = tasks.DIGITS.split(tasks.DIGITS.load(), 0).train
    data = jax.tree.map(jnp.asarray, data)
    order = jnp.arange(len(data.labels)).reshape(-1, tasks.DIGITS.batch)

    def epoch(conv: Any, scanned: bool) -> Callable[[], Any]:
        with mock.patch.object(networks, "Conv3x3", conv):
            model = networks.ConvNet()
            start = model.init(jax.random.key(0), data.images[:1], train=False)

            def of(params: Any, indices: Any) -> Any:
                batch = jax.tree.map(lambda x: x[indices], data)
                stats = start["batch_stats"]
                return training.training_loss(model, params, batch, stats)[0]

            grad_fn = value_and_grad(of, steepest_ascent())

            def step(params: Any, indices: Any) -> Any:
                value, grads = grad_fn(params, indices)
                return jax.tree.map(lambda p, g: p - 0.01 * g, params, grads), value

            def all_steps(params: Any) -> Any:
                return jax.lax.scan(step, params, order)

            jitted = training.jit(all_steps if scanned else step)
            run_one = jitted.lower(start["params"], *([] if scanned else order[:1]))
            run_one = run_one.compile()

        def run() -> None:
            params = start["params"]
            if scanned:
                params, _ = run_one(params)
            else:
                for indices in order:
                    params, _ = run_one(params, indices)
            jax.block_until_ready(params)

        run()
        return run

    return {
        "lax.scan over the steps, as products": epoch(networks.Conv3x3, True),
        "a jitted step in a Python loop, as products": epoch(networks.Conv3x3, False),
        "a jitted step in a Python loop, XLA's own": epoch(Native, False),
        "lax.scan over the steps, XLA's own": epoch(Native, True),
    }


def measure_epochs(turns: int) -> list[dict[str, Any]]:
    ways = epochs()
    rows = [{"way": name, "seconds": []} for name in ways]
    for _, row in itertools.product(range(turns), rows):
        begin = time.perf_counter()
        ways[row["way"]]()
        row["seconds"].append(time.perf_counter() - begin)
    for row in rows:
        pairs = zip(row["seconds"], rows[0]["seconds"], strict=True)
        row["over the first"] = statistics.median(a / b for a, b in pairs)
    return rows


def markdown_of_epochs(rows: list[dict[str, Any]]) -> str:
    """The second table of docs/convolutions.md."""
    lines = ["| an epoch of SAM | over the first |", "|---|---|"]
    lines += [f"| {row['way']} | {row['over the first']:.2f} |" for row in rows]
    return "\n".join(lines)


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None)
    for column in ("way", "over the gradient", "ms", "convolutions inside"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        ms = 1000 * statistics.median(row["seconds"])
        over, inside = row["over the gradient"], row["convolutions inside"]
        table.add_row(row["way"], f"{over:.2f}", f"{ms:.1f}", str(inside))
    report.console(80).print(table)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of docs/convolutions.md."""
    lines = ["| way | over the gradient | convolutions inside |", "|---|---|---|"]
    for row in rows:
        over, inside = row["over the gradient"], row["convolutions inside"]
        lines.append(f"| {row['way']} | {over:.2f} | {inside} |")
    return "\n".join(lines)


def main() -> None:
    made = report.parser(__doc__, "convolutions.json")
    options = report.parse(made)
    path = options.out / "convolutions.json"
    if not options.redraw:
        rows = measure(*((1, 2 * PART) if options.smoke else (TURNS, BATCH)))
        trained = measure_epochs(1 if options.smoke else TURNS)
        result = report.provenance() | {"rows": rows, "epochs": trained}
        report.write_json(path, result)
    found = report.earlier(path)
    show(found["rows"])
    print(markdown_of_epochs(found["epochs"]))


if __name__ == "__main__":
    main()
