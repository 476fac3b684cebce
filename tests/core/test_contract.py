"""What every ascent and every product promises, crossed with `table.py`.

A property takes a `row` and names its condition with `@only`, so that the same
functions can be asked of a row that is not in the table: `test_new_ascent.py` does.
Compiling is what takes time here, so it is done once for a row (`row.step`) and where
it is the point; the rest runs operation by operation.
"""

import contextlib
import dataclasses
import inspect
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from table import GRADS, PARAMS, RHO, ROWS, cross, flat, only

import optax_sam

# Half precision rounds climbs away, so the products warn; that is a test of its own.
HALF = pytest.mark.filterwarnings("ignore:.*half precision")


def pytest_generate_tests(metafunc):
    cross(metafunc, ROWS)


def is_ascent(row):
    return not row.product


def is_product(row):
    return row.product


def follows_gradient(row):
    return row.dual is not None


def ascent_that_follows(row):
    return is_ascent(row) and follows_gradient(row)


def stateless_ascent(row):
    return is_ascent(row) and not row.stateful


def forgets(row):
    """Whether the climb depends on this step's gradient alone."""
    return not row.remembers


def given_as_number(row):
    return row.given is float


def scaled(factor, tree=GRADS):
    return jax.tree.map(lambda x: x * np.float32(factor), tree)


def cast(tree, dtype):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def length(row, climb, params=PARAMS):
    """The row's norm of climb / T, computed in NumPy."""
    over_size = jax.tree.map(
        lambda e, t: np.asarray(e, np.float64) / np.asarray(t, np.float64),
        climb,
        row.size(params),
    )
    return row.length(over_size)


def assert_radius(row, climb, params=PARAMS, rho=RHO, rtol=3e-6):
    np.testing.assert_allclose(length(row, climb, params), rho, rtol=rtol)


def assert_zero(climb, like=GRADS):
    chex.assert_trees_all_equal_structs(climb, like)
    assert not flat(climb).any(), climb  # a NaN counts as not zero


def assert_close(climb, expected):
    # Products reveal their climb with the rounding error of `params + climb`.
    chex.assert_trees_all_close(climb, expected, rtol=1e-5, atol=1e-6)


# --- The climb --------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_radius_is_exact(row, compiled):
    climb = row.compiled_climb if compiled else row.climb
    assert_radius(row, climb(GRADS))


@only(follows_gradient)
def test_hoelder_equality(row):
    # Among all climbs of that length none raises the linearized loss more.
    slope = flat(GRADS) @ flat(row.compiled_climb(GRADS))
    steepness = row.dual(jax.tree.map(np.multiply, row.size(PARAMS), GRADS))
    np.testing.assert_allclose(slope, RHO * steepness, rtol=3e-6)


@pytest.mark.parametrize("scale", [1e-37, 1e-25, 1e-10, 1e10, 1e25, 1e37])
def test_size_of_the_gradient_cancels(row, scale):
    climb = row.compiled_climb(scaled(scale))
    assert_close(climb, row.compiled_climb(GRADS))
    assert_radius(row, climb)


def test_tiny_leaf_beside_a_huge_one(row):
    grads = GRADS | {"b": scaled(1e-30, GRADS["b"]), "scale": np.float32(1e30)}
    assert_radius(row, row.compiled_climb(grads))


@only(follows_gradient)
def test_zero_gradient_gives_zero_climb(row):
    assert_zero(row.compiled_climb(scaled(0)))
    with jax.debug_nans(True):
        assert_zero(row.climb(scaled(0)))


@only(lambda row: not follows_gradient(row))
def test_climb_without_gradient_does_not_look_at_it(row):
    climb = row.compiled_climb(GRADS)
    chex.assert_trees_all_equal(climb, row.compiled_climb(scaled(0)))
    chex.assert_trees_all_equal(climb, row.compiled_climb(scaled(-3.0)))


@pytest.mark.parametrize("kind", [optax_sam.steepest_ascent, optax_sam.adaptive_ascent])
def test_tied_entries_share_the_climb(kind):
    # In the 1-norm every split of rho among the largest entries is a maximizer.
    grads = {"w": jnp.array([3.0, -3.0, 1.0]), "v": jnp.array(3.0)}
    ascent = kind(0.3, ord=1)
    params = jax.tree.map(lambda g: jnp.full_like(g, 0.99), grads)  # T = 1
    climb, _ = ascent.update(grads, ascent.init(params), params)
    assert_close(climb, {"w": jnp.array([0.1, -0.1, 0.0]), "v": jnp.array(0.1)})


