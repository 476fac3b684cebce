"""The generalization bound of the SAM paper, as a number."""

from typing import Any

import jax
import jax.numpy as jnp

from optax_sam._checks import known


def pac_bayes_term(
    *,
    squared_norm: Any,
    num_params: int,
    num_examples: int,
    rho: Any,
    delta: float = 0.05,
) -> jax.Array:
    r"""What the SAM paper's bound adds to the worst loss within rho.

    .. math:: L_D(w) \le \max_{\|\epsilon\|_2 \le \rho} L_S(w + \epsilon) + \sqrt{\frac{
              k \log\left(1 + \frac{\|w\|_2^2}{\rho^2}
              \left(1 + \sqrt{\frac{\log n}{k}}\right)^2\right)
              + 4 \log \frac n\delta + 8 \log(6n + 3k)}{n - 1}}

    with probability 1 - delta over the n training examples. It assumes a loss between
    0 and 1, such as the error rate; parameters chosen without a look at rho; and
    that noise does not help: :math:`L_D(w) \le E_{\epsilon \sim N(0, \rho)}
    L_D(w + \epsilon)`.

    The bound is **vacuous for networks**: with more parameters k than examples n the
    root exceeds 1, which bounds nothing, and minimizing the worst loss does not
    minimize it. It is a motivation of SAM, not an explanation of its results.

    Args:
      squared_norm: of the parameters, `optax.tree.norm(params, squared=True)`.
      num_params: the k above, `optax.tree.size(params)`.
      num_examples: the n above, at least 2.
      rho: radius of the ball, positive.
      delta: probability, between 0 and 1, with which the bound may fail.

    Returns:
      The root, a scalar in at least float32. A bound below 1 says something.

    Raises:
      ValueError: less than 2 examples or 1 parameter; a rho that is not positive or a
        delta outside (0, 1), given as numbers.

    Example:
      >>> from optax_sam.measure import pac_bayes_term
      >>> wide = pac_bayes_term(
      ...     squared_norm=1e4, num_params=36_500_000, num_examples=50_000, rho=0.05)
      >>> print(f"{wide:.1f}")  # WideResNet-28-10 on CIFAR
      105.3

    Reference: Foret et al. 2021 (arXiv:2010.01412), theorem 2 (appendix A.1).
    """
    if num_examples < 2 or num_params < 1:
        raise ValueError(
            f"The bound needs at least 2 examples and 1 parameter, but was given "
            f"num_examples={num_examples} and num_params={num_params}."
        )
    if known(rho) and not rho > 0:
        raise ValueError(f"The bound needs a positive rho, got rho={rho}.")
    if known(delta) and not 0 < delta < 1:
        raise ValueError(
            f"delta is the probability that the bound fails, between 0 and 1, but was "
            f"{delta}. Write delta=0.05 for a bound that holds with 95 %."
        )
    n, k = jnp.asarray(num_examples, float), jnp.asarray(num_params, float)
    ratio = jnp.asarray(squared_norm, float) / rho**2
    spread = (1 + jnp.sqrt(jnp.log(n) / k)) ** 2
    complexity = k * jnp.log1p(ratio * spread)
    confidence = 4 * jnp.log(n / delta) + 8 * jnp.log(6 * n + 3 * k)
    return jnp.sqrt((complexity + confidence) / (n - 1))
