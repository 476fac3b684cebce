"""The two tasks that most benchmarks train on."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn

from benchmarks.lib.data import Examples, Split, digits, mnist, split
from benchmarks.lib.networks import ConvNet, Mlp


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
