"""Ready products: the only place where ideas meet."""

from typing import Unpack

from optax_sam._ascent import adaptive_ascent, friendly_ascent, steepest_ascent
from optax_sam._combine import gradient_norm_penalty, surrogate_gap
from optax_sam._options import ClimbOptions, product
from optax_sam._sharpness_aware import sharpness_aware
from optax_sam._types import Ascent, Mask, Rho, Scalar, SharpnessAware


@product
def sam(
    rho: Rho = 0.05,
    *,
    ord: float | None = None,
    **options: Unpack[ClimbOptions],
) -> SharpnessAware:
    r"""SAM: climb by rho along the gradient, and take the gradient there.

    .. math:: g \mapsto \nabla L\!\left(w + \rho \frac{g}{\|g\|_2}\right)

    Args:
      rho: radius of the climb, in the norm `ord` of the whole tree. A number, a
        traced scalar or a schedule of the step. Start from 0.05.
      ord: the order p of the norm in [1, inf], a Python number; `None` is 2.
      has_aux, num_steps, climb_dtype, microbatch_size, axis_name, mesh, at_once,
        diagnostics: as for `sharpness_aware`.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`.

    Raises:
      ValueError: a negative rho, or an `ord` below 1; `update` raises as
        `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> tx = optax.chain(optax_sam.sam(rho=0.5), optax.sgd(0.1))
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> params = jnp.array([3.0, 1.0])
      >>> updates, state = tx.update(
      ...     jax.grad(loss)(params), tx.init(params), params, value_fn=loss)
      >>> updates
      Array([-0.33, -0.56], dtype=float32)

    Reference: Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently
      Improving Generalization", algorithm 1.
    """
    return sharpness_aware(
        steepest_ascent(rho, ord=ord),
        **options,
    )


@product
def asam(
    rho: Rho = 0.5,
    *,
    eta: Scalar = 0.01,
    mask: Mask | None = None,
    ord: float | None = None,
    **options: Unpack[ClimbOptions],
) -> SharpnessAware:
    r"""ASAM: SAM whose climb is proportional to the size of each parameter.

    .. math:: g \mapsto \nabla L\!\left(w + \rho \frac{T^2 g}{\|T g\|_2}\right),
              \quad T = |w| + \eta

    Args:
      rho: radius of the climb, in the norm `ord` of climb / T; 10 to 20 times SAM's.
        Start from 0.5.
      eta: added to abs(w).
      mask: where T = abs(w) + eta, elsewhere T = 1: a tree of booleans or a function
        of the parameters; `None` is every leaf but the biases, `True` every leaf.
      ord: the order p of the norm in [1, inf], a Python number; `None` is 2.
      has_aux, num_steps, climb_dtype, microbatch_size, axis_name, mesh, at_once,
        diagnostics: as for `sharpness_aware`.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`.

    Raises:
      ValueError: a negative rho, or an `ord` below 1; `update` raises as
        `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> tx = optax_sam.asam(rho=0.5, eta=0.0)
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> params = jnp.array([3.0, 1.0])
      >>> gradient, _ = tx.update(
      ...     jax.grad(loss)(params), tx.init(params), params, value_fn=loss)
      >>> [round(float(x), 4) for x in gradient]
      [4.3707, 4.8123]

    Reference: Kwon et al. 2021, "ASAM: Adaptive Sharpness-Aware Minimization for
      Scale-Invariant Learning of Deep Neural Networks", algorithm 1.
    """
    return sharpness_aware(
        adaptive_ascent(rho, eta=eta, ord=ord, mask=mask),
        **options,
    )


@product
def m_sam(
    rho: Rho | None = None,
    *,
    ascent: Ascent | None = None,
    **options: Unpack[ClimbOptions],
) -> SharpnessAware:
    r"""m-SAM: every sub-batch of m examples climbs by itself.

    .. math:: g = \frac1n \sum_{j=1}^{n} \nabla L_{B_j}(w + \epsilon_j), \quad
              \epsilon_j = \rho \frac{\nabla L_{B_j}(w)}{\|\nabla L_{B_j}(w)\|_2}

    Over devices it needs one all-reduce a step where SAM needs two.

    Args:
      rho: radius of each climb; `None` is 0.05. The best rho falls with m.
      ascent: climb by this ascent instead of SAM's; then leave `rho` out.
      microbatch_size: the paper's m, the number of examples in each sub-batch. The
        gradients are computed inside: `update(None, state, params, value_fn=loss_fn,
        batch=batch)`. For the loss value use door 2 with `m_sharpness`: here it would
        cost another pass.
      axis_name: the mapped axis whose devices hold one sub-batch each (or several of
        `microbatch_size`).
      has_aux, num_steps, climb_dtype, mesh, at_once, diagnostics: as for
        `sharpness_aware`.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`.

    Raises:
      ValueError: neither `microbatch_size` nor `axis_name`; both `rho` and `ascent`;
        `update` raises as `sharpness_aware` and `m_sharpness` say.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> def loss(w, x):
      ...     return jnp.mean(0.5 * (x @ w) ** 2)
      >>> tx = optax_sam.m_sam(rho=0.5, microbatch_size=1)
      >>> params, batch = jnp.array([3.0, 1.0]), jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> tx.update(None, tx.init(params), params, value_fn=loss, batch=batch)[0]
      Array([1.75, 3.  ], dtype=float32)

    Reference: Foret et al. 2021, section 4.1 (m-sharpness).
    """
    named = (options.get("microbatch_size"), options.get("axis_name"))
    if named == (None, None):
        raise ValueError(
            "m_sam needs to know the sub-batches: give microbatch_size= (the examples "
            "in each), axis_name= (one for each device), or both. One climb for the "
            "whole batch is sam(rho)."
        )
    return sharpness_aware(
        one_ascent(rho, ascent),
        **options,
    )


