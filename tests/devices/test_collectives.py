"""What a step costs, counted in the compiled program: collectives, FLOPs and memory.

Nothing here is timed, and nearly nothing runs. XLA counts the body of a loop once, so
collectives are counted with the trips of the loops around them.
"""

import functools
import re
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from problems import QUICK, ascent_with_memory, quick_jit

import optax_sam
from benchmarks.lib import hlo

DEVICES, SIZE, RHO = 8, 64, 0.1
DIMS, WIDE = (16, 32, 8), (16, 128, 8)
LEAVES = 4

# --- Reading a compiled program ------------------------------------------------------

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
OPERATION = re.compile(rf" ({'|'.join(KINDS)})(?:-start)?\(.*replica_groups=(.*)")


class Collective(NamedTuple):
    """An operation of the program, how often it runs, and who takes part."""

    kind: str
    times: float
    groups: tuple[tuple[int, ...], ...]


def collectives(text):
    """The collectives of an HLO module; loops of unknown length are endless."""
    bodies, entry = hlo.computations(text)

    def walk(name, times):
        for line in bodies[name]:
            if loop := hlo.LOOP.search(line):
                yield from walk(loop[1], times * float(loop[2] or "inf"))
            elif found := OPERATION.search(line):
                yield Collective(found[1], times, groups_of(found[2]))
            else:
                for called in hlo.CALLS.findall(line):
                    yield from walk(called, times)

    return list(walk(entry, 1))


def groups_of(text):
    """`{{0,4},{1,5}}`, `[2,4]<=[4,2]T(1,0)` or `mesh['a'=2,'b'=4] {'a'}`."""
    if text.startswith("{{"):
        groups = re.findall(r"\{([\d,]+)\}", text[: text.index("}}") + 1])
        return tuple(map(numbers, groups))
    if text.startswith("["):
        shape, devices = re.match(r"\[(.*?)\]<=(\S+)", text).groups()
        ids = devices_in_order(devices).reshape(numbers(shape))
    else:
        axes, devices, over = re.match(
            r"mesh\[(.*?)\](?:, device_ids=\((.*?\)?)\))? \{(.*?)\}", text
        ).groups()
        sizes = numbers(",".join(re.findall(r"=(\d+)", axes)))
        ids = devices_in_order(devices or f"[{np.prod(sizes)}]").reshape(sizes)
        names = re.findall(r"'(\w+)'", axes)
        over = [names.index(name) for name in re.findall(r"'(\w+)'", over)]
        ids = np.moveaxis(ids, over, range(-len(over), 0))
        ids = ids.reshape(-1, np.prod([sizes[i] for i in over]))
    return tuple(map(tuple, ids.tolist()))


def devices_in_order(text):
    """`[4,2]T(1,0)`: the numbers 0 to 7, transposed."""
    of, order = re.match(r"\[(.*?)\](?:T\((.*?)\))?", text).groups()
    ids = np.arange(np.prod(numbers(of))).reshape(numbers(of))
    return ids.transpose(numbers(order)).ravel() if order else ids.ravel()


def numbers(text):
    return tuple(int(n) for n in text.split(","))


@pytest.mark.parametrize(
    "text",
    [
        "{{0,4},{1,5},{2,6},{3,7}}, use_global_device_ids=true",
        "[4,2]<=[2,4]T(1,0), use_global_device_ids=true",
        "mesh['a'=2,'b'=4] {'a'}, use_global_device_ids=true",
        "mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, use_global_device_ids=true",
    ],
)
def test_groups_are_read_in_all_their_forms(text):
    assert groups_of(text) == ((0, 4), (1, 5), (2, 6), (3, 7))


def counts(compiled):
    """How often each kind of collective runs."""
    total = Counter()
    for found in collectives(compiled.as_text()):
        total[found.kind] += found.times
    return dict(total)


def flops(compiled):
    """Of one device, the body of a loop counted once."""
    return compiled.cost_analysis()["flops"]


# --- Programs ------------------------------------------------------------------------


def mesh_of(**axes):
    """A mesh of all devices with automatic axes, by their names and sizes."""
    return Mesh(np.array(jax.devices()).reshape(tuple(axes.values())), tuple(axes))


