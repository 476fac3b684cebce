"""What goes wrong with m-SAM on devices: with the numbers that it then gives.

In `jax.shard_map` as it comes, `jax.grad` at replicated parameters is the sum over the
devices. And every average has its place: of gradients, after the climbs, once.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from problems import (
    EXAMPLES,
    HESSIAN,
    START,
    TANH_BATCH,
    TANH_START,
    least_squares,
    quick_jit,
    tanh_loss,
    tanh_row,
    torch_sgd,
)
from test_parity import MICRO_BATCHES, PRINTED, numbers

import optax_sam

RHO = 0.5

pytestmark = pytest.mark.usefixtures("x64")


def mesh_of(count):
    return Mesh(np.array(jax.devices()[:count]), ("data",))


def by_shard_map(step, count, check_vma=True):
    """`step(params, batch)` on each part of the batch; what the first device has."""

    def local(params, batch):
        return jax.tree.map(lambda x: x[None], step(params, batch))

    run = jax.shard_map(
        local,
        mesh=mesh_of(count),
        in_specs=(P(), P("data")),
        # Typed as the same on all devices where types are checked.
        out_specs=P() if check_vma else P("data"),
        check_vma=check_vma,
    )
    return lambda *args: jax.tree.map(lambda x: x[0], run(*args))


def by_mapping(step, count, mapped):
    run = mapped(step, axis_name="data", in_axes=(None, 0))

    def cut_and_run(params, batch):
        cut = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
        return jax.tree.map(lambda x: x[0], run(params, cut))

    return cut_and_run


MAPS = {
    "shard_map": by_shard_map,
    "unchecked": functools.partial(by_shard_map, check_vma=False),
    "pmap": functools.partial(by_mapping, mapped=jax.pmap),
    "vmap": functools.partial(by_mapping, mapped=jax.vmap),
}
every_map = pytest.mark.parametrize("context", MAPS)


def on_devices(step, context="shard_map", count=2, args=(START, EXAMPLES)):
    return quick_jit(MAPS[context](step, count))(*jax.tree.map(jnp.asarray, args))


def assert_is(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def length(tree):
    return optax.tree.norm(tree)


# --- Two examples, one on each of two devices ----------------------------------------
# L(w) = mean of (x . w)^2 / 2 over x = (1, 0), (0, 2), at w = (3, 1), with rho = 1/2.

CLEAN, FULL_BATCH, M_SAM = (1.5, 2.0), (1.65, 2.8), (1.75, 3.0)


def m_sam_by_hand(params, batch, climb, average):
    """m-SAM on one device, spelled out; `climb` and `average` can be wrong."""
    params = optax_sam.per_device(params, "data")
    gradient = jax.grad(least_squares)(params, batch)
    there = optax_sam.per_device(params + climb(gradient), "data")
    return average(jax.grad(least_squares)(there, batch))


def own(gradient):
    return RHO * gradient / length(gradient)


def mean(x):
    return jax.lax.pmean(x, "data")


def averaged_climb(gradient):
    return mean(own(gradient))


def climb_by_the_norm_of_the_mean(gradient):
    return RHO * gradient / length(mean(gradient))


def no_climb(gradient):
    return 0 * gradient


def climb_of_the_mean(gradient):
    return own(mean(gradient))


def sum_of_all(x):
    return jax.lax.psum(x, "data")


def last_one(x):
    last = jax.lax.axis_index("data") == 1
    return jax.lax.psum(jnp.where(last, x, 0), "data")


BUGS = {
    "no climb": (no_climb, mean, CLEAN),
    "climb of the averaged gradient": (climb_of_the_mean, mean, FULL_BATCH),
    "average of the climbs": (averaged_climb, mean, (1.625, 2.5)),
    "norm of the averaged gradient": (climb_by_the_norm_of_the_mean, mean, (1.8, 3.6)),
    "sum for mean": (own, sum_of_all, (3.5, 6.0)),
    "last device only": (own, last_one, (0.0, 6.0)),
}


@every_map
def test_m_sam_of_two_examples(context):
    step = functools.partial(m_sam_by_hand, climb=own, average=mean)
    assert_is(on_devices(step, context), M_SAM)


@pytest.mark.parametrize("bug", BUGS)
def test_bugs_give_these_numbers(bug):
    """So the comparison with the right ones fails, as it must."""
    climb, average, value = BUGS[bug]
    step = functools.partial(m_sam_by_hand, climb=climb, average=average)
    got = on_devices(step)
    assert_is(got, value)
    with pytest.raises(AssertionError, match="Not equal"):
        assert_is(got, M_SAM)


def by_chain(params, batch):
    tx = optax.chain(optax_sam.sam(RHO), optax_sam.mean_over("data"))
    return by_gradient(tx, params, batch)


def by_product(params, batch):
    return by_gradient(optax_sam.m_sam(RHO, axis_name="data"), params, batch)


def by_gradient(tx, params, batch):
    gradient = jax.grad(least_squares)(optax_sam.per_device(params, "data"), batch)
    return update(tx, gradient, params, batch)


def update(tx, gradient, params, batch, loss=least_squares):
    state = tx.init(params)
    return tx.update(gradient, state, params, value_fn=loss, batch=batch)[0]


def m_sharpness(loss=least_squares, rho=RHO, **options):
    grad_fn = optax_sam.value_and_grad(loss, optax_sam.steepest_ascent(rho))
    return optax_sam.m_sharpness(grad_fn, **options)


def by_function(params, batch):
    return m_sharpness(axis_name="data")(params, batch)[1]


@every_map
@pytest.mark.parametrize("step", [by_chain, by_product, by_function])
def test_the_library_has_none_of_these_bugs(step, context):
    assert_is(on_devices(step, context), M_SAM)


@pytest.mark.parametrize("door", [1, 2])
def test_the_library_has_none_of_these_bugs_by_mesh(door):
    options = {"axis_name": "data", "mesh": mesh_of(2)}

    def step(params, batch):
        if door == 2:
            return m_sharpness(**options)(params, batch)[1]
        return update(optax_sam.m_sam(RHO, **options), None, params, batch)

    assert_is(quick_jit(step)(START, EXAMPLES), M_SAM)


@pytest.mark.parametrize(
    ("axis_name", "climb", "norm"),
    [("data", (0.3, 0.4), RHO), (None, (0.5, 0.5), RHO * np.sqrt(2))],
    ids=["whole", "bug"],
)
def test_norm_of_parameters_split_by_hand(axis_name, climb, norm):
    """One coordinate of w on each device, where a norm of its own is too little."""
    ascent = optax_sam.steepest_ascent(RHO, params_axis_name=axis_name)
    run = jax.shard_map(
        lambda g: ascent.update(g, ascent.init(g))[0],
        mesh=mesh_of(2),
        in_specs=P("data"),
        out_specs=P("data"),
    )
    got = quick_jit(run)(HESSIAN @ START)
    assert_is(got, climb)
    assert_is(np.linalg.norm(got), norm)


# --- Five steps that were run with a peer's code -------------------------------------


def five_steps(grad_fn, batch, average=lambda x: x):
    """SGD with momentum, on every device by itself."""
    tx = torch_sgd(0.1, 0.9)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(average(grad_fn(params, batch)[1]), state, params)
        return (optax.apply_updates(params, updates), state), None

    return lambda params: jax.lax.scan(step, (params, tx.init(params)), length=5)[0][0]


@pytest.mark.parametrize(("count", "size"), [(2, None), (4, None), (2, 1)])
@pytest.mark.parametrize("context", [*MAPS, "mesh"])
def test_five_steps_on_devices(context, count, size):
    """Two rows of the batch for each climb, or one, on two devices or four."""
    options = {"axis_name": "data", "microbatch_size": size}
    if context == "mesh":
        grad_fn = m_sharpness(tanh_loss, 0.1, mesh=mesh_of(count), **options)
        run = quick_jit(lambda params, batch: five_steps(grad_fn, batch)(params))
        got = run(TANH_START, TANH_BATCH)
    else:
        grad_fn = m_sharpness(tanh_loss, 0.1, **options)
        got = on_devices(
            lambda params, batch: five_steps(grad_fn, batch)(params),
            context,
            count,
            (TANH_START, TANH_BATCH),
        )
    expected = numbers(MICRO_BATCHES[size or 4 // count])
    np.testing.assert_allclose(tanh_row(got), expected, rtol=0, atol=PRINTED)


# --- The trap ------------------------------------------------------------------------


def naive(params, batch):
    """m-SAM as it was written for pmap in 2020."""
    gradient = jax.grad(least_squares)(params, batch)
    return mean(jax.grad(least_squares)(params + own(gradient), batch))


def test_naive_code_is_m_sam_under_pmap_and_too_large_sam_in_shard_map():
    assert_is(on_devices(naive, "pmap"), M_SAM)
    assert_is(on_devices(naive, "unchecked"), M_SAM)
    assert_is(on_devices(naive), 2 * np.array(FULL_BATCH))


def optax_contrib(params, batch):
    """The same with Optax's own SAM, stepping by minus the gradient."""
    tx = optax.contrib.sam(
        optax.sgd(1.0),
        optax.chain(optax.contrib.normalize(), optax.sgd(RHO)),
        opaque_mode=True,
    )
    gradient = jax.grad(least_squares)(params, batch)
    updates, _ = tx.update(
        gradient,
        tx.init(params),
        params,
        grad_fn=lambda params, _: jax.grad(least_squares)(params, batch),
    )
    return -updates


