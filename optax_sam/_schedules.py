"""Schedules that belong together: of the learning rate, of rho, and the last part."""

from collections.abc import Callable
from typing import Any

import optax

Schedule = Callable[[Any], Any]


def tail_schedule(
    peak: float, num_steps: int, tail: float = 0.3, warmup_steps: int = 0
) -> tuple[Schedule, int]:
    """A learning rate whose last part is a full anneal, and the step it starts at.

    Linear from 0 over `warmup_steps`, constant, and over the last `tail` of the
    training a cosine from the peak to 0. SAM switched on in the middle of an anneal
    that is half spent has too little learning rate left to move anywhere.

    Args:
      peak: the constant learning rate.
      num_steps: of the whole training.
      tail: the share of the steps that belong to the tail, in (0, 1].
      warmup_steps: before the constant part.

    Returns:
      `(learning_rate, start)`: an Optax schedule, and the first step of the tail, for
      `only_last(tx, start)`.

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
    if not 0 <= warmup_steps <= start:
        raise ValueError(
            f"warmup_steps = {warmup_steps} does not fit before the tail, which starts "
            f"at step {start} of {num_steps}."
        )
    anneal = optax.cosine_decay_schedule(peak, num_steps - start)
    warm = optax.warmup_constant_schedule(0.0, peak, warmup_steps)
    before = warm if warmup_steps else optax.constant_schedule(peak)
    return optax.join_schedules([before, anneal], [start]), start


def proportional_rho(
    learning_rate: Schedule,
    *,
    highest: float,
    lowest: float = 0.0,
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
      highest: the largest learning rate, which gets `rho_max`.
      lowest: the smallest one, which gets `rho_min`. If both are equal: `rho_max`.
      rho_max: radius of the climb at the largest learning rate.
      rho_min: radius at the smallest.

    Returns:
      A schedule of the step, for `rho=`.

    Raises:
      ValueError: `highest` below `lowest`.

    Example:
      >>> import optax, optax_sam
      >>> learning_rate = optax.linear_schedule(0.1, 0.0, 100)
      >>> rho = optax_sam.proportional_rho(
      ...     learning_rate, highest=0.1, rho_max=0.6, rho_min=0.2)
      >>> tx = optax.chain(optax_sam.gsam(rho), optax.adamw(learning_rate))
      >>> [round(float(rho(t)), 2) for t in (0, 50, 100)]
      [0.6, 0.4, 0.2]

    Reference: Zhuang et al. 2022, "Surrogate Gap Minimization Improves
      Sharpness-Aware Training", section 4.
    """
    if highest < lowest:
        raise ValueError(
            f"highest = {highest} is below lowest = {lowest}: give the largest and the "
            f"smallest value of the learning rate."
        )
    if highest == lowest:
        return lambda step: rho_max
    slope = (rho_max - rho_min) / (highest - lowest)
    return lambda step: rho_min + slope * (learning_rate(step) - lowest)
