"""Logits without their scale."""

import jax
import jax.numpy as jnp


def normalize_logits(logits: jax.Array) -> jax.Array:
    r"""Logits, centred and divided by their length, for a sharpness without scale.

    .. math:: z \mapsto \frac{z - \bar z}{\|z - \bar z\|_2}

    A network whose last layer is doubled decides as before, but its cross-entropy,
    and with it every sharpness of it, is another. Write it into the loss that is
    measured, not the one that is trained:

    `cross_entropy(normalize_logits(model(params, images)), labels)`

    Args:
      logits: real floats of shape (..., classes).

    Returns:
      An array of the same shape and dtype; zero where all logits of an example are
      equal.

    Raises:
      Nothing of its own.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam.measure import normalize_logits
      >>> normalize_logits(jnp.array([[1.0, 9.0, 5.0], [7.0, 7.0, 7.0]])).round(4)
      Array([[-0.7071,  0.7071,  0.    ],
             [ 0.    ,  0.    ,  0.    ]], dtype=float32)

    Reference: Andriushchenko et al. 2023 (arXiv:2302.07011), "A Modern Look at the
      Relationship between Sharpness and Generalization", their code: the logits are
      centred first.
    """
    centred = logits - jnp.mean(logits, axis=-1, keepdims=True)
    square = jnp.sum(centred**2, axis=-1, keepdims=True)
    # Guard before the root: its derivative at 0 is infinite.
    length = jnp.sqrt(jnp.where(square > 0, square, 1))
    return centred / length
