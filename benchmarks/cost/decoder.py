"""A language model whose layers are scanned over, or unrolled."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Decoder(NamedTuple):
    """A causal language model that scans over its layers."""

    width: int = 64
    depth: int = 4
    heads: int = 4
    vocabulary: int = 64

    def init(self, key) -> dict:
        shapes = {
            "qkv": (self.depth, self.width, 3, self.heads, self.width // self.heads),
            "out": (self.depth, self.width, self.width),
            "up": (self.depth, self.width, 4 * self.width),
            "down": (self.depth, 4 * self.width, self.width),
            "embed": (self.vocabulary, self.width),
        }
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.random.normal(key, shape) / self.width**0.5
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def logits(self, params, tokens, unroll: int):
        layers = {name: leaf for name, leaf in params.items() if name != "embed"}
        causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))

        def layer(x, of):
            q, k, v = jnp.einsum("btd,dshe->sbhte", normalize(x), of["qkv"])
            scores = jnp.where(causal, q @ k.swapaxes(-1, -2), -jnp.inf)
            heads = jax.nn.softmax(scores / q.shape[-1] ** 0.5) @ v
            x = x + heads.swapaxes(1, 2).reshape(x.shape) @ of["out"]
            return x + jax.nn.gelu(normalize(x) @ of["up"]) @ of["down"], None

        x, _ = jax.lax.scan(layer, params["embed"][tokens], layers, unroll=unroll)
        return normalize(x) @ params["embed"].T


def normalize(x):
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)
