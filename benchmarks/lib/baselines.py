"""What every network is held against: nearest neighbours and logistic regression.

On the same training images with the same labels, settings tuned on the same validation
images. A network that does not beat both is unsound for its data.
"""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from benchmarks.lib.fixed_sets import Examples
from benchmarks.lib.grids import Axis

NEIGHBOURS, LOGISTIC = "nearest neighbours", "logistic regression"
METRICS = ("euclidean", "manhattan", "cosine")
AXES = {
    NEIGHBOURS: {"k": Axis((2, 4, 8, 16, 32), low=1)},
    LOGISTIC: {"C": Axis((0.001, 0.01, 0.1), ratio=10)},
}
ITERATIONS = 300


def classifier(name: str, settings: dict):
    """scikit-learn's, with the settings that are tuned."""
    if name == NEIGHBOURS:
        k, metric = int(settings["k"]), settings["metric"]
        return KNeighborsClassifier(k, metric=metric, algorithm="brute")
    return LogisticRegression(C=settings["C"], max_iter=ITERATIONS)


def right(model, data: Examples) -> np.ndarray:
    """Of each image whether the fitted model knows it."""
    return model.predict(flat(data)) == data.labels


def fitted(name: str, settings: dict, data: Examples):
    with warnings.catch_warnings():
        # Where the last digits of the weights still move, accuracy does not.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return classifier(name, settings).fit(flat(data), data.labels)


def flat(data: Examples) -> np.ndarray:
    return np.asarray(data.images, np.float32).reshape(len(data.labels), -1)
