"""Other regularizers, to be used beside SAM: each changes one thing of a training.

Each has one number, its `strength`, which is traced as the learning rate is.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks.lib.data import CLASSES
from benchmarks.lib.fixed_sets import Examples
from benchmarks.lib.training import WARM_UP, warm_up_and_cosine

DROPOUT, SHIFTS, SMOOTHING = "dropout", "augmentation", "label smoothing"
AVERAGE, SWA = "weight averaging", "SWA"
FARTHEST = 8  # pixels
TAIL = 0.75  # of the steps are done when SWA begins to average


@dataclasses.dataclass(frozen=True)
class Technique:
    """What is not None takes the place of what the loop does without it.

    `images(images, strength, key)`: what is trained on in their place.
    `losses(model, params, batch, strength, key)`: of each example.
    `schedule(lr, steps, strength)`: the learning rate of each step.
    `newest(number, steps, strength)`: the share of the newest weights in the average
    that is tested; without it the last weights are.
    """

    name: str
    images: Callable | None = None
    losses: Callable | None = None
    schedule: Callable | None = None
    newest: Callable | None = None


def shifted(images, strength, key):
    """Each by its own whole number of pixels, at most so many each way; the edge is
    repeated."""
    edge = ((0, 0), (FARTHEST, FARTHEST), (FARTHEST, FARTHEST), (0, 0))
    padded = jnp.pad(images, edge, mode="edge")
    pixels = jnp.round(strength).astype(jnp.int32)
    low, high = FARTHEST - pixels, FARTHEST + pixels + 1
    corners = jax.random.randint(key, (len(images), 2), low, high)

    def cut(image, corner):
        return jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])

    return jax.vmap(cut)(padded, corners)


class DroppedMlp(nn.Module):
    """networks.Mlp in training, with dropout behind its hidden layers."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x, rate, key):
        x = x.reshape(len(x), -1)
        for layer, features in enumerate(self.features):
            x = nn.relu(nn.Dense(features)(x))
            here = jax.random.fold_in(key, layer)
            kept = jax.random.bernoulli(here, 1 - rate, x.shape)
            x = jnp.where(kept, x / (1 - rate), 0)
        return nn.Dense(CLASSES)(x)


def dropped(model: nn.Module, params, batch: Examples, strength, key):
    """One mask a step: the same for both gradients of SAM."""
    inside = DroppedMlp(model.features)
    logits = inside.apply({"params": params}, batch.images, strength, key)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)


def smoothed(model: nn.Module, params, batch: Examples, strength, key):
    """Of every label, `strength` is shared out among all classes."""
    logits = model.apply({"params": params}, batch.images, train=True)
    wanted = jax.nn.one_hot(batch.labels, CLASSES)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(wanted, strength))


def of_the_last(number, steps, strength):
    """An exponential average over about `strength` steps; at first over all so far."""
    return jnp.maximum(1 / strength, 1 / (number + 1))


def of_the_tail(number, steps, strength):
    """The mean over the last steps, from TAIL on."""
    return 1 / jnp.maximum(number + 1 - TAIL * steps, 1)


def high_to_the_end(lr, steps, strength):
    """As ever, in TAIL of the steps, but once warm it does not fall below `strength`
    times `lr`, where it stays."""
    whole, warm = warm_up_and_cosine(lr, TAIL * steps), WARM_UP * TAIL * steps

    def schedule(step):
        low = jnp.where(step < warm, 0, strength * lr)
        return jnp.maximum(whole(step), low)

    return schedule


BY_NAME = {
    technique.name: technique
    for technique in (
        Technique(DROPOUT, losses=dropped),
        Technique(SHIFTS, images=shifted),
        Technique(SMOOTHING, losses=smoothed),
        Technique(AVERAGE, newest=of_the_last),
        # Izmailov et al. 2018: a constant learning rate, and the mean of its weights.
        Technique(SWA, schedule=high_to_the_end, newest=of_the_tail),
    )
}
NONE = Technique("none")
