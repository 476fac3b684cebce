"""Networks of the sizes that people train, for timing: CIFAR images and text.

Compute dtype is an argument; parameters and BatchNorm statistics are float32.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class WideResNet(nn.Module):
    """WideResNet-(6 `blocks` + 4)-`width` for 32x32 images (Zagoruyko 2016).

    `momentum` is that of BatchNorm's running averages.
    """

    blocks: int = 4
    width: int = 10
    classes: int = 10
    dtype: Any = jnp.float32
    momentum: float = 0.99

    @nn.compact
    def __call__(self, x, train: bool):
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=self.momentum,
            dtype=self.dtype,
        )
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        x = conv(16, (3, 3))(x)
        for stage in range(3):
            channels = 16 * self.width * 2**stage
            for block in range(self.blocks):
                strides = (2, 2) if stage > 0 and block == 0 else (1, 1)
                y = nn.relu(norm()(x))
                skip = x if block else conv(channels, (1, 1), strides)(y)
                y = conv(channels, (3, 3), strides)(y)
                y = conv(channels, (3, 3))(nn.relu(norm()(y)))
                x = skip + y
        x = nn.relu(norm()(x)).mean((1, 2))
        return nn.Dense(self.classes, dtype=self.dtype)(x).astype(jnp.float32)


class Block(nn.Module):
    """A pre-norm transformer block; `mask` is a causal one or None."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, mask):
        width = x.shape[-1]
        y = nn.LayerNorm(dtype=self.dtype)(x)
        attend = nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype)
        x = x + attend(y, mask=mask)
        y = nn.LayerNorm(dtype=self.dtype)(x)
        y = nn.Dense(4 * width, dtype=self.dtype)(y)
        return x + nn.Dense(width, dtype=self.dtype)(nn.gelu(y))


def scanned_blocks(depth: int, heads: int, dtype: Any):
    """`depth` blocks in one `lax.scan`: compiled once, as large models are."""

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            return Block(heads, dtype)(x, mask), None

    return nn.scan(
        Stack,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=depth,
    )


class Vit(nn.Module):
    """A vision transformer on 32x32 images, patches of 4x4; ViT-S by default."""

    width: int = 384
    depth: int = 12
    heads: int = 6
    classes: int = 10
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(self.width, (4, 4), (4, 4), dtype=self.dtype)(x)
        x = x.reshape(len(x), -1, self.width)
        place = self.param("place", nn.initializers.normal(0.02), x.shape[1:])
        x = x + place.astype(self.dtype)
        x, _ = scanned_blocks(self.depth, self.heads, self.dtype)()(x, None)
        x = nn.LayerNorm(dtype=self.dtype)(x).mean(1)
        return nn.Dense(self.classes, dtype=self.dtype)(x).astype(jnp.float32)


class Decoder(nn.Module):
    """A causal language model; about 100 million parameters by default."""

    vocabulary: int = 16384
    width: int = 768
    depth: int = 12
    heads: int = 12
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens, train: bool):
        embed = nn.Embed(self.vocabulary, self.width, dtype=self.dtype)
        place = self.param(
            "place", nn.initializers.normal(0.02), (tokens.shape[1], self.width)
        )
        x = embed(tokens) + place.astype(self.dtype)
        mask = nn.make_causal_mask(tokens)
        x, _ = scanned_blocks(self.depth, self.heads, self.dtype)()(x, mask)
        x = nn.LayerNorm(dtype=self.dtype)(x)
        return embed.attend(x).astype(jnp.float32)


def count(params) -> int:
    return sum(x.size for x in jax.tree.leaves(params))
