"""The SAM paper's Fashion-MNIST, as printed: 60,000 images, a WideResNet, its settings.

Foret et al. 2021, table 5: WRN-28-10 without and with SAM, flips and crops alone. Batch
256, SGD with learning rate 0.1 along a cosine to zero and Nesterov's momentum 0.9, L2
5e-4 on all parameters inside of the loss, gradients clipped to norm 5, rho 0.05, as in
the paper and in its code; nothing is chosen here, so the official test images can be
read. The base also runs for twice the epochs, as theirs did. Three seeds.

For a GPU. --time measures how long all runs of each network would take there. Then the
same command again and again, in parts of --minutes, until all runs are there:

    python -m benchmarks.accuracy.fashion_paper --time
    python -m benchmarks.accuracy.fashion_paper --network 28-10 --epochs 20

A part stops in time and saves the run that is under way; finished runs are kept in
fashion_paper.json. Without --network and --epochs it is 200 epochs of WRN-28-10. Not as
in the paper: shortcuts are convolutions, initial weights are Flax's, BatchNorm's
averages are taken over all training images at the end, and the network computes in
bfloat16 unless --float32 is given.
The images are those of Debian's package dataset-fashion-mnist.
"""

import argparse
import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.accuracy import fashion_paper_report
from benchmarks.lib import fixed_sets, loop, methods, report, resume
from benchmarks.lib.fixed_sets import Examples
from benchmarks.lib.models import WideResNet
from benchmarks.lib.resume import Checkpoint, Clock, OutOfTime, drive
from benchmarks.lib.small_cnn import SmallCnn
from benchmarks.lib.store import Key, Store
from benchmarks.lib.study import packed, percent

LR, DECAY, RHO, MOMENTUM, CLIP, PAD = 0.1, 5e-4, 0.05, 0.9, 5.0, 4
MEAN, DEVIATION = 0.1307, 0.3081  # those of the paper's code
ROWS = fashion_paper_report.ROWS
SIZES = ("16-4", "16-8", "28-4", "28-10")  # what --time measures
SMALL = "small CNN"  # in place of a WideResNet, for smoke runs
EVERY = 50  # steps between two looks at the clock
WITHIN = 25.0  # minutes


class Data(NamedTuple):
    """Images as bytes, those of training on the device."""

    train: Examples
    test: Examples


@dataclasses.dataclass(frozen=True)
class Study:
    """What a run depends on beside its row and seed."""

    network: str = "28-10"  # depth-width
    epochs: int = 200
    batch: int = 256
    dtype: str = "bfloat16"
    name: str = "fashion_paper"
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def model(self) -> nn.Module:
        if self.network == SMALL:
            return SmallCnn((4,), (4,))
        depth, width = map(int, self.network.split("-"))
        if depth < 10 or depth % 6 != 4:
            raise ValueError(
                f"No WideResNet is {self.network!r}: its depth is 6n + 4, as in 16-4 "
                "or 28-10."
            )
        dtype = jnp.dtype(self.dtype)
        return WideResNet(depth // 6, width, dtype=dtype, momentum=0.0)

    @property
    def label(self) -> str:
        return SMALL if self.network == SMALL else f"WRN-{self.network}"

    def key(self, row: str, seed: int) -> Key:
        return {
            "study": self.name,
            "network": self.label,
            "dtype": self.dtype,
            "batch": self.batch,
            "epochs": ROWS[row].times * self.epochs,
            "method": ROWS[row].method,
            "seed": seed,
        }

    @property
    def title(self) -> str:
        return f"{self.label}, {self.epochs} epochs, {self.dtype}"

    def runs(self, store: Store) -> fashion_paper_report.Runs:
        """Those that are there."""
        keys = {row: [self.key(row, seed) for seed in self.seeds] for row in ROWS}
        return {
            row: [found for key in of_row if (found := store.find(key))]
            for row, of_row in keys.items()
        }

    def keys(self) -> list[Key]:
        """Seed by seed, so that what is there early is a whole comparison."""
        return [self.key(row, seed) for seed in self.seeds for row in ROWS]


# --- training -----------------------------------------------------------------------


def scaled(images):
    return (jnp.asarray(images, jnp.float32) / 255 - MEAN) / DEVIATION


def cropped(images, key):
    """Each image moved by up to four pixels, black where it came from outside."""
    _, height, width, _ = images.shape
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * PAD + 1)
    padded = jnp.pad(images, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (*corner, 0), (height, width, 1))

    return jax.vmap(crop)(padded, corners)


def augmented(batch: Examples, key) -> Examples:
    flips, crops = jax.random.split(key)
    batch = loop.flipped(batch, flips)
    return batch._replace(images=scaled(cropped(batch.images, crops)))


def losses(model, params, batch: Examples):
    """Of each example, each with the L2 penalty of all parameters: SAM climbs on the
    penalty too, as in the paper's code."""
    penalty = 0.5 * DECAY * optax.tree.norm(params, squared=True)
    return loop.training_losses(model, params, batch) + penalty


def transformation(method: str, steps):
    """The optimizer of the paper's code, with the method in front of it."""
    behind = optax.chain(
        optax.clip_by_global_norm(CLIP),
        optax.sgd(
            lambda step: LR * 0.5 * (1 + jnp.cos(jnp.pi * step / steps)),
            momentum=MOMENTUM,
            nesterov=True,
        ),
    )
    setting = methods.Setting(RHO)
    return methods.transformation(methods.BY_NAME[method], setting, behind)