@pytest.mark.parametrize("count", [2, 4, 8])
def test_optax_contrib_sam_is_too_large_in_shard_map(count):
    """As many times as there are devices, with or without an average behind it."""
    batch = np.tile(EXAMPLES, (4, 1))
    args = (START, batch)
    expected = count * np.array(FULL_BATCH)
    assert_is(on_devices(optax_contrib, count=count, args=args), expected)
    step = lambda *args: mean(optax_contrib(*args))  # noqa: E731
    assert_is(on_devices(step, count=count, args=args), expected)
    # Under pmap the same code is m-SAM.
    if count == 2:
        assert_is(on_devices(step, "pmap"), M_SAM)


def naive_chain(params, batch):
    tx = optax.chain(optax_sam.sam(RHO), optax_sam.mean_over("data"))
    return update(tx, jax.grad(least_squares)(params, batch), params, batch)


def naive_micro_batches(params, batch):
    sam = optax_sam.sam(RHO, microbatch_size=1)
    tx = optax.chain(sam, optax_sam.mean_over("data"))
    return update(tx, None, params, batch)


def naive_product(params, batch):
    gradient = jax.grad(least_squares)(params, batch)
    return update(optax_sam.m_sam(RHO, axis_name="data"), gradient, params, batch)


def naive_function(params, batch):
    """A gradient function that does not differentiate what it is given."""
    grad_fn = optax_sam.m_sharpness(
        lambda _, batch: (jnp.sum(batch), jax.grad(least_squares)(params, batch)),
        axis_name="data",
    )
    return grad_fn(params, batch)[1]


