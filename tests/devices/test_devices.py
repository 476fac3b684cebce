"""One oracle, a Python loop over sub-batches, for every way to hold them.

Eight simulated devices, 32 examples: four on each device, or two micro-batches of two.
One network has what makes sub-batches differ from each other and from the whole:
BatchNorm statistics and dropout. A small one serves where only the climbs matter.
"""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from problems import TANH_START, ascent_with_memory, quick_jit, tanh_loss

import optax_sam

DEVICES, SIZE, ON_EACH = 8, 32, 4
RHO, LEARNING_RATE, STEPS = 0.3, 0.2, 2
EXACT = {"rtol": 0, "atol": 1e-11}

pytestmark = pytest.mark.usefixtures("x64")


def mesh_of(**axes):
    """A mesh of all devices with automatic axes, by their names and sizes."""
    return Mesh(np.array(jax.devices()).reshape(tuple(axes.values())), tuple(axes))


def assert_same(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **EXACT), got, expected)


# --- Two problems: loss(params, examples, key) -> (value, aux) -----------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    loss: Callable[..., Any]
    start: Any
    examples: Any
    rows: Any = False  # which leaves of aux hold one row for each example


def network(params, examples, key, running=None):
    """Convolution, BatchNorm, dropout, linear; and aux of every kind."""
    running = running or {"mean": np.array([0.5, -0.5]), "var": np.array([1.5, 2.0])}
    images, labels = examples
    kernel, layout = params["conv"]["kernel"], ("NHWC", "HWIO", "NHWC")
    h = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=layout
    )
    mean, var = jnp.mean(h, (0, 1, 2)), jnp.var(h, (0, 1, 2))
    h = (h - mean) / jnp.sqrt(var + 1e-3) * params["norm"]["scale"]
    h = jax.nn.softplus(h + params["norm"]["bias"]).reshape(len(images), -1)
    mask = jax.random.bernoulli(key, 0.5, h.shape)
    logits = (2 * h * mask) @ params["dense"]["kernel"] + params["dense"]["bias"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    right = jnp.argmax(logits, 1) == labels
    aux = {
        "running": {
            "mean": 0.9 * running["mean"] + 0.1 * mean,
            "var": 0.9 * running["var"] + 0.1 * var,
        },
        "hits": jnp.sum(right),
        "any_hit": jnp.any(right),
        "logits": logits,
        "mask": mask,
    }
    return jnp.mean(losses), aux


def tanh_layer(params, examples, key):
    del key
    return tanh_loss(params, examples), {}


_random = np.random.default_rng(0)
# The examples differ in size, so that the climbs of sub-batches differ in direction.
_sizes = np.geomspace(0.3, 3, SIZE)

NETWORK = Problem(
    network,
    {
        "conv": {"kernel": _random.normal(size=(3, 3, 1, 2)) / 2},
        "dense": {"bias": np.zeros(3), "kernel": _random.normal(size=(32, 3)) / 4},
        "norm": {"bias": np.array([0.1, -0.2]), "scale": np.array([1.0, 0.5])},
    },
    (
        _random.normal(size=(SIZE, 4, 4, 1)) * _sizes[:, None, None, None],
        _random.integers(0, 3, size=SIZE),
    ),
    {"running": False, "hits": False, "any_hit": False, "logits": True, "mask": True},
)
TANH = Problem(
    tanh_layer,
    TANH_START,
    (_random.normal(size=(SIZE, 2)) * _sizes[:, None], _random.normal(size=(SIZE, 2))),
)


def arguments(problem):
    """Parameters, examples and key; made when JAX has its devices and its float64."""
    start, examples = jax.tree.map(jnp.asarray, (problem.start, problem.examples))
    return start, examples, jax.random.key(1)


# --- The oracle ----------------------------------------------------------------------
# A climb takes the gradient of one sub-batch, its index, the parameters, the step and
# what is remembered of earlier steps: NumPy vectors, and no line of the library.


def vector(tree):
    return np.asarray(ravel_pytree(tree)[0])


def unit(x):
    return x / np.linalg.norm(x)


def steepest(gradient, index, params, step, memory):
    return RHO * unit(gradient)


def adaptive(gradient, index, params, step, memory):
    """For `TANH` alone: two biases, then the weights."""
    sizes = np.concatenate([np.ones(2), np.abs(params[2:]) + 0.01])
    return RHO * sizes * unit(sizes * gradient)


def smaller_each_step(gradient, index, params, step, memory):
    return RHO / (1 + step) * unit(gradient)


def every_second_step(gradient, index, params, step, memory):
    return RHO * unit(gradient) * (step % 2 == 0)


def away_from_memory(gradient, index, params, step, memory):
    return RHO * unit(gradient - memory)


def drawn_by_each(gradient, index, params, step, memory):
    """A sub-batch draws what one device would from the key folded with its index."""
    return drawn(jax.random.fold_in(jax.random.key(7), index), step)


def drawn_by_all(gradient, index, params, step, memory):
    return drawn(jax.random.key(7), step)


def drawn(key, step):
    ascent = optax_sam.random_ascent(RHO, key=key)
    like = jax.tree.map(jnp.asarray, TANH.start)
    state = ascent.init(like)._replace(step=jnp.asarray(step, jnp.int32))
    return vector(ascent.update(like, state)[0])


class Expected(NamedTuple):
    """Value, aux and gradient of the first step; parameters and memory at the end."""

    value: Any
    aux: Any
    gradient: Any
    params: Any
    memory: Any


@functools.cache
def gradient_of(problem):
    tree = ravel_pytree(problem.start)[1]
    grad_fn = jax.value_and_grad(problem.loss, has_aux=True)
    return quick_jit(lambda x, *args: grad_fn(tree(x), *args))


@functools.cache
def oracle(problem, size, climb=steepest, steps=1):
    """One sub-batch after the other, each with its own key, climb and aux."""
    params, tree = ravel_pytree(problem.start)
    params, memory, first = np.asarray(params), np.zeros(params.size), None
    for step in range(steps):
        outs, clean, climbed = [], [], []
        for index in range(SIZE // size):
            rows = slice(index * size, (index + 1) * size)
            part = jax.tree.map(lambda x, rows=rows: x[rows], problem.examples)
            key = jax.random.fold_in(jax.random.key(1), index)
            out, gradient = gradient_of(problem)(params, part, key)
            outs.append(out)
            clean.append(vector(gradient))
            there = params + climb(clean[-1], index, params, step, memory)
            climbed.append(vector(gradient_of(problem)(there, part, key)[1]))
        first = first or (outs, np.mean(climbed, 0))
        params = params - LEARNING_RATE * np.mean(climbed, 0)
        memory = 0.9 * memory + 0.1 * np.mean(clean, 0)
    values, auxes = zip(*first[0], strict=True)

    def join(rows, *parts):
        return np.concatenate(parts) if rows else np.mean(parts, axis=0)

    aux = jax.tree.map(join, jax.tree.broadcast(problem.rows, auxes[0]), *auxes)
    return Expected(np.mean(values), aux, tree(first[1]), tree(params), tree(memory))


# --- The contexts --------------------------------------------------------------------
# Each turns `step(params, examples, key) -> (same, rows)`, written for what one device
# holds, into a function of the whole batch: `same` as every device has it, stacked,
# and the rows of all.


def stacked(tree):
    return jax.tree.map(lambda x: x[None], tree)


def on_the_whole(step):
    def run(*args):
        same, rows = step(*args)
        return stacked(same), rows

    return run


def by_shard_map(step, check_vma=True, **axes):
    mesh = mesh_of(**(axes or {"data": DEVICES}))
    split = P(mesh.axis_names)
    return jax.shard_map(
        on_the_whole(step),
        mesh=mesh,
        in_specs=(P(), split, P()),
        # Where types are checked, JAX itself proves that all devices have the same.
        out_specs=(P() if check_vma else split, split),
        check_vma=check_vma,
    )


def by_mapping(step, mapped):
    run = mapped(step, axis_name="data", in_axes=(None, 0, None))

    def cut_and_run(params, examples, key):
        cut = jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), examples)
        same, rows = run(params, cut, key)
        return same, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)

    return cut_and_run


