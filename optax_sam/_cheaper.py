"""Ready products that cost less than two gradients a step."""

from typing import Any, Unpack

import jax

from optax_sam._aliases import one_ascent
from optax_sam._ascent import coarse_uniform, random_ascent
from optax_sam._ascent.some_leaves import some_leaves
from optax_sam._checks import check_k
from optax_sam._climb import Climber
from optax_sam._local import SubBatches
from optax_sam._look_sam import look_and_reuse
from optax_sam._one_full_pass import climb_against_momentum, climb_without_gradient
from optax_sam._options import SubBatchOptions, product
from optax_sam._part_of_batch import (
    check_fraction,
    climb_by_a_part,
    descend_where_loss_rose,
)
from optax_sam._types import Ascent, Rho, Sampler, Scalar, SharpnessAware


@product
def look_sam(
    rho: Rho | None = None,
    k: int = 5,
    alpha: Scalar = 0.3,
    *,
    ascent: Ascent | None = None,
    per_leaf: bool = False,
    num_steps: int | None = None,
    climb_dtype: Any = None,
    **options: Unpack[SubBatchOptions],
) -> SharpnessAware:
    r"""LookSAM: climb on every k-th step only, and reuse what the climb found.

    .. math::
       t \bmod k = 0:&\quad g_s = \nabla L(w + \epsilon), \quad
         g_v = g_s - \frac{\langle g_s, g \rangle}{\|g\|^2} g, \quad
         \text{out } g_s \\
       \text{else}:&\quad \text{out } g + \alpha \frac{\|g\|}{\|g_v\|} g_v

    g_v, the part of the climbed gradient that the clean one lacks, changes slowly; on
    the steps between there is one gradient, and the second pass is really skipped
    (not under `jax.vmap` over seeds with a state each, where a `lax.cond` computes both
    branches).

    Args:
      rho: radius of the climb; `None` is 0.05. A schedule counts the climbs.
      k: climb at t = 0, k, 2k, ...; 1 is SAM.
      alpha: the size of the reused part against the clean gradient, whatever rho is.
        The paper's 0.7 is unsafe: with it a network with BatchNorm did not train at
        all (others report the same). Of 0.1, 0.3 and 0.7 the middle one was the best
        on validation images there, and within 0.3 points of the best on the other
        task of `benchmarks/which_method.py`.
      ascent: climb by this ascent instead of SAM's; then leave `rho` out.
      per_leaf: project and rescale leaf by leaf, as most published code does; the
        paper's formula takes the whole tree at once. With it 1e-8 is added to the
        norm of g_v, as there.
      num_steps, climb_dtype, has_aux, microbatch_size, axis_name, mesh, at_once: as
        for `sharpness_aware`. Over sub-batches g_v is made from the averages of both
        gradients: the same on every device.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`. Its state holds
      g_v, a copy of the parameters. Where g_v is zero (up to rounding) the clean
      gradient comes out.

    Raises:
      ValueError: `k` below 1; both `rho` and `ascent`; `update` as `sharpness_aware`.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> tx = optax_sam.look_sam(rho=0.5, k=2, alpha=0.5)
      >>> w = jnp.array([3.0, 1.0])
      >>> state = tx.init(w)
      >>> climbed, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss)
      >>> reused, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss)
      >>> [[round(float(x), 4) for x in out] for out in (climbed, reused)]
      [[3.3, 5.6], [1.0, 5.5]]

    Reference: Liu et al. 2022, "Towards Efficient and Scalable Sharpness-Aware
      Minimization", algorithm 1.
    """
    check_k(k)
    climber = Climber(one_ascent(rho, ascent), None, num_steps, climb_dtype)
    return look_and_reuse(climber, k, alpha, per_leaf, SubBatches(**options))


