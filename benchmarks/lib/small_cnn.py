"""Convolutional networks with BatchNorm for 28x28 grey images.

The convolutions are XLA's own, so on a CPU they want to be trained by steps in a Python
loop (see convolutions.py).
"""

import flax.linen as nn


class SmallCnn(nn.Module):
    """3x3 convolutions of so many features and strides, an average over the image, and
    a linear layer: 2.4 million floating-point operations an image."""

    features: tuple[int, ...] = (16, 16, 32, 32)
    strides: tuple[int, ...] = (2, 1, 2, 1)
    classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool):
        for features, stride in zip(self.features, self.strides, strict=True):
            x = convolved(x, features, 3, stride, train)
        return nn.Dense(self.classes)(x.mean((1, 2)))


class PooledCnn(nn.Module):
    """5x5 convolutions of stride 2, averages of 3x3 places, and a linear layer: half a
    million floating-point operations an image."""

    features: tuple[int, ...] = (8, 16)
    classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool):
        for features in self.features:
            x = convolved(x, features, 5, 2, train)
        x = nn.avg_pool(x, (3, 3), (2, 2))
        return nn.Dense(self.classes)(x.reshape(len(x), -1))


def convolved(x, features: int, width: int, stride: int, train: bool):
    """Inside of a module's call: convolution, BatchNorm, ReLU."""
    x = nn.Conv(features, (width, width), (stride, stride), use_bias=False)(x)
    # Averages of one batch: those of all images are taken at the end.
    x = nn.BatchNorm(not train, momentum=0.0)(x)
    return nn.relu(x)
