"""Train every product at once, save with orbax, and perhaps die: for test_checkpoints.

    python crash_and_resume.py FOLDER DEVICES [--kill-at STEP]

Begins where the last checkpoint in FOLDER ends. Prints, as JSON, the bits of what was
restored and of what came out. The sub-batches are eight, wherever they lie.
"""

import argparse
import json
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec
from problems import TANH_START, quick_jit, tanh_loss

import optax_sam

STEPS, SAVE_AT, SIZE, SUB_BATCHES = 7, 3, 16, 8


def tanh_losses(params, batch):
    return jax.vmap(lambda x, y: tanh_loss(params, (x[None], y[None])))(*batch)


def products(options):
    """All that there are; a new one is one line."""
    key = jax.random.key(5)

    def schedule(step):  # exact in float32, which schedules are in
        return step / 16

    friendly = optax_sam.friendly_ascent(optax_sam.adaptive_ascent(0.3))
    return {
        "sam": optax_sam.sam(0.1, **options),
        "sam, schedule": optax_sam.sam(schedule, **options),
        "sam, diagnostics": optax_sam.sam(0.1, diagnostics=True, **options),
        "asam": optax_sam.asam(0.3, **options),
        "m_sam": optax_sam.m_sam(0.1, **options),
        "random ascent": optax_sam.sharpness_aware(
            optax_sam.random_ascent(0.3, key=key), **options
        ),
        "gsam": optax_sam.gsam(0.1, **options),
        "wsam": optax_sam.wsam(0.1, **options),
        "friendly_sam": optax_sam.friendly_sam(0.1, **options),
        "friendly asam": optax_sam.sharpness_aware(friendly, **options),
        "look_sam": optax_sam.look_sam(0.1, k=4, **options),
        "momentum_sam": optax_sam.momentum_sam(0.3, **options),
        "random_perturbation": optax_sam.random_perturbation(0.3, key=key, **options),
        "partial_climb": optax_sam.partial_climb(0.1, 0.5, **options),
        "esam": optax_sam.esam(0.1, key=key, **options),
        "every_k": optax_sam.sam(0.1, when=optax_sam.every_k(2), **options),
        "with_probability": optax_sam.sam(
            0.1, when=optax_sam.with_probability(0.5, key=key), **options
        ),
        "only_last": optax_sam.sam(0.1, when=optax_sam.from_step(4), **options),
    }


def options_of(devices):
    if devices == 1:
        return {"microbatch_size": SIZE // SUB_BATCHES}
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    return {"axis_name": "data", "mesh": mesh}


def batch_of(step):
    random = np.random.default_rng(step)
    return random.normal(size=(SIZE, 2)), random.normal(size=(SIZE, 2))


def step_of(chains):
    @quick_jit
    def step(carry, batch):
        new = {}
        for name, (params, state) in carry.items():
            value_fn = tanh_losses if name == "esam" else tanh_loss
            updates, state = chains[name].update(
                None, state, params, value_fn=value_fn, batch=batch
            )
            new[name] = optax.apply_updates(params, updates), state
        return new

    return step


def numbers(tree):
    """Every leaf as raw numbers, keys too."""

    def raw(x):
        typed = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(x) if typed else x

    leaves = [np.asarray(raw(x)) for x in jax.tree.leaves(tree)]
    return [np.ravel(x).astype(np.float64).tolist() for x in leaves]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("devices", type=int)
    parser.add_argument("--kill-at", type=int)
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", arguments.devices)
    jax.config.update("jax_enable_x64", True)
    options = options_of(arguments.devices)
    all_products = products(options)
    chains = {
        name: optax.chain(tx, optax.adamw(0.03)) for name, tx in all_products.items()
    }
    start = jax.tree.map(jnp.asarray, TANH_START)
    carry = {name: (start, tx.init(start)) for name, tx in chains.items()}
    if arguments.devices > 1:  # where they will be, and where they are restored to
        everywhere = NamedSharding(options["mesh"], PartitionSpec())
        carry = jax.device_put(carry, everywhere)
    first, manager = 0, ocp.CheckpointManager(arguments.folder.resolve())
    if manager.latest_step() is not None:
        first = manager.latest_step()
        carry = manager.restore(first, args=ocp.args.StandardRestore(carry))
    restored = {name: numbers(pair) for name, pair in carry.items()}
    step = step_of(chains)
    for t in range(first, STEPS):
        if t == SAVE_AT and first == 0:
            manager.save(t, args=ocp.args.StandardSave(carry))
            manager.wait_until_finished()
            saved = {name: numbers(pair) for name, pair in carry.items()}
        if t == arguments.kill_at:
            print(json.dumps({"saved": saved}), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        carry = step(carry, batch_of(t))
    ends = {n: ravel_pytree(params)[0].tolist() for n, (params, _) in carry.items()}
    print(json.dumps({"first": first, "restored": restored, "ends": ends}), flush=True)


if __name__ == "__main__":
    main()
