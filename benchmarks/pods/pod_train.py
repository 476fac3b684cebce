"""Train with one climb for each device: one device, one host, or a whole pod slice.

A small Flax network with BatchNorm on scikit-learn's digits. Every device climbs on its
own part of the batch and one all-reduce a step averages what comes out
(`m_sharpness(axis_name=..., mesh=...)` around `value_and_grad`, under plain `jit`).
BatchNorm normalizes on each device by itself; its statistics come back averaged, as
aux.

On this machine's devices, or on simulated ones:

    python -m benchmarks.pods.pod_train
    python -m benchmarks.pods.pod_train --devices 8

On a TPU pod slice, the same command on every worker (set NAME and ZONE; DIR is a bucket
that all workers reach):

    gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command="
      git clone {repository} &&
      cd {folder} && python3 -m venv .venv &&
      .venv/bin/pip install -U 'jax[tpu]' -e '.[demo,pod]'"
    gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command="
      cd {folder} &&
      .venv/bin/python -m benchmarks.pods.pod_train --pod --checkpoint gs://DIR"

On any other cluster, once for each of N processes with its rank R from 0 to N - 1:

    python -m benchmarks.pods.pod_train --coordinator HOST:PORT --processes N --rank R

Started again with the same --checkpoint, a run goes on where it was cut off and ends
with the same parameters, bit by bit. Process 0 prints, and writes pod_train.json.
"""

import argparse
import functools
import hashlib
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import optax_sam
from benchmarks.lib import report
from benchmarks.lib.data import Examples, digits
from benchmarks.lib.networks import ConvNet

REPOSITORY = "https://github.com/optax-sam/optax-sam"
AXIS = "data"
MODEL = ConvNet()
TEST = 397  # the other 1,400 digits are trained on
MOMENTUM = 0.9
REPORTS = 10  # how often a run looks at the test data


class Settings(NamedTuple):
    """What a run depends on, beside the devices."""

    steps: int = 200
    batch_per_device: int = 16  # the m of m-sharpness
    lr: float = 0.1
    rho: float = 0.05
    seed: int = 0


class State(NamedTuple):
    params: Any
    batch_stats: Any
    opt_state: Any


# --- devices and data ----------------------------------------------------------------


def make_mesh() -> Mesh:
    """All devices of all processes along one axis."""
    shape, names = (jax.device_count(),), (AXIS,)
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,))


def load(seed: int) -> tuple[Examples, Examples]:
    """Training and test images, centred and scaled; the same in every process."""
    data = digits()
    order = np.random.default_rng(seed).permutation(len(data.labels))
    test, train = order[:TEST], order[TEST:]
    mean, std = data.images[train].mean(), data.images[train].std()
    images = (data.images - mean) / std
    return Examples(images[train], data.labels[train]), Examples(
        images[test], data.labels[test]
    )


def batch_of(step: int, data: Examples, settings: Settings, mesh: Mesh) -> Examples:
    """The batch of this step: each process brings the part of its own devices.

    It depends on the seed and the step alone, so a resumed run sees the same examples,
    and so does any number of processes that share the same number of devices.
    """
    size = settings.batch_per_device * mesh.size
    rng = np.random.default_rng((settings.seed, step))
    rows = rng.integers(len(data.labels), size=size)
    mine = np.split(rows, jax.process_count())[jax.process_index()]
    split = NamedSharding(mesh, PartitionSpec(AXIS))

    def place(leaf):
        local = leaf[mine]
        return jax.make_array_from_process_local_data(split, local)

    return Examples(*map(place, data))


# --- the training step ---------------------------------------------------------------


def loss_fn(params, batch: Examples, batch_stats):
    """Cross-entropy in training mode, and BatchNorm's new running averages."""
    variables = {"params": params, "batch_stats": batch_stats}
    logits, new = MODEL.apply(
        variables, batch.images, train=True, mutable=["batch_stats"]
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    return loss.mean(), new["batch_stats"]


def optimizer(settings: Settings):
    schedule = optax.cosine_decay_schedule(settings.lr, settings.steps)
    return optax.sgd(schedule, momentum=MOMENTUM)


def make_step(settings: Settings, mesh: Mesh):
    """One step of m-SAM: one climb a device, one all-reduce."""
    sam = optax_sam.value_and_grad(
        loss_fn, optax_sam.steepest_ascent(settings.rho), has_aux=True
    )
    m_sam = optax_sam.m_sharpness(sam, axis_name=AXIS, mesh=mesh)
    tx = optimizer(settings)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State, batch: Examples):
        (loss, batch_stats), grads = m_sam(state.params, batch, state.batch_stats)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, batch_stats, opt_state), loss

    return step


def make_init(settings: Settings, mesh: Mesh):
    """The first state, whole on every device."""

    def init(key):
        variables = MODEL.init(key, jnp.zeros((1, 8, 8, 1)), train=False)
        params, batch_stats = variables["params"], variables["batch_stats"]
        return State(params, batch_stats, optimizer(settings).init(params))

    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(init, out_shardings=everywhere)


@jax.jit
def accuracy(state: State, images, labels):
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return (MODEL.apply(variables, images, train=False).argmax(-1) == labels).mean()