@product
def gsam(
    rho: Rho | None = None,
    alpha: Scalar = 0.4,
    *,
    ascent: Ascent | None = None,
    **options: Unpack[ClimbOptions],
) -> SharpnessAware:
    r"""GSAM: SAM that also steps down the surrogate gap.

    .. math:: g \mapsto g_s - \alpha g_\perp, \quad
              g_\perp = g - \frac{\langle g, g_s \rangle}{\|g_s\|^2} g_s

    Args:
      rho: radius of the climb; `None` is 0.05. The paper ties it to the learning rate:
        `rho=proportional_rho(learning_rate, ...)`.
      alpha: weight of g_perp; 0 is SAM. The paper: 0.4 for ViTs, 0.01 for ResNets.
      ascent: climb by this ascent instead of SAM's; then leave `rho` out.
      has_aux, num_steps, climb_dtype, microbatch_size, axis_name, mesh, at_once,
        diagnostics: as for `sharpness_aware`.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`.

    Raises:
      ValueError: both `rho` and `ascent`; `update` raises as `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> w = jnp.array([3.0, 1.0])
      >>> tx = optax_sam.gsam(rho=0.5, alpha=0.4)
      >>> tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)[0]
      Array([3.109136 , 5.7124734], dtype=float32)

    Reference: Zhuang et al. 2022, "Surrogate Gap Minimization Improves
      Sharpness-Aware Training", algorithm 1.
    """
    return sharpness_aware(
        one_ascent(rho, ascent),
        combine=surrogate_gap(alpha),
        **options,
    )


@product
def wsam(
    rho: Rho | None = None,
    gamma: Scalar = 0.9,
    *,
    ascent: Ascent | None = None,
    **options: Unpack[ClimbOptions],
) -> SharpnessAware:
    r"""WSAM, coupled: the sharpness weighted by gamma / (1 - gamma).

    .. math:: g \mapsto (1 - \alpha) g + \alpha g_s, \quad
              \alpha = \frac{\gamma}{1 - \gamma}

    gamma = 1/2 is SAM and 0 the base optimizer. (The decoupled form of the paper
    needs the learning rate behind the optimizer, and is not a gradient.)

    Args:
      rho: radius of the climb; `None` is 0.05.
      gamma: in [0, 1); may be traced.
      ascent: climb by this ascent instead of SAM's; then leave `rho` out.
      has_aux, num_steps, climb_dtype, microbatch_size, axis_name, mesh, at_once,
        diagnostics: as for `sharpness_aware`.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`.

    Raises:
      ValueError: both `rho` and `ascent`; `update` raises as `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> w = jnp.array([3.0, 1.0])
      >>> tx = optax_sam.wsam(rho=0.5, gamma=0.75)
      >>> gradient, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
      >>> [round(float(x), 4) for x in gradient]
      [3.9, 8.8]

    Reference: Yue et al. 2023, "Sharpness-Aware Minimization Revisited: Weighted
      Sharpness as a Regularization Term", algorithm 1 (coupled).
    """
    return sharpness_aware(
        one_ascent(rho, ascent),
        combine=gradient_norm_penalty(gamma / (1 - gamma)),
        **options,
    )


@product
def friendly_sam(
    rho: Rho | None = None,
    sigma: Scalar = 1.0,
    lmbda: Scalar = 0.9,
    *,
    ascent: Ascent | None = None,
    **options: Unpack[ClimbOptions],
) -> SharpnessAware:
    r"""F-SAM: climb along the gradient less its moving average.

    .. math:: g \mapsto \nabla L\!\left(w + \rho \frac{d}{\|d\|}\right), \quad
              d = g - \sigma m

    Args:
      rho, sigma, lmbda, ascent: as for `friendly_ascent`.
      has_aux, num_steps, climb_dtype, microbatch_size, axis_name, mesh, at_once,
        diagnostics: as for `sharpness_aware`.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`. Its
      state holds the average m, a copy of the parameters.

    Raises:
      ValueError: both `rho` and `ascent`; `update` raises as `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> w = jnp.array([3.0, 1.0])
      >>> tx = optax_sam.friendly_sam(rho=0.5)
      >>> tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)[0]
      Array([3.3, 5.6], dtype=float32)

    Reference: Li et al. 2024, "Friendly Sharpness-Aware Minimization", algorithm 1.
    """
    return sharpness_aware(
        friendly_ascent(one_ascent(rho, ascent), sigma=sigma, lmbda=lmbda),
        **options,
    )


def one_ascent(rho: Rho | None, ascent: Ascent | None) -> Ascent:
    """The ascent that was given, or SAM's with this rho."""
    if ascent is not None and rho is not None:
        raise ValueError(
            "Both rho and ascent were given, but an ascent has its own radius. Leave "
            "rho out: ascent=adaptive_ascent(rho=0.5)."
        )
    return steepest_ascent(0.05 if rho is None else rho) if ascent is None else ascent
