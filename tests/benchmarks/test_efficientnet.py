"""EfficientNet-Lite0 against PyTorch, stage by stage, and what it names on photographs.

tests/record_efficientnet.py recorded tests/data/efficientnet_lite0.json.
"""

import collections
import io
import json
import os
import pickle
import sys
import types
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from record_efficientnet import CROPS, images, places

from benchmarks.lib import efficientnet, pretrained, shifted
from benchmarks.lib.efficientnet import LITE0, Classifier

DATA = Path(__file__).parents[1] / "data"
RECORDED = json.loads((DATA / "efficientnet_lite0.json").read_text(encoding="utf-8"))
STAGES = list(dict.fromkeys(row["stage"] for row in RECORDED))
CATS = {
    281,
    282,
    283,
    284,
    285,
}  # of ImageNet: tabby, tiger, Persian, Siamese, Egyptian
CUPS = {504, 967, 968}  # coffee mug, espresso, cup


@pytest.fixture(scope="module")
def variables():
    pytest.importorskip(pretrained.PACKAGE)
    return efficientnet.imagenet()


@pytest.fixture(scope="module")
def seen(variables):
    """The output of every stage on both pictures."""

    @jax.jit
    def outputs(variables, pictures):
        _, found = Classifier(classes=1000).apply(
            variables,
            pictures,
            train=False,
            capture_intermediates=lambda module, _: module.name in STAGES,
        )
        found = found["intermediates"]
        return {**found["backbone"], "head": found["head"]}

    pictures = efficientnet.normalized(images(DATA))
    return {
        n: np.asarray(of["__call__"][0])
        for n, of in outputs(variables, pictures).items()
    }


def test_every_stage_was_recorded():
    blocks = range(sum(stage.blocks for stage in LITE0))
    assert STAGES == ["stem", *(f"block_{k}" for k in blocks), "top", "head"]
    assert len(RECORDED) == len(CROPS) * len(STAGES)


@pytest.mark.slow  # a study's machinery, not the library
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_that_of_pytorch(stage, seen):
    rows = [row for row in RECORDED if row["stage"] == stage]
    for row, output in zip(rows, seen[stage], strict=True):
        assert list(output.shape) == row["shape"]
        flat = output.astype(np.float64).ravel()
        near = {"rtol": 1e-4, "atol": 1e-4 * row["deviation"]}
        np.testing.assert_allclose(flat.mean(), row["mean"], **near)
        np.testing.assert_allclose(flat.std(), row["deviation"], **near)
        np.testing.assert_allclose(flat[places(flat.size)], row["values"], **near)


def test_it_names_what_is_on_the_photographs(seen):
    cat, coffee = seen["head"].argmax(-1)
    assert cat in CATS
    assert coffee in CUPS


@pytest.mark.parametrize(
    ("width", "stride", "size"),
    [(3, 2, (8, 6)), (3, 1, (4, 4)), (5, 1, (7, 5)), (5, 2, (9, 4)), (5, 2, (1, 2))],
)
def test_shifted_products_are_a_depthwise_convolution(width, stride, size):
    """The values, and both gradients."""
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    kernel = jax.random.normal(jax.random.key(1), (width**2, 3))
    flax = nn.Conv(3, (width, width), stride, feature_group_count=3, use_bias=False)

    def theirs(x, kernel):
        params = {"kernel": kernel.reshape(width, width, 1, 3)}
        return flax.apply({"params": params}, x)

    def ours(x, kernel):
        return shifted.depthwise(x, kernel, width, stride)

    def with_gradients(of):
        values, pull = jax.vjp(of, x, kernel)
        return values, pull(jnp.cos(jnp.arange(values.size)).reshape(values.shape))

    pairs = (jax.jit(with_gradients, static_argnums=0)(of) for of in (ours, theirs))
    for one, other in zip(*map(jax.tree.leaves, pairs), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_norm_is_flaxs_batch_norm(train):
    x = jax.random.normal(jax.random.key(0), (4, 3, 2, 5))
    kernel = jax.random.normal(jax.random.key(1), (5, 6))
    draws = jax.random.uniform(jax.random.key(2), (4, 6), minval=0.5)
    scale, bias, mean, var = draws
    params, given = {"scale": scale, "bias": bias}, {"mean": mean, "var": var}
    variables = {"params": params, "batch_stats": given}
    flax = nn.BatchNorm(not train, momentum=0.0, epsilon=efficientnet.EPSILON)

    @jax.jit
    def both(variables):
        ours = efficientnet.Norm().apply(
            variables, lambda of: x @ of, kernel, train, mutable=["batch_stats"]
        )
        return ours, flax.apply(variables, x @ kernel, mutable=["batch_stats"])

    (ours, averages), (theirs, expected) = both(variables)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), averages, expected
    )


# --- reading a file of torch.save ---------------------------------------------------


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A file as torch.save wrote it before 1.6: a transposed view, a part, a number."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "LongStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    exec("def _rebuild_tensor_v2(*arguments): ...", utils.__dict__)
    utils._rebuild_tensor_v2.__module__ = "torch._utils"
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    class Tensor:
        def __init__(self, storage, name, count, *view):
            self.storage, self.of = storage, (name, "cpu", count, None)
            self.view = view

        def __reduce__(self):
            id_ = Storage(("storage", self.storage, *self.of))
            hooks = collections.OrderedDict()
            return utils._rebuild_tensor_v2, (id_, *self.view, False, hooks)

    class Storage(tuple):
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, one):
            return tuple(one) if isinstance(one, Storage) else None

    described = collections.OrderedDict(
        transposed=Tensor(torch.FloatStorage, "a", 6, 0, (3, 2), (1, 3)),
        part=Tensor(torch.FloatStorage, "a", 6, 4, (2,), (1,)),
        number=Tensor(torch.LongStorage, "b", 1, 0, (), ()),
    )
    file = io.BytesIO()
    for one in (pretrained.MAGIC, 1001, {"little_endian": True}, described, ["a", "b"]):
        Pickler(file, protocol=2).dump(one)
    for values in (np.arange(6, dtype="<f4"), np.array([7], "<i8")):
        file.write(np.int64(len(values)).tobytes() + values.tobytes())
    path = tmp_path / "saved.pth"
    path.write_bytes(file.getvalue())
    return path


def test_tensors_are_read_with_their_strides(saved):
    found = pretrained.tensors(saved)
    np.testing.assert_array_equal(found["transposed"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(found["part"], [4, 5])
    assert found["number"] == 7
    assert all(one.flags.owndata for one in found.values())


def test_a_tensor_beyond_its_storage_is_refused(saved):
    data = saved.read_bytes()
    saved.write_bytes(data.replace(b"K\x04K\x02\x85", b"K\x05K\x02\x85"))
    with pytest.raises(ValueError, match="behind its storage"):
        pretrained.tensors(saved)


def test_what_is_no_tensor_is_refused(tmp_path):
    path = tmp_path / "saved.pth"
    path.write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(pickle.UnpicklingError, match="no part of a tensor"):
        pretrained.tensors(path)
    path.write_bytes(pickle.dumps(1))
    with pytest.raises(ValueError, match="before"):
        pretrained.tensors(path)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(pretrained, "PACKAGE", "no_such_package")
    with pytest.raises(ModuleNotFoundError, match="pretrained"):
        pretrained.weights_file()
