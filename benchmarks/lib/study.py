"""One study: tasks on the same images, and a row for each method.

A key says which run it is; `Bench.tuning` and `Bench.reporting` make it. Tuning never
sees a test image: those come with the committed settings only.
"""

import base64
import dataclasses
import functools
import time
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.lib import baselines, fixed_sets, loop, techniques
from benchmarks.lib.blind import Committed
from benchmarks.lib.grids import Axis
from benchmarks.lib.store import Key
from benchmarks.lib.techniques import Technique

BASE, TWICE, CHOSEN = "base", "base, 2x epochs", "base, length chosen"
LENGTH_ROWS = {BASE: 1, TWICE: 2}
BASELINES = (baselines.NEIGHBOURS, baselines.LOGISTIC)
View = Callable[[np.ndarray], np.ndarray]  # what is looked at in place of the images


@dataclasses.dataclass(frozen=True)
class Task:
    """The share of wrong labels, what the base is searched over, and for each method
    its rho. A task may have a model of its own, which may come with weights, and may
    look at something else than the images: features of them, for example. With another
    regularizer beside, `base` has an axis for its strength.

    `rival`: a task that has the same images with another optimizer. The better of both
    bases is what counts, against the baselines and at the chosen length.
    """

    noise: float
    base: dict[str, Axis]  # lr, decay, perhaps strength
    rho: dict[str, Axis]
    optimizer: str = "sgd"
    rival: str | None = None
    model: Any = None  # None: that of the study
    view: View | None = None
    view_of_baselines: View | None = None
    technique: Technique = techniques.NONE


@dataclasses.dataclass(frozen=True)
class Study:
    """All that is fixed; `shortest` and `longest` bound the epochs of the base."""

    name: str
    source: fixed_sets.Source
    tasks: dict[str, Task]
    model: Any
    train: int
    epochs: int
    shortest: int
    longest: int
    batch: int = 128
    m: int = 32
    flips: bool = False
    # Where the search of a method starts: at the base's best learning rate and decay,
    # or on the whole grid of both. A climb regularizes, too, and where labels are wrong
    # the best of the base, with much decay, is far from the best of a method.
    from_best: bool = True
    tuning_seeds: tuple[int, ...] = (100,)
    seeds: tuple[int, ...] = tuple(range(1000, 1008))

    @property
    def methods(self) -> list[str]:
        """Of all tasks, each once."""
        return list(
            dict.fromkeys(name for of in self.tasks.values() for name in of.rho)
        )

    def same_images(self, task: str) -> str:
        """The first task of these images and labels: it has the baselines of all."""

        def images(name: str):
            return self.tasks[name].noise, self.tasks[name].view_of_baselines

        return next(name for name in self.tasks if images(name) == images(task))

    def kind(self, task: str, method: str, epochs: int) -> loop.Kind:
        of_task = self.tasks[task]
        model = self.model if of_task.model is None else of_task.model
        optimizer = of_task.optimizer
        kind = loop.Kind(model, method, optimizer, self.batch, self.m, self.flips)
        kind = dataclasses.replace(kind, technique=of_task.technique)
        return kind.of_length(epochs * (self.train // self.batch))

    def key(
        self, task: str, method: str, epochs: int, settings: dict, seed: int
    ) -> Key:
        """A tuning run; baselines have 0 epochs."""
        return {
            "study": self.name,
            "task": task,
            "method": method,
            "epochs": epochs,
            "settings": settings,
            "seed": seed,
        }


class Bench:
    """The data of a study, and its runs."""

    def __init__(self, study: Study, permit: Committed | None = None):
        self.study = study
        self.sets = fixed_sets.tuning_sets(study.source)
        self.tests = fixed_sets.test_sets(study.source, permit) if permit else {}
        self._training = functools.lru_cache(maxsize=2)(self._draw)
        self._parts = functools.lru_cache(maxsize=None)(self._held_out)

    def training(self, task: str, seed: int) -> fixed_sets.Examples:
        """What a network is trained on."""
        return self._training(task, self.study.tasks[task].view, seed)

    def _draw(self, task: str, view: View | None, seed: int) -> fixed_sets.Examples:
        study = self.study
        drawn = fixed_sets.draw(
            self.sets.pool, study.train, study.tasks[task].noise, seed
        )
        return seen(view, drawn.examples)

    def _held_out(self, view: View | None) -> dict[str, fixed_sets.Examples]:
        parts = {"validation": self.sets.validation} | self.tests
        return {name: seen(view, part) for name, part in parts.items()}

    def work(self, key: Key) -> dict:
        """Train, and classify the validation images and, for reports, all tests."""
        start = time.perf_counter()
        task, baseline = self.study.tasks[key["task"]], key["method"] in BASELINES
        view = task.view_of_baselines if baseline else task.view
        run = self._baseline if baseline else self._network
        data = self._training(key["task"], view, key["seed"])
        right, loss = run(key, data, self._parts(view))
        return {
            **{name: percent(of) for name, of in right.items()},
            **({} if loss is None else {"training_loss": float(f"{loss:.5g}")}),
            "seconds": round(time.perf_counter() - start, 1),
            "right": {name: packed(of) for name, of in right.items()},
        }

    def _network(self, key: Key, data, parts: dict) -> tuple[dict, float]:
        data = jax.device_put(data)
        settings = loop.Settings(**key["settings"])
        kind = self.study.kind(key["task"], key["method"], key["epochs"])
        network = loop.train(kind, settings, key["epochs"], key["seed"], data)
        right = {
            name: loop.evaluate(kind.model, network, part).right
            for name, part in parts.items()
        }
        return right, loop.evaluate(kind.model, network, data).loss

    def _baseline(self, key: Key, data, parts: dict) -> tuple[dict, None]:
        model = baselines.fitted(key["method"], key["settings"], data)
        return {
            name: baselines.right(model, part) for name, part in parts.items()
        }, None


def seen(view: View | None, examples: fixed_sets.Examples) -> fixed_sets.Examples:
    if view is None:
        return examples
    return examples._replace(images=view(examples.images))


def percent(right: np.ndarray) -> float:
    """Rounded, so that what is chosen from the file is what was chosen in the run."""
    return round(100 * float(np.mean(right)), 3)


def packed(right: np.ndarray) -> str:
    """One bit an image, compressed, as text."""
    return base64.b85encode(zlib.compress(np.packbits(right).tobytes(), 9)).decode()


def unpacked(text: str, count: int) -> np.ndarray:
    """The inverse of `packed` for so many images."""
    bits = np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8)
    return np.unpackbits(bits, count=count).astype(bool)