@only(lambda row: follows_gradient(row) and not row.mixes)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradient_that_is_not_finite_gives_zero_climb(row, bad):
    one = GRADS["b"].copy()
    one[1] = bad
    assert_zero(row.compiled_climb(GRADS | {"b": one}))
    assert_zero(row.compiled_climb(GRADS | {"scale": np.float32(bad)}))


GRADIENTS = {
    "zero": scaled(0),
    "partly zero": GRADS | {"dense": scaled(0, GRADS["dense"])},
    "not zero": GRADS,
    "tiny": scaled(1e-25),
}


@only(ascent_that_follows)
@pytest.mark.parametrize("name", GRADIENTS)
def test_climb_can_be_differentiated(row, name):
    with jax.debug_nans(True):
        climb, pull = jax.vjp(row.climb, cast(GRADIENTS[name], jnp.float32), PARAMS)
        pulled = pull(climb)
    assert np.isfinite(flat(pulled)).all(), pulled


@only(ascent_that_follows)
def test_derivative_of_the_climb_is_its_slope(row):
    # Against central differences; second_order=True rests on this derivative.
    along = jax.tree.map(jnp.cos, GRADS)

    def at(t):
        return row.climb(jax.tree.map(lambda g, v: g + t * v, GRADS, along))

    slope = flat(jax.jvp(at, (0.0,), (1.0,))[1])
    difference = flat(at(0.01)) - flat(at(-0.01))
    np.testing.assert_allclose(slope, difference / 0.02, atol=2e-4)


# --- Trees and dtypes -------------------------------------------------------------


def of_dtypes(*names):
    """Gradient and parameters, with these dtypes leaf by leaf."""
    structure = jax.tree.structure(GRADS)
    dtypes = structure.unflatten([jnp.dtype(name) for name in names])
    return [jax.tree.map(jnp.asarray, tree, dtypes) for tree in (GRADS, PARAMS)]


