"""Problems with known answers, and both doors in one form, for all the tests.

Data are NumPy arrays of float64: they become float64 in JAX where a test asks for
the fixture `x64`, and float32 elsewhere.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import optax_sam

DATA = Path(__file__).parent / "data"


def flat(tree):
    """All leaves as one vector, in the order of `jax.tree.leaves`."""
    return ravel_pytree(tree)[0]


# The base quadratic Q: L(w) = w.H.w / 2 at w = (3, 1), where the gradient is (3, 4).

HESSIAN = np.diag([1.0, 4.0])
START = np.array([3.0, 1.0])

#: The same two numbers as a bare array, one leaf, and two leaves: whatever is "of
#: the whole tree" must not see the difference.
QUADRATIC_FORMS = {
    "array": START,
    "leaf": {"w": START},
    "scalars": {"x": START[0], "y": START[1]},
}


def quadratic(params, hessian=HESSIAN):
    w = flat(params)
    return 0.5 * w @ hessian @ w


# Two examples, one parameter vector: the loss of m-SAM's worked example.

EXAMPLES = np.array([[1.0, 0.0], [0.0, 2.0]])


def least_squares(params, inputs):
    return 0.5 * jnp.mean((inputs @ flat(params)) ** 2)


# One tanh layer on four rows, on which peers' own code was run.

TANH_BATCH = (
    np.array([[1.0, 0.5], [-0.5, 1.5], [2.0, -1.0], [0.3, 0.8]]),
    np.array([[0.5, 1.0], [1.0, -0.5], [-0.3, 0.2], [0.7, 0.1]]),
)
TANH_START = {
    "weight": np.array([[0.9, -0.4], [0.3, 0.7]]),
    "bias": np.array([0.1, -0.2]),
}


def tanh_loss(params, batch=TANH_BATCH):
    inputs, targets = batch
    outputs = jnp.tanh(inputs @ params["weight"].T + params["bias"])
    return jnp.mean(0.5 * jnp.sum((outputs - targets) ** 2, axis=1))


def tanh_row(params):
    """The order of the published tables: weight row by row, then bias."""
    return np.concatenate([np.ravel(params["weight"]), np.ravel(params["bias"])])


# The network of the reference trajectories.


def load_trajectory(name):
    return json.loads((DATA / f"{name}.json").read_text())


def nested(params):
    """`layer0.weight` as a path: the library reads the last key of a path."""
    tree = {}
    for name, values in params.items():
        layer, leaf = name.split(".")
        tree.setdefault(layer, {})[leaf] = np.array(values, np.float64)
    return tree


def trajectory_batches(record):
    """The batches of all steps, stacked along a new first axis."""
    rows = np.arange(record["steps"] * record["batch_size"]) % len(record["x"])
    rows = rows.reshape(record["steps"], record["batch_size"])
    return np.array(record["x"])[rows], np.array(record["y"])[rows]


def classifier_loss(params, batch):
    """Mean softmax cross-entropy of tanh layers, weights stored (out, in)."""
    h, labels = batch
    layers = [params[name] for name in sorted(params)]
    for layer in layers[:-1]:
        h = jnp.tanh(h @ layer["weight"].T + layer["bias"])
    logits = h @ layers[-1]["weight"].T + layers[-1]["bias"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses)


# Torch's optimizers in Optax's words.


def torch_sgd(lr, momentum=0.0, weight_decay=0.0):
    """Decay joins the gradient before the momentum, as in torch."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(decay=momentum),
        optax.scale_by_learning_rate(lr),
    )


def torch_adamw(lr, weight_decay):
    """Decay is scaled by the learning rate; eps stands outside of the root."""
    return optax.adamw(lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay)


TORCH = {"sgd": torch_sgd, "adamw": torch_adamw}


# Both doors in one form: `door(loss_fn, ascent)(params, *args) -> (value, gradient)`.


def by_transformation(loss_fn, ascent, *, combine=None, transformation=None):
    """Door 1; `transformation` stands for a ready product in place of an ascent."""
    tx = transformation or optax_sam.sharpness_aware(ascent, combine=combine)

    def value_and_grad(params, *args):
        value, grads = jax.value_and_grad(loss_fn)(params, *args)
        updates, _ = tx.update(
            grads, tx.init(params), params, value_fn=lambda p: loss_fn(p, *args)
        )
        return value, updates

    return value_and_grad


def by_value_and_grad(loss_fn, ascent, *, combine=None):
    """Door 2."""
    return optax_sam.value_and_grad(loss_fn, ascent, combine=combine)


DOORS = {"door 1": by_transformation, "door 2": by_value_and_grad}


def climb_of(ascent, grads, params):
    """The climb of one call of an ascent."""
    return ascent.update(grads, ascent.init(params), params)[0]


#: Most of the time of these tests is XLA's optimizer, for programs that run for 1 ms.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def ascent_with_memory(rho):
    """Climb along the gradient minus its moving average: an ascent with a memory."""
    climb = optax_sam.steepest_ascent(rho)

    def init(params):
        return jax.tree.map(jnp.zeros_like, params)

    def update(updates, memory, params=None):
        away = jax.tree.map(jnp.subtract, updates, memory)
        memory = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, memory, updates)
        return climb.update(away, climb.init(params), params)[0], memory

    return optax.GradientTransformation(init, update)


def quick_jit(function):
    """`jax.jit`, compiled in half the time."""
    return jax.jit(function, compiler_options=QUICK)


def scan_steps(step, params, tx, batches):
    """Scan `step` over the batches from the start; gives its stacked outputs."""

    @quick_jit
    def run(params):
        return jax.lax.scan(step, (params, tx.init(params)), batches)[1]

    return jax.device_get(run(params))


def descend(grad_fn, base, params, batches):
    """Train on `batches`, stacked along their first axis, with a base optimizer.

    `grad_fn(params, batch)` gives the value and the gradient. Returns the losses
    before each step and the parameters after it, stacked.
    """

    def step(carry, batch):
        params, state = carry
        value, grads = grad_fn(params, batch)
        updates, state = base.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (value, params)

    return scan_steps(step, params, base, batches)


def descend_in_chain(loss_fn, tx, params, batches, *, with_batch=False):
    """Train with one chain that holds SAM and the base optimizer: door 1 as users do.

    With `with_batch` the chain computes all gradients itself, from `batch=`.
    """

    def step(carry, batch):
        params, state = carry
        if with_batch:
            value, grads = loss_fn(params, batch), None
            extra = {"value_fn": loss_fn, "batch": batch}
        else:
            value, grads = jax.value_and_grad(loss_fn)(params, batch)
            extra = {"value_fn": lambda p: loss_fn(p, batch)}
        updates, state = tx.update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
        return (params, state), (value, params)

    return scan_steps(step, params, tx, batches)


def repeated(batch, steps):
    """The same batch for every step, stacked for `descend`."""
    return jax.tree.map(lambda x: np.stack([x] * steps), batch)