@functools.cache
def compiled(model, method: str):
    """A first state from a key and an image, and the step: one program for all lengths
    and seeds."""
    of_each = functools.partial(losses, model)

    @jax.jit
    def init(key, image):
        params = model.init(key, image, train=False)["params"]
        return params, transformation(method, 1).init(params)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, data: Examples, indices, key, number, steps):
        batch = jax.tree.map(lambda leaf: leaf[indices], data)
        batch = augmented(batch, jax.random.fold_in(key, number))
        tx = transformation(method, steps)
        return methods.step(methods.BY_NAME[method], tx, of_each)(*state, batch)[:2]

    return init, step


def started(study: Study, key: Key, train: Examples):
    """The first state of a run, its step as `drive` takes it, and how many there are.

    Weights, order, flips and crops depend on the seed alone.
    """
    init, step = compiled(study.model, key["method"])
    weights, augments = jax.random.split(jax.random.key(key["seed"]))
    state = init(weights, scaled(train.images[:1]))
    order = loop.order_of(len(train.labels), study.batch, key["epochs"], key["seed"])

    def numbered(state, number: int):
        return step(state, train, order[number], augments, number, len(order))

    return state, numbered, len(order)


def work(study: Study, data: Data, clock: Clock, folder: Path, tell, key: Key) -> dict:
    """One run, or the rest of one, and its test."""
    kept = Checkpoint.of(folder, key)
    state, step, total = started(study, key, data.train)
    (params, _), seconds = drive(state, step, total, clock, kept, EVERY)
    train, test = (
        part._replace(images=np.asarray(scaled(part.images))) for part in data
    )
    network = loop.averaged(study.model, params, train)
    right = loop.evaluate(study.model, network, test).right
    found = {
        "test": percent(right),
        "training_loss": float(
            f"{loop.evaluate(study.model, network, train).loss:.5g}"
        ),
        "seconds": round(seconds, 1),
        "device": jax.devices()[0].device_kind,
        "right": packed(right),
    }
    kept.remove()
    tell(
        f"{key['method']}, {key['epochs']} epochs, seed {key['seed']}: "
        f"{100 - found['test']:.2f} % error in {seconds:.0f} s"
    )
    return found


# --- how long it takes --------------------------------------------------------------


def timed(study: Study, data: Data, clock: Clock) -> dict:
    """Seconds to compile a step of the base, to make one, and for an epoch of them."""

    def start():
        state, step, total = started(study, study.key("base", 0), data.train)
        return state, lambda state, number: step(state, number % total)

    found = resume.timed(start, clock)
    steps = len(data.train.labels) // study.batch
    return {"network": study.label, **found, "epoch": found["step"] * steps}


def times(studies: list[Study], data: Data, clock: Clock, tell=print) -> list[dict]:
    rows = []
    for study in studies:
        try:
            rows.append(timed(study, data, clock))
        except OutOfTime:
            tell(f"{study.label}: not run, the minutes are up")
            continue
        tell(
            fashion_paper_report.of_time(
                rows[-1], study.epochs, WITHIN, len(study.seeds)
            )
        )
    return rows


# --- commands -----------------------------------------------------------------------


def run(study: Study, data: Data, clock: Clock, out: Path, tell=print) -> bool:
    """What is missing, as far as the minutes go; whether all is there now."""
    out.mkdir(parents=True, exist_ok=True)
    store = Store(out / f"{study.name}.json")
    store.describe(report.provenance())
    make = functools.partial(work, study, data, clock, out / study.name, tell)
    return resume.complete(store, study.keys(), make, tell)


def few(train: Examples) -> Data:
    """For a smoke run: training images alone, and small."""
    parts = (slice(0, 32), slice(32, 64))
    return Data(*(Examples(train.images[p, ::2, ::2], train.labels[p]) for p in parts))


def arguments() -> argparse.Namespace:
    parser = report.parser(__doc__)
    add, default = parser.add_argument, Study()
    add("--network", default=default.network, metavar="DEPTH-WIDTH")
    add("--epochs", type=int, default=default.epochs)
    add("--float32", action="store_true", help="compute in float32, not bfloat16")
    add("--minutes", type=resume.minutes, default=9.0, help="of this part (default 9)")
    add("--time", action="store_true", help="measure how long it takes, train nothing")
    add("--data", type=Path, default=fixed_sets.FASHION)
    return report.parse(parser)


def main() -> None:
    options = arguments()
    clock = Clock(None if options.smoke else options.minutes)
    dtype = "float32" if options.float32 or options.smoke else "bfloat16"
    study = Study(options.network, options.epochs, dtype=dtype)
    try:
        train, test = fixed_sets.official(options.data)
    except FileNotFoundError as error:
        if not options.smoke:
            raise
        print(f"Skipped: {error}")
        return
    data = Data(jax.device_put(train), test)
    if options.smoke:
        study = Study(SMALL, 1, 16, dtype, "fashion_paper_smoke", (0, 1))
        data = few(train)
        (options.out / f"{study.name}.json").unlink(missing_ok=True)
        times([study], data, clock)
    elif options.time:
        times([dataclasses.replace(study, network=n) for n in SIZES], data, clock)
        return
    resume.keep_programs(options.out / study.name / "programs")
    run(study, data, clock, options.out)
    store = Store(options.out / f"{study.name}.json")
    print(
        fashion_paper_report.table(
            study.title, study.runs(store), len(study.seeds), len(data.test.labels)
        )
    )


if __name__ == "__main__":
    main()