# --- training, with checkpoints ------------------------------------------------------


def train(settings: Settings, mesh: Mesh, checkpoints=None, say=print):
    """The last state and the history; resumes from the last of the `checkpoints`."""
    data, test = load(settings.seed)
    step = make_step(settings, mesh)
    state, history = make_init(settings, mesh)(jax.random.key(settings.seed)), []
    start = 0
    if checkpoints is not None and checkpoints.latest_step() is not None:
        start, state, history = checkpoints.restore(state)
        say(f"resumed after step {start}")
    every = max(1, settings.steps // REPORTS)
    for done in range(start + 1, settings.steps + 1):
        state, loss = step(state, batch_of(done, data, settings, mesh))
        if done % every == 0 or done == settings.steps:
            row = {
                "step": done,
                "loss": float(loss),
                "test_accuracy": float(accuracy(state, *test)),
            }
            history.append(row)
            say(
                "step {step:5d}  loss {loss:.4f}  test {test_accuracy:.4f}".format(
                    **row
                )
            )
        if checkpoints is not None:
            checkpoints.save(done, state, history)
    return state, history


class Checkpoints:
    """Orbax's checkpoints of the state and the history, every so many steps."""

    def __init__(self, folder: str, every: int):
        import orbax.checkpoint as ocp  # only runs with --checkpoint need it

        self._args = ocp.args
        local = "://" not in folder
        self._manager = ocp.CheckpointManager(
            Path(folder).resolve() if local else folder,
            options=ocp.CheckpointManagerOptions(
                save_interval_steps=every, max_to_keep=2
            ),
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: State, history: list) -> None:
        self._manager.save(
            step,
            args=self._args.Composite(
                state=self._args.StandardSave(state._asdict()),
                history=self._args.JsonSave(history),
            ),
        )

    def restore(self, like: State) -> tuple[int, State, list]:
        step = self._manager.latest_step()
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            like._asdict(),
        )
        found = self._manager.restore(
            step,
            args=self._args.Composite(
                state=self._args.StandardRestore(shapes),
                history=self._args.JsonRestore(),
            ),
        )
        return step, State(**found["state"]), list(found["history"])

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()


def digest(tree) -> str:
    """A hash of every bit of the tree."""
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        sha.update(np.asarray(leaf).tobytes())
    return sha.hexdigest()


# --- the command line ----------------------------------------------------------------


def arguments() -> argparse.Namespace:
    text = __doc__.format(repository=REPOSITORY, folder=REPOSITORY.rsplit("/", 1)[1])
    parser = report.parser(text)
    add = parser.add_argument
    default = Settings()
    add("--steps", type=int, default=default.steps)
    add("--batch-per-device", type=int, default=default.batch_per_device, metavar="M")
    add("--lr", type=float, default=default.lr)
    add("--rho", type=float, default=default.rho)
    add("--seed", type=int, default=default.seed)
    add("--devices", type=int, metavar="N", help="simulate N CPU devices (a process)")
    add("--pod", action="store_true", help="one of the workers of a TPU pod slice")
    add("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    add("--processes", type=int, metavar="N")
    add("--rank", type=int, metavar="R")
    add("--checkpoint", metavar="DIR", help="save here, and resume from here")
    add("--every", type=int, default=50, metavar="N", help="steps between checkpoints")
    args = report.parse(parser)
    if args.coordinator and (args.processes is None or args.rank is None):
        parser.error("--coordinator needs --processes N and --rank R as well")
    if args.smoke:
        args.steps, args.devices = 20, args.devices or 4
    return args


def start(args: argparse.Namespace) -> None:
    """Find the other processes. This must come before JAX's first look at a device."""
    if args.devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", args.devices)
    if args.pod:
        jax.distributed.initialize()
    elif args.coordinator:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(args.coordinator, args.processes, args.rank)


def main() -> None:
    args = arguments()
    start(args)
    first = jax.process_index() == 0
    say = functools.partial(print, flush=True) if first else lambda _: None
    settings = Settings(**{name: getattr(args, name) for name in Settings._fields})
    mesh = make_mesh()
    say(
        f"{mesh.size} devices ({jax.devices()[0].device_kind}) in "
        f"{jax.process_count()} processes, m = {settings.batch_per_device}"
    )
    checkpoints = Checkpoints(args.checkpoint, args.every) if args.checkpoint else None
    began = time.perf_counter()
    state, history = train(settings, mesh, checkpoints, say)
    seconds = time.perf_counter() - began
    if checkpoints is not None:
        checkpoints.close()
    if first:
        metrics = {
            "command": report.command(),
            "jax": jax.__version__,
            "devices": mesh.size,
            "processes": jax.process_count(),
            "settings": settings._asdict(),
            "seconds": round(seconds, 1),
            "history": history,
            "test_accuracy": history[-1]["test_accuracy"],
            "params_sha256": digest(state.params),
        }
        (args.out / "pod_train.json").write_text(json.dumps(metrics, indent=2) + "\n")
        say(f"test accuracy {metrics['test_accuracy']:.4f} in {seconds:.0f} s")
        say(f"parameters {metrics['params_sha256']}")


if __name__ == "__main__":
    main()
