"""A user's strictly typed code, with every public name of optax_sam in it.

`mypy --strict` and pyright's strict mode must find nothing in it (test_typing.py).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_sam

Params = Mapping[str, jax.Array]
PARAMS: Params = {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
BATCH: tuple[jax.Array, jax.Array] = (jnp.ones((4, 2)), jnp.zeros((4, 2)))
KEY: jax.Array = jax.random.key(0)
RHO: Callable[[Any], Any] = optax_sam.proportional_rho(
    optax.linear_schedule(0.1, 0.0, 10), lr_max=0.1, rho_max=0.05
)
VERSION: str = optax_sam.__version__


def logits(params: Params, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    return batch[0] @ params["kernel"] + params["bias"]


def head(outputs: jax.Array, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    return jnp.mean((outputs - batch[1]) ** 2)


def loss_fn(params: Params, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    return head(logits(params, batch), batch)


def only_kernels(params: Params) -> dict[str, bool]:
    return {name: name == "kernel" for name in params}


def ascents() -> list[optax.GradientTransformation]:
    steepest = optax_sam.steepest_ascent(rho=0.05)
    return [
        steepest,
        optax_sam.steepest_ascent(jnp.array(0.05), ord=1),
        optax_sam.adaptive_ascent(rho=0.5, eta=0.01, mask=only_kernels),
        optax_sam.random_ascent(0.05, key=KEY, sampler=jax.random.normal),
        optax_sam.loss_equated_ascent(0.1, rho_max=0.5, of_loss=True),
        optax_sam.friendly_ascent(steepest, sigma=1.0, decay=0.9),
        optax_sam.climb_only(steepest, only_kernels),
    ]


def conditions(step: jax.Array) -> jax.Array:
    """One condition made of three."""
    every, late = optax_sam.every_k(5), optax_sam.from_step(10)
    seldom = optax_sam.with_probability(0.5, key=KEY)
    both: jax.Array = every(step) & late(step) & seldom(step)
    return both


def products() -> list[optax.GradientTransformationExtraArgs]:
    climb = optax_sam.steepest_ascent(rho=0.05)
    method: optax_sam.Method = optax_sam.climbing(climb, num_steps=2)
    return [
        optax_sam.sam(RHO, when=optax_sam.every_k(5), diagnostics=True),
        optax_sam.asam(rho=0.5, when=conditions),
        optax_sam.m_sam(0.05, microbatch_size=2, unroll=True),
        optax_sam.gsam(0.05, alpha=0.1, when=False),
        optax_sam.wsam(0.05, gamma=0.8, num_steps=2),
        optax_sam.friendly_sam(0.05, sigma=0.5),
        optax_sam.look_sam(0.05, k=5, per_leaf=True),
        optax_sam.esam(0.05, key=KEY),
        optax_sam.le_sam(0.1, rho_max=0.5),
        optax_sam.momentum_sam(ascent=climb),
        optax_sam.partial_climb(0.05, fraction=0.5),
        optax_sam.random_perturbation(0.05, key=KEY),
        optax_sam.stale_sam(0.05, climb_dtype=jnp.bfloat16),
        optax_sam.sharpness_aware(climb, combine=optax_sam.surrogate_gap(0.1)),
        optax_sam.transformation(method),
    ]


def sees_nothing(seen: optax_sam.Seen) -> bool:
    return seen.clean is None


def in_the_optimizer() -> optax_sam.Diagnostics:
    sharpness_aware = optax_sam.sam(rho=0.05, diagnostics=True)
    tx = optax.chain(sharpness_aware, optax.adamw(1e-3))
    state = tx.init(PARAMS)

    def at_this_batch(params: Params) -> jax.Array:
        return loss_fn(params, BATCH)

    nothing: Any = None  # Optax's own type of updates knows no None
    updates, state = tx.update(nothing, state, PARAMS, value_fn=at_this_batch)
    optax.apply_updates(PARAMS, updates)
    found: optax_sam.Diagnostics = optax.tree.get(state, "diagnostics")
    return found


def in_place_of_value_and_grad() -> tuple[jax.Array, Params]:
    penalty = optax_sam.gradient_norm_penalty(alpha=0.5)
    climb = optax_sam.steepest_ascent(rho=0.05)
    grad_fn = optax_sam.value_and_grad(loss_fn, climb, combine=penalty)
    m_sam_fn = optax_sam.m_sharpness(grad_fn, microbatch_size=2)
    value, gradient = m_sam_fn(PARAMS, BATCH)
    return value, gradient


def with_a_state() -> tuple[jax.Array, Params]:
    init, grad_fn = optax_sam.stateful_value_and_grad(loss_fn, optax_sam.sam(0.05))
    value, gradient, _ = grad_fn(init(PARAMS), PARAMS, BATCH)
    return value, gradient


def of_a_net_and_a_head() -> tuple[jax.Array, Params]:
    climb = optax_sam.steepest_ascent(rho=0.05)
    grad_fn = optax_sam.functional_value_and_grad(logits, head, climb)
    value, gradient = grad_fn(PARAMS, BATCH)
    return value, gradient


def on_devices() -> optax.GradientTransformation:
    _: Params = optax_sam.per_device(PARAMS, "data")
    schedule, total = optax_sam.tail_schedule(0.1, num_steps=100, warmup_steps=5)
    climb = optax_sam.steepest_ascent(rho=0.05)
    rounded: int = total + 1
    averaged = optax.chain(optax_sam.mean_over("data"), climb)
    return optax.chain(averaged, optax.sgd(schedule), optax.trace(1 / rounded))
