"""In place of `nnx.value_and_grad`: NNX models are changed in place by the pass.

Optional: it needs Flax, and nothing else in the library imports it.
"""

try:
    import flax as _flax  # noqa: F401
except ImportError as error:
    raise ImportError(
        "optax_sam.nnx is for models written in Flax NNX, and Flax is not installed. "
        "Write `pip install flax`; without Flax use optax_sam.value_and_grad."
    ) from error

from optax_sam.nnx._functional import (
    functional_value_and_grad as functional_value_and_grad,
)
from optax_sam.nnx._value_and_grad import value_and_grad as value_and_grad