@product
def random_perturbation(
    rho: Rho,
    key: jax.Array,
    *,
    sampler: Sampler | None = None,
    climb_dtype: Any = None,
    **options: Unpack[SubBatchOptions],
) -> SharpnessAware:
    r"""The gradient at a random point at distance rho: one gradient a step.

    .. math:: g = \nabla L\!\left(w + \rho \frac{z}{\|z\|}\right), \quad
              z_i \text{ independent, symmetric about } 0

    The baseline that SAM must beat at half its cost. (R-SAM, "Random
    Sharpness-Aware Minimization" of 2022, is another method, with two gradients.)

    Args:
      rho: radius, in the 2-norm of the whole tree; its best value is far above SAM's.
        A number, a traced scalar or a schedule of the step.
      key: a JAX random key; step t draws from `fold_in(key, t)`, every sub-batch its
        own.
      sampler: draws z, leaf by leaf, from (key, shape, dtype). `None` is
        `coarse_uniform`, one random byte for each weight. Published is
        `jax.random.normal`: the climb has the same norm, mean and covariance, but
        takes longer to draw. (Under `optax.inject_hyperparams` name it in
        `static_args`.)
      climb_dtype, has_aux, microbatch_size, axis_name, mesh, at_once: as for
        `sharpness_aware`.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`. The gradient
      that comes in is not used: `update(None, state, params, value_fn=...)`. The loss
      of the one pass, at the climbed point, is `optax.tree.get(state,
      "climbed_loss")`: logging the clean loss would be another pass.

    Raises:
      ValueError: a negative rho; `update` raises as `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> tx = optax_sam.random_perturbation(rho=0.5, key=jax.random.key(0))
      >>> w = jnp.array([3.0, 1.0])
      >>> gradient, state = tx.update(
      ...     None, tx.init(w), w, value_fn=lambda w: 0.5 * jnp.sum(w**2))
      >>> round(float(jnp.linalg.norm(gradient - w)), 6)
      0.5

    Reference: Foret et al. 2021, appendix C.5 (adversarial against random).
    """
    ascent = random_ascent(rho, key, sampler or coarse_uniform)
    return climb_without_gradient(ascent, climb_dtype, SubBatches(**options))


@product
def momentum_sam(
    rho: Rho | None = None,
    *,
    decay: Scalar = 0.9,
    ascent: Ascent | None = None,
    climb_dtype: Any = None,
    **options: Unpack[SubBatchOptions],
) -> SharpnessAware:
    r"""MSAM: climb against the momentum of the gradients, with one gradient a step.

    .. math:: \tilde g_t = \nabla L\!\left(w_t - \rho \frac{v_t}{\|v_t\|}\right), \quad
              v_{t+1} = \mu v_t + \tilde g_t

    Minus: the point lies where the momentum is about to go. It exists inside the step
    only; the parameters are never moved there, so there is nothing to move back
    before evaluation. At the start v = 0, and the first gradient is the clean one.

    Args:
      rho: radius of the climb; `None` is 0.05 (the paper's best were 2 to 3 for
        networks trained on CIFAR, far above SAM's, and 0 during warm-up).
      decay: mu; with SGD as the optimizer, its momentum.
      ascent: climb along -v by this ascent instead of SAM's; then leave `rho` out.
      climb_dtype, has_aux, microbatch_size, axis_name, mesh, at_once: as for
        `sharpness_aware`. The climb is the same for all sub-batches and devices.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`. The gradient
      that comes in is not used: `update(None, state, params, value_fn=...)`. State:
      v, a copy of the parameters in at least float32; the loss of the one pass, at
      the climbed point, is `optax.tree.get(state, "climbed_loss")`.

    Raises:
      ValueError: both `rho` and `ascent`; `update` raises as `sharpness_aware` says.

    Example:
      >>> import jax.numpy as jnp, optax, optax_sam
      >>> tx = optax.chain(
      ...     optax_sam.momentum_sam(rho=0.3), optax.sgd(0.1, momentum=0.9))
      >>> w = jnp.array([1.0])
      >>> state = tx.init(w)
      >>> for _ in range(3):
      ...     updates, state = tx.update(
      ...         None, state, w, value_fn=lambda w: 0.5 * jnp.sum(w**2))
      ...     w = optax.apply_updates(w, updates)
      >>> round(float(w[0]), 6)
      0.57

    Reference: Becker et al. 2024, "Momentum-SAM: Sharpness Aware Minimization without
      Computational Overhead", algorithm 1.
    """
    along = one_ascent(rho, ascent)
    return climb_against_momentum(along, decay, climb_dtype, SubBatches(**options))