class Context(NamedTuple):
    """How a step runs, and what the library is told of it."""

    run: Callable[..., Any]
    axis: bool = True
    mesh: bool = False

    def options(self, microbatch_size):
        options = {"microbatch_size": microbatch_size}
        if self.axis:
            options["axis_name"] = "data"
        if self.mesh:
            options["mesh"] = mesh_of(data=DEVICES)
        return options


CONTEXTS = {
    "one device": Context(on_the_whole, axis=False),
    "shard_map": Context(by_shard_map),
    "unchecked": Context(functools.partial(by_shard_map, check_vma=False)),
    "pmap": Context(functools.partial(by_mapping, mapped=jax.pmap)),
    "vmap": Context(functools.partial(by_mapping, mapped=jax.vmap)),
    "mesh": Context(on_the_whole, mesh=True),
}
MAPPED = ("shard_map", "unchecked", "pmap", "vmap")

#: Eight sub-batches of four examples, or sixteen of two, in every context.
everywhere = pytest.mark.parametrize(
    ("context", "microbatch_size"),
    [
        pytest.param(name, size, id=f"{name}-{count}")
        for name, context in CONTEXTS.items()
        for size, count in ((None if context.axis else ON_EACH, 8), (2, 16))
    ],
)

#: Each context once, and each way through the library.
by_every_path = pytest.mark.parametrize(
    ("context", "microbatch_size"),
    [
        ("one device", 2),
        ("shard_map", None),
        ("shard_map", 2),
        ("unchecked", 2),
        ("pmap", None),
        ("vmap", 2),
        ("mesh", None),
    ],
)


