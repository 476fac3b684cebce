"""One row per ascent and per product; `test_contract.py` crosses it with properties.

A new ascent costs one row here: how it is made, and in which norm its climb has
length rho. Everything else follows from the table. The expected numbers are computed
in NumPy, in float64, and share no code with the library.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam

RHO = 0.1

# Away from zero (ASAM divides by its size), no ties (ord = 1 takes the largest), and
# with every kind of last key that ASAM's published mask tells apart.
PARAMS = {
    "dense": {
        "kernel": np.float32([[0.5, -1.5], [1.25, -0.25], [-0.75, 1.0]]),
        "bias": np.float32([0.5, -2.0]),
    },
    "scale": np.float32(-0.5),
    "b": np.float32([1.5, 0.75, -1.0]),
}
GRADS = {
    "dense": {
        "kernel": np.float32([[0.5, -2.0], [0.25, 1.0], [-1.5, 0.125]]),
        "bias": np.float32([-3.0, 0.75]),
    },
    "scale": np.float32(1.75),
    "b": np.float32([-0.375, 1.125, 0.625]),
}
EXAMPLES, MICRO_BATCH = 4, 2


def flat(tree):
    """All entries of a tree as one vector in float64."""
    leaves = [np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)]
    return np.concatenate([np.zeros(0), *leaves])


def norm(ord):
    """The norm of order `ord` of the whole tree."""
    return lambda tree: np.linalg.norm(flat(tree), ord)


def dual_norm(ord):
    """The norm of order q with 1/ord + 1/q = 1, that the gradient is measured in."""
    return norm(1 / (1 - 1 / ord) if ord > 1 else np.inf)


two_norm = norm(2)


def ones(params):
    """SAM's T: the climb is measured as it is."""
    return jax.tree.map(np.ones_like, params)


def sizes(eta, biases):
    """ASAM's T: abs(w) + eta, but 1 for biases by the published rule."""

    def size(path, w):
        # A key of a dict or a field of a module; a tree that is one leaf has neither.
        last = [getattr(k, "key", getattr(k, "name", None)) for k in path[-1:]]
        wide = np.asarray(w, np.promote_types(np.asarray(w).dtype, np.float32))
        if last in (["bias"], ["b"]) and not biases:
            return np.ones_like(wide)
        return np.abs(wide) + wide.dtype.type(eta)

    return functools.partial(jax.tree_util.tree_map_with_path, size)


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One ascent, or one product of door 1, and what is promised of its climb.

    Attributes:
      name: the name of the row in pytest's output.
      factory: takes `rho` and the options; returns an ascent or a product.
      options: makes the other arguments (a function: random keys need JAX running).
      given: how the row gives its radius: as a number, an array or a schedule.
      length: the norm in which climb / T has length rho.
      dual: the norm of T * gradient with <gradient, climb> = rho * dual; `None` for
        a climb that does not look at the gradient.
      size: T, a function of the parameters.
      stateful: whether the state has leaves.
      remembers: whether it holds a copy of the parameters, made of earlier gradients.
      needs_params: whether the ascent needs them.
      product: whether this is a transformation of door 1; an ascent otherwise.
      micro_batch: whether it computes clean gradients itself, from `batch=`.
      has_aux: whether `value_fn` returns a pair.
      of_each: whether `value_fn` returns one loss for each example.
      mixes: whether the clean gradient is in what comes out.
      momentum: whether the climb is made of a momentum: that of minus the gradient.
      stale: whether the climb is made of the gradient before.
      traces: grows by one whenever `step` is traced.
    """

    name: str
    factory: Callable[..., Any]
    options: Callable[[], dict[str, Any]] = dict
    given: Callable[[float], Any] = float
    length: Callable[[Any], float] = two_norm
    dual: Callable[[Any], float] | None = two_norm
    size: Callable[[Any], Any] = ones
    stateful: bool = False
    remembers: bool = False
    needs_params: bool = False
    product: bool = False
    micro_batch: bool = False
    has_aux: bool = False
    of_each: bool = False
    mixes: bool = False
    momentum: bool = False
    stale: bool = False
    traces: list[int] = dataclasses.field(default_factory=list)

    def make(self, rho=RHO):
        """The transformation, its radius given in the row's way."""
        return self.factory(rho=self.given(rho), **self.options())

    def update(self, tx, grads, state, params, ignored=False, **extra_args):
        """The climb by itself, out of an ascent or out of a product.

        `ignored`: a gradient that is not wanted is given nevertheless.
        """
        if not self.product:
            return tx.update(grads, state, params, **extra_args)
        if self.momentum:
            against = jax.tree.map(lambda g: -_widen(g), grads)
            state = optax.tree.set(state, momentum=against)
        if self.stale:
            state = optax.tree.set(state, previous=jax.tree.map(_widen, grads))
        rows = jax.tree.map(lambda g: jnp.stack([g] * EXAMPLES), grads)
        if self.micro_batch:
            # The second leaf gives the batch a size when the tree has no leaves.
            extra_args |= {"batch": (rows, jnp.zeros(EXAMPLES))}
        updates, state = tx.update(
            None if self.micro_batch and not ignored else grads,
            state,
            params,
            value_fn=_revealing(self, params),
            **extra_args,
        )
        return _climb_in(updates, grads) if self.micro_batch else updates, state

    def climb(self, grads, params=PARAMS, tx=None):
        """The first climb, not compiled: its operations are shared by all rows."""
        tx = tx or self.make()
        return self.update(tx, grads, tx.init(params), params)[0]

    @functools.cached_property
    def tx(self):
        """One transformation of the row, whose compiled update is shared by tests."""
        return self.make()

    @functools.cached_property
    def step(self):
        """`step(grads, state, params)`, compiled; every trace is noted in `traces`."""

        tx = self.tx  # made outside of the trace, which its key would be caught in

        def step(grads, state, params):
            self.traces.append(1)
            return self.update(tx, grads, state, params)

        return jax.jit(step)

    def compiled_climb(self, grads, params=PARAMS):
        """The first climb, compiled."""
        return self.step(grads, self.tx.init(params), params)[0]


