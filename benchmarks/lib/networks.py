"""The small networks that the benchmarks share."""

import flax.linen as nn
import jax.numpy as jnp

from benchmarks.lib.data import CLASSES

BATCH_NORM_MOMENTUM = 0.9


class Conv3x3(nn.Module):
    """A 3x3 convolution as nine shifted slices and one matrix product.

    XLA's native convolution is about 13 times slower inside `lax.scan` on a CPU.
    """

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        height, width, channels = x.shape[1:]
        shape = (3, 3, channels, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        slices = [
            x[:, i : i + height : self.stride, j : j + width : self.stride]
            for i in range(3)
            for j in range(3)
        ]
        return jnp.concatenate(slices, -1) @ kernel.reshape(-1, self.features)


class ConvNet(nn.Module):
    """Convolutions with BatchNorm, an average over the image, a linear layer."""

    features: tuple[int, ...] = (16, 32)
    strides: tuple[int, ...] = (1, 2)

    @nn.compact
    def __call__(self, x, train: bool):
        for features, stride in zip(self.features, self.strides, strict=True):
            x = Conv3x3(features, stride)(x)
            x = nn.BatchNorm(not train, momentum=BATCH_NORM_MOMENTUM)(x)
            x = nn.relu(x)
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class Mlp(nn.Module):
    """Linear layers with ReLU between them."""

    features: tuple[int, ...] = (128, 128)

    @nn.compact
    def __call__(self, x, train: bool):
        x = x.reshape(len(x), -1)
        for features in self.features:
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(CLASSES)(x)
