"""Schedules that belong together: of the learning rate, of rho, and the last part."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from optax_sam._old_spellings import respelt

Schedule = Callable[[Any], Any]


def tail_schedule(
    peak: float, num_steps: int, tail: float = 0.3, warmup_steps: int = 0
) -> tuple[Schedule, int]:
    """A learning rate whose last part is a full anneal, and the step it starts at.

    Linear from 0 over `warmup_steps`, constant, and over the last `tail` of the
    training a cosine from the peak to 0. If SAM is switched on when the learning rate
    has already fallen, there is too little of it left to move anywhere.

    Args:
      peak: the constant learning rate.
      num_steps: of the whole training.
      tail: the share of the steps that belong to the tail, in (0, 1].
      warmup_steps: before the constant part.

    Returns:
      `(learning_rate, start)`: an Optax schedule, and the first step of the tail, for
      `when=from_step(start)`.

    Raises:
      ValueError: a `tail` outside (0, 1], or a warm-up longer than what is before it.

    Example:
      >>> import optax_sam
      >>> learning_rate, start = optax_sam.tail_schedule(0.1, num_steps=100, tail=0.3)
      >>> start, float(learning_rate(69)), round(float(learning_rate(85)), 3)
      (70, 0.10000000149011612, 0.05)

    Reference: Temperon (PyPI, 2026).
    """
    if not 0 < tail <= 1:
        raise ValueError(f"tail is a share of the steps in (0, 1], got tail = {tail}.")
    start = num_steps - round(tail * num_steps)
    if start == num_steps:
        raise ValueError(
            f"tail = {tail} of {num_steps} steps is not a single step. Give a larger "
            f"share, at least tail={1 / num_steps:.2g}."
        )
    if not 0 <= warmup_steps <= start:
        raise ValueError(
            f"warmup_steps = {warmup_steps} does not fit before the tail, which starts "
            f"at step {start} of {num_steps}."
        )
    anneal = optax.cosine_decay_schedule(peak, num_steps - start)
    warm = optax.warmup_constant_schedule(0.0, peak, warmup_steps)
    before = warm if warmup_steps else optax.constant_schedule(peak)
    return optax.join_schedules([before, anneal], [start]), start


@respelt
def proportional_rho(
    learning_rate: Schedule,
    *,
    lr_max: float,
    lr_min: float = 0.0,
    rho_max: float,
    rho_min: float = 0.0,
) -> Schedule:
    r"""A schedule for rho that follows that of the learning rate (GSAM).

    .. math:: \rho_t = \rho_{min} + (\rho_{max} - \rho_{min})
              \frac{\eta_t - \eta_{min}}{\eta_{max} - \eta_{min}}

    With a warm-up in `learning_rate`, rho warms up as well, which Adam-type optimizers
    need most.

    Args:
      learning_rate: the optimizer's schedule of the step.
      lr_max: the largest learning rate, which gets `rho_max`.
      lr_min: the smallest one, which gets `rho_min`. If both are equal: `rho_max`.
      rho_max: radius of the climb at the largest learning rate.
      rho_min: radius at the smallest.

    Returns:
      A schedule of the step, for `rho=`. It stays between `rho_min` and `rho_max`, also
      where the learning rate leaves its range.

    Raises:
      ValueError: `lr_max` below `lr_min`.

    Example:
      >>> import optax, optax_sam
      >>> learning_rate = optax.linear_schedule(0.1, 0.0, 100)
      >>> rho = optax_sam.proportional_rho(
      ...     learning_rate, lr_max=0.1, rho_max=0.6, rho_min=0.2)
      >>> tx = optax.chain(optax_sam.gsam(rho), optax.adamw(learning_rate))
      >>> [round(float(rho(t)), 2) for t in (0, 50, 100)]
      [0.6, 0.4, 0.2]

    Reference: Zhuang et al. 2022, "Surrogate Gap Minimization Improves
      Sharpness-Aware Training", section 4, arXiv:2203.08065.
    """
    if lr_max < lr_min:
        raise ValueError(
            f"lr_max = {lr_max} is below lr_min = {lr_min}: give the largest and the "
            f"smallest value of the learning rate."
        )
    if lr_max == lr_min:
        return lambda step: rho_max

    def rho(step: Any) -> Any:
        share = (learning_rate(step) - lr_min) / (lr_max - lr_min)
        return rho_min + (rho_max - rho_min) * jnp.clip(share, 0, 1)

    return rho