@product
def partial_climb(
    rho: Rho | None = None,
    fraction: float = 0.25,
    *,
    ascent: Ascent | None = None,
    num_steps: int | None = None,
    climb_dtype: Any = None,
    **options: Unpack[SubBatchOptions],
) -> SharpnessAware:
    r"""Climb by the gradient of a part of the batch, descend by all of it.

    .. math:: \epsilon = \rho \frac{\nabla L_{B'}(w)}{\|\nabla L_{B'}(w)\|}, \quad
              g = \nabla L_B(w + \epsilon), \quad B' \subset B

    Costs 1 + `fraction` gradients. It also lowers m: B' climbs for all.

    Args:
      rho: radius of the climb; `None` is 0.05.
      fraction: the first `ceil(fraction * m)` examples of every sub-batch make its
        climb; a Python number in (0, 1]; 1 is SAM. Shuffle the batches.
      ascent: climb by this ascent instead of SAM's; then leave `rho` out.
      num_steps, climb_dtype, has_aux, microbatch_size, axis_name, mesh, at_once: as
        for `sharpness_aware`.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`. Gradients are
      taken inside: `update(None, state, params, value_fn=loss_fn, batch=batch)`. The
      loss of the whole batch, at the climbed point, is
      `optax.tree.get(state, "climbed_loss")`.

    Raises:
      ValueError: a `fraction` outside (0, 1]; both `rho` and `ascent`; `update`
        without `batch=`.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> def loss(w, x):
      ...     return jnp.mean(0.5 * (x @ w) ** 2)
      >>> tx = optax_sam.partial_climb(rho=0.5, fraction=0.5)
      >>> w, batch = jnp.array([3.0, 1.0]), jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> tx.update(None, tx.init(w), w, value_fn=loss, batch=batch)[0]
      Array([1.75, 2.  ], dtype=float32)

    Reference: Bahri et al. 2022, "Sharpness-Aware Minimization Improves Language Model
      Generalization", section 3; Brock et al. 2021.
    """
    check_fraction("fraction", fraction)
    climber = Climber(one_ascent(rho, ascent), None, num_steps, climb_dtype)
    return climb_by_a_part(climber, fraction, SubBatches(**options))


@product
def esam(
    rho: Rho | None = None,
    beta: float = 0.5,
    gamma: float = 0.5,
    *,
    key: jax.Array,
    ascent: Ascent | None = None,
    climb_dtype: Any = None,
    **options: Unpack[SubBatchOptions],
) -> SharpnessAware:
    r"""ESAM: stochastic weight perturbation, and sharpness-sensitive data selection.

    .. math:: \epsilon_i = \frac{a_i}{\beta} \rho \frac{g_i}{\|g\|}, \
              a_i \sim \mathrm{Bernoulli}(\beta); \quad
              g = \nabla L_{B^+}(w + \epsilon), \quad
              B^+ = \operatorname{top}_{\lceil \gamma m \rceil}
                    \left[\ell(w + \epsilon) - \ell(w)\right]

    Every leaf i of the parameters climbs with probability beta; the last gradient is
    that of the examples whose loss rose most.

    Under XLA this saves less than published: the climb's gradient is taken of all
    leaves (its shapes must be known), and the selection is a forward pass of its own,
    so a step costs about (3 + 1 + 3 gamma) / 3 gradients, 1.83 at gamma = 0.5. For
    cheap steps see `look_sam`, `partial_climb` and `momentum_sam`. On a network with
    BatchNorm, whose statistics in the last pass are those of the selected examples, it
    did worse than no SAM (-3.7 points in `benchmarks/which_method.py`; without
    BatchNorm it did as well as SAM).

    Args:
      rho: radius of the climb; `None` is 0.05.
      beta: the probability of each leaf to climb, in (0, 1]; a Python number.
      gamma: the share of each sub-batch in the last pass, in (0, 1]; exactly
        `ceil(gamma * m)` examples. (The authors' code keeps one fewer, by a strict
        inequality: an oversight that is not copied.) A Python number.
      key: a JAX random key; step t draws from `fold_in(key, t)`, every sub-batch its
        own.
      ascent: climb by this ascent instead of SAM's; then leave `rho` out.
      climb_dtype, has_aux, microbatch_size, axis_name, mesh, at_once: as for
        `sharpness_aware`.

    Returns:
      A transformation for the head of a chain. Gradients are taken inside:
      `update(None, state, params, value_fn=losses_fn, batch=batch)`, where
      `losses_fn(params, batch)` returns **one loss per example** (or a pair of them
      and aux). The mean loss of the last pass is
      `optax.tree.get(state, "climbed_loss")`. beta = gamma = 1 is SAM.

    Raises:
      ValueError: a `beta` or `gamma` outside (0, 1]; both `rho` and `ascent`; `update`
        without `batch=`.
      TypeError: a loss that is not one number per example.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> def losses(w, x):
      ...     return 0.5 * (x @ w) ** 2
      >>> tx = optax_sam.esam(rho=0.5, beta=1.0, gamma=0.5, key=jax.random.key(0))
      >>> w, batch = jnp.array([3.0, 1.0]), jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> gradient, _ = tx.update(None, tx.init(w), w, value_fn=losses, batch=batch)
      >>> [round(float(x), 4) for x in gradient]
      [0.0, 5.6]

    Reference: Du et al. 2022, "Efficient Sharpness-aware Minimization for Improved
      Training of Neural Networks", algorithm 1.
    """
    check_fraction("beta", beta)
    check_fraction("gamma", gamma)
    ascent = some_leaves(one_ascent(rho, ascent), beta, key)
    climber = Climber(ascent, climb_dtype=climb_dtype)
    return descend_where_loss_rose(climber, gamma, SubBatches(**options))