def run(run_in, problem, step):
    """What all devices have alike, after a look that they do; and the rows."""
    same, rows = jax.tree.map(np.asarray, quick_jit(run_in(step))(*arguments(problem)))
    for x in jax.tree.leaves(same):
        np.testing.assert_array_equal(x, np.broadcast_to(x[0], x.shape))
    return jax.tree.map(lambda x: x[0], same), rows


# --- Door 2: m_sharpness around a gradient function ----------------------------------


def check_gradient_function(context, microbatch_size, **more):
    """Value, aux of every kind and gradient are those of the loop over sub-batches."""
    options = CONTEXTS[context].options(microbatch_size)
    ascent = optax_sam.steepest_ascent(RHO)
    grad_fn = optax_sam.value_and_grad(network, ascent, has_aux=True, **more)
    split = optax_sam.m_sharpness(grad_fn, concat_aux=NETWORK.rows, **options)

    def step(params, examples, key):
        (value, aux), grads = split(params, examples, key=key)
        rows = {name: aux.pop(name) for name in ("logits", "mask")}
        return (value, aux, grads), rows

    (value, aux, grads), rows = run(CONTEXTS[context].run, NETWORK, step)
    expected = oracle(NETWORK, microbatch_size or ON_EACH)
    assert_same(grads, expected.gradient)
    assert_same(value, expected.value)
    assert_same(aux | rows, expected.aux)
    assert aux["hits"].dtype == aux["any_hit"].dtype == np.float32


@everywhere
def test_gradient_function(context, microbatch_size):
    check_gradient_function(context, microbatch_size)


@pytest.mark.parametrize(
    ("context", "at_once"),
    [("one device", None), ("one device", 4), ("mesh", None), ("shard_map", 2)],
)
def test_examples_in_several_arguments_and_several_at_once(context, at_once):
    def loss(params, scale, inputs, targets):
        return tanh_loss(params, (scale * inputs, targets))

    split = optax_sam.m_sharpness(
        optax_sam.value_and_grad(loss, optax_sam.steepest_ascent(RHO)),
        batch_argnums=(2, 3),
        at_once=at_once,
        **CONTEXTS[context].options(2),
    )

    def step(params, examples, key):
        return split(params, 1.0, *examples), ()

    (value, grads), _ = run(CONTEXTS[context].run, TANH, step)
    assert_same((value, grads), oracle(TANH, 2)[0:3:2])