@pytest.mark.parametrize(
    "step", [naive_chain, naive_micro_batches, naive_product, naive_function]
)
@pytest.mark.filterwarnings("ignore:The loss differs between the devices")
def test_naive_code_is_refused(step):
    message = r"same on all devices along 'data'.*per_device\(params, 'data'\)"
    with pytest.raises(ValueError, match=message):
        on_devices(step)


def test_refusal_names_the_first_leaf():
    """And of several leaves only the one that does not vary."""
    grads = {"a": jnp.ones(2), "b": {"c": jnp.ones(2)}, "d": jnp.ones(2)}

    def step(grads, batch):
        varying = {"a": optax_sam.per_device(grads["a"], "data")}
        tx = optax_sam.mean_over("data")
        return tx.update(grads | varying, tx.init(grads))[0]

    with pytest.raises(ValueError, match=r"leaf \['b'\]\['c'\] is the same"):
        on_devices(step, args=(grads, EXAMPLES))


# --- A loss that averages by itself --------------------------------------------------


def mean_loss(params, batch):
    return mean(least_squares(params, batch))


def product_of_mean_loss(params, batch):
    gradient = jax.grad(mean_loss)(optax_sam.per_device(params, "data"), batch)
    tx = optax_sam.m_sam(RHO, axis_name="data")
    return update(tx, gradient, params, batch, mean_loss)


def micro_batches_of_mean_loss(params, batch):
    tx = optax_sam.m_sam(RHO, axis_name="data", microbatch_size=1)
    return update(tx, None, params, batch, mean_loss)


def function_of_mean_loss(params, batch):
    return m_sharpness(mean_loss, axis_name="data")(params, batch)


