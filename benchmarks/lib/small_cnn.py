"""A convolutional network with BatchNorm for 28x28 grey images.

Four 3x3 convolutions, an average over the image and a linear layer: 2.4 million
floating-point operations an image. The convolutions are XLA's own, so on a CPU it wants
to be trained by steps in a Python loop (see convolutions.py).
"""

import flax.linen as nn


class SmallCnn(nn.Module):
    """Convolutions of so many features and strides."""

    features: tuple[int, ...] = (16, 16, 32, 32)
    strides: tuple[int, ...] = (2, 1, 2, 1)
    classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool):
        for features, stride in zip(self.features, self.strides, strict=True):
            x = nn.Conv(features, (3, 3), (stride, stride), use_bias=False)(x)
            # Averages of one batch: those of all images are taken at the end.
            x = nn.BatchNorm(not train, momentum=0.0)(x)
            x = nn.relu(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))