# --- Door 1: the transformations -----------------------------------------------------


def random_sam(**options):
    ascent = optax_sam.random_ascent(RHO, key=jax.random.key(7))
    return optax_sam.sharpness_aware(ascent, **options)


def smaller_rho(step):
    return RHO / (1 + step)


def readable(state):
    """Random keys as numbers."""

    def data(x):
        key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(x) if key else x

    return jax.tree.map(data, state)


def training(problem, tx, inside):
    """Some steps of SGD behind `tx`, which may compute clean gradients `inside`."""
    tx = optax.chain(tx, optax.sgd(LEARNING_RATE))

    def clean_gradient(params, batch):
        params = optax_sam.per_device(params, "data")
        return jax.grad(problem.loss, has_aux=True)(params, *batch)[0]

    def train(params, examples, key):
        if not inside:
            # The caller differentiates first, so the caller tells the keys apart.
            key = jax.random.fold_in(key, jax.lax.axis_index("data"))
        batch = (examples, key)

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(
                None if inside else clean_gradient(params, batch),
                state,
                params,
                value_fn=lambda params, batch: problem.loss(params, *batch),
                batch=batch,
            )
            return (optax.apply_updates(params, updates), state), None

        carry, _ = jax.lax.scan(step, (params, tx.init(params)), length=STEPS)
        return readable(carry), ()

    return train


def train_with(product, problem, context, microbatch_size, inside=False):
    options = CONTEXTS[context].options(microbatch_size)
    inside = inside or microbatch_size is not None or CONTEXTS[context].mesh
    step = training(problem, product(has_aux=True, **options), inside)
    (params, (state, _)), _ = run(CONTEXTS[context].run, problem, step)
    return params, state


@pytest.mark.parametrize(
    ("context", "microbatch_size"),
    [("shard_map", None), ("shard_map", 2), ("pmap", None), ("mesh", 2)],
)
def test_m_sam(context, microbatch_size):
    product = functools.partial(optax_sam.m_sam, RHO)
    params, _ = train_with(product, NETWORK, context, microbatch_size)
    expected = oracle(NETWORK, microbatch_size or ON_EACH, steps=STEPS)
    assert_same(params, expected.params)


@pytest.mark.parametrize("context", ["shard_map", "unchecked", "pmap"])
def test_keys_are_told_apart_where_the_gradient_is_taken_inside(context):
    """Each device's key is the batch's, folded with its index; the caller folds none.

    A caller who gives the clean gradient has drawn with the keys as they are.
    """
    product = functools.partial(optax_sam.m_sam, RHO)
    params, _ = train_with(product, NETWORK, context, None, inside=True)
    expected = oracle(NETWORK, ON_EACH, steps=STEPS)
    assert_same(params, expected.params)


#: Products by the options of the sub-batches, and the climbs that they must make.
PRODUCTS = {
    "asam": (functools.partial(optax_sam.asam, RHO), adaptive),
    "schedule": (functools.partial(optax_sam.sam, smaller_rho), smaller_each_step),
    "random": (random_sam, drawn_by_each),
}


@by_every_path
@pytest.mark.parametrize("product", PRODUCTS)
def test_products(product, context, microbatch_size):
    product, climb = PRODUCTS[product]
    params, _ = train_with(product, TANH, context, microbatch_size)
    expected = oracle(TANH, microbatch_size or ON_EACH, climb, steps=STEPS)
    assert_same(params, expected.params)


@everywhere
def test_state_is_made_of_averages(context, microbatch_size):
    """The same on every device, and for every placement of the sub-batches."""
    product = functools.partial(optax_sam.m_sam, ascent=ascent_with_memory(RHO))
    params, memory = train_with(product, TANH, context, microbatch_size)
    size = microbatch_size or ON_EACH
    expected = oracle(TANH, size, away_from_memory, steps=STEPS)
    assert_same(params, expected.params)
    assert_same(memory.method, expected.memory)