def layers(inputs, hidden, outputs):
    """Parameters, as the shapes of their leaves."""
    shapes = {
        "a": {"kernel": (inputs, hidden), "bias": (hidden,)},
        "b": {"kernel": (hidden, outputs), "bias": (outputs,)},
    }
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def apply(params, inputs):
    h = jnp.tanh(inputs @ params["a"]["kernel"] + params["a"]["bias"])
    return h @ params["b"]["kernel"] + params["b"]["bias"]


def loss(params, batch):
    inputs, targets = batch
    return jnp.mean((apply(params, inputs) - targets) ** 2)


def batch_norm_loss(params, batch, axis_name=None):
    """Statistics of this device's examples, or of those of all devices, as aux."""
    inputs, targets = batch
    h = inputs @ params["a"]["kernel"] + params["a"]["bias"]
    mean, square = jnp.mean(h, 0), jnp.mean(h**2, 0)
    if axis_name:
        mean, square = jax.lax.pmean((mean, square), axis_name)
    h = jnp.tanh((h - mean) / jnp.sqrt(square - mean**2 + 1e-2))
    out = h @ params["b"]["kernel"] + params["b"]["bias"]
    return jnp.mean((out - targets) ** 2), {"mean": mean, "hits": jnp.sum(out > 0)}


WHOLE, SPLIT = P(), P("data")


def structs(mesh, placed=WHOLE, split=SPLIT, size=SIZE, dims=DIMS):
    """Arguments without data: parameters placed so, and examples split so."""

    def place(spec, tree):
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: x.update(sharding=sharding), tree)

    inputs, _, outputs = dims
    rows = [jax.ShapeDtypeStruct((size, n), jnp.float32) for n in (inputs, outputs)]
    return place(placed, layers(*dims)), place(split, tuple(rows))


def step_with(grad_fn):
    """A training step around a gradient function: all that it gives comes out."""

    def step(params, batch):
        out, grads = grad_fn(params, batch)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), out

    return step


def step_in_chain(tx, inside=False):
    """A training step around a transformation that may compute clean gradients."""

    def step(params, batch):
        state = tx.init(params)
        grads = None
        if not inside:
            grads = jax.grad(loss)(optax_sam.per_device(params, "data"), batch)
        grads, state = tx.update(grads, state, params, value_fn=loss, batch=batch)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), state

    return step


def by_shard_map(step, check_vma=True):
    return jax.shard_map(
        step,
        mesh=mesh_of(data=DEVICES),
        in_specs=(P(), P("data")),
        out_specs=P(),
        check_vma=check_vma,
    )


def by_pmap(step):
    run = jax.pmap(step, axis_name="data", in_axes=(None, 0))

    def cut_and_run(params, batch):
        cut = jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), batch)
        return run(params, cut)

    return cut_and_run


unchecked = functools.partial(by_shard_map, check_vma=False)
MAPS = {"shard_map": by_shard_map, "unchecked": unchecked, "pmap": by_pmap}


def compiled(step, *args, **options):
    return jax.jit(step, **options).lower(*args).compile(compiler_options=QUICK)


def on_devices(step):
    return compiled(step, *structs(mesh_of(data=DEVICES)))


ASCENT = optax_sam.steepest_ascent(RHO)
SAM = optax_sam.value_and_grad(loss, ASCENT)
BATCH_NORM_SAM = optax_sam.value_and_grad(batch_norm_loss, ASCENT, has_aux=True)

# --- All-reduces of a step -----------------------------------------------------------


