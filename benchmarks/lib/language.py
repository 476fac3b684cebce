"""A language model of characters: the step of each method, and the loss on other text.

All that is a number (learning rate, decay, rho, the number of steps) is traced, so that
a process compiles each method once.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_sam

BASE, SAM, FUNCTIONAL = "base", "SAM", "Functional SAM"
PRECONDITIONED, BOTH = "preconditioned SAM", "preconditioned Functional SAM"
MOMENTUM = "momentum SAM"
#: Gradients of a batch that a step of each method takes.
GRADIENTS = {BASE: 1, SAM: 2, FUNCTIONAL: 2, PRECONDITIONED: 2, BOTH: 2, MOMENTUM: 1}
CLIP, DECAY_OF_MOMENT, WARM_UP = 1.0, 0.99, 0.05
BLOCK = 16  # windows of text whose mean loss is kept: neighbours are alike


@dataclasses.dataclass(frozen=True)
class Kind:
    """What changes the compiled program."""

    model: nn.Module
    method: str
    context: int = 256


class Settings(NamedTuple):
    """What does not change it."""

    lr: Any
    decay: Any
    rho: Any = 0.0


# --- training -----------------------------------------------------------------------


def starts(size: int, context: int, batch: int, steps: int, seed: int) -> np.ndarray:
    """Where the windows of every step begin in a text of that size, (steps, batch)."""
    rng = np.random.default_rng([seed, 1])
    return rng.integers(size - context, size=(steps, batch)).astype(np.int32)


def windows(text, begin, context: int):
    """The characters from there on, one more than the context."""
    return text[begin[:, None] + jnp.arange(context + 1)].astype(jnp.int32)


def parts(model: nn.Module):
    """The loss in two: the net that returns logits, and the head behind it."""

    def net(params, tokens):
        return model.apply({"params": params}, tokens[:, :-1], train=True)

    def head(logits, tokens):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return losses.mean()

    return net, head


def gradient(kind: Kind, rho, moment):
    """In place of `jax.value_and_grad`; `moment` is the second one of Adam."""
    net, head = parts(kind.model)

    def loss(params, tokens):
        return head(net(params, tokens), tokens)

    if kind.method == BASE:
        return jax.value_and_grad(loss)
    ascent = optax_sam.steepest_ascent(rho)
    if kind.method in (PRECONDITIONED, BOTH):
        ascent = optax.chain(optax.stateless(shaped_by(moment)), ascent)
    if kind.method in (FUNCTIONAL, BOTH):
        return optax_sam.functional_value_and_grad(net, head, ascent)
    return optax_sam.value_and_grad(loss, ascent)


def shaped_by(moment):
    """As Adam's own steps are. Before the first step the moment is zero, and the climb
    is along the gradient."""

    def shape(grads, params=None):
        return jax.tree.map(lambda g, v: g / (jnp.sqrt(v) + 1e-8), grads, moment)

    return shape


def transformation(kind: Kind, settings: Settings, steps):
    """AdamW, with gradients clipped; momentum SAM stands in front of it."""
    behind = optax.chain(
        optax.clip_by_global_norm(CLIP),
        optax.adamw(
            warm_up_and_cosine(settings.lr, steps),
            b2=DECAY_OF_MOMENT,
            weight_decay=settings.decay,
            mask=matrices,
        ),
    )
    if kind.method == MOMENTUM:
        return optax.chain(optax_sam.momentum_sam(settings.rho), behind)
    return behind


def matrices(params):
    """Which leaves decay: not biases, nor the scales of norms."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in ("kernel", "embedding"), params
    )


def warm_up_and_cosine(lr, steps):
    """Up in a line, then half a cosine to zero."""

    def schedule(step):
        done = step / steps
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * (done - WARM_UP) / (1 - WARM_UP)))
        return lr * jnp.where(done < WARM_UP, done / WARM_UP, cosine)

    return schedule


@functools.cache
def initial(model: nn.Module, context: int):
    """New parameters from a key."""
    tokens = jnp.zeros((1, context), jnp.int32)
    return jax.jit(lambda key: model.init(key, tokens, train=False)["params"])


@functools.cache
def compiled(kind: Kind):
    """A first state from a key, and the step: one program for all settings."""
    net, head = parts(kind.model)

    def init(key):
        params = initial(kind.model, kind.context)(key)
        return params, transformation(kind, Settings(0.0, 0.0), 1).init(params)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, text, begin, settings, steps):
        params, own = state
        tokens = windows(text, begin, kind.context)
        tx = transformation(kind, settings, steps)
        if kind.method == MOMENTUM:
            updates, own = tx.update(
                None,
                own,
                params,
                value_fn=lambda params, tokens: head(net(params, tokens), tokens),
                batch=tokens,
            )
        else:
            grad_fn = gradient(kind, settings.rho, optax.tree.get(own, "nu"))
            _, grads = grad_fn(params, tokens)
            updates, own = tx.update(grads, own, params)
        return optax.apply_updates(params, updates), own

    return init, step


# --- the trained model --------------------------------------------------------------


def blocks(text: np.ndarray, context: int) -> np.ndarray:
    """Windows of text, one after the other, (blocks, BLOCK, context + 1): each predicts
    what follows its first character. A rest that fills no block is left out."""
    count = (len(text) - 1) // (BLOCK * context)
    begin = np.arange(count * BLOCK)[:, None] * context
    found = text[begin + np.arange(context + 1)].astype(np.int32)
    return found.reshape(count, BLOCK, context + 1)


def losses(kind: Kind, params, text: np.ndarray) -> list[float]:
    """Nats per character of each block."""
    of_block = evaluated(kind.model)
    found = [of_block(params, block) for block in blocks(text, kind.context)]
    return [float(f"{float(loss):.6g}") for loss in found]


@functools.cache
def evaluated(model: nn.Module):
    net, head = parts(model)
    return jax.jit(lambda params, tokens: head(net(params, tokens), tokens))
