"""The pictures in docs/pictures, drawn by the library itself.

`python -m docs.write_pictures` draws all of them anew.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from matplotlib.patches import Circle
from PIL import Image

import optax_sam
from benchmarks.lib.pictures import new, save
from docs import sharpness_pictures
from optax_sam import measure, plot

jax.config.update("jax_platforms", "cpu")

# Okabe and Ito's colours that stand out from the maps of `optax_sam.plot`.
CLIMB, UP_THERE, SAM, PLAIN = "#D55E00", "#CC79A7", "white", "black"


def draw(folder: Path) -> None:
    """Every picture, on white and for dark pages."""
    own = {one.__name__: one for one in (two_valleys, one_step, two_paths, many_climbs)}
    for name, picture in {**own, **sharpness_pictures.ALL}.items():
        save(picture(), folder / f"{name}.png")
        for path in folder.glob(f"{name}*.png"):
            with_few_colours(path)


def with_few_colours(path: Path) -> None:
    """A third of the bytes, and no difference to be seen."""
    with Image.open(path) as image:
        fewer = image.quantize(256, dither=Image.Dither.NONE)
    fewer.save(path, optimize=True)


def two_valleys():
    """A loss with two floors equally low, and the highest loss within rho of each w."""

    def loss(w):
        return (
            -jax.nn.logsumexp(jnp.array([-18 * (w + 1) ** 2, -2 * (w - 1.2) ** 2])) / 2
        )

    w, ball = jnp.linspace(-2, 2.6, 461), jnp.linspace(-0.4, 0.4, 81)
    highest = jax.vmap(lambda w: jnp.max(jax.vmap(loss)(w + ball)))(w)
    names = "the loss", "the highest loss within ρ = 0.4"
    lines = dict(zip(names, (jax.vmap(loss)(w), highest), strict=True))
    figure, ax = new(3.6)
    plot.landscape(w, lines, ax=ax, xlabel="parameter")
    ax.get_legend().remove()
    ax.set_ylim(-0.1, 3.2)
    places = (0.2, 0.7, "right"), (0.1, 2.5, "left")
    for line, (x, y, side) in zip(ax.lines, places, strict=True):
        line.set(marker="", linewidth=2)
        ax.text(x, y, line.get_label(), color=line.get_color(), ha=side, va="bottom")
    return figure


def one_step():
    """One step of SAM, arrow by arrow, where one direction is ten times as steep."""

    def loss(w):
        return 0.5 * (w[0] ** 2 + 10 * w[1] ** 2)

    w, learning_rate, rho = jnp.array([-1.2, 0.1]), 0.12, 0.4
    ascent = optax_sam.steepest_ascent(rho)
    clean = jax.grad(loss)(w)
    climb, _ = ascent.update(clean, ascent.init(w), w)
    _, climbed = optax_sam.value_and_grad(loss, ascent)(w)
    xs, ys = jnp.linspace(-0.8, 0.9, 69), jnp.linspace(-0.55, 0.5, 43)
    ax = map_around(w, xs, ys, 4.4, loss)
    ball(ax, rho)
    step, plain = -learning_rate * climbed, -learning_rate * clean
    arrow(ax, (0, 0), climb, CLIMB, "climb", (-8, 8))
    arrow(ax, climb, step, UP_THERE, "downhill up there", (-8, -4))
    arrow(ax, (0, 0), step, SAM, "step of SAM", (8, -4))
    arrow(ax, (0, 0), plain, PLAIN, "step without SAM", (8, 0))
    return ax.figure


def product(w):
    """A network of two weights that learns the number 1: flattest at (1, 1)."""
    return 0.5 * (w[0] * w[1] - 1) ** 2


def two_paths():
    """Gradient descent and SAM from one start, over a whole line of minima."""
    start = jnp.array([3.0, 0.9])
    xs, ys = jnp.linspace(-2.4, 1.2, 145), jnp.linspace(-0.9, 0.9, 73)
    ax = map_around(start, xs, ys, 3.8)
    looks = {
        "gradient descent": (0.0, PLAIN, (24, -14)),
        "SAM": (0.3, SAM, (12, 14)),
    }
    for name, (rho, color, offset) in looks.items():
        path = descend(start, rho)
        sharpness = measure.hessian_eigenvalues(product, path[-1], k=1)[0]
        ax.plot(*(path - start).T, color=color, lw=0.8)
        ax.plot(*(path[-1] - start), "o", color=color, ms=5, mec="black")
        text = f"{name} ends\nat curvature {sharpness:.1f}"
        note(ax, path[-1] - start, text, offset)
    note(ax, (0, 0), "start", (8, 8))
    return ax.figure


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
    w, truth, rho = jnp.array([1.0, 0.5]), jnp.array([0.4, 0.3]), 0.5
    batch = x, x @ truth + noise[:, 0]

    def loss(w, batch):
        return jnp.mean((batch[0] @ w - batch[1]) ** 2)

    ascent = optax_sam.steepest_ascent(rho)

    def climb(batch):
        return ascent.update(jax.grad(loss)(w, batch), ascent.init(w), w)[0]

    parts = jax.tree.map(lambda leaf: leaf.reshape(8, 4, *leaf.shape[1:]), batch)
    xs, ys = jnp.linspace(-0.8, 1.3, 85), jnp.linspace(-0.6, 0.7, 53)
    ax = map_around(w, xs, ys, 4.4, lambda w: loss(w, batch))
    ball(ax, rho, side=-1)
    climbs = jax.vmap(climb)(parts)
    for part in climbs:
        arrow(ax, (0, 0), part, CLIMB)
    arrow(ax, (0, 0), climb(batch), PLAIN, "the climb of the whole batch", (12, 12))
    lowest = climbs[climbs[:, 1].argmin()]
    note(ax, lowest, "each part of the batch\nclimbs by itself", (12, -6))
    return ax.figure


def map_around(w, xs, ys, height, loss=product):
    """The loss over the plane of both parameters: dark is low, the cross is at w."""
    _, ax = new(height)
    ax.grid(False)
    losses = measure.loss_plane(loss, w, *jnp.eye(2), xs, ys)
    plot.contours(xs, ys, {"": losses}, axes=[ax])
    ax.collections[0].colorbar.remove()  # only the shape matters here
    ax.lines[0].set_zorder(4)
    ax.set(xlabel="first parameter", ylabel="second parameter", xticks=[], yticks=[])
    return ax


def ball(ax, rho, side=1):
    """The circle that the climbs end on, named at its upper right or (-1) left."""
    ax.add_patch(Circle((0, 0), rho, fill=False, ls="--", lw=1.2, ec="white"))
    place = side * rho / 2**0.5, rho / 2**0.5
    note(ax, place, f"radius ρ = {rho:g}", (6 * side, 8))


def arrow(ax, start, vector, color, label="", offset=(8, 0)):
    place = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.007}
    ax.quiver(*start, *vector, color=color, ec="black", lw=0.4, zorder=3, **place)
    if label:
        tip = jnp.asarray(start) + vector
        note(ax, tip, label, offset)


def note(ax, place, text, offset):
    """Words beside a point of the map, `offset` points away, on a ground of its own."""
    right = "left" if offset[0] > 0 else "right"
    ground = {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1.5}
    where = {"xytext": offset, "textcoords": "offset points", "va": "center"}
    place = [float(x) for x in place]
    ax.annotate(text, place, ha=right, bbox=ground, **where).set_in_layout(False)


if __name__ == "__main__":
    draw(Path(__file__).parent / "pictures")
