"""Parameters that are not whole on every device, against the loop over sub-batches."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from problems import QUICK, quick_jit
from test_collectives import collectives, counts, flops
from test_devices import RHO, SIZE, Problem, assert_same, mesh_of, oracle

import optax_sam

pytestmark = pytest.mark.usefixtures("x64")

# --- The problem, and where its parameters can lie -----------------------------------


def loss(params, batch):
    inputs, targets = batch
    h = jnp.tanh(inputs @ params["a"]["kernel"] + params["a"]["bias"])
    out = h @ params["b"]["kernel"] + params["b"]["bias"]
    return jnp.mean((out - targets) ** 2)


_random = np.random.default_rng(0)
MLP = Problem(
    lambda params, batch, key: (loss(params, batch), {}),
    {
        "a": {"kernel": _random.normal(size=(8, 16)), "bias": _random.normal(size=16)},
        "b": {"kernel": _random.normal(size=(16, 8)), "bias": _random.normal(size=8)},
    },
    (
        _random.normal(size=(SIZE, 8)) * np.geomspace(0.3, 3, SIZE)[:, None],
        _random.normal(size=(SIZE, 8)),
    ),
)


def everywhere(spec):
    return jax.tree.map(lambda _: spec, MLP.start)


TENSOR_PARALLEL = {
    "a": {"kernel": P(None, "model"), "bias": P("model")},
    "b": {"kernel": P("model"), "bias": P()},
}
PLACES = {
    "replicated": everywhere(P()),
    "tensor-parallel": TENSOR_PARALLEL,
    "fully sharded": everywhere(P("data")),
}


def put(mesh, specs, split):
    """Parameters and examples on the devices, and the places of the parameters."""
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    params = jax.device_put(MLP.start, places)
    return params, jax.device_put(MLP.examples, NamedSharding(mesh, split)), places


def sam(loss_fn=loss, **options):
    return optax_sam.value_and_grad(loss_fn, optax_sam.steepest_ascent(RHO, **options))


def value_and_gradient(size):
    """The oracle's, for sub-batches of that many examples."""
    expected = oracle(MLP, size)
    return expected.value, expected.gradient


# --- From plain jit: the library enters shard_map ------------------------------------