#: What stands before `mean_over`; a climb at random is then the same for all.
CHAINED = {
    "sam": (optax_sam.sam(RHO, has_aux=True), steepest),
    "asam": (optax_sam.asam(RHO, has_aux=True), adaptive),
    "every second step": (
        optax.conditionally_transform(
            optax_sam.sam(RHO, has_aux=True),
            lambda step, **_: step % 2 == 0,
            forward_extra_args=True,
        ),
        every_second_step,
    ),
}


def check_chain(sam, climb, problem, context):
    tx = optax.chain(sam, optax_sam.mean_over("data"))
    step = training(problem, tx, inside=False)
    (params, _), _ = run(CONTEXTS[context].run, problem, step)
    assert_same(params, oracle(problem, ON_EACH, climb, steps=STEPS).params)


@pytest.mark.parametrize("context", MAPPED)
@pytest.mark.parametrize("name", CHAINED)
def test_place_of_the_average(name, context):
    check_chain(*CHAINED[name], TANH, context)


@pytest.mark.parametrize("context", ["shard_map", "vmap"])
def test_place_of_the_average_with_batch_norm_and_dropout(context):
    check_chain(optax_sam.sam(RHO, has_aux=True), steepest, NETWORK, context)


@pytest.mark.parametrize("context", ["shard_map", "pmap"])
def test_climb_that_does_not_see_the_gradient(context):
    """The point where the second gradient is taken is made the device's own."""
    check_chain(random_sam(has_aux=True), drawn_by_all, TANH, context)


def test_bare_chain_refuses_a_state_that_would_differ():
    sam = optax_sam.sharpness_aware(ascent_with_memory(RHO), has_aux=True)
    tx = optax.chain(sam, optax_sam.mean_over("data"))
    step = training(TANH, tx, inside=False)
    with pytest.raises(ValueError, match=r"axis_name='data'\), and drop mean_over"):
        jax.jit(by_shard_map(step)).trace(*arguments(TANH))


# --- Dropout masks -------------------------------------------------------------------


@pytest.mark.parametrize("door", [1, 2])
@pytest.mark.parametrize("context", CONTEXTS)
def test_masks(context, door):
    """All sub-batches have masks of their own; the two passes of one have the same."""
    seen = defaultdict(list)

    def record(rows, mask):
        seen[tuple(rows.tolist())].append(mask.tobytes())

    def loss(weights, batch):
        rows, key = batch
        mask = jax.random.bits(key, (len(rows), 16), "uint8") < 128
        jax.debug.callback(record, rows, mask)
        return jnp.mean((mask @ weights) ** 2), {}

    options = CONTEXTS[context].options(2)
    tx = optax_sam.m_sam(RHO, has_aux=True, **options)
    grad_fn = optax_sam.m_sharpness(
        optax_sam.value_and_grad(loss, optax_sam.steepest_ascent(RHO), has_aux=True),
        **options,
    )

    def step(weights, rows, key):
        batch, state = (rows, key), tx.init(weights)
        if door == 2:
            return grad_fn(weights, batch)[1], ()
        return tx.update(None, state, weights, value_fn=loss, batch=batch)[0], ()

    run(CONTEXTS[context].run, Problem(loss, np.ones(16), np.arange(SIZE)), step)
    jax.effects_barrier()
    assert sorted(seen) == [(i, i + 1) for i in range(0, SIZE, 2)]
    assert all(len(masks) == 2 for masks in seen.values())
    assert len({mask for masks in seen.values() for mask in masks}) == SIZE // 2


# --- Groups of devices: one climb for several of them --------------------------------


def group_by_loss(params, examples, key):
    """The loss averages over the group, m-SAM over the replicas."""

    def loss(params, examples, key):
        key = jax.random.fold_in(key, jax.lax.axis_index("group"))
        return jax.lax.pmean(network(params, examples, key)[0], "group")

    grad_fn = optax_sam.value_and_grad(loss, optax_sam.steepest_ascent(RHO))
    grad_fn = optax_sam.m_sharpness(grad_fn, axis_name="replica")
    return grad_fn(params, examples, key), ()


