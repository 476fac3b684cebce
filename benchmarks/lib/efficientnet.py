"""EfficientNet-Lite0 (Tan & Le 2019; the Lite variants of 2020) in Flax, for CPUs.

Depthwise convolutions are sums of shifted products (shifted.py), all others are matrix
products.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.lib import pretrained, shifted
from benchmarks.lib.data import CLASSES

HE_NORMAL = nn.initializers.he_normal()
EPSILON = 1e-3
MEAN, DEVIATION = 127.0, 128.0  # of each colour, as TensorFlow's Lite models have it


class Stage(NamedTuple):
    """Blocks of one kind; only the first of them has the stride."""

    blocks: int
    width: int  # of the depthwise kernel
    stride: int
    expand: int
    features: int


LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Backbone(nn.Module):
    """From images (n, height, width, 3) to features (n, `top`), averaged over places.

    With `train` BatchNorm takes the statistics of the batch.
    """

    stages: tuple[Stage, ...] = LITE0
    stem: int = 32
    top: int = 1280

    @nn.compact
    def __call__(self, x, train: bool):
        # A 3x3 convolution of stride 2.
        x = jnp.concatenate(shifted.slices(x, 3, 2), -1)
        x = Pointwise(self.stem, name="stem")(x, train)
        number = 0
        for blocks, width, stride, expand, features in self.stages:
            for k in range(blocks):
                block = Block(
                    width, 1 if k else stride, expand, features, name=f"block_{number}"
                )
                x, number = block(x, train), number + 1
        return Pointwise(self.top, name="top")(x, train).mean((1, 2))


class Norm(nn.Module):
    """A convolution and BatchNorm, whose averages are those of one batch, as in
    small_cnn.py. With averages that are given it is a factor for each column of the
    kernel, so that the images are not gone through again, forth and back."""

    @nn.compact
    def __call__(self, convolve, kernel, train: bool):
        """`convolve(kernel)`, normalized."""
        zeros, ones = jnp.zeros(kernel.shape[-1]), jnp.ones(kernel.shape[-1])
        scale = self.param("scale", lambda key: ones)
        bias = self.param("bias", lambda key: zeros)
        mean = self.variable("batch_stats", "mean", lambda: zeros)
        var = self.variable("batch_stats", "var", lambda: ones)
        if not train:
            factor = scale * jax.lax.rsqrt(var.value + EPSILON)
            return convolve(kernel * factor) + (bias - mean.value * factor)
        x = convolve(kernel)
        mean.value, var.value = x.mean((0, 1, 2)), x.var((0, 1, 2))
        factor = scale * jax.lax.rsqrt(var.value + EPSILON)
        return (x - mean.value) * factor + bias


class Pointwise(nn.Module):
    """A 1x1 convolution with BatchNorm and, unless it is `linear`, ReLU6."""

    features: int
    linear: bool = False

    @nn.compact
    def __call__(self, x, train: bool):
        kernel = self.param("kernel", HE_NORMAL, (x.shape[-1], self.features))
        x = Norm(name="norm")(lambda kernel: x @ kernel, kernel, train)
        return x if self.linear else nn.relu6(x)


class Depthwise(nn.Module):
    """A kernel of its own for each channel, with BatchNorm and ReLU6."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x, train: bool):
        def convolve(kernel):
            return shifted.depthwise(x, kernel, self.width, self.stride)

        kernel = self.param("kernel", HE_NORMAL, (self.width**2, x.shape[-1]))
        return nn.relu6(Norm(name="norm")(convolve, kernel, train))


class Block(nn.Module):
    """Expanded, convolved, projected, and added to what came in where shapes allow."""

    width: int
    stride: int
    expand: int
    features: int

    @nn.compact
    def __call__(self, x, train: bool):
        before, channels = x, x.shape[-1]
        if self.expand != 1:
            x = Pointwise(self.expand * channels, name="expand")(x, train)
        x = Depthwise(self.width, self.stride, name="depthwise")(x, train)
        x = Pointwise(self.features, linear=True, name="project")(x, train)
        return x + before if x.shape == before.shape else x


class Classifier(nn.Module):
    """The backbone and a linear layer; `see` makes of its input what these look at.

    It is slow: the training loop gives it `chunk` images at a time to classify.
    """

    backbone: Backbone = Backbone()
    classes: int = CLASSES
    see: Callable | None = None
    chunk: int = 250

    @nn.compact
    def __call__(self, x, train: bool):
        x = x if self.see is None else self.see(x)
        return nn.Dense(self.classes, name="head")(self.backbone(x, train))


# --- the weights of ImageNet --------------------------------------------------------


def of_backbone() -> dict:
    """Those of `Backbone()` alone."""
    return {name: of["backbone"] for name, of in imagenet().items()}


@functools.cache
def imagenet() -> dict:
    """The variables of `Classifier(classes=1000)`, without copies."""
    found = pretrained.tensors(pretrained.weights_file())
    parts = {
        "stem": of_layer(found, "_conv_stem", "_bn0"),
        "top": of_layer(found, "_conv_head", "_bn1"),
    }
    layers = {"expand": "0", "depthwise": "1", "project": "2"}
    for number in range(sum(stage.blocks for stage in LITE0)):
        at = f"_blocks.{number}."
        parts[f"block_{number}"] = {
            name: of_layer(found, f"{at}_{name}_conv", f"{at}_bn{k}")
            for name, k in layers.items()
            if f"{at}_{name}_conv.weight" in found
        }
    head = {"kernel": found["_fc.weight"].T, "bias": found["_fc.bias"]}
    return {
        "params": {"backbone": pick(parts, 0), "head": head},
        "batch_stats": {"backbone": pick(parts, 1)},
    }


def of_layer(found: dict, convolution: str, norm: str) -> tuple[dict, dict]:
    """Parameters and statistics of a convolution and the BatchNorm behind it.

    PyTorch's kernels are (out, in, height, width), in = 1 where they are depthwise.
    """
    kernel = found[f"{convolution}.weight"].transpose(2, 3, 1, 0)
    columns = kernel.shape[-1]
    scale, bias, mean, var = (
        found[f"{norm}.{name}"]
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    return (
        {"kernel": kernel.reshape(-1, columns), "norm": {"scale": scale, "bias": bias}},
        {"norm": {"mean": mean, "var": var}},
    )


def pick(parts: dict, which: int) -> dict:
    """Of a tree of pairs, one side."""
    return {
        name: pick(part, which) if isinstance(part, dict) else part[which]
        for name, part in parts.items()
    }


def normalized(images) -> jax.Array:
    """Bytes as the network of ImageNet saw them."""
    return (jnp.asarray(images, jnp.float32) - MEAN) / DEVIATION
