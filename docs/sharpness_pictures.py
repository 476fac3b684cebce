"""The pictures of "Measuring": two of colabs/sharpness.ipynb, of the same training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import optax_sam
from benchmarks.lib.pictures import new, title
from optax_sam import measure, plot

EPOCHS, BATCH, RHO = 100, 50, 0.5
STEPS = EPOCHS * 500 // BATCH
SIZES = ((64, 64), (64, 64), (64, 10))


def digits():
    """500 images with 40 % wrong labels to train on, 500 with clean ones."""
    rng = np.random.default_rng(0)
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    images = np.float32(images[order] / 16 - 0.3)
    labels = np.int32(labels[order])
    wrong = rng.permutation(500)[:200]
    noisy = labels[:500].copy()
    noisy[wrong] = (noisy[wrong] + rng.integers(1, 10, 200)) % 10
    train, held_out = (images[:500], noisy), (images[500:1000], labels[500:1000])
    return jax.tree.map(jnp.asarray, (train, held_out))


def loss_fn(params, batch):
    x, labels = batch
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    logits = x @ params[-1]["kernel"] + params[-1]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def train_by(rho, train):
    """The solution, and what the diagnostics of each step say."""
    ascent = optax_sam.steepest_ascent(rho)
    grad_fn = optax_sam.value_and_grad(loss_fn, ascent, diagnostics=True)
    tx = optax.sgd(optax.cosine_decay_schedule(0.1, STEPS), momentum=0.9)
    key, he = jax.random.key(0), jax.nn.initializers.he_normal()

    def step(carry, indices):
        params, state = carry
        batch = jax.tree.map(lambda leaf: leaf[indices], train)
        (_, seen), gradient = grad_fn(params, batch)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), seen

    epochs = jax.random.split(key, EPOCHS)
    shuffled = jax.vmap(lambda key: jax.random.permutation(key, 500))(epochs)
    params = [
        {"kernel": he(jax.random.fold_in(key, i), size), "bias": jnp.zeros(size[1])}
        for i, size in enumerate(SIZES)
    ]
    carry = params, tx.init(params)
    (params, _), seen = jax.lax.scan(step, carry, shuffled.reshape(STEPS, BATCH))
    return params, seen


@functools.cache
def trained():
    train, held_out = digits()
    of = {name: train_by(rho, train) for name, rho in (("SGD", 0.0), ("SAM", RHO))}
    return {name: params for name, (params, _) in of.items()}, of["SAM"][1], held_out


def dashboard():
    """What the diagnostics of SAM's training say."""
    _, seen, _ = trained()
    figure, axes = new(4.6, 2, 2, sharex=True)
    plot.dashboard(seen, axes=axes.ravel())
    title(figure, f"SAM with ρ = {RHO} on 500 digits, 40 % of their labels wrong")
    return figure


def surfaces():
    """The held-out loss around both solutions."""
    solutions, _, held_out = trained()
    x = jnp.linspace(-1, 1, 25)

    @jax.jit
    def plane(params):
        keys = jax.random.split(jax.random.key(0))
        both = (measure.filter_normalized_direction(key, params) for key in keys)
        return measure.loss_plane(lambda p: loss_fn(p, held_out), params, *both, x, x)

    figure, axes = new(3.5, 1, 2, subplot_kw={"projection": "3d"})
    planes = {name: plane(params) for name, params in solutions.items()}
    plot.surfaces(x, x, planes, axes=axes)
    for ax in axes:
        ax.set(xticks=(-1, 0, 1), yticks=(0, 1))
        ax.grid(False)
        for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
            axis.set_pane_color((0, 0, 0, 0))
    title(figure, "Held-out loss around both solutions, along two random directions")
    return figure


ALL = {"dashboard": dashboard, "surfaces": surfaces}
