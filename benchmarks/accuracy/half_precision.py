"""How much of a climb is left after rounding to half precision.

Weights drawn from N(0, 0.02^2), a Gaussian gradient, and SAM's climb as the loss really
sees it: the climb of the library minus what rounding took and added. Three figures:

    length    norm(applied) / rho
    cosine    of the angle between the applied climb and the gradient
    rise      <gradient, applied> / (rho norm(gradient)), the share of the linearized
              rise of the loss that is left: length times cosine

for parameters in float32 that the loss casts to half precision, for parameters stored
in half precision, and for those with `climb_dtype=float32`. Writes half_precision.json;
takes a minute.
"""

import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import optax_sam
from benchmarks.lib import report

SEED = 0
WEIGHTS = 0.02  # their standard deviation
CASES = (
    (10**5, 0.05),
    (10**6, 0.05),
    (10**7, 0.05),
    (5 * 10**7, 0.05),
    (5 * 10**7, 0.5),
)
#: How parameters are stored, what the loss computes in, and `climb_dtype`.
KINDS = {
    "float32 parameters, bfloat16 loss": ("float32", "bfloat16", None),
    "float32 parameters, float16 loss": ("float32", "float16", None),
    "bfloat16 parameters": ("bfloat16", None, None),
    "float16 parameters": ("float16", None, None),
    "bfloat16 parameters, climb_dtype=float32": ("bfloat16", None, "float32"),
}


def points(params, grads, rho, loss_dtype=None, climb_dtype=None):
    """The parameters, and the climbed ones, as the loss sees them."""
    seen = []

    def loss(params):
        inside = params.astype(loss_dtype or params.dtype)
        jax.debug.callback(seen.append, inside)
        return jnp.sum(inside[:1].astype(jnp.float32))

    tx = optax_sam.sam(rho, climb_dtype=climb_dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*half precision")
        loss(params)
        tx.update(grads, tx.init(params), params, value_fn=loss)
    jax.effects_barrier()
    return seen


def applied_climb(params, grads, rho, **dtypes):
    """What the loss saw added to the parameters, in float64."""
    start, point = points(params, grads, rho, **dtypes)
    return np.asarray(point, np.float64) - np.asarray(start, np.float64)


def figures(applied, grads, rho) -> dict[str, float]:
    """Length, cosine and rise of an applied climb."""
    grads = np.asarray(grads, np.float64)
    length, size = np.linalg.norm(applied), np.linalg.norm(grads)
    rise = applied @ grads / (rho * size)
    return {
        "length": length / rho,
        "cosine": rise * rho / length if length else 0.0,
        "rise": rise,
        "moved": np.count_nonzero(applied) / applied.size,
    }


def measure(kind: str, size: int, rho: float) -> dict:
    """One row of the table."""
    storage, loss_dtype, climb_dtype = KINDS[kind]
    rng = np.random.default_rng(SEED)
    params = WEIGHTS * rng.standard_normal(size, np.float32)
    grads = rng.standard_normal(size, np.float32)
    params, grads = (jnp.asarray(x, storage) for x in (params, grads))
    climb = applied_climb(
        params, grads, rho, loss_dtype=loss_dtype, climb_dtype=climb_dtype
    )
    return {"kind": kind, "size": size, "rho": rho, **figures(climb, grads, rho)}


def print_table(rows: list[dict], console: Console) -> None:
    names = ("length", "cosine", "rise", "moved")
    table = Table("", "parameters", "rho", *names)
    for row in rows:
        cells = [f"{row[name]:.2f}" for name in names]
        table.add_row(row["kind"], f"{row['size']:.0e}", f"{row['rho']}", *cells)
    console.print(table)


def main() -> None:
    options = report.parse(report.parser(__doc__))
    start = time.perf_counter()
    cases = CASES[:1] if options.smoke else CASES
    rows = [measure(kind, *case) for case in cases for kind in KINDS]
    print_table(rows, Console())
    seconds = time.perf_counter() - start
    result = {**report.provenance(), "seconds": seconds, "rows": rows}
    path = options.out / "half_precision.json"
    report.write_json(path, result)
    print(f"Wrote {path}")


if __name__ == "__main__":
    main()