@pytest.mark.parametrize(
    "step",
    [product_of_mean_loss, micro_batches_of_mean_loss, function_of_mean_loss],
)
def test_loss_that_averages_is_refused(step):
    with pytest.raises(ValueError, match=r"already averages over 'data'.*pmean"):
        on_devices(step)


def test_loss_that_averages_by_mesh_is_refused():
    grad_fn = m_sharpness(mean_loss, axis_name="data", mesh=mesh_of(2))
    with pytest.raises(ValueError, match=r"already averages over 'data'.*pmean"):
        jax.jit(grad_fn)(START, EXAMPLES)


def test_loss_that_averages_goes_unseen_in_a_bare_chain():
    """`sam` does not know the axis there: every gradient is divided once more."""

    def step(params, batch):
        tx = optax.chain(optax_sam.sam(RHO), optax_sam.mean_over("data"))
        gradient = jax.grad(mean_loss)(optax_sam.per_device(params, "data"), batch)
        return update(tx, gradient, params, batch, mean_loss)

    assert_is(on_devices(step), np.array(M_SAM) / 2)


# --- Refusals that need devices ------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        by_product,
        by_chain,
        by_function,
        lambda params, batch: optax_sam.per_device(params, "data"),
        lambda params, batch: update(
            optax_sam.m_sam(RHO, axis_name="data", microbatch_size=1),
            None,
            params,
            batch,
        ),
    ],
)
def test_axis_that_is_not_bound(call):
    with pytest.raises(NameError, match=r"'data' is not bound here.*shard_map.*mesh="):
        call(START, EXAMPLES)


def four_examples(**options):
    """Four examples for two devices, by door 2."""
    batch = np.tile(EXAMPLES, (2, 1))
    return m_sharpness(**options)(jnp.asarray(START), jnp.asarray(batch))


def test_mesh_without_that_axis():
    with pytest.raises(ValueError, match=r"no axis 'batch', its axes are \('data',\)"):
        four_examples(axis_name="batch", mesh=mesh_of(2))


def test_mesh_without_axis_name():
    with pytest.raises(ValueError, match=r"axes are \('data',\): name the one"):
        four_examples(microbatch_size=1, mesh=mesh_of(2))
    with pytest.raises(ValueError, match=r"axes are \('data',\): name the one"):
        optax_sam.sam(RHO, microbatch_size=1, mesh=mesh_of(2))


def test_batch_that_the_devices_cannot_share():
    with pytest.raises(ValueError, match=r"4 examples, which 3 devices.*last 1"):
        four_examples(axis_name="data", mesh=mesh_of(3))


@pytest.mark.parametrize(
    ("count", "size", "nearest"), [(1, 3, "2 and 4"), (2, 4, "2"), (2, 3, "2")]
)
def test_microbatch_size_that_does_not_divide_the_part_of_a_device(
    count, size, nearest
):
    """The nearest that do are counted on one device, not in the whole batch."""
    message = rf"does not divide the {4 // count} .*on each device.*do: {nearest}\."
    with pytest.raises(ValueError, match=message):
        four_examples(axis_name="data", mesh=mesh_of(count), microbatch_size=size)


def test_leaves_of_different_sizes():
    grad_fn = m_sharpness(axis_name="data", mesh=mesh_of(2))
    with pytest.raises(ValueError, match=r"same leading size.*\['y'\]: \(4,\)"):
        grad_fn(START, ({"x": np.ones((2, 2)), "y": np.ones(4)}))


@pytest.mark.parametrize("context", ["shard_map", "mesh"])
def test_random_key_in_aux(context):
    def loss(params, batch, key):
        return least_squares(params, batch), {"next": [key]}

    options = {"axis_name": "data"}
    if context == "mesh":
        options["mesh"] = mesh_of(2)
    grad_fn = optax_sam.m_sharpness(
        optax_sam.value_and_grad(loss, optax_sam.steepest_ascent(RHO), has_aux=True),
        **options,
    )

    def step(params, batch):
        return grad_fn(params, batch, jax.random.key(0))

    with pytest.raises(TypeError, match=r"\['next'\]\[0\].*random key.*Split keys"):
        on_devices(step) if context == "shard_map" else jax.jit(step)(START, EXAMPLES)