def average_of_parts(params, examples, key):
    """What a group of four devices computes, on one."""
    parts = jax.tree.map(lambda x: x.reshape(4, ON_EACH, *x.shape[1:]), examples)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(4))
    losses, _ = jax.vmap(network, (None, 0, 0))(params, parts, keys)
    return jnp.mean(losses), {}


GROUP = Problem(average_of_parts, NETWORK.start, NETWORK.examples)


def test_groups_by_loss():
    in_groups = functools.partial(by_shard_map, replica=2, group=4)
    out, _ = run(in_groups, GROUP, group_by_loss)
    assert_same(out, oracle(GROUP, 16)[0:3:2])


def loss_of(examples):
    return lambda params: tanh_loss(params, examples)


def test_groups_by_loss_in_a_chain():
    def step(params, examples, key):
        def loss(params):
            return jax.lax.pmean(tanh_loss(params, examples), "group")

        tx = optax.chain(optax_sam.sam(RHO), optax_sam.mean_over("replica"))
        grads = jax.grad(loss)(optax_sam.per_device(params, "replica"))
        return tx.update(grads, tx.init(params), params, value_fn=loss)[0], ()

    in_groups = functools.partial(by_shard_map, replica=2, group=4)
    grads, _ = run(in_groups, TANH, step)
    assert_same(grads, oracle(TANH, 16).gradient)


def group_by_chain(params, examples, key):
    """google-research/sam's --inner_group_size, on a mesh with two axes."""
    both = ("replica", "group")
    tx = optax.chain(
        optax_sam.mean_over("group"), optax_sam.sam(RHO), optax_sam.mean_over(both)
    )
    loss = loss_of(examples)
    grads = jax.grad(loss)(optax_sam.per_device(params, both))
    return tx.update(grads, tx.init(params), params, value_fn=loss)[0], ()


def by_two_vmaps(step):
    def run(params, examples, key):
        cut = jax.tree.map(lambda x: x.reshape(2, 4, ON_EACH, *x.shape[1:]), examples)
        inner = jax.vmap(step, (None, 0, None), axis_name="group")
        outer = jax.vmap(inner, (None, 0, None), axis_name="replica")
        same, rows = outer(params, cut, key)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), same), rows

    return run


@pytest.mark.parametrize(
    "in_groups",
    [
        functools.partial(by_shard_map, check_vma=False, replica=2, group=4),
        by_two_vmaps,
    ],
    ids=["unchecked", "vmap"],
)
def test_groups_where_types_are_not_checked(in_groups):
    grads, _ = run(in_groups, TANH, group_by_chain)
    assert_same(grads, oracle(TANH, 16).gradient)


@pytest.mark.filterwarnings("ignore:The loss differs between the devices")
def test_groups_by_chain_are_refused_where_types_are_checked():
    in_groups = by_shard_map(group_by_chain, replica=2, group=4)
    with pytest.raises(ValueError, match=r"along 'group'.*per_device"):
        jax.jit(in_groups).trace(*arguments(TANH))


def test_groups_by_mesh():
    """From plain jit: a sub-batch is what the devices of a group hold together."""
    grad_fn = optax_sam.value_and_grad(tanh_loss, optax_sam.steepest_ascent(RHO))
    mesh = mesh_of(replica=2, group=4)
    grad_fn = optax_sam.m_sharpness(grad_fn, axis_name="replica", mesh=mesh)
    place = NamedSharding(mesh, P(("replica", "group")))

    def step(params, examples, key):
        return grad_fn(params, jax.lax.with_sharding_constraint(examples, place)), ()

    out, _ = run(on_the_whole, TANH, step)
    assert_same(out, oracle(TANH, 16)[0:3:2])


