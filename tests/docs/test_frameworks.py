"""The steps of docs/frameworks.md, executed and compared with two passes by hand.

The page's blocks run from top to bottom in one namespace, as by a reader who pastes one
after the other. Each step of it has trained on all batches when its block ends; the
same training is done here without the library and without Optax.
"""

import functools
import re
from pathlib import Path

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pages
import pytest
from flax import nnx

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "frameworks.md"
RHO = 0.05  # as on the page, and so are the constants in `descend`


@functools.cache
def after(chapter):
    """The names that exist after each block of a chapter, by the block's heading."""
    return pages.run_chapter(PAGE, chapter)


def test_every_chapter_is_tested():
    chapters = re.findall(r"^## (.*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    tested = re.findall(r'after\("(.*?)"\)', Path(__file__).read_text("utf-8"))
    assert sorted(set(tested)) == sorted(chapters)


def by_hand(loss_fn, params, state, key_at, batches):
    """SAM, the average of two gradients, clipping, momentum, cosine: plain formulas.

    `loss_fn(params, state, key, batch)` returns the loss and the state after the pass.
    """

    @jax.jit
    def both_passes(params, state, key, batch):
        here = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, new_state), clean = here(params, state, key, batch)
        size = norm(clean)
        climbed = jax.tree.map(lambda w, g: w + RHO * g / size, params, clean)
        (_, _), gradient = here(climbed, state, key, batch)
        return loss, new_state, gradient

    velocity, held, losses = jax.tree.map(jnp.zeros_like, params), None, []
    for i, batch in enumerate(batches):
        loss, state, gradient = both_passes(params, state, key_at(i), batch)
        losses.append(float(loss))
        if i % 2 == 0:
            held = gradient
        else:
            mean = jax.tree.map(lambda a, b: (a + b) / 2, held, gradient)
            params, velocity = descend(params, velocity, mean, i // 2)
    return params, state, losses


@jax.jit
def norm(tree):
    return jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)))


@jax.jit
def descend(params, velocity, gradient, step):
    clip = jnp.minimum(1, 1 / norm(gradient))
    velocity = jax.tree.map(lambda v, g: 0.9 * v + clip * g, velocity, gradient)
    rate = 0.2 * (1 + jnp.cos(jnp.pi * step / 10)) / 2
    return jax.tree.map(lambda w, v: w - rate * v, params, velocity), velocity


def assert_close(tree, other):
    chex.assert_trees_all_close(tree, other, rtol=1e-3, atol=2e-5)


def assert_trained(last_loss, losses):
    np.testing.assert_allclose(last_loss, losses[-1], rtol=1e-3)
    assert np.mean(losses[-4:]) < 0.6 * losses[0]


def deleted(tree):
    leaves = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    return all(x.is_deleted() for x in leaves)


def split_keys(key, count):
    keys = []
    for _ in range(count):
        key, now = jax.random.split(key)
        keys.append(now)
    return keys