def test_loops_are_counted_with_their_trips():
    """Or an average inside the loop over micro-batches would go unseen."""

    def step(params, batch):
        def once(total, row):
            grads = jax.grad(loss)(params, jax.tree.map(lambda x: x[None], row))
            return jax.tree.map(jnp.add, total, grads), None

        return jax.lax.scan(once, jax.tree.map(jnp.zeros_like, params), batch)[0]

    # Parameters that do not vary: JAX sums over the devices in each trip.
    assert counts(on_devices(by_shard_map(step))) == {"all-reduce": SIZE // DEVICES}


def test_gradient_descent_averages_once():
    assert counts(on_devices(step_with(jax.value_and_grad(loss)))) == {"all-reduce": 1}


def full_batch_sam(context):
    if context == "jit":
        return step_with(SAM)
    if context == "shard_map":
        mean_loss = lambda *args: jax.lax.pmean(loss(*args), "data")  # noqa: E731
        return by_shard_map(step_with(optax_sam.value_and_grad(mean_loss, ASCENT)))
    mean = optax_sam.mean_over("data")
    return MAPS[context](step_in_chain(optax.chain(mean, optax_sam.sam(RHO), mean)))


@pytest.mark.parametrize("context", ["jit", *MAPS])
def test_sam_averages_twice(context):
    assert counts(on_devices(full_batch_sam(context))) == {"all-reduce": 2}


def test_scanned_passes_average_as_often():
    """SAM once in each of two trips, m-SAM once behind the loop."""
    scanned = optax_sam.value_and_grad(loss, ASCENT, scan_passes=True)
    assert counts(on_devices(step_with(scanned))) == {"all-reduce": 2}
    mesh = mesh_of(data=DEVICES)
    for size in (None, 2):
        m_sam = optax_sam.m_sharpness(
            scanned, axis_name="data", mesh=mesh, microbatch_size=size
        )
        assert counts(on_devices(step_with(m_sam))) == {"all-reduce": 1}


@pytest.mark.parametrize("microbatch_size", [None, 2], ids=["", "micro-batches"])
@pytest.mark.parametrize("context", ["jit", *MAPS])
@pytest.mark.parametrize("door", [1, 2])
def test_m_sam_averages_once(door, context, microbatch_size):
    """Value, gradient, BatchNorm's statistics and integer aux in one collective."""
    options = {"axis_name": "data", "microbatch_size": microbatch_size}
    if context == "jit":
        options["mesh"] = mesh_of(data=DEVICES)
    if door == 1:
        inside = context == "jit" or microbatch_size is not None
        step = step_in_chain(optax_sam.m_sam(RHO, **options), inside)
    else:
        step = step_with(optax_sam.m_sharpness(BATCH_NORM_SAM, **options))
    run = MAPS.get(context, lambda step: step)(step)
    assert counts(on_devices(run)) == {"all-reduce": 1}


#: A state that is made of averages needs the clean gradient's too: it rides along.
PRODUCTS = {
    "place in the chain": lambda: optax.chain(
        optax_sam.sam(RHO), optax_sam.mean_over("data")
    ),
    "adaptive": lambda: optax_sam.asam(RHO, axis_name="data"),
    "two steps": lambda: optax_sam.m_sam(RHO, axis_name="data", num_steps=2),
    "schedule": lambda: optax_sam.m_sam(lambda t: RHO / (1 + t), axis_name="data"),
    "friendly": lambda: optax_sam.m_sam(
        ascent=ascent_with_memory(RHO), axis_name="data"
    ),
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_every_product_averages_once(product):
    step = by_shard_map(step_in_chain(PRODUCTS[product]()))
    assert counts(on_devices(step)) == {"all-reduce": 1}


# --- Bytes over the wire, of steps with and without a climb ---------------------------

BRANCHES = re.compile(
    r" conditional\(.*(?:true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+)"
    r"|branch_computations=\{%?([\w.\-]+), %?([\w.\-]+)\})"
)
MOVED = re.compile(rf" = (.*?) (?:{'|'.join(KINDS)})(?:-start)?\(")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
BYTES = {"f32": 4, "s32": 4, "u32": 4}


def bytes_moved(text):
    """By the collectives of a step: (always, more with a climb, more without one)."""
    bodies, entry = hlo.computations(text)

    def walk(name):
        total = np.zeros(3, int)
        for line in bodies[name]:
            if found := MOVED.search(line):
                arrays = ARRAY.findall(found[1])
                total[0] += sum(BYTES[kind] * hlo.size(n) for kind, n in arrays)
            elif found := BRANCHES.search(line):
                # Branches that are numbered have the false one first.
                total[1] += sum(walk(found[1] or found[4])[[0, 1]])
                total[2] += sum(walk(found[2] or found[3])[[0, 2]])
            else:
                total += sum(map(walk, hlo.CALLS.findall(line)), np.zeros(3, int))
        return total

    return walk(entry)


EVERY_2 = {"when": optax_sam.every_k(2)}

#: How many gradients cross the wire in a step with a climb, and in one without: no
#: more than in version 0.1.0.
WIRE = {
    "m_sam": (lambda **o: optax_sam.m_sam(RHO, **o), (1, 1)),
    "m_sam, every 2": (lambda **o: optax_sam.m_sam(RHO, **EVERY_2, **o), (1, 1)),
    "m_sam with a schedule, every 2": (
        lambda **o: optax_sam.m_sam(lambda t: RHO / (1 + t), **EVERY_2, **o),
        (1, 1),
    ),
    "le_sam": (lambda **o: optax_sam.le_sam(0.1, rho_max=RHO, **o), (1, 1)),
    "GSAM, every 2": (lambda **o: optax_sam.gsam(RHO, **EVERY_2, **o), (1, 1)),
    "friendly": (lambda **o: optax_sam.friendly_sam(RHO, **o), (2, 2)),
    "friendly, every 2": (
        lambda **o: optax_sam.friendly_sam(RHO, **EVERY_2, **o),
        (2, 1),
    ),
    "look_sam": (lambda **o: optax_sam.look_sam(RHO, k=2, **o), (2, 1)),
}


@pytest.mark.parametrize("context", ["jit", *MAPS])
@pytest.mark.parametrize("name", WIRE)
def test_what_crosses_the_wire(name, context):
    make, expected = WIRE[name]
    mesh = mesh_of(data=DEVICES)
    inside = context == "jit"
    tx = make(axis_name="data", **({"mesh": mesh} if inside else {}))

    def step(carry, batch):
        params, state = carry
        grads = None
        if not inside:
            grads = jax.grad(loss)(optax_sam.per_device(params, "data"), batch)
        grads, state = tx.update(grads, state, params, value_fn=loss, batch=batch)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), state

    params, batch = structs(mesh)
    # The state comes from outside, or XLA would know whether this step climbs.
    place = NamedSharding(mesh, P())
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        jax.eval_shape(tx.init, params),
    )
    run = MAPS.get(context, lambda step: step)(step)
    text = compiled(run, (params, state), batch).as_text()
    assert (" conditional(" in text) == (name not in ("m_sam", "le_sam", "friendly"))
    always, climbing, still = bytes_moved(text)
    gradient = 4 * sum(x.size for x in jax.tree.leaves(params))
    few = 64  # the value of the loss, and other scalars
    for moved, times in zip((climbing, still), expected, strict=True):
        assert 0 <= always + moved - times * gradient <= few