def in_2020(groups, params, examples, key):
    """What google-research/sam computes under pmap; `groups` share a climb."""
    clean = jax.grad(loss_of(examples))(params)
    if groups:
        clean = jax.lax.pmean(clean, "data", axis_index_groups=groups)
    length = optax.tree.norm(clean)
    there = jax.tree.map(lambda p, g: p + RHO * g / length, params, clean)
    return jax.lax.pmean(jax.grad(loss_of(examples))(there), "data"), ()


@pytest.mark.parametrize(
    ("groups", "together"),
    [
        pytest.param(None, 1, id="default"),
        pytest.param([[0, 1, 2, 3], [4, 5, 6, 7]], 4, id="inner_group_size=4"),
        pytest.param([[*range(8)]], 8, id="sync_perturbations"),
    ],
)
def test_the_oracle_is_google_research_sam(groups, together):
    """Its three settings are sub-batches of one, of some and of all devices."""
    grads, _ = run(CONTEXTS["pmap"].run, TANH, functools.partial(in_2020, groups))
    assert_same(grads, oracle(TANH, ON_EACH * together).gradient)


# --- Full-batch SAM: three recipes, and no two of them interchangeable ---------------


def sam_alone(params, examples, key):
    loss, tx = loss_of(examples), optax_sam.sam(RHO)
    return tx.update(jax.grad(loss)(params), tx.init(params), params, value_fn=loss)[0]


def mean_in_the_loss(params, examples, key):
    def loss(params):
        return jax.lax.pmean(loss_of(examples)(params), "data")

    tx = optax_sam.sam(RHO)
    return tx.update(jax.grad(loss)(params), tx.init(params), params, value_fn=loss)[0]


def mean_twice_in_the_chain(params, examples, key):
    """google-research/sam's --sync_perturbations."""
    mean = optax_sam.mean_over("data")
    loss, tx = loss_of(examples), optax.chain(mean, optax_sam.sam(RHO), mean)
    grads = jax.grad(loss)(optax_sam.per_device(params, "data"))
    return tx.update(grads, tx.init(params), params, value_fn=loss)[0]


FULL_BATCH = {
    "one device": {
        sam_alone: "right",
        mean_in_the_loss: "unbound",
        mean_twice_in_the_chain: "unbound",
    },
    "shard_map": {
        sam_alone: "too large",
        mean_in_the_loss: "right",
        mean_twice_in_the_chain: "refused",
    },
    "unchecked": {
        sam_alone: "apart",
        mean_in_the_loss: "apart",
        mean_twice_in_the_chain: "right",
    },
}
FULL_BATCH |= {name: FULL_BATCH["unchecked"] for name in ("pmap", "vmap")}


@pytest.mark.parametrize(
    ("context", "recipe", "outcome"),
    [
        pytest.param(context, recipe, outcome, id=f"{context}-{recipe.__name__}")
        for context, outcomes in FULL_BATCH.items()
        for recipe, outcome in outcomes.items()
    ],
)
@pytest.mark.filterwarnings("ignore:The loss differs between the devices")
def test_full_batch_recipes(context, recipe, outcome):
    def step(*args):
        return recipe(*args), ()

    go = functools.partial(run, CONTEXTS[context].run, TANH, step)
    expected = oracle(TANH, SIZE).gradient
    if outcome == "unbound":
        with pytest.raises(NameError, match="data"):
            go()
    elif outcome == "refused":
        with pytest.raises(ValueError, match="per_device"):
            go()
    elif outcome == "apart":
        with pytest.raises(AssertionError, match="not equal"):
            go()
    else:
        factor = DEVICES if outcome == "too large" else 1
        assert_same(go()[0], jax.tree.map(lambda g: factor * g, expected))


def test_full_batch_with_a_sharded_batch():
    """Plain jit with sharded data: JAX's own partitioner averages both gradients."""
    params, examples, key = arguments(TANH)
    place = NamedSharding(mesh_of(data=DEVICES), P("data"))
    grads = jax.jit(sam_alone)(params, jax.device_put(examples, place), key)
    assert_same(grads, oracle(TANH, SIZE).gradient)
