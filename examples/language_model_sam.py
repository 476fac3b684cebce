"""A small language model on the help texts of Python, with Flax linen and SAM.

After Flax's examples/lm1b (Copyright 2024 The Flax Authors, Apache License 2.0), with a
small network that reads characters, and text that comes inside Python.
"""

import argparse
from functools import partial

import data
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import optax_sam

LENGTH, BATCH_SIZE, WARMUP = 64, 32, 50


class DecoderBlock(nn.Module):
    """A pre-norm transformer layer."""

    num_heads: int
    dropout_rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, inputs, mask):
        dropout = partial(
            nn.Dropout, self.dropout_rate, deterministic=self.deterministic
        )
        x = nn.LayerNorm()(inputs)
        x = nn.MultiHeadDotProductAttention(self.num_heads, use_bias=False)(
            x, mask=mask
        )
        x = inputs + dropout()(x)
        y = nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x))
        y = nn.Dense(x.shape[-1])(dropout()(nn.relu(y)))
        return x + dropout()(y)


class TransformerLM(nn.Module):
    """A decoder that predicts each character from those before it."""

    vocab_size: int
    emb_dim: int = 64
    num_heads: int = 4
    num_layers: int = 2
    dropout_rate: float = 0.1

    @nn.compact
    def __call__(self, inputs, train: bool):
        shifted = jnp.pad(inputs, ((0, 0), (1, 0)))[:, :-1]
        y = nn.Embed(self.vocab_size, self.emb_dim)(shifted)
        place = nn.initializers.normal(0.02)
        y = y + self.param("pos_embedding", place, (inputs.shape[1], self.emb_dim))
        mask = nn.make_causal_mask(inputs)
        for _ in range(self.num_layers):
            y = DecoderBlock(self.num_heads, self.dropout_rate, not train)(y, mask)
        return nn.Dense(self.vocab_size)(nn.LayerNorm()(y))


def cross_entropy(logits, targets):
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def rsqrt_schedule(init_value, shift):
    return lambda count: init_value * ((count + shift) / shift) ** -0.5


learning_rate = optax.join_schedules(
    [optax.linear_schedule(0.0, 3e-3, WARMUP), rsqrt_schedule(3e-3, WARMUP)], [WARMUP]
)
optimizer = optax.chain(
    optax_sam.sam(rho=0.05),
    optax.clip_by_global_norm(1.0),
    optax.adamw(learning_rate, b2=0.98, weight_decay=0.1),
)


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def train_step(model, params, opt_state, inputs, dropout_key):
    """Perform a single training step."""

    def loss_fn(params):
        """Loss function used for training."""
        rngs = {"dropout": dropout_key}
        logits = model.apply({"params": params}, inputs, train=True, rngs=rngs)
        return cross_entropy(logits, inputs)

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params, value_fn=loss_fn)
    return optax.apply_updates(params, updates), opt_state, loss


@partial(jax.jit, static_argnums=0)
def eval_step(model, params, inputs):
    logits = model.apply({"params": params}, inputs, train=False)
    accuracy = jnp.mean(jnp.argmax(logits, -1) == inputs)
    return cross_entropy(logits, inputs), accuracy


def train_and_evaluate(train, test, vocab_size, steps, report):
    model = TransformerLM(vocab_size)
    params = model.init(jax.random.key(0), test[:1], train=False)["params"]
    opt_state = optimizer.init(params)
    keys = jax.random.split(jax.random.key(1), (steps, 2))
    for step in range(1, steps + 1):
        rows = jax.random.choice(keys[step - 1, 0], len(train), (BATCH_SIZE,))
        dropout_key = keys[step - 1, 1]
        params, opt_state, loss = train_step(
            model, params, opt_state, train[rows], dropout_key
        )
        if step % report == 0:
            test_loss, accuracy = eval_step(model, params, test)
            print(
                f"step {step:4d}, train loss {loss:.4f}, test loss {test_loss:.4f}, "
                f"test accuracy {100 * accuracy:.2f} %",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="two steps")
    smoke = parser.parse_args().smoke
    train, test, vocab_size = data.python_manual(LENGTH)
    test = test[:50] if smoke else test[:500]
    steps, report = (2, 2) if smoke else (1000, 100)
    train_and_evaluate(train, test, vocab_size, steps, report)


if __name__ == "__main__":
    main()