# --- All-gathers of fully sharded parameters -----------------------------------------


def sharded(grad_fn):
    """A step that takes and returns parameters split over all devices."""
    args = structs(mesh_of(data=DEVICES), placed=P("data"))
    places = jax.tree.map(lambda x: x.sharding, args[0])
    return compiled(step_with(grad_fn), *args, out_shardings=(places, None))


def test_fully_sharded_m_sam_gathers_each_parameter_once():
    """Where SAM gathers for each pass, forward and backward."""
    sam = counts(sharded(SAM))
    options = {"axis_name": "data", "mesh": mesh_of(data=DEVICES)}
    for size in (None, 2):
        m_sam = optax_sam.m_sharpness(SAM, microbatch_size=size, **options)
        found = counts(sharded(m_sam))
        assert found == {"all-reduce": 1, "all-gather": LEAVES}
        assert found["all-gather"] <= sam["all-gather"] / 2


# --- BatchNorm over an axis, inside of per-device m-SAM ------------------------------


@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_batch_norm_over_an_axis_adds_four_collectives(microbatch_size):
    """For each such layer and each sub-batch: forward and backward, in both passes."""
    synced = functools.partial(batch_norm_loss, axis_name="data")
    grad_fn = optax_sam.value_and_grad(synced, ASCENT, has_aux=True)
    grad_fn = optax_sam.m_sharpness(
        grad_fn,
        axis_name="data",
        microbatch_size=microbatch_size,
        mesh=mesh_of(data=DEVICES),
    )
    on_each = SIZE // DEVICES // (microbatch_size or SIZE // DEVICES)
    expected = {"all-reduce": 1 + 4 * on_each}
    assert counts(on_devices(step_with(grad_fn))) == expected


def random_problem():
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: random.normal(size=x.shape), layers(*DIMS))
    inputs, _, outputs = DIMS
    return params, tuple(random.normal(size=(SIZE, n)) for n in (inputs, outputs))


