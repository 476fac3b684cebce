"""What 0.1.0 computed: every product in every context, seven steps in float64.

    python tests/recorded.py --write

writes `data/recorded_0_1_0.json`, and only with 0.1.0: `test_recorded.py` compares
every later version with it. A new spelling of an option is a change of one line in
`PRODUCTS` or `GRADIENTS`; the names of the rows, the radii and the keys stay.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import optax_sam
from optax_sam import (
    adaptive_ascent,
    asam,
    climb_only,
    esam,
    every_k,
    friendly_ascent,
    friendly_sam,
    from_step,
    gradient_norm_penalty,
    gsam,
    look_sam,
    m_sam,
    m_sharpness,
    momentum_sam,
    partial_climb,
    random_ascent,
    random_perturbation,
    sam,
    sharpness_aware,
    steepest_ascent,
    surrogate_gap,
    value_and_grad,
    with_probability,
    wsam,
)

FILE = Path(__file__).parent / "data" / "recorded_0_1_0.json"
VERSION, COMMAND = "0.1.0", "python tests/recorded.py --write"
STEPS, EXAMPLES, DEVICES = 7, 16, 4
RHO = 0.2  # large, so that an error in the climb shows

# --- The products ---------------------------------------------------------------------

KEY, normal, inf = jax.random.key, jax.random.normal, np.inf
steepest = steepest_ascent(RHO)


def falling(step):
    """A schedule for rho."""
    return RHO / (1 + step)


#: Transformations for the head of a chain, from the options of a context.
PRODUCTS = {
    "sam": lambda **o: sam(RHO, **o),
    "sam(ord=1)": lambda **o: sam(RHO, ord=1, **o),
    "sam(ord=1.5)": lambda **o: sam(RHO, ord=1.5, **o),
    "sam(ord=inf)": lambda **o: sam(RHO, ord=inf, **o),
    "sam(num_steps=2)": lambda **o: sam(RHO, num_steps=2, **o),
    "sam(schedule)": lambda **o: sam(falling, **o),
    "sam(diagnostics=True)": lambda **o: sam(RHO, diagnostics=True, **o),
    "asam": lambda **o: asam(0.5, **o),
    "asam(mask=True, eta=0)": lambda **o: asam(0.5, mask=True, eta=0.0, **o),
    "m_sam": lambda **o: m_sam(RHO, **o),
    "m_sam(adaptive)": lambda **o: m_sam(ascent=adaptive_ascent(0.5), **o),
    "gsam": lambda **o: gsam(RHO, alpha=0.4, **o),
    "wsam": lambda **o: wsam(RHO, gamma=0.75, **o),
    "friendly_sam": lambda **o: friendly_sam(RHO, sigma=0.9, decay=0.8, **o),
    "look_sam(k=3)": lambda **o: look_sam(RHO, k=3, **o),
    "look_sam(per_leaf=True)": lambda **o: look_sam(RHO, k=3, per_leaf=True, **o),
    "esam": lambda **o: esam(RHO, key=KEY(5), **o),
    "partial_climb": lambda **o: partial_climb(RHO, fraction=0.5, **o),
    "momentum_sam": lambda **o: momentum_sam(RHO, decay=0.8, **o),
    "random_perturbation": lambda **o: random_perturbation(RHO, key=KEY(3), **o),
    "random_perturbation(normal)": lambda **o: random_perturbation(
        RHO, key=KEY(3), sampler=normal, **o
    ),
    "random_ascent": lambda **o: sharpness_aware(
        random_ascent(RHO, key=KEY(4), sampler=normal), **o
    ),
    "climb_only": lambda **o: sharpness_aware(climb_only(steepest, "bias|out"), **o),
    "friendly adaptive gsam": lambda **o: gsam(
        alpha=0.3, ascent=friendly_ascent(adaptive_ascent(0.5)), **o
    ),
    "every_k(sam, 3)": lambda **o: sam(RHO, when=every_k(3), **o),
    "every_k(m_sam, 3)": lambda **o: m_sam(RHO, when=every_k(3), **o),
    "only_last(sam, 3)": lambda **o: sam(RHO, when=from_step(3), **o),
    "only_last(m_sam, 3)": lambda **o: m_sam(RHO, when=from_step(3), **o),
    "with_probability(sam, 0.5)": lambda **o: sam(
        RHO, when=with_probability(0.5, key=KEY(11)), **o
    ),
}

gap, penalty = surrogate_gap(0.4), gradient_norm_penalty(0.7)

#: The same as functions like `jax.value_and_grad(loss_fn)`.
GRADIENTS = {
    "value_and_grad": lambda f, **o: value_and_grad(f, steepest, **o),
    "value_and_grad(adaptive)": lambda f, **o: value_and_grad(
        f, adaptive_ascent(0.5), **o
    ),
    "value_and_grad(num_steps=2)": lambda f, **o: value_and_grad(
        f, steepest, num_steps=2, **o
    ),
    "value_and_grad(second_order=True)": lambda f, **o: value_and_grad(
        f, steepest, second_order=True, **o
    ),
    "value_and_grad(surrogate_gap)": lambda f, **o: value_and_grad(
        f, steepest, combine=gap, **o
    ),
    "value_and_grad(gradient_norm_penalty)": lambda f, **o: value_and_grad(
        f, steepest, combine=penalty, **o
    ),
}

# --- The contexts ---------------------------------------------------------------------


def mesh():
    return Mesh(np.array(jax.devices()[:DEVICES]), ("data",))


#: The options that name the sub-batches. Where a name begins with "shard_map", the
#: step stands inside it; where it says "mean_over", the average stands in the chain.
CONTEXTS = {
    "whole batch": lambda: {},
    "micro-batches": lambda: {"microbatch_size": 4},
    "mesh": lambda: {"axis_name": "data", "mesh": mesh()},
    "mesh, micro-batches": lambda: {
        "axis_name": "data",
        "mesh": mesh(),
        "microbatch_size": 2,
    },
    "shard_map": lambda: {"axis_name": "data"},
    "shard_map, mean_over": lambda: {},
}

#: These take the gradient inside, or keep what they saw of it in their state: a chain
#: that averages behind them is refused.
NOT_BEFORE_MEAN_OVER = {
    "sam(diagnostics=True)",
    "friendly_sam",
    "friendly adaptive gsam",
    "look_sam(k=3)",
    "look_sam(per_leaf=True)",
    "esam",
    "partial_climb",
    "momentum_sam",
    "random_perturbation",
    "random_perturbation(normal)",
    *GRADIENTS,
}


TAKES_ITS_OWN = {
    "esam",
    "partial_climb",
    "momentum_sam",
    "random_perturbation",
    "random_perturbation(normal)",
}


def supported(product, context):
    """Whether the library allows this pair."""
    if context == "shard_map, mean_over" and product in NOT_BEFORE_MEAN_OVER:
        return False
    return "m_sam" not in product or CONTEXTS[context]() != {}


def rows():
    """The pairs of a product and a context that are recorded."""
    pairs = [(p, c) for p in (*PRODUCTS, *GRADIENTS) for c in CONTEXTS]
    return [pair for pair in pairs if supported(*pair)]


# --- The problem ----------------------------------------------------------------------


def problem():
    """The parameters of a small network, and a batch for each step."""
    draw = np.random.default_rng(20).normal
    params = {
        "hidden": {"kernel": draw(size=(3, 2)), "bias": draw(size=2)},
        "out": draw(size=2),
        "scale": np.float64(1.25),
    }
    batches = draw(size=(STEPS, EXAMPLES, 3)), draw(size=(STEPS, EXAMPLES))
    return jax.tree.map(jnp.asarray, (params, batches))


def losses(params, batch):
    inputs, targets = batch
    hidden = inputs @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    outputs = params["scale"] * (jnp.tanh(hidden) @ params["out"])
    return 0.5 * (outputs - targets) ** 2


def loss(params, batch):
    return jnp.mean(losses(params, batch))


# --- A row ----------------------------------------------------------------------------


def record(product, context, **more):
    """The losses before each step and the last parameters, as nested lists.

    `more`: options of the product beside those of the context.
    """
    with jax.enable_x64(True):
        params, batches = problem()
        make = transformation if product in PRODUCTS else gradient
        state, step = make(product, context, params, **more)
        (params, _), seen = jax.jit(lambda *a: jax.lax.scan(step, *a))(
            (params, state), batches
        )
        return jax.tree.map(lambda x: np.asarray(x).tolist(), seen | {"params": params})


def optimizer():
    return optax.sgd(0.1, momentum=0.9)


def transformation(product, context, params, **more):
    """The first state and the step of a chain that begins with the product."""
    options, inside = CONTEXTS[context]() | more, context.startswith("shard_map")
    mean = [optax_sam.mean_over("data")] if "mean_over" in context else []
    tx = optax.chain(PRODUCTS[product](**options), *mean, optimizer())
    value_fn = losses if product == "esam" else loss

    def step(carry, batch):
        params, state = carry
        at = optax_sam.per_device(params, "data") if inside else params
        grads = None if takes_its_own(product, options) else jax.grad(loss)(at, batch)
        new, state = tx.update(grads, state, at, value_fn=value_fn, batch=batch)
        return optax.apply_updates(params, new), state

    step = over_devices(step, P()) if inside else step

    def watched(carry, batch):
        before, after = loss(carry[0], batch), step(carry, batch)
        return after, {"loss": before} | climbed_loss(after[1])

    return tx.init(params), watched


def takes_its_own(product, options):
    """Whether the clean gradient is computed inside, or there is none."""
    taken = {"mesh", "microbatch_size", "scan_passes"} & set(options)
    return taken or product in TAKES_ITS_OWN


def climbed_loss(state):
    """What a product that takes its own gradients reports, if it does."""
    seen = [optax.tree.get(state, name) for name in ("last_loss", "climbed_loss")]
    seen = [loss for loss in seen if loss is not None]
    return {"climbed_loss": seen[0]} if seen else {}


def gradient(product, context, params, **more):
    """The same behind a function that gives the loss and the climbed gradient."""
    grad_fn, options = GRADIENTS[product](loss, **more), CONTEXTS[context]()
    grad_fn = m_sharpness(grad_fn, **options) if options else grad_fn
    inside = context.startswith("shard_map")
    grad_fn = over_devices(grad_fn, P()) if inside else grad_fn
    tx = optimizer()

    def step(carry, batch):
        params, state = carry
        value, grads = grad_fn(params, batch)
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), {"loss": value}

    return tx.init(params), step


def over_devices(function, out):
    specs = P(), P("data")
    return jax.shard_map(function, mesh=mesh(), in_specs=specs, out_specs=out)


# --- The file -------------------------------------------------------------------------


def about():
    return {
        "what": f"optax_sam {VERSION}: {STEPS} steps of SGD in float64, for every "
        "product in every context: the losses before each step, the climbed losses "
        "where a product reports them, the parameters after the last step",
        "command": COMMAND,
        "jax": jax.__version__,
        "optax": optax.__version__,
    }


def write():
    if optax_sam.__version__ != VERSION:
        raise SystemExit(f"Only {VERSION} can write what {VERSION} computed.")
    lines = [json.dumps({"row": row, **record(*row)}) for row in rows()]
    body = ",\n".join(lines)
    FILE.write_text(f'{{"about": {json.dumps(about())},\n"rows": [\n{body}\n]}}\n')


def recorded():
    """The numbers in the file, by product and context."""
    found = json.loads(FILE.read_text())["rows"]
    return {tuple(row.pop("row")): row for row in found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the file anew")
    if not parser.parse_args().write:
        raise SystemExit(f"Nothing is written without --write: {COMMAND}")
    import conftest  # noqa: F401  (the same devices and the same compiler as the tests)

    write()