def only(condition):
    """Cross a property with the rows for which `condition` holds, not with all."""

    def mark(test):
        test.condition = condition
        return test

    return mark


def rows_for(test, rows):
    """The rows that a property is about."""
    return list(filter(getattr(test, "condition", None) or (lambda row: True), rows))


def cross(metafunc, rows):
    """For `pytest_generate_tests`: one test for each row that the property is about."""
    if "row" in metafunc.fixturenames:
        chosen = rows_for(metafunc.function, rows)
        slow = {True: [pytest.mark.slow], False: []}
        # Of module scope, so that the tests of one row, and what they compile, are run
        # one after the other.
        metafunc.parametrize(
            "row",
            [pytest.param(row, marks=slow[row.name in VARIATIONS]) for row in chosen],
            ids=[row.name for row in chosen],
            scope="module",
        )


#: Rows that are like another one but for a number: run once, with the slow tests.
VARIATIONS = {
    "adaptive-all",
    "adaptive-inf",
    "asam-davda54",
    "asam-micro",
    "friendly",
    "random-sam",
    "sam-array",
    "sam-aux",
    "sam-micro-schedule",
    "sam-schedule",
    "some-leaves",
    "steepest-1.5",
    "steepest-3",
    "steepest-array",
    "steepest-schedule",
}


def _revealing(row, params):
    """A loss whose gradient at `params + climb` is the climb.

    With micro-batches the product takes the clean gradient itself: at `params` the
    gradient of this loss is the mean of the batch.
    """

    def total(fn, *trees):
        wide = [jax.tree.map(_widen, tree) for tree in trees]
        return sum(jax.tree.leaves(jax.tree.map(fn, *wide)), jnp.zeros(()))

    def value_fn(q, batch=None):
        value = total(lambda q, w: jnp.sum((q - w) ** 2) / 2, q, params)
        if row.micro_batch:
            grads = jax.tree.map(lambda g: _widen(g).mean(0), batch[0])
            moved = total(lambda q, w: jnp.sum(q != w), q, params)
            linear = total(lambda q, g: jnp.sum(q * g), q, grads)
            value = jnp.where(moved > 0, value, linear)
        if row.of_each:
            value = value * jnp.ones_like(batch[1])
        return (value, {"seen": value}) if row.has_aux else value

    return value_fn


def _climb_in(updates, grads):
    # Where the climb was zero, the loss above could not tell the two passes apart and
    # gave the clean gradient (perhaps not a finite one) both times.
    same = [jnp.all((u == g) | jnp.isnan(g)) for u, g in _pairs(updates, grads)]
    moved = ~jnp.all(jnp.asarray([*same, True]))
    return jax.tree.map(lambda u: jnp.where(moved, u, 0).astype(u.dtype), updates)


def _pairs(*trees):
    return zip(*map(jax.tree.leaves, trees), strict=True)


def _widen(x):
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def _key():
    return {"key": jax.random.key(7)}


def _options(**options):
    return lambda: options


_ASAM = {"size": sizes(0.01, biases=False), "needs_params": True}
_ALL = {"size": sizes(0.0, biases=True), "needs_params": True}
_SCHEDULE = {"given": optax.constant_schedule, "stateful": True}
_RANDOM = {"dual": None, "stateful": True, "options": _key}
_INSIDE = {"micro_batch": True, "product": True, "stateful": True}
_SPLIT = {
    "micro_batch": True,
    "product": True,
    "options": _options(microbatch_size=MICRO_BATCH),
}


_SCANNED = {
    "micro_batch": True,
    "product": True,
    "options": _options(scan_passes=True),
}
_KEEPS = {"stateful": True, "remembers": True}


def _p(ord, **options):
    return {
        "options": _options(ord=ord, **options),
        "length": norm(ord),
        "dual": dual_norm(ord),
    }


