"""On which steps: functions of the step, and how an answer decides."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam._checks import check_whole, known
from optax_sam._old_spellings import respelt
from optax_sam._types import Scalar, When

Condition = Callable[[Any], Any]


@respelt
def every_k(k: int) -> Condition:
    r"""Climb on every k-th step only (SAM-k; others call this LookSAM).

    .. math:: t \bmod k = 0

    The other steps give the clean gradient, averaged over its sub-batches, and really
    skip the further passes (but see below for `vmap`). The same radius on every k-th
    step is k times less SAM. Composer found that rho should grow with k (0.5 at
    k = 10), so start from `sam(rho=k * 0.05, when=every_k(k))`.

    Under `jax.vmap` over seeds, each with a state of its own, a condition computes both
    branches and skips nothing. Loop over the seeds instead (`jax.lax.map`), or give
    each its own device.

    Args:
      k: a number; 1 is every step.

    Returns:
      A function of the step for `when=`. Conditions combine in a lambda:
      `when=lambda t: every_k(5)(t) & from_step(100)(t)`.

    Raises:
      ValueError: `k` below 1.
      TypeError: `k` is no whole number.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> tx = optax_sam.sam(rho=0.5, when=optax_sam.every_k(2))
      >>> w, loss = jnp.array([1.0]), lambda w: jnp.sum(w**2)
      >>> state = tx.init(w)
      >>> for _ in range(2):
      ...     gradient, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss)
      ...     print(gradient)
      [3.]
      [2.]

    Reference: MosaicML Composer, `SAM(interval=k)`; Liu et al. 2022, "Towards
      Efficient and Scalable Sharpness-Aware Minimization", the baseline "SAM-k",
      arXiv:2203.02714.
    """
    check_k(k)
    return lambda step: step % k == 0


def from_step(start: Scalar) -> Condition:
    r"""Climb from step `start` on: the last part of the training.

    .. math:: t \ge t_0

    What is skipped, and how, is as for `every_k`. The learning rate must fall all
    the way from its peak during the tail: `tail_schedule` builds both together.

    Args:
      start: the first step with a climb, counted from 0; may be traced.

    Returns:
      A function of the step for `when=`.

    Raises:
      ValueError: a negative `start`.

    Example:
      >>> import optax, optax_sam
      >>> learning_rate, start = optax_sam.tail_schedule(0.1, num_steps=100, tail=0.3)
      >>> tx = optax.chain(
      ...     optax_sam.sam(rho=0.1, when=optax_sam.from_step(start)),
      ...     optax.sgd(learning_rate, momentum=0.9))

    Reference: Temperon (PyPI, 2026); Zhou et al. 2024, "Sharpness-Aware Minimization
      Efficiently Selects Flatter Minima Late in Training", arXiv:2410.10373.
    """
    if known(start) and start < 0:
        raise ValueError(f"start must not be negative, got start = {start}.")
    return lambda step: step >= start


@respelt
def with_probability(p: Any, *, key: jax.Array) -> Condition:
    r"""Climb on randomly chosen steps (RST).

    .. math:: u_t < p, \quad u_t \sim U(0, 1)

    What is skipped, and how, is as for `every_k`. All devices throw the same dice.

    Args:
      p: the probability of a climb on each step: a number, traced or not, or a
        schedule.
      key: a JAX random key; step t throws by `fold_in(key, t)`.

    Returns:
      A function of the step for `when=`.

    Raises:
      ValueError: a `p` outside [0, 1], given as a number.

    Example:
      >>> import jax, optax_sam
      >>> when = optax_sam.with_probability(0.5, key=jax.random.key(0))
      >>> tx = optax_sam.sam(0.05, when=when)

    Reference: Zhao et al. 2022, "Randomized Sharpness-Aware Training for Boosting
      Computational Efficiency in Deep Learning", arXiv:2203.09962.
    """
    if known(p) and not 0 <= p <= 1:
        raise ValueError(f"p is a probability and must lie in [0, 1], got p = {p}.")

    def throw(step: Any) -> Any:
        now = p(step) if callable(p) else p
        return jax.random.uniform(jax.random.fold_in(key, step)) < now

    return throw


def check_k(k: Any) -> None:
    """Refuse an interval of steps that is none; it may be traced."""
    if not isinstance(k, jax.Array):
        check_whole("k", k)


def check_when(when: When) -> None:
    """Refuse what says nothing about steps."""
    if isinstance(when, optax.GradientTransformation) or not (
        when is None or callable(when) or isinstance(when, (bool, np.bool_, jax.Array))
    ):
        raise TypeError(
            f"when says on which steps to climb, and {when!r} does not: give a bool, "
            f"or a function of the step such as optax_sam.every_k(5)."
        )


def known_in_python(when: When) -> bool:
    """Whether no condition comes into the program."""
    return when is None or isinstance(when, bool)


def decide(when: When, step: Any) -> Any:
    """Whether to climb now: a bool of Python where that is known, else a traced one."""
    answer = when(step) if callable(when) else True if when is None else when
    if isinstance(answer, (bool, np.bool_)):
        return bool(answer)
    if jnp.shape(answer) != () or jnp.result_type(answer) != jnp.bool_:
        raise TypeError(
            f"when must say yes or no, one bool, but it gave {jnp.result_type(answer)} "
            f"of shape {jnp.shape(answer)}. Write a comparison: "
            f"when=lambda step: step % 5 == 0."
        )
    return answer


def both(first: When, second: Condition) -> Condition:
    """Where the first condition holds, and the second as well."""

    def condition(step: Any) -> Any:
        one, other = decide(first, step), decide(second, step)
        if isinstance(one, bool):
            return other if one else False
        return one & other

    return condition


def choose(now: Any, this: Callable[[], Any], other: Callable[[], Any]) -> Any:
    """`lax.cond`; none is in the program where `now` is known in Python."""
    if isinstance(now, bool):
        return this() if now else other()
    return jax.lax.cond(now, this, other)
