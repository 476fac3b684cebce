"""m-SAM over all devices of all processes; as a script, one of several processes.

    python tests/two_processes.py RANK PROCESSES PORT

prints what `train` gives, as JSON in its last line.
"""

import json
import sys

import jax
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from problems import TANH_START, tanh_loss

import optax_sam

SIZE, STEPS = 32, 3
OPTIONS = {"axis_name": "data", "microbatch_size": 2}


def loss(params, batch):
    """With dropout, whose masks tell all sub-batches apart."""
    (inputs, targets), key = batch
    mask = jax.random.bernoulli(key, 0.7, inputs.shape)
    return tanh_loss(params, (inputs * mask, targets))


def my_examples(mesh):
    """This process's part of the batch, put where its devices expect it."""
    random = np.random.default_rng(0)
    examples = random.normal(size=(SIZE, 2)), random.normal(size=(SIZE, 2))
    rows = SIZE // jax.process_count()
    mine = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)
    place = NamedSharding(mesh, P("data"))
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(place, x[mine]),
        examples,
    )


def train():
    """Value and gradient by door 2, parameters after some steps by door 1."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    tx = optax.chain(optax_sam.m_sam(0.1, mesh=mesh, **OPTIONS), optax.sgd(0.1, 0.9))
    sam = optax_sam.value_and_grad(loss, optax_sam.steepest_ascent(0.1))
    grad_fn = optax_sam.m_sharpness(sam, mesh=mesh, **OPTIONS)

    def run(params, examples):
        batch = (examples, jax.random.key(1))

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(None, state, params, value_fn=loss, batch=batch)
            return (optax.apply_updates(params, updates), state), None

        carry, _ = jax.lax.scan(step, (params, tx.init(params)), length=STEPS)
        return ravel_pytree((grad_fn(params, batch), carry[0]))[0]

    run = jax.jit(run, out_shardings=NamedSharding(mesh, P()))
    return np.asarray(run(TANH_START, my_examples(mesh)))


if __name__ == "__main__":
    rank, processes, port = map(int, sys.argv[1:])
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", 8 // processes)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, rank)
    numbers = train().tolist()
    print(json.dumps({"devices": jax.device_count(), "numbers": numbers}))
