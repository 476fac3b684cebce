"""On which steps: SAM on some, and the second gradient really skipped on the others."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam._checks import check_k, known
from optax_sam._sub_batches import own_key
from optax_sam._types import Scalar, SharpnessAware, Tree


class PolicyState(NamedTuple):
    """The step, the key of a random policy (else `None`), and SAM's own state."""

    step: jax.Array
    key: jax.Array | None
    inner: Any


def every_k(tx: SharpnessAware, k: int) -> SharpnessAware:
    """SAM on every k-th step only (SAM-k; others call this LookSAM).

    It climbs at t = 0, k, 2k, ... On the other steps the clean gradient comes out,
    averaged over its sub-batches, and the state of `tx` stays: the second pass is
    really skipped (but see below for `vmap`). An average over devices that stands in
    the chain stays behind: `chain(every_k(sam(rho), 5), mean_over("data"), ...)`.

    The same radius every k-th step is k times less SAM. Composer found that rho
    should grow with k (0.5 at k = 10), so start from `sam(rho=k * 0.05)`.

    Under `jax.vmap` over seeds, each with a state of its own, a condition computes both
    branches and skips nothing. Loop over the seeds instead (`jax.lax.map`), or give
    each its own device.

    Args:
      tx: a product of this library, e.g. `sam(rho)` or `m_sam(rho, axis_name="data")`.
      k: a number; 1 is SAM on every step.

    Returns:
      A transformation for the place of `tx`.

    Raises:
      ValueError: `k` below 1.
      TypeError: `tx` is not one of this library's products: there would be nothing to
        skip in it.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> tx = optax_sam.every_k(optax_sam.sam(rho=0.5), k=2)
      >>> w, loss = jnp.array([1.0]), lambda w: jnp.sum(w**2)
      >>> state = tx.init(w)
      >>> for _ in range(2):
      ...     gradient, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss)
      ...     print(gradient)
      [3.]
      [2.]

    Reference: MosaicML Composer, `SAM(interval=k)`; Liu et al. 2022, the baseline
      "SAM-k".
    """
    check_k(k)
    return _policy(tx, lambda step, _: step % k == 0)


def with_probability(tx: SharpnessAware, p: Any, key: jax.Array) -> SharpnessAware:
    """SAM on randomly chosen steps (RST).

    What is skipped, and how, is as for `every_k`. All devices throw the same dice.

    Args:
      tx: a product of this library.
      p: the probability of SAM on each step: a number, traced or not, or a schedule.
      key: a JAX random key; step t throws by `fold_in(key, t)`.

    Returns:
      A transformation for the place of `tx`.

    Raises:
      ValueError: a `p` outside [0, 1], given as a number.
      TypeError: `tx` is not one of this library's products.

    Example:
      >>> import jax, optax_sam
      >>> tx = optax_sam.with_probability(optax_sam.sam(0.05), 0.5, jax.random.key(0))

    Reference: Zhao et al. 2022, "Randomized Sharpness-Aware Training for Boosting
      Computational Efficiency in Deep Learning".
    """
    if known(p) and not 0 <= p <= 1:
        raise ValueError(f"p is a probability and must lie in [0, 1], got p = {p}.")

    def throw(step: jax.Array, key: Any) -> Any:
        now = p(step) if callable(p) else p
        return jax.random.uniform(jax.random.fold_in(key, step)) < now

    return _policy(tx, throw, key)


def only_last(tx: SharpnessAware, start: Scalar) -> SharpnessAware:
    """SAM from step `start` on: the last part of the training.

    What is skipped, and how, is as for `every_k`. A schedule for rho in `tx` counts
    from `start`. The tail must own a full anneal of the learning rate:
    `tail_schedule` builds both together.

    Args:
      tx: a product of this library.
      start: the first step with SAM, counted from 0.

    Returns:
      A transformation for the place of `tx`.

    Raises:
      ValueError: a negative `start`.
      TypeError: `tx` is not one of this library's products.

    Example:
      >>> import optax, optax_sam
      >>> learning_rate, start = optax_sam.tail_schedule(0.1, num_steps=100, tail=0.3)
      >>> tx = optax.chain(
      ...     optax_sam.only_last(optax_sam.sam(rho=0.1), start),
      ...     optax.sgd(learning_rate, momentum=0.9))

    Reference: Temperon (PyPI, 2026); Zhou et al. 2024, "Sharpness-Aware Minimization
      Efficiently Selects Flatter Minima Late in Training".
    """
    if known(start) and start < 0:
        raise ValueError(f"start must not be negative, got start = {start}.")
    return _policy(tx, lambda step, _: step >= start)


def _policy(
    tx: SharpnessAware,
    climbs: Callable[[jax.Array, Any], Any],
    key: jax.Array | None = None,
) -> SharpnessAware:
    """SAM on the steps on which `climbs(step, key)`."""
    if not isinstance(tx, SharpnessAware):
        raise TypeError(
            f"A policy says on which steps to climb, but {type(tx).__name__} is not a "
            f"transformation of optax_sam that could leave a climb out. Put it around "
            f"SAM itself, and the rest behind it: chain(every_k(sam(rho), 5), "
            f"mean_over(axis), optimizer)."
        )

    def init(params: Tree) -> PolicyState:
        own = None if key is None else own_key(key)
        return PolicyState(jnp.zeros([], jnp.int32), own, tx.init(params))

    def update(
        updates: Tree,
        state: PolicyState,
        params: Tree | None = None,
        *,
        climb: bool = True,
        **extra_args: Any,
    ) -> tuple[Tree, PolicyState]:
        def step(climb: bool, inner: Any) -> tuple[Tree, Any]:
            out: tuple[Tree, Any] = tx.update(
                updates, inner, params, climb=climb, **extra_args
            )
            return out

        if not climb:
            gradient, inner = step(False, state.inner)
            return gradient, state._replace(inner=inner)
        gradient, inner = jax.lax.cond(
            climbs(state.step, state.key),
            lambda inner: step(True, inner),
            lambda inner: step(False, inner),
            state.inner,
        )
        after = optax.safe_increment(state.step)
        return gradient, PolicyState(after, state.key, inner)

    return SharpnessAware(init, update)
