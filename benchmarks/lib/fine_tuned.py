"""A network that comes with weights, for the training loop of the studies.

Its models see the grey images of a study, enlarge them, and make three colours of them.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.lib.data import CLASSES
from benchmarks.lib.efficientnet import Classifier, normalized

# Of the pixels of Fashion-MNIST's pool: what fixed_sets.py took off and divided by.
PIXELS = {"mean": 73.12631, "deviation": 89.98436}


@dataclasses.dataclass(frozen=True)
class Enlarged:
    """From images that are centred and scaled to those that ImageNet's network sees."""

    side: int

    def __call__(self, images):
        grey = images * PIXELS["deviation"] + PIXELS["mean"]
        shape = (len(images), self.side, self.side, 1)
        enlarged = jax.image.resize(grey, shape, "bilinear", antialias=False)
        return jnp.repeat(normalized(enlarged), 3, -1)


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """A classifier that starts from `weights()`, the variables of its backbone, with a
    new head. BatchNorm keeps the statistics that come with them; its scales and biases
    are trained. It is used as a Flax module is."""

    model: Classifier
    weights: Callable[[], dict]

    @property
    def chunk(self) -> int:
        return self.model.chunk

    def init(self, key, images, train: bool) -> dict:
        head = self.model.init(key, images, train=train)["params"]["head"]
        return {"params": {"backbone": self.weights()["params"], "head": head}}

    def apply(self, variables: dict, images, train: bool, mutable=()):
        del train  # the statistics are frozen, so there is no difference
        statistics = {"backbone": self.weights()["batch_stats"]}
        found = {"params": variables["params"], "batch_stats": statistics}
        logits = self.model.apply(found, images, train=False)
        return (logits, {}) if mutable else logits


class Head(nn.Module):
    """A linear layer on features."""

    @nn.compact
    def __call__(self, x, train: bool):
        return nn.Dense(CLASSES, name="head")(x)


@dataclasses.dataclass(frozen=True)
class Features:
    """What the backbone, with the weights that it came with, makes of images."""

    of: FineTuned

    def __call__(self, images: np.ndarray) -> np.ndarray:
        starts = range(0, len(images), self.of.chunk)
        parts = [images[start : start + self.of.chunk] for start in starts]
        return np.concatenate([np.asarray(program(self.of)(part)) for part in parts])


@functools.cache
def program(of: FineTuned):
    model = of.model

    @jax.jit
    def features(images):
        return model.backbone.apply(of.weights(), model.see(images), train=False)

    return features