def gradients_of_devices(axis_name, params, batch):
    """What each device would climb along, stacked."""

    def local(params, batch):
        params = optax_sam.per_device(params, "data")
        grads = jax.grad(batch_norm_loss, has_aux=True)(params, batch, axis_name)[0]
        return jax.tree.map(lambda g: g[None], grads)

    mesh = mesh_of(data=DEVICES)
    specs = {"in_specs": (P(), P("data")), "out_specs": P("data")}
    out = quick_jit(jax.shard_map(local, mesh=mesh, **specs))(params, batch)
    return jax.tree.map(np.asarray, out)


def test_batch_norm_over_an_axis_couples_the_climbs():
    """The climb of the first device moves when examples of the last one change."""
    params, (inputs, targets) = random_problem()
    other = (np.concatenate([inputs[:-1], inputs[-1:] + 3]), targets)
    for axis_name, coupled in (("data", True), (None, False)):
        one = gradients_of_devices(axis_name, params, (inputs, targets))
        two = gradients_of_devices(axis_name, params, other)
        moved = jax.tree.map(lambda a, b: np.abs(a[0] - b[0]).max(), one, two)
        assert (max(jax.tree.leaves(moved)) > 1e-3) == coupled


def test_batch_norm_over_an_axis_keeps_the_clean_gradient(x64):
    """The average of the devices' gradients is that of the whole batch's statistics."""
    params, batch = random_problem()
    stacked = gradients_of_devices("data", params, batch)
    average = jax.tree.map(lambda g: np.mean(g, 0), stacked)
    whole = quick_jit(jax.grad(batch_norm_loss, has_aux=True))(params, batch)[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-11),
        average,
        whole,
    )


# --- FLOPs ---------------------------------------------------------------------------

#: Large enough that climbs, which cost no more for more examples, do not show.
MANY, TRIPS = 8192, 4


def one_device(step):
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    return compiled(step, *structs(mesh, size=MANY, dims=WIDE))


def two_gradients(found, of=1):
    """Whether FLOPs are 2.00 times those of one gradient on that part of the batch."""
    one = flops(one_device(step_with(jax.value_and_grad(loss))))
    return found / one * of == pytest.approx(2, abs=0.005)


def test_flops_of_sam():
    assert two_gradients(flops(one_device(step_with(SAM))))


def test_flops_of_micro_batches():
    """The body of the loop is counted once, so the program runs it `TRIPS` times."""
    split = optax_sam.m_sharpness(SAM, microbatch_size=MANY // TRIPS)
    assert two_gradients(flops(one_device(step_with(split))), of=TRIPS)


def test_flops_of_micro_batches_at_once():
    """No loop is left, so XLA counts all of them."""
    split = optax_sam.m_sharpness(SAM, microbatch_size=MANY // TRIPS, at_once=TRIPS)
    assert two_gradients(flops(one_device(step_with(split))))


def test_flops_of_the_unrolled_loop():
    def unrolled(params, batch):
        parts = [jax.tree.map(lambda x: x.reshape(TRIPS, -1, x.shape[-1]), batch)]
        parts = [jax.tree.map(lambda x, i=i: x[i], parts[0]) for i in range(TRIPS)]
        values, grads = zip(*(SAM(params, part) for part in parts), strict=True)
        return sum(values), jax.tree.map(lambda *g: sum(g) / TRIPS, *grads)

    assert two_gradients(flops(one_device(step_with(unrolled))))


def test_flops_of_each_device():
    mesh = mesh_of(data=DEVICES)
    split = optax_sam.m_sharpness(SAM, axis_name="data", mesh=mesh)
    args = structs(mesh, size=MANY, dims=WIDE)
    assert two_gradients(flops(compiled(step_with(split), *args)), of=DEVICES)


# --- Memory --------------------------------------------------------------------------


def scratch(step):
    return one_device(step).memory_analysis().temp_size_in_bytes


def test_memory_of_micro_batches_is_that_of_one():
    whole = scratch(step_with(SAM))
    small = scratch(step_with(optax_sam.m_sharpness(SAM, microbatch_size=MANY // 64)))
    assert small < whole / 16
    at_once = optax_sam.m_sharpness(SAM, microbatch_size=MANY // 64, at_once=32)
    assert small < scratch(step_with(at_once)) / 4
