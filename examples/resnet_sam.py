"""A ResNet on handwritten digits, with Flax linen and SAM.

After Flax's examples/imagenet (Copyright 2024 The Flax Authors, Apache License 2.0),
with a small network and the 8x8 images that come inside scikit-learn.
"""

import argparse
from functools import partial
from typing import Any

import data
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training import train_state

import optax_sam


class ResNetBlock(nn.Module):
    """ResNet block."""

    filters: int
    conv: Any
    norm: Any
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x):
        residual = x
        y = self.conv(self.filters, (3, 3), self.strides)(x)
        y = nn.relu(self.norm()(y))
        y = self.conv(self.filters, (3, 3))(y)
        y = self.norm(scale_init=nn.initializers.zeros_init())(y)
        if residual.shape != y.shape:
            residual = self.conv(self.filters, (1, 1), self.strides)(residual)
            residual = self.norm()(residual)
        return nn.relu(residual + y)


class ResNet(nn.Module):
    """ResNet V1.5, for small images."""

    stage_sizes: tuple[int, ...] = (1, 1, 1)
    num_filters: int = 16

    @nn.compact
    def __call__(self, x, train: bool = True):
        conv = partial(nn.Conv, use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = nn.relu(norm()(conv(self.num_filters, (3, 3))(x)))
        for i, block_size in enumerate(self.stage_sizes):
            for j in range(block_size):
                strides = (2, 2) if i > 0 and j == 0 else (1, 1)
                x = ResNetBlock(self.num_filters * 2**i, conv, norm, strides)(x)
        return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))


class TrainState(train_state.TrainState):
    batch_stats: Any


def cross_entropy_loss(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@partial(jax.jit, donate_argnums=0)
def train_step(state, batch):
    """Perform a single training step."""

    def loss_fn(params):
        """Loss function used for training."""
        logits, new_model_state = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            batch["image"],
            mutable=["batch_stats"],
        )
        loss = cross_entropy_loss(logits, batch["label"])
        weight_l2 = sum(jnp.sum(x**2) for x in jax.tree.leaves(params) if x.ndim > 1)
        return loss + 0.0001 * 0.5 * weight_l2, new_model_state

    ascent = optax_sam.steepest_ascent(rho=0.05)
    grad_fn = optax_sam.value_and_grad(loss_fn, ascent, has_aux=True)
    (loss, new_model_state), grads = grad_fn(state.params)
    new_state = state.apply_gradients(
        grads=grads, batch_stats=new_model_state["batch_stats"]
    )
    return new_state, loss


@jax.jit
def eval_step(state, batch):
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = state.apply_fn(variables, batch["image"], train=False)
    accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["label"])
    return cross_entropy_loss(logits, batch["label"]), accuracy


def create_train_state(key, steps):
    model = ResNet()
    variables = model.init(key, jnp.ones((1, 8, 8, 1)))
    learning_rate = optax.warmup_cosine_decay_schedule(
        init_value=0.0, peak_value=0.1, warmup_steps=steps // 10, decay_steps=steps
    )
    return TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=optax.sgd(learning_rate, momentum=0.9, nesterov=True),
        batch_stats=variables["batch_stats"],
    )


def train_and_evaluate(train, test, epochs, batch_size=64):
    steps = epochs * (len(train["label"]) // batch_size)
    state = create_train_state(jax.random.key(0), steps)
    for epoch in range(1, epochs + 1):
        losses = []
        for batch in data.batches(train, batch_size, seed=epoch):
            state, loss = train_step(state, batch)
            losses.append(loss)
        test_loss, accuracy = eval_step(state, test)
        print(
            f"epoch {epoch:2d}, train loss {jnp.stack(losses).mean():.4f}, "
            f"test loss {test_loss:.4f}, test accuracy {100 * accuracy:.2f} %",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one epoch of two batches")
    smoke = parser.parse_args().smoke
    train, test = data.digits()
    train = data.take(train, slice(128)) if smoke else train
    train_and_evaluate(train, test, epochs=1 if smoke else 15)


if __name__ == "__main__":
    main()