# --- Flax linen ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def linen_by_hand():
    names = after("Flax linen")["Flax linen"][0]
    start = names["create_state"](names["optimizer"])

    def loss_fn(params, batch_stats, key, batch):
        logits, changed = names["net"].apply(
            {"params": params, "batch_stats": batch_stats},
            batch[0],
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return names["cross_entropy"](logits, batch[1]), changed["batch_stats"]

    def key_at(i):
        return jax.random.fold_in(start.key, i)

    batches = names["batches"]
    return by_hand(loss_fn, start.params, start.batch_stats, key_at, batches), loss_fn


@pytest.mark.parametrize(
    ("title", "tx"),
    [
        ("Linen, in place of value_and_grad", "optimizer"),
        ("Linen, in the optimizer", "sam_optimizer"),
    ],
)
def test_linen(linen_by_hand, title, tx):
    (params, batch_stats, losses), _ = linen_by_hand
    names = after("Flax linen")[title][0]
    assert_trained(names["loss"], losses)
    assert_close(names["state"].params, params)
    assert_close(names["state"].batch_stats, batch_stats)
    assert names["state"].step == len(names["batches"])

    start = names["create_state"](names[tx])
    names["train_step"](start, names["batches"][0])
    assert deleted(start.params)


def test_linen_m_sam(linen_by_hand):
    # Sub-batches of 8 by a loop, each with its own dropout mask.
    _, loss_fn = linen_by_hand
    names = after("Flax linen")["Linen, in place of value_and_grad"][1]
    state, (x, y) = names["state"], names["batch"]
    grad_fn = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    parts = []
    for j in range(4):
        key = jax.random.fold_in(state.key, j)
        key = jax.random.fold_in(key, state.step)
        rest = state.batch_stats, key, (x[8 * j : 8 * j + 8], y[8 * j : 8 * j + 8])
        (loss, stats), clean = grad_fn(state.params, *rest)
        size = norm(clean)
        climbed = jax.tree.map(
            lambda w, g, size=size: w + RHO * g / size, state.params, clean
        )
        parts.append((loss, stats, grad_fn(climbed, *rest)[1]))
    average = jax.tree.map(lambda *xs: sum(xs) / 4, *parts)
    got = names["loss"], names["batch_stats"], names["grads"]
    chex.assert_trees_all_close(got, average, rtol=1e-3, atol=1e-5)


# --- Flax NNX -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def nnx_by_hand():
    names = after("Flax NNX")["Flax NNX"][0]
    graphdef, params, others = nnx.split(
        names["Net"](nnx.Rngs(1, dropout=2)), nnx.Param, ...
    )

    def loss_fn(params, others, key, batch):
        model = nnx.merge(graphdef, params, others)
        loss = names["loss_fn"](model, batch)
        return loss, nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))

    params, others = nnx.as_pure(params), nnx.as_pure(others)
    return by_hand(loss_fn, params, others, lambda i: None, names["batches"])


@pytest.mark.parametrize(
    ("title", "tx"),
    [
        ("NNX, in place of value_and_grad", "optimizer"),
        ("NNX, in the optimizer", "sam_optimizer"),
    ],
)
def test_nnx(nnx_by_hand, title, tx):
    params, others, losses = nnx_by_hand
    names = after("Flax NNX")[title][0]
    model, count = names["model"], len(names["batches"])
    assert_trained(names["loss"], losses)
    assert_close(nnx.as_pure(nnx.state(model, nnx.Param)), params)
    assert_close(model.norm.mean[...], others["norm"]["mean"])
    assert_close(model.norm.var[...], others["norm"]["var"])
    assert model.dropout.rngs.count[...] == count  # once a step
    assert names["nnx_optimizer"].step[...] == count

    model = names["Net"](nnx.Rngs(1, dropout=2))
    start = model.hidden.kernel[...]
    optimizer = nnx.Optimizer(model, names[tx], wrt=nnx.Param)
    names["train_step"](model, optimizer, names["batches"][0])
    assert start.is_deleted()


# --- Equinox ------------------------------------------------------------------------


@pytest.mark.slow
def test_equinox():
    names = after("Equinox")["Equinox"][0]
    model, state = eqx.nn.make_with_state(names["Net"])(jax.random.key(1))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    assert any(x is None for x in jax.tree.leaves(params, is_leaf=lambda x: x is None))

    def loss_fn(params, state, key, batch):
        return names["loss_fn"](eqx.combine(params, static), state, batch, key)

    keys = split_keys(jax.random.key(2), len(names["batches"]))
    expected, stats, losses = by_hand(
        loss_fn, params, state, keys.__getitem__, names["batches"]
    )
    assert_trained(names["loss"], losses)
    assert_close(eqx.filter(names["model"], eqx.is_inexact_array), expected)
    assert_close(jax.tree.leaves(names["state"]), jax.tree.leaves(stats))

    opt_state = names["sam_optimizer"].init(params)
    names["train_step"](names["batches"][0], model, state, opt_state, jax.random.key(2))
    assert deleted(params)


# --- Plain functions ----------------------------------------------------------------


@pytest.mark.slow
def test_plain_functions():
    (names,) = after("Plain functions, as Haiku's").popitem()[1]
    params, state = names["init"](jax.random.key(1))
    keys = split_keys(jax.random.key(2), len(names["batches"]))
    expected, stats, losses = by_hand(
        names["loss_fn"], params, state, keys.__getitem__, names["batches"]
    )
    assert_trained(names["loss"], losses)
    assert_close(names["params"], expected)
    assert_close(names["state"], stats)

    opt_state = names["optimizer"].init(params)
    names["train_step"](
        params, state, opt_state, jax.random.key(2), names["batches"][0]
    )
    assert deleted((params, state, opt_state))