def _random_sam(rho, key):
    return optax_sam.sharpness_aware(optax_sam.random_ascent(rho, key=key))


def _esam(rho, ignore_updates=False):
    """Every leaf climbs; half of the examples descend."""
    return optax_sam.esam(
        rho, beta=1.0, key=jax.random.key(7), ignore_updates=ignore_updates
    )


def _sam_with_aux(rho):
    return optax_sam.sharpness_aware(optax_sam.steepest_ascent(rho), has_aux=True)


def _partial_climb(rho, ignore_updates=False):
    """By half of the examples; a function, so that only rho is injected."""
    return optax_sam.partial_climb(rho, 0.5, ignore_updates=ignore_updates)


def _gsam(rho, scan_passes, ignore_updates=False):
    return optax_sam.gsam(
        rho, alpha=0.0, scan_passes=scan_passes, ignore_updates=ignore_updates
    )


def _le_sam(rho, scan_passes=False, ignore_updates=False):
    """The budget is never reached: rho is the cap."""
    return optax_sam.le_sam(
        np.inf, rho_max=rho, scan_passes=scan_passes, ignore_updates=ignore_updates
    )


def _friendly(rho):
    return optax_sam.friendly_ascent(optax_sam.steepest_ascent(rho))


def _all_leaves_alone(rho):
    return optax_sam.climb_only(optax_sam.steepest_ascent(rho), _every_leaf)


def _every_leaf(tree):
    return jax.tree.map(lambda _: True, tree)


_steepest, _adaptive = optax_sam.steepest_ascent, optax_sam.adaptive_ascent
_sam, _asam, _m_sam = optax_sam.sam, optax_sam.asam, optax_sam.m_sam

ASCENTS = [
    Row("steepest", _steepest),
    Row("steepest-1", _steepest, **_p(1)),
    Row("steepest-1.5", _steepest, **_p(1.5)),
    Row("steepest-3", _steepest, **_p(3)),
    Row("steepest-inf", _steepest, **_p(np.inf)),
    Row("steepest-array", _steepest, given=jnp.asarray),
    Row("steepest-schedule", _steepest, **_SCHEDULE),
    Row("adaptive", _adaptive, **_ASAM),
    Row("friendly", _friendly, stateful=True, remembers=True),
    Row("some-leaves", _all_leaves_alone),
    Row(
        "adaptive-all",
        _adaptive,
        options=_options(mask=True),
        size=sizes(0.01, biases=True),
        needs_params=True,
    ),
    Row("adaptive-davda54", _adaptive, options=_options(eta=0.0, mask=True), **_ALL),
    Row("adaptive-inf", _adaptive, **_p(np.inf), **_ASAM),
    Row("random", optax_sam.random_ascent, **_RANDOM),
]
PRODUCTS = [
    Row("sam", _sam, product=True),
    Row("sam-array", _sam, product=True, given=jnp.asarray),
    Row("sam-schedule", _sam, product=True, **_SCHEDULE),
    Row("sam-aux", _sam_with_aux, product=True, has_aux=True),
    Row("sam-micro-schedule", _sam, **_SPLIT, **_SCHEDULE),
    Row("asam", _asam, product=True, **_ASAM),
    Row("look_sam", optax_sam.look_sam, product=True, stateful=True, remembers=True),
    Row(
        "asam-davda54",
        _asam,
        product=True,
        options=_options(eta=0.0, mask=True),
        **_ALL,
    ),
    Row("asam-micro", _asam, **_SPLIT, **_ASAM),
    Row("m_sam", _m_sam, **_SPLIT),
    Row("le_sam", _le_sam, product=True),
    Row("sam-scanned", _sam, **_SCANNED),
    Row("le_sam-scanned", _le_sam, **_SCANNED),
    Row("gsam-scanned", _gsam, **_SCANNED, mixes=True),
    Row("look_sam-scanned", optax_sam.look_sam, **_SCANNED, **_KEEPS),
    Row("random-sam", _random_sam, product=True, **_RANDOM),
    Row("gsam", optax_sam.gsam, options=_options(alpha=0.0), product=True, mixes=True),
    Row(
        "wsam",
        optax_sam.wsam,
        options=_options(gamma=0.5),
        product=True,
        mixes=True,
    ),
    Row(
        "friendly_sam",
        optax_sam.friendly_sam,
        product=True,
        stateful=True,
        remembers=True,
    ),
    Row("partial_climb", _partial_climb, **_INSIDE),
    Row("esam", _esam, of_each=True, **_INSIDE),
    Row(
        "momentum_sam", optax_sam.momentum_sam, remembers=True, momentum=True, **_INSIDE
    ),
    Row("stale_sam", optax_sam.stale_sam, remembers=True, stale=True, **_INSIDE),
    Row(
        "random_perturbation",
        optax_sam.random_perturbation,
        **_RANDOM | {"micro_batch": True, "product": True},
    ),
]
ROWS = ASCENTS + PRODUCTS
