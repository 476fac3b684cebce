"""The pictures of "How SAM works", drawn by the library itself while the site is built.

To look at them: `python docs/pictures.py FOLDER`.
"""

import io
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import optax_sam
from optax_sam import measure, plot

jax.config.update("jax_platforms", "cpu")

# Okabe and Ito's colours that stand out from the maps of `optax_sam.plot`.
CLIMB, UP_THERE, SAM, PLAIN = "#D55E00", "#CC79A7", "white", "black"


def draw():
    """The name and the PNG of every picture."""
    pictures = (two_valleys, one_step, two_paths, many_climbs)
    return {f"{picture.__name__}.png": png(picture()) for picture in pictures}


def two_valleys():
    """A loss with two floors equally low, and the highest loss within rho of each w."""

    def loss(w):
        return (
            -jax.nn.logsumexp(jnp.array([-18 * (w + 1) ** 2, -2 * (w - 1.2) ** 2])) / 2
        )

    w, ball = jnp.linspace(-2, 2.6, 461), jnp.linspace(-0.4, 0.4, 81)
    highest = jax.vmap(lambda w: jnp.max(jax.vmap(loss)(w + ball)))(w)
    lines = {"loss": jax.vmap(loss)(w), "highest loss within rho = 0.4": highest}
    figure = plot.landscape(w, lines, xlabel="parameter")
    figure.axes[0].set_ylim(-0.1, 3.2)
    return figure


def one_step():
    """One step of SAM, arrow by arrow, where one direction is ten times as steep."""

    def loss(w):
        return 0.5 * (w[0] ** 2 + 10 * w[1] ** 2)

    w, learning_rate = jnp.array([-1.2, 0.1]), 0.12
    ascent = optax_sam.steepest_ascent(rho=0.4)
    clean = jax.grad(loss)(w)
    climb, _ = ascent.update(clean, ascent.init(w), w)
    _, climbed = optax_sam.value_and_grad(loss, ascent)(w)
    ax = map_around(w, jnp.linspace(-0.6, 0.9, 61), jnp.linspace(-0.6, 0.5, 45), loss)
    arrow(ax, (0, 0), climb, CLIMB, "climb")
    arrow(ax, climb, -learning_rate * climbed, UP_THERE, "downhill up there")
    arrow(ax, (0, 0), -learning_rate * climbed, SAM, "step of SAM")
    arrow(ax, (0, 0), -learning_rate * clean, PLAIN, "step without SAM")
    return with_legend(ax)


def product(w):
    """A network of two weights that learns the number 1: flattest at (1, 1)."""
    return 0.5 * (w[0] * w[1] - 1) ** 2


def two_paths():
    """Gradient descent and SAM from one start, over a whole line of minima."""
    start = jnp.array([3.0, 0.9])
    ax = map_around(start, jnp.linspace(-2.4, 0.6, 121), jnp.linspace(-0.8, 0.9, 69))
    for rho, name, color in ((0, "gradient descent", PLAIN), (0.3, "SAM", SAM)):
        path = descend(start, rho)
        sharpness = measure.hessian_eigenvalues(product, path[-1], k=1)[0]
        label = f"{name}: ends at curvature {sharpness:.1f}"
        ax.plot(*(path - start).T, ".-", color=color, lw=1, ms=3, label=label)
    return with_legend(ax)


def descend(start, rho, num_steps=300):
    """Where a training with SAM at the head of gradient descent comes by."""
    tx = optax.chain(optax_sam.sam(rho), optax.sgd(0.05))

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(jax.grad(product)(w), state, w, value_fn=product)
        return (optax.apply_updates(w, updates), state), w

    return jax.lax.scan(step, (start, tx.init(start)), length=num_steps)[1]


def many_climbs():
    """The climb of the whole batch, and one for each sub-batch of four examples."""
    x, noise = jax.random.normal(jax.random.key(0), (2, 32, 2))
    w, truth = jnp.array([1.0, 0.5]), jnp.array([0.4, 0.3])
    batch = x, x @ truth + noise[:, 0]

    def loss(w, batch):
        return jnp.mean((batch[0] @ w - batch[1]) ** 2)

    ascent = optax_sam.steepest_ascent(rho=0.5)

    def climb(batch):
        return ascent.update(jax.grad(loss)(w, batch), ascent.init(w), w)[0]

    parts = jax.tree.map(lambda leaf: leaf.reshape(8, 4, *leaf.shape[1:]), batch)
    span = jnp.linspace(-0.7, 0.7, 57)
    ax = map_around(w, span, span, lambda w: loss(w, batch))
    for part in jax.vmap(climb)(parts):
        arrow(ax, (0, 0), part, CLIMB, "each part of the batch climbs by itself")
    arrow(ax, (0, 0), climb(batch), PLAIN, "the climb of the whole batch")
    return with_legend(ax)


def map_around(w, xs, ys, loss=product):
    """The loss over the plane of both parameters; the cross is at w."""
    losses = measure.loss_plane(loss, w, *jnp.eye(2), xs, ys)
    ax = plot.contours(xs, ys, {"": losses}).axes[0]
    ax.set(xlabel="first parameter, from the cross", ylabel="second parameter")
    return ax


def arrow(ax, start, vector, color, label):
    place = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.009}
    ax.quiver(*start, *vector, color=color, label=label, **place)


def with_legend(ax):
    """Above the map, each label once, on a ground that shows white too."""
    handles, labels = ax.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
    columns = 2 if len(once) > 2 else 1
    ax.legend(once.values(), once.keys(), **place, facecolor="0.75", ncols=columns)
    return ax.figure


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


if __name__ == "__main__":
    for name, content in draw().items():
        Path(sys.argv[1], name).write_bytes(content)