@HALF
def test_structure_and_dtypes_are_kept(row):
    grads, params = of_dtypes("bfloat16", "float16", "float32", "bfloat16")
    climb = row.climb(grads, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(climb, grads)
    # One rounding to 8 bits; in products a second one, of parameters 15 times longer.
    assert_radius(row, climb, params, rtol=0.1)


@only(is_ascent)
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_is_rounded_once(row, name):
    # Norms and all else in float32: what comes out is the rounding of that climb.
    grads, params = of_dtypes(*[name] * 4)
    climb = row.climb(grads, params)
    wide = row.climb(cast(grads, jnp.float32), cast(params, jnp.float32))
    chex.assert_trees_all_equal(climb, cast(wide, name))
    chex.assert_trees_all_equal_dtypes(climb, grads)


@only(is_ascent)
@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_norms_of_half_precision_do_not_overflow(row, size):
    # The squares of these overflow, or vanish, in float16.
    grads = cast(scaled(size), jnp.float16)
    climb = row.climb(grads, cast(PARAMS, jnp.float16))
    assert_radius(row, climb, rtol=2e-3)


@only(is_product)
def test_products_warn_of_half_precision(row):
    grads, params = of_dtypes(*["bfloat16"] * 4)
    with pytest.warns(UserWarning, match="float32"):
        jax.eval_shape(lambda: row.climb(grads, params))


@only(is_ascent)
def test_double_precision_is_used(row):
    with jax.enable_x64(True):
        grads, params = cast(GRADS, jnp.float64), cast(PARAMS, jnp.float64)
        climb = row.climb(grads, params, row.make(np.float64(RHO)))
        chex.assert_trees_all_equal_dtypes(climb, grads)
        assert_radius(row, climb, params, rtol=1e-12)


class Pair(NamedTuple):
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """A tree whose keys are attributes, as Equinox and Flax have them."""

    weight: Any
    bias: Any


def zoo(x):
    return {
        "scalar": jnp.float32(x),
        "none": None,
        "empty array": jnp.zeros((0, 3)),
        "nested": Pair([jnp.full(1, 2 * x)], (Pair(jnp.full(2, -x), None), {})),
        "module": Module(jnp.full((1, 2), 3 * x), bias=jnp.full(1, x)),
        "filtered": Module(jnp.full(2, -x), bias=None),
    }


TREES = {
    "zoo": zoo,
    "scalar": jnp.float32,
    "empty": lambda x: {},
    "nothing in it": lambda x: [None, jnp.zeros((0, 3)), ()],
}


@pytest.mark.parametrize("name", TREES)
def test_strange_trees(row, name):
    grads, params = TREES[name](-2.0), TREES[name](0.5)
    climb = row.climb(grads, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(climb, grads)
    assert_radius(row, climb, params, rho=RHO if flat(grads).any() else 0)


@only(is_ascent)
def test_mask_on_the_ascent(row):
    # The norm is that of the trained leaves; the frozen ones do not move at all.
    frozen = {"dense": {"kernel": False, "bias": True}, "scale": False, "b": True}
    tx = optax.selective_transform(row.make(), freeze_mask=frozen)
    climb = row.climb(GRADS, tx=tx)
    assert_zero([climb["b"], climb["dense"]["bias"]], [0.0, 0.0])
    assert_radius(row, climb)


# --- rho --------------------------------------------------------------------------


def with_rho(row, rho):
    return row.climb(GRADS, tx=row.factory(rho=rho, **row.options()))


@only(lambda row: given_as_number(row) and not row.micro_batch)
def test_rho_as_number_array_or_constant_schedule(row):
    expected = row.compiled_climb(GRADS)
    kinds = [np.float32(RHO), jnp.asarray(RHO), optax.constant_schedule(RHO)]
    for kind in kinds:
        assert_close(with_rho(row, kind), expected)


@only(given_as_number)
def test_rho_may_be_traced_and_zero(row):
    climbs = jax.vmap(lambda rho: with_rho(row, rho))(jnp.array([0.0, RHO, 2 * RHO]))
    zero, once, twice = (jax.tree.map(lambda x, i=i: x[i], climbs) for i in range(3))
    assert_zero(zero)
    assert_close(once, row.compiled_climb(GRADS))
    assert_close(twice, jax.tree.map(lambda e: 2 * e, once))


@only(lambda row: is_ascent(row) and given_as_number(row))
def test_climb_grows_with_rho(row):
    # Also the derivative with respect to rho, at zero too.
    climb = row.compiled_climb(GRADS)
    for rho in (0.0, RHO):
        _, growth = jax.jvp(lambda r: with_rho(row, r), (rho,), (1.0,))
        assert_close(growth, jax.tree.map(lambda e: e / RHO, climb))


@only(lambda row: given_as_number(row) and forgets(row))
def test_schedule_counts_steps_from_zero(row):
    tx = row.factory(rho=lambda step: 0.5 / (step + 1), **row.options())
    update = jax.jit(lambda state: row.update(tx, GRADS, state, PARAMS))
    state = tx.init(PARAMS)
    for expected in (0.5, 0.25, 0.5 / 3):
        climb, state = update(state)
        assert_radius(row, climb, rho=expected)


def injected(row, rho):
    names = set(inspect.signature(row.factory).parameters)
    static = names & {"ord", "mask", "combine", "microbatch_size"}
    inject = optax.inject_hyperparams(row.factory, static_args=static)
    return inject(rho=rho, **row.options())


@only(lambda row: given_as_number(row) and forgets(row))
def test_rho_in_the_state(row):
    tx = injected(row, RHO)
    update = jax.jit(lambda state: row.update(tx, GRADS, state, PARAMS))
    climb, state = update(tx.init(PARAMS))
    assert_radius(row, climb)
    assert state.hyperparams["rho"] == np.float32(RHO)
    state.hyperparams["rho"] = jnp.asarray(3 * RHO)
    assert_radius(row, update(state)[0], rho=3 * RHO)


@only(lambda row: given_as_number(row) and forgets(row) and not row.micro_batch)
def test_injected_schedule(row):
    tx = injected(row, lambda step: 0.5 / (step + 1))
    state = tx.init(PARAMS)
    for expected in (0.5, 0.25):
        climb, state = row.update(tx, GRADS, state, PARAMS)
        assert_radius(row, climb, rho=expected)


# --- JAX's transformations --------------------------------------------------------


def test_scan_with_donated_buffers_equals_a_python_loop(row):
    tx = row.make()
    grads = jax.tree.map(lambda g: jnp.stack([g, 2 * g, g**2]), GRADS)

    def walk(params, climb):
        return jax.tree.map(lambda p, e: p + e / 10, params, climb)

    def one(carry, grads):
        params, state = carry
        climb, state = row.update(tx, grads, state, params)
        return (walk(params, climb), state), None

    scan = jax.jit(lambda *c: jax.lax.scan(one, c, grads)[0], donate_argnums=(0, 1))
    params, state = PARAMS, row.tx.init(PARAMS)
    for i in range(3):
        climb, state = row.step(jax.tree.map(lambda g, i=i: g[i], grads), state, params)
        params = walk(params, climb)
    for _ in range(2):  # from `init` again, which must still own what it needs
        start = jax.tree.map(jnp.array, PARAMS), tx.init(PARAMS)
        by_scan, last = scan(*start)
        assert_close(by_scan, params)
        assert jax.tree.structure(last) == jax.tree.structure(state)
        for mine, expected in zip(*map(jax.tree.leaves, (last, state)), strict=True):
            if jnp.issubdtype(mine.dtype, jnp.floating):  # an average: rounded
                np.testing.assert_allclose(mine, expected, rtol=1e-6)
            else:
                chex.assert_trees_all_equal(mine, expected)


def test_vmap_over_seeds(row):
    grads = [GRADS, scaled(-0.5), jax.tree.map(lambda g: g**2, GRADS)]
    params = [PARAMS, scaled(2, PARAMS), PARAMS]
    seeds = [jax.tree.map(lambda *x: jnp.stack(x), *trees) for trees in (grads, params)]
    climbs = jax.vmap(row.climb)(*seeds)
    for i, (g, p) in enumerate(zip(grads, params, strict=True)):
        one = jax.tree.map(lambda x, i=i: x[i], climbs)
        assert_close(one, row.compiled_climb(g, p))


def test_second_call_does_not_retrace(row):
    _, state = row.step(GRADS, row.tx.init(PARAMS), PARAMS)
    before = len(row.traces)
    for _ in range(2):
        _, state = row.step(GRADS, state, PARAMS)
    assert len(row.traces) == before


def shapes(state):
    def shape(x):
        return x.shape, x.dtype, getattr(x, "weak_type", False)

    return jax.tree.map(shape, state)


def test_state_keeps_structure_and_dtypes_from_init_on(row):
    tx = row.make()
    state = tx.init(PARAMS)
    first = shapes(state)
    assert shapes(jax.eval_shape(tx.init, PARAMS)) == first

    for _ in range(2):
        _, state = row.step(GRADS, state, PARAMS)
        assert shapes(state) == first
    assert bool(jax.tree.leaves(state)) == row.stateful


@only(forgets)
def test_state_holds_nothing_parameter_sized(row):
    # Also with many parameters: a counter and a key, at most.
    state = row.make().init({"w": jnp.ones((50, 20))})
    assert sum(x.size for x in jax.tree.leaves(state)) <= 4


# --- Optax's wrappers -------------------------------------------------------------


def test_inside_other_transformations(row):
    # With arguments for the neighbours, in a wrapper that wants gradients.
    inner = row.make()
    if row.micro_batch:
        options = {"ignore_updates": True, **row.options()}
        inner = row.factory(rho=row.given(RHO), **options)
    tx = optax.chain(optax.apply_if_finite(inner, 3), optax.scale(0.5))
    extra = {"value": 1.0, "grad": GRADS, "loss": None, "foo": "bar"}
    state = tx.init(PARAMS)
    climb, state = row.update(tx, GRADS, state, PARAMS, ignored=True, **extra)
    assert_close(climb, jax.tree.map(lambda e: e / 2, row.compiled_climb(GRADS)))
    assert state[0].total_notfinite == 0


@only(forgets)
def test_map_params_finds_no_parameters_in_the_state(row):
    tx = row.make()
    state = tx.init(PARAMS)
    visited = []

    def visit(x):
        visited.append(x)
        return x

    mapped = optax.tree.map_params(tx, visit, state)
    chex.assert_trees_all_equal(mapped, state)
    assert visited == []


@only(is_ascent)
def test_needs_params_only_where_the_table_says_so(row):
    tx = row.make()
    refused = pytest.raises((TypeError, ValueError), match="params")
    with refused if row.needs_params else contextlib.nullcontext():
        climb, _ = tx.update(GRADS, tx.init(PARAMS))
        assert_close(climb, row.climb(GRADS))


# --- Both doors -------------------------------------------------------------------


def bowl(params):
    """A loss with the gradient w - 1, a different one at every climbed point."""
    squares = jax.tree.map(lambda w: jnp.sum((w - 1) ** 2), params)
    return sum(jax.tree.leaves(squares)) / 2


def climbed_bowl(row, params):
    """The bowl at the climbed point, whose gradient both doors should give."""
    ascent, grads = row.make(), jax.grad(bowl)(params)
    climb, _ = ascent.update(grads, ascent.init(params), params)
    return jax.tree.map(jnp.add, params, climb)


@only(is_ascent)
def test_door_1_differentiates_at_the_climbed_point(row):
    tx = optax_sam.sharpness_aware(row.make())
    grads = jax.grad(bowl)(PARAMS)
    climbed, _ = tx.update(grads, tx.init(PARAMS), PARAMS, value_fn=bowl)
    assert_close(climbed, jax.grad(bowl)(climbed_bowl(row, PARAMS)))


@only(stateless_ascent)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_door_2_differentiates_at_the_climbed_point(row, compiled):
    grad_fn = optax_sam.value_and_grad(
        lambda w: (bowl(w), {"clean": w["b"]}), row.make(), has_aux=True
    )
    (value, aux), climbed = (jax.jit(grad_fn) if compiled else grad_fn)(PARAMS)
    assert_close(climbed, jax.grad(bowl)(climbed_bowl(row, PARAMS)))
    np.testing.assert_allclose(value, bowl(PARAMS), rtol=1e-6)
    np.testing.assert_array_equal(aux["clean"], PARAMS["b"])


def twice_as_far(clean, climbed):
    return jax.tree.map(lambda a, b: 2 * b - a, clean, climbed)


@only(stateless_ascent)
def test_combine_sees_the_clean_and_the_climbed_gradient(row):
    grads = jax.grad(bowl)(PARAMS)
    climbed = jax.grad(bowl)(climbed_bowl(row, PARAMS))
    expected = twice_as_far(grads, climbed)
    tx = optax_sam.sharpness_aware(row.make(), combine=twice_as_far)
    by_tx, _ = tx.update(grads, tx.init(PARAMS), PARAMS, value_fn=bowl)
    assert_close(by_tx, expected)
    grad_fn = optax_sam.value_and_grad(bowl, row.make(), combine=twice_as_far)
    assert_close(grad_fn(PARAMS)[1], expected)


@only(lambda row: is_ascent(row) and row.stateful)
def test_door_2_refuses_state(row):
    with pytest.raises((TypeError, ValueError), match="sharpness_aware"):
        optax_sam.value_and_grad(bowl, row.make())(PARAMS)


@only(stateless_ascent)
@pytest.mark.parametrize("second_order", [False, True])
def test_door_2_at_a_minimum(row, second_order):
    # The gradient is zero, so is the climb; nothing divides by it on the way back.
    grad_fn = optax_sam.value_and_grad(bowl, row.make(), second_order=second_order)
    with jax.debug_nans(True):
        value, grads = grad_fn(jax.tree.map(jnp.ones_like, PARAMS))
    assert value == 0
    assert_zero(grads)


@only(stateless_ascent)
def test_second_order_is_the_gradient_of_the_climbed_loss(row):
    grad_fn = optax_sam.value_and_grad(bowl, row.make(), second_order=True)
    value, grads = grad_fn(PARAMS)
    expected = jax.grad(lambda w: bowl(climbed_bowl(row, w)))(PARAMS)
    chex.assert_trees_all_close(grads, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(value, bowl(PARAMS), rtol=1e-6)