@pytest.mark.parametrize("microbatch_size", [None, 2], ids=["", "micro-batches"])
@pytest.mark.parametrize(
    ("axes", "place"),
    [
        (AxisType.Auto, "replicated"),
        (AxisType.Auto, "tensor-parallel"),
        (AxisType.Auto, "fully sharded"),
        (AxisType.Explicit, "replicated"),
        (AxisType.Explicit, "fully sharded"),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_m_sam_by_mesh(axes, place, microbatch_size):
    """Both doors; the parameters stay where they were."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axes, axes))
    params, batch, places = put(mesh, PLACES[place], P("data"))
    options = {"axis_name": "data", "mesh": mesh, "microbatch_size": microbatch_size}
    grad_fn = optax_sam.m_sharpness(sam(), **options)
    tx = optax.chain(optax_sam.m_sam(RHO, **options), optax.sgd(1.0))

    def step(params, batch):
        updates, _ = tx.update(
            None, tx.init(params), params, value_fn=loss, batch=batch
        )
        return grad_fn(params, batch), optax.apply_updates(params, updates)

    out, moved = quick_jit(step)(params, batch)
    expected = oracle(MLP, microbatch_size or SIZE // 4)
    assert_same(out, (expected.value, expected.gradient))
    assert_same(moved, jax.tree.map(np.subtract, MLP.start, expected.gradient))
    if axes is AxisType.Explicit:
        found = jax.tree.map(lambda x: x.sharding.is_equivalent_to, moved)
        same = jax.tree.map(lambda f, p, x: f(p, x.ndim), found, places, moved)
        assert all(jax.tree.leaves(same))


def explicit_loss(params, batch):
    """The sum over the hidden units, which lie on several devices, is asked for."""
    inputs, targets = batch
    h = jnp.tanh(inputs @ params["a"]["kernel"] + params["a"]["bias"])
    out = jnp.dot(h, params["b"]["kernel"], out_sharding=P()) + params["b"]["bias"]
    return jnp.mean((out - targets) ** 2)


@pytest.mark.parametrize("microbatch_size", [None, 2], ids=["", "micro-batches"])
@pytest.mark.parametrize("scan_passes", [False, True])
def test_tensor_parallel_on_an_explicit_mesh(microbatch_size, scan_passes):
    """Only the axes that m-sharpness names are made manual; the model stays split."""
    axes = (AxisType.Explicit, AxisType.Explicit)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=axes)
    params, batch, places = put(mesh, TENSOR_PARALLEL, P("data"))
    ascent = optax_sam.steepest_ascent(RHO)
    grad_fn = optax_sam.m_sharpness(
        optax_sam.value_and_grad(explicit_loss, ascent, scan_passes=scan_passes),
        axis_name="data",
        mesh=mesh,
        microbatch_size=microbatch_size,
    )
    with jax.set_mesh(mesh):
        compiled = jax.jit(grad_fn).lower(params, batch).compile()
        out = compiled(params, batch)
    assert_same(out, value_and_gradient(microbatch_size or SIZE // 4))
    for place, x in zip(jax.tree.leaves(places), jax.tree.leaves(out[1]), strict=True):
        assert x.sharding.is_equivalent_to(place, x.ndim)
    if jax.__version_info__ >= (0, 12):  # in 0.10 XLA gathers even so
        assert "all-gather" not in counts(compiled)


@pytest.mark.parametrize(
    "compiled", [True, pytest.param(False, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("product", "options"),
    [
        ("m_sam", {"microbatch_size": 4}),
        ("esam", {"key": 0}),
        ("partial_climb", {}),
    ],
)
def test_examples_that_lie_on_explicit_axes(product, options, compiled):
    """What cannot be cut says how to write it, and so it works."""
    if "key" in options:
        options = {"key": jax.random.key(options["key"])}
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    params, batch, _ = put(mesh, everywhere(P()), P("data"))

    def losses(params, batch):
        inputs, targets = batch
        h = jnp.tanh(inputs @ params["a"]["kernel"] + params["a"]["bias"])
        out = h @ params["b"]["kernel"] + params["b"]["bias"]
        return jnp.mean((out - targets) ** 2, 1)

    def update(**more):
        tx = getattr(optax_sam, product)(RHO, **options | more)
        value_fn = losses if product == "esam" else loss

        def step(params, batch):
            return tx.update(
                None, tx.init(params), params, value_fn=value_fn, batch=batch
            )[0]

        return (quick_jit(step) if compiled else step)(params, batch)

    with jax.set_mesh(mesh):
        with pytest.raises(ValueError, match="axis_name='data', mesh=mesh"):
            update()
        update(axis_name="data", mesh=mesh, microbatch_size=None)


# --- Split by hand, inside of the caller's shard_map ---------------------------------


def split_loss(params, batch):
    """Each device holds some of the hidden units, and all know the loss."""
    inputs, targets = batch
    h = jnp.tanh(inputs @ params["a"]["kernel"] + params["a"]["bias"])
    out = jax.lax.psum(h @ params["b"]["kernel"], "model") + params["b"]["bias"]
    return jnp.mean((out - targets) ** 2)


@pytest.mark.parametrize("microbatch_size", [None, 2])
def test_m_sam_of_parameters_split_by_hand(microbatch_size):
    """Every device climbs its part; the last bias, whole on all, is counted once."""
    grad_fn = optax_sam.m_sharpness(
        sam(split_loss, params_axis_name="model"),
        axis_name="data",
        microbatch_size=microbatch_size,
    )
    run = jax.shard_map(
        grad_fn,
        mesh=mesh_of(data=4, model=2),
        in_specs=(TENSOR_PARALLEL, P("data")),
        out_specs=(P(), TENSOR_PARALLEL),
    )
    out = quick_jit(run)(MLP.start, MLP.examples)
    assert_same(out, value_and_gradient(microbatch_size or SIZE // 4))


ASCENTS = {
    "sam": functools.partial(optax_sam.steepest_ascent, RHO),
    "ord 1": functools.partial(optax_sam.steepest_ascent, RHO, ord=1),
    "ord 3": functools.partial(optax_sam.steepest_ascent, RHO, ord=3),
    "asam": functools.partial(optax_sam.adaptive_ascent, RHO),
    "asam ord inf": functools.partial(optax_sam.adaptive_ascent, RHO, ord=np.inf),
}


def climbs(gradient, params, **options):
    made = {name: make(**options) for name, make in ASCENTS.items()}
    return {
        name: ascent.update(gradient, ascent.init(params), params)[0]
        for name, ascent in made.items()
    }


@pytest.mark.parametrize("check_vma", [True, False])
def test_norms_are_those_of_the_whole(check_vma):
    """Where types are not checked every leaf has to be split: none is known whole."""
    specs = everywhere(P("model")) | {"b": TENSOR_PARALLEL["b"]}
    specs = specs if check_vma else everywhere(P("model"))
    run = jax.shard_map(
        functools.partial(climbs, params_axis_name="model"),
        mesh=mesh_of(model=8),
        in_specs=(specs, specs),
        out_specs=dict.fromkeys(ASCENTS, specs),
        check_vma=check_vma,
    )
    gradient = jax.tree.map(np.cos, MLP.start)
    got, expected = quick_jit(lambda *args: (run(*args), climbs(*args)))(
        gradient, MLP.start
    )
    assert_same(got, expected)


# --- Models that do not fit on one device --------------------------------------------


def compile_and_run(grad_fn, mesh, specs, split):
    """A gradient that stays where the parameters are, and its compiled program."""
    params, batch, places = put(mesh, specs, split)
    run = jax.jit(grad_fn, out_shardings=(None, places))
    compiled = run.lower(params, batch).compile(compiler_options=QUICK)
    return compiled(params, batch), compiled


def test_tensor_parallel_parameters_stay_split():
    """Axes that m-sharpness does not name are left to the compiler."""
    mesh = mesh_of(data=4, model=2)
    grad_fn = optax_sam.m_sharpness(sam(), axis_name="data", mesh=mesh)
    _, split = compile_and_run(grad_fn, mesh, TENSOR_PARALLEL, P("data"))
    _, whole = compile_and_run(grad_fn, mesh, PLACES["replicated"], P("data"))
    assert "all-gather" not in counts(split)
    assert flops(split) < 0.6 * flops(whole)


def between_replicas(compiled):
    """The collectives whose groups reach beyond four devices that hold one model."""
    found = collectives(compiled.as_text())
    return [c for c in found if any(len({d // 4 for d in g}) > 1 for g in c.groups)]


def test_one_climb_for_each_group_that_shares_a_model():
    """Two replicas, each split over four devices: one average crosses between them."""
    mesh = mesh_of(replica=2, shard=4)
    args = (mesh, everywhere(P("shard")), P(("replica", "shard")))
    grouped = optax_sam.m_sharpness(sam(), axis_name="replica", mesh=mesh)
    out, compiled = compile_and_run(grouped, *args)
    assert_same(out, value_and_gradient(SIZE // 2))
    (crossing,) = between_replicas(compiled)
    assert (crossing.kind, crossing.times) == ("all-reduce", 1)
    # SAM's own program has both averages cross, and more, for the same work.
    _, whole = compile_and_run(sam(), *args)
    assert len(between_replicas(whole)) >= 2
    assert flops(compiled) < 1.1 * flops(whole)


def test_micro_batches_of_all_devices():
    """Each micro-batch is spread over all devices, and climbs as SAM would."""
    mesh = mesh_of(data=8)
    spread = NamedSharding(mesh, P("data"))

    def loss_of_all(params, batch):
        return loss(params, jax.lax.with_sharding_constraint(batch, spread))

    split = optax_sam.m_sharpness(sam(loss_of_all), microbatch_size=8)
    args = (mesh, everywhere(P("data")), P("data"))
    out, compiled = compile_and_run(split, *args)
    assert_same(out, value_and_gradient(8))
    # Parameters and norms travel as often as for SAM on each of them; the examples are
    # dealt out once.
    trips = SIZE // 8
    found = collectives(compiled.as_text())
    per_trip = Counter(c.kind for c in found if c.times == trips)
    for kind, times in counts(compile_and_run(sam(), *args)[1]).items():
        assert per_trip[kind] == times
