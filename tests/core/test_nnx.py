"""`optax_sam.nnx`: two gradients, and a model left as after one pass.

The oracle differentiates clones of the model with `nnx.value_and_grad` itself: one at
the parameters, whose state afterwards is the state to be, and one at the climb's end.
"""

import builtins
import functools
import importlib.util

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_sam
import optax_sam.nnx
from optax_sam import steepest_ascent

RHO = 0.5
rng = np.random.default_rng(0)
X = jnp.asarray(rng.normal(size=(12, 3)), jnp.float32)
Y = jnp.asarray(rng.normal(size=12), jnp.float32)


class Net(nnx.Module):
    """BatchNorm and dropout; the dropout's stream belongs to the model."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 5, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.out = nnx.Linear(5, 1, rngs=rngs)
        self.frozen = nnx.Variable(jnp.asarray(0.1, jnp.float32))  # never written
        self.positive = nnx.Variable(jnp.asarray(0, jnp.int32))

    def __call__(self, x):
        self.positive[...] = jnp.sum(x > 0, dtype=jnp.int32)
        x = self.dropout(nnx.relu(self.norm(self.hidden(x))))
        return self.out(x)[:, 0] + self.frozen[...]


def loss_fn(model, x, y):
    out = model(x)
    return jnp.mean((out - y) ** 2), out


NET = Net(nnx.Rngs(0, dropout=1))


def net():
    return nnx.clone(NET)


def state_of(*objects):
    """Every variable, as arrays that can be compared; keys by their data."""

    def data(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(x) if is_key else x

    return jax.tree.map(data, nnx.to_pure_dict(nnx.as_pure(nnx.state(objects))))


def assert_close(tree, other):
    chex.assert_trees_all_close(tree, other, rtol=2e-5, atol=2e-6)


def arrays(grads):
    return nnx.to_pure_dict(nnx.as_pure(grads))


@functools.cache
def of_nnx(loss_fn, wrt):
    argnums = nnx.DiffState(0, wrt)
    return nnx.jit(nnx.value_and_grad(loss_fn, argnums=argnums, has_aux=True))


def by_hand(model, *args, loss_fn=loss_fn, fold=None, wrt=nnx.Param):
    """SAM by two passes over clones, and the state after the first."""
    clean, climbed = nnx.clone((model, *args)), nnx.clone((model, *args))
    if fold is not None:
        fold_keys(clean, fold)
        fold_keys(climbed, fold)
    grad_fn = of_nnx(loss_fn, wrt)
    out, grads = grad_fn(*clean)
    size = optax.tree.norm(nnx.as_pure(grads))
    params = nnx.state(climbed[0], wrt)
    nnx.update(climbed[0], jax.tree.map(lambda w, g: w + RHO * g / size, params, grads))
    return out, arrays(grad_fn(*climbed)[1]), state_of(*clean)


def fold_keys(objects, index):
    for _, variable in nnx.iter_graph(objects):
        if isinstance(variable, nnx.RngKey):
            variable[...] = jax.random.fold_in(variable[...], index)


def grads_of(**options):
    return optax_sam.nnx.value_and_grad(
        options.pop("loss_fn", loss_fn),
        options.pop("ascent", steepest_ascent(RHO)),
        **{"has_aux": True} | options,
    )


# --- One clean pass -----------------------------------------------------------------


def under_nnx_jit(grad_fn, *args):
    return nnx.jit(grad_fn)(*args)


def under_jax_jit(grad_fn, *args):
    is_array = [isinstance(x, jax.Array) for x in args]
    objects = [x for x, array in zip(args, is_array, strict=True) if not array]
    graphdef, state = nnx.split(objects)

    @jax.jit
    def step(state, arrays):
        objects, arrays = nnx.merge(graphdef, state), iter(arrays)
        places = iter(objects)
        args = [next(arrays if array else places) for array in is_array]
        out, grads = grad_fn(*args)
        return out, grads, nnx.state(objects)

    out, grads, state = step(state, [x for x in args if isinstance(x, jax.Array)])
    nnx.update(objects, state)
    return out, grads


SLOWER = pytest.param(under_jax_jit, marks=pytest.mark.slow)
COMPILED = pytest.mark.parametrize("how", [under_nnx_jit, SLOWER])
SCANNED = pytest.mark.parametrize("scan_passes", [False, True])


@SCANNED
@COMPILED
def test_two_gradients_and_one_pass(how, scan_passes):
    model = net()
    out, grads, after = by_hand(model, X, Y)
    got, got_grads = how(grads_of(scan_passes=scan_passes), model, X, Y)
    assert_close(got, out)
    assert_close(arrays(got_grads), grads)
    assert_close(state_of(model, X, Y), after)
    assert model.dropout.rngs.count[...] == 1
    assert not np.allclose(model.norm.mean[...], 0)


def test_the_gradient_is_that_of_nnx():
    model = net()
    _, theirs = of_nnx(loss_fn, nnx.Param)(net(), X, Y)
    _, ours = under_nnx_jit(grads_of(), model, X, Y)
    assert type(ours) is type(theirs)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    # So the optimizer takes it, and only the parameters move.
    before = state_of(model)
    nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param).update(model, ours)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, state_of(model))
    assert moved[0]["hidden"]["kernel"]
    assert not moved[0]["norm"]["mean"]


def test_without_aux():
    grad_fn = grads_of(loss_fn=lambda *a: loss_fn(*a)[0], has_aux=False)
    value, grads = under_nnx_jit(grad_fn, net(), X, Y)
    out, expected, _ = by_hand(net(), X, Y)
    assert_close((value, arrays(grads)), (out[0], expected))


def test_both_passes_draw_the_same_mask():
    # Linear in the weight, so both gradients are the mask itself.
    class Masked(nnx.Module):
        def __init__(self):
            self.weight = nnx.Param(jnp.ones(64))
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def linear(model):
        return jnp.sum(model.dropout(jnp.ones(64)) * model.weight[...])

    masks = []
    for options in ({}, {"combine": lambda clean, climbed: clean}):
        grad_fn = grads_of(loss_fn=linear, has_aux=False, **options)
        masks.append(arrays(grad_fn(Masked())[1])["weight"])
    assert 0 < (masks[0] == 0).sum() < 64
    np.testing.assert_array_equal(*masks)


@pytest.mark.slow
@SCANNED
@pytest.mark.parametrize("how", [under_nnx_jit, under_jax_jit])
def test_nnx_objects_in_the_arguments(how, scan_passes):
    # A stream under two names, a metric, and a model that is no student.
    def loss(model, x, tools, *, y):
        y = y + tools["teacher"](x)[:, 0]
        noise = jax.random.normal(tools["rngs"].noise(), x.shape)
        more = jax.random.normal(tools["same"].noise(), ())
        value, out = loss_fn(model, x + 0.1 * noise + more, y)
        tools["metric"].update(values=value)
        return value, out

    def make():
        rngs = nnx.Rngs(noise=5)
        tools = {"rngs": rngs, "same": rngs, "metric": nnx.metrics.Average()}
        teacher = nnx.Linear(3, 1, rngs=nnx.Rngs(7))
        return net(), tools | {"teacher": teacher, "nothing": None}

    def with_y(fn):
        return lambda model, x, tools, y: fn(model, x, tools, y=y)

    model, tools = make()
    out, grads, after = by_hand(model, X, tools, Y, loss_fn=with_y(loss))
    grad_fn = with_y(grads_of(loss_fn=loss, scan_passes=scan_passes))
    got, got_grads = how(grad_fn, model, X, tools, Y)
    assert_close((got, arrays(got_grads)), (out, grads))
    assert_close(state_of(model, X, tools, Y), after)
    assert tools["rngs"].noise.count[...] == 2
    np.testing.assert_allclose(tools["metric"].compute(), out[0], rtol=1e-6)


def test_traced_twice_and_never_again():
    traces = []

    def counted(model, x, y):
        traces.append(1)
        return loss_fn(model, x, y)

    step = nnx.jit(grads_of(loss_fn=counted))
    model = net()
    for count in (1, 2, 3):
        step(model, X, Y)
        assert len(traces) == 2
        assert model.dropout.rngs.count[...] == count


@pytest.mark.slow
def test_wrt_selects_what_climbs():
    model = nnx.LoRA(
        3, 2, 4, base_module=nnx.Linear(3, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1)
    )
    model.lora_b[...] = jnp.ones_like(model.lora_b[...])

    def loss(model, x):
        out = model(x)
        return jnp.mean(out**2), out

    out, grads, _ = by_hand(model, X, loss_fn=loss, wrt=nnx.LoRAParam)
    grad_fn = grads_of(loss_fn=loss, wrt=nnx.LoRAParam)
    got, got_grads = under_nnx_jit(grad_fn, model, X)
    assert set(grads) == {"lora_a", "lora_b"}
    assert_close((got, arrays(got_grads)), (out, grads))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"ascent": optax_sam.adaptive_ascent(RHO)},  # leaves are named: biases stay 1
        {"second_order": True},
        {"num_steps": 2},
        {"combine": lambda clean, climbed: jax.tree.map(jnp.subtract, climbed, clean)},
        {"climb_dtype": jnp.bfloat16},
        {"diagnostics": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_door_2(options):
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    model.bias[...] = jnp.ones(1)

    def loss(model, x, y):
        return jnp.mean((jnp.tanh(model(x))[:, 0] - y) ** 2)

    def plain(params, x, y):
        out = jnp.tanh(x @ params["kernel"] + params["bias"])[:, 0]
        return jnp.mean((out - y) ** 2)

    params = arrays(nnx.state(model))
    options = {"ascent": steepest_ascent(RHO)} | options
    expected = jax.jit(optax_sam.value_and_grad(plain, **options))(params, X, Y)
    grad_fn = grads_of(loss_fn=loss, has_aux=False, **options)
    value, grads = under_nnx_jit(grad_fn, model, X, Y)
    # bfloat16 rounds; the diagnostics have a difference of two losses.
    loose = {"climb_dtype": 2e-2, "diagnostics": 1e-3}
    rtol = max(loose.get(name, 2e-5) for name in options)
    chex.assert_trees_all_close((value, arrays(grads)), expected, rtol=rtol)


def test_diagnostics_of_sub_batches():
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))

    def loss(model, x):
        return jnp.mean(model(x) ** 2), jnp.sum(x)

    grad_fn = grads_of(loss_fn=loss, microbatch_size=4, diagnostics=True)
    (value, (aux, report)), _ = under_nnx_jit(grad_fn, model, X)
    np.testing.assert_allclose(aux, X.sum() / 3, rtol=1e-5)
    np.testing.assert_allclose(report.climb_norm, RHO, rtol=1e-5)
    np.testing.assert_allclose(report.loss, value, rtol=1e-6)


# --- Functional SAM -----------------------------------------------------------------


def outputs_of(model, x, y):
    out = model(x)
    return out, out


def head(outputs, x, y):
    return jnp.mean((outputs - y) ** 2)


def functional_by_hand(x=X, y=Y, fold=None):
    """The clean gradient of the head, pulled back through a climbed clone."""
    clean, climbed = net(), net()
    if fold is not None:
        fold_keys(clean, fold)
        fold_keys(climbed, fold)
    out, clean_grads = of_nnx(loss_fn, nnx.Param)(clean, x, y)
    slope = jax.grad(head)(out[1], x, y)
    size = optax.tree.norm(nnx.as_pure(clean_grads))
    graphdef, params, rest = nnx.split(climbed, nnx.Param, ...)
    params = jax.tree.map(lambda w, g: w + RHO * g / size, params, clean_grads)

    def along(params):
        return jnp.sum(slope * nnx.merge(graphdef, params, rest, copy=True)(x))

    return out, arrays(jax.jit(jax.grad(along))(params)), state_of(clean, x, y)


def functional_grads(**options):
    return optax_sam.nnx.functional_value_and_grad(
        outputs_of, head, steepest_ascent(RHO), has_aux=True, **options
    )


@SCANNED
@COMPILED
def test_functional_sam(how, scan_passes):
    """Both passes see the same masks; the state is that of the clean one."""
    model = net()
    out, grads, after = functional_by_hand()
    got, got_grads = how(functional_grads(scan_passes=scan_passes), model, X, Y)
    assert_close((got, arrays(got_grads)), (out, grads))
    assert_close(state_of(model, X, Y), after)
    assert model.dropout.rngs.count[...] == 1


@pytest.mark.slow
@SCANNED
@pytest.mark.parametrize("mesh", [False, True])
def test_functional_sam_of_sub_batches(mesh, scan_passes):
    model, parts = net(), []
    for j, start in enumerate(range(0, len(X), 4)):
        some = slice(start, start + 4)
        (value, _), grads, state = functional_by_hand(X[some], Y[some], fold=j)
        parts.append((value, grads, state[0]["norm"]["mean"]))
    expected = jax.tree.map(lambda *x: sum(x) / len(x), *parts)
    options = {"axis_name": "data", "mesh": auto_mesh(3)} if mesh else {}
    grad_fn = functional_grads(
        scan_passes=scan_passes,
        microbatch_size=4,
        batch_argnums=(1, 2),
        concat_aux=True,
        **options,
    )
    (value, _), grads = under_nnx_jit(grad_fn, model, X, Y)
    assert_close((value, arrays(grads), model.norm.mean[...]), expected)


def test_the_head_of_functional_sam_is_given_no_objects():
    def plain(model, other, x, y):
        return model(x)

    def head(outputs, other, x, y):
        assert other is None
        return jnp.mean((outputs - y) ** 2)

    grad_fn = optax_sam.nnx.functional_value_and_grad(plain, head, steepest_ascent(RHO))
    assert_close(grad_fn(net(), net(), X, Y)[0], functional_by_hand()[0][0])


# --- m-sharpness --------------------------------------------------------------------


def loop(microbatch_size, x=X, y=Y):
    """Each sub-batch from the state before, its keys folded with its index."""
    parts = []
    for j, start in enumerate(range(0, len(x), microbatch_size)):
        some = slice(start, start + microbatch_size)
        (value, out), grads, state = by_hand(net(), x[some], y[some], fold=j)
        parts.append((value, grads, state[0]["norm"]["mean"], out))
    values, grads, means, outs = zip(*parts, strict=True)
    grads = jax.tree.map(lambda *g: sum(g) / len(g), *grads)
    mean = sum(means) / len(means)
    return (sum(values) / len(values), jnp.concatenate(outs)), grads, mean


@SCANNED
@COMPILED
def test_m_sharpness_is_the_loop(how, scan_passes):
    model, before = net(), state_of(net())[0]
    out, grads, mean = loop(4)
    grad_fn = grads_of(
        microbatch_size=4,
        batch_argnums=(1, 2),
        concat_aux=True,
        scan_passes=scan_passes,
    )
    got, got_grads = how(grad_fn, model, X, Y)
    assert_close(got, out)
    assert_close(arrays(got_grads), grads)
    after = state_of(model)[0]
    assert_close(after["norm"]["mean"], mean)
    # Counters of the first sub-batch; keys, and what no pass has written, as before.
    assert after["dropout"]["rngs"]["count"] == 1
    assert after["dropout"]["rngs"]["count"].dtype == jnp.uint32
    positive = jnp.sum(X.reshape(3, 4, 3) > 0, (1, 2))
    assert after["positive"] == positive[0] != positive[-1]
    chex.assert_trees_all_equal(
        after["dropout"]["rngs"]["key"], before["dropout"]["rngs"]["key"]
    )
    assert after["frozen"] == before["frozen"]  # also bit for bit: 3 * 0.1 / 3 is not


def auto_mesh(devices):
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((devices,), ("data",), axis_types=auto)


@pytest.mark.slow
@SCANNED
@pytest.mark.parametrize(("devices", "microbatch_size"), [(3, None), (2, 3)])
def test_mesh_is_the_loop(devices, microbatch_size, scan_passes):
    model = net()
    out, grads, mean = loop(microbatch_size or 4)
    grad_fn = grads_of(
        microbatch_size=microbatch_size,
        axis_name="data",
        mesh=auto_mesh(devices),
        batch_argnums=(1, 2),
        concat_aux=True,
        scan_passes=scan_passes,
    )
    got, got_grads = under_nnx_jit(grad_fn, model, X, Y)
    assert_close((got, arrays(got_grads)), (out, grads))
    assert_close(model.norm.mean[...], mean)
    assert model.dropout.rngs.count[...] == 1


def test_shard_map_is_the_loop():
    model = net()
    out, grads, mean = loop(4)
    graphdef, state = nnx.split(model)
    grad_fn = grads_of(axis_name="data", batch_argnums=(1, 2), concat_aux=True)

    def step(state, x, y):
        model = nnx.merge(graphdef, state)
        (value, out), grads = grad_fn(model, x, y)
        return value, out, grads, (model.norm.mean[...], model.dropout.rngs.count[...])

    same, split = jax.P(), jax.P("data")
    step = jax.shard_map(
        step,
        mesh=auto_mesh(3),
        in_specs=(same, split, split),
        out_specs=(same, split, same, same),
    )
    value, rows, got_grads, (got_mean, count) = jax.jit(step)(state, X, Y)
    assert_close(((value, rows), arrays(got_grads)), (out, grads))
    assert_close(got_mean, mean)
    assert count == 1


# --- Which arguments ----------------------------------------------------------------


def shapes(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


def climbed(arg, grad, scale):
    """The argument after a climb along the gradient that nnx gave for it."""
    if isinstance(grad, nnx.State):
        for path, g in nnx.to_flat_state(grad):
            variable = arg
            for key in path:
                there = isinstance(variable, nnx.Module) and isinstance(key, str)
                variable = getattr(variable, key) if there else variable[key]
            variable[...] = variable[...] + scale * g[...]
        return arg
    if isinstance(grad, nnx.Variable):
        arg[...] = arg[...] + scale * grad[...]
        return arg
    if isinstance(grad, dict):
        return {k: climbed(arg[k], grad[k], scale) for k in grad}
    if isinstance(grad, list | tuple):
        pairs = zip(arg, grad, strict=True)
        return type(grad)(climbed(x, g, scale) for x, g in pairs)
    return None if grad is None else arg + scale * grad


def number(argnum):
    return argnum.argnum if isinstance(argnum, nnx.DiffState) else argnum


def by_hand_in(argnums, loss, *args):
    """SAM with one norm over all that nnx differentiates; and the state after."""
    grad_fn = nnx.jit(nnx.value_and_grad(loss, argnums=argnums, has_aux=True))
    clean, moved = nnx.clone(args), list(nnx.clone(args))
    out, grads = grad_fn(*clean)
    scale = RHO / optax.tree.norm(nnx.as_pure(grads))
    several = isinstance(argnums, list | tuple)
    places = [number(x) for x in argnums] if several else [number(argnums)]
    for i, g in zip(places, grads if several else [grads], strict=True):
        moved[i] = climbed(moved[i], g, scale)
    return out, grad_fn(*moved)[1], state_of(*clean)


def two(student, teacher, x, y):
    out = student(x) * jnp.tanh(teacher["net"](x)) * teacher["scale"]
    value = jnp.mean((out[:, 0] + teacher["shift"][...] - y) ** 2)
    return value + 0.1 * jnp.sum(teacher["more"][0](x) ** 2), out


def student_and_teacher():
    student = nnx.Sequential(
        nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.tanh, nnx.Linear(4, 1, rngs=nnx.Rngs(1))
    )
    teacher = {
        "more": [nnx.Linear(3, 1, use_bias=False, rngs=nnx.Rngs(2)), None],
        "net": nnx.Linear(3, 1, rngs=nnx.Rngs(3)),
        "scale": jnp.asarray(1.5),
        "shift": nnx.BatchStat(jnp.asarray(0.3)),
    }
    return student, teacher


KERNELS = nnx.PathContains("kernel")
OTHER_ARGNUMS = [
    0,
    1,
    (0, 1),
    [1, 0],
    (1,),
    nnx.DiffState(1, KERNELS),
    (nnx.DiffState(0, KERNELS), 1),
    [nnx.DiffState(1, nnx.Not(KERNELS)), nnx.DiffState(0, nnx.Param)],
    2,
    (0, 3),
    (nnx.DiffState(0, nnx.BatchStat), 1),  # selects nothing in the first
]


@pytest.mark.parametrize("argnums", OTHER_ARGNUMS, ids=str)
def test_argnums_as_nnx_takes_them(argnums):
    args = *student_and_teacher(), X, Y
    out, grads, after = by_hand_in(argnums, two, *args)
    got, got_grads = under_nnx_jit(grads_of(loss_fn=two, argnums=argnums), *args)
    assert_close(got, out)
    assert jax.tree.structure(got_grads) == jax.tree.structure(grads)
    assert shapes(nnx.as_pure(got_grads)) == shapes(nnx.as_pure(grads))
    assert_close(nnx.as_pure(got_grads), nnx.as_pure(grads))
    assert_close(state_of(*args), after)


@pytest.mark.parametrize("argnums", [-4, (-3, 0), nnx.DiffState(-3, KERNELS)], ids=str)
def test_argnums_from_the_end(argnums):
    args = *student_and_teacher(), X, Y
    fn = grads_of(loss_fn=two, argnums=argnums)
    if isinstance(argnums, nnx.DiffState):
        same = nnx.DiffState(1, KERNELS)
    else:
        same = 0 if argnums == -4 else (1, 0)
    got = fn(*args)
    expected = grads_of(loss_fn=two, argnums=same)(*args)
    chex.assert_trees_all_equal(nnx.as_pure(got), nnx.as_pure(expected))


@pytest.mark.parametrize("scan_passes", [False, True])
def test_two_models_with_statistics_and_streams(scan_passes):
    def loss(first, second, x, y):
        out = first(x) + second(x)
        return jnp.mean((out - y) ** 2), out

    other = Net(nnx.Rngs(5, dropout=6))
    args = net(), other, X, Y
    out, grads, after = by_hand_in((0, 1), loss, *args)
    fn = grads_of(loss_fn=loss, argnums=(0, 1), scan_passes=scan_passes)
    got, got_grads = under_nnx_jit(fn, *args)
    assert_close((got, nnx.as_pure(got_grads)), (out, nnx.as_pure(grads)))
    assert_close(state_of(*args), after)
    assert other.dropout.rngs.count[...] == 1


def test_one_model_in_two_arguments():
    # As nnx has it: the gradient of both uses, where the model comes first.
    def loss(first, second, x):
        return jnp.sum(jnp.tanh(first(x)) * second(x)), x

    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    for argnums in ((0, 1), (1, 0)):
        fn = grads_of(loss_fn=loss, argnums=argnums)
        _, got = under_nnx_jit(fn, model, model, X)
        theirs = nnx.value_and_grad(loss, argnums=argnums, has_aux=True)
        assert jax.tree.structure(got) == jax.tree.structure(theirs(model, model, X)[1])
        alone = grads_of(loss_fn=lambda m, x: loss(m, m, x))
        assert_close(arrays(got[argnums.index(0)]), arrays(alone(model, X)[1]))
    # Where one of the two is not differentiated, what they share still is.
    _, got = grads_of(loss_fn=loss, argnums=1)(model, model, X)
    assert_close(arrays(got), arrays(alone(model, X)[1]))


def test_integers_among_the_parameters():
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    before = grads_of(loss_fn=lambda m, x: (jnp.sum(m(x) ** 2), x))(model, X)[1]
    model.count = nnx.Param(jnp.asarray([3, 4]))
    fn = grads_of(loss_fn=lambda m, x: (jnp.sum(m(x) ** 2), x), allow_int=True)
    _, grads = fn(model, X)
    theirs = nnx.grad(lambda m, x: jnp.sum(m(x) ** 2), allow_int=True)(model, X)
    assert jax.tree.structure(grads) == jax.tree.structure(theirs)
    grads = arrays(grads)
    assert grads["count"].dtype == jax.dtypes.float0
    assert_close(grads["kernel"], arrays(before)["kernel"])


def rows_of(x, y):
    return [(x[i : i + 4], y[i : i + 4]) for i in range(0, 12, 4)]


@pytest.mark.parametrize("mesh", [False, True])
@pytest.mark.parametrize("argnums", [1, (1, 2)], ids=str)
def test_m_sharpness_in_several_arguments(mesh, argnums):
    """The examples first, then two models; each sub-batch climbs by itself."""

    def loss(examples, first, second):
        x, y = examples
        out = jnp.tanh(first(x)) * second(x)
        return jnp.mean((out[:, 0] - y) ** 2), out

    models = nnx.Linear(3, 1, rngs=nnx.Rngs(0)), nnx.Linear(3, 1, rngs=nnx.Rngs(1))
    parts = [by_hand_in(argnums, loss, part, *models)[:2] for part in rows_of(X, Y)]
    outs, grads = zip(*parts, strict=True)
    grads = jax.tree.map(lambda *g: sum(g) / 3, *map(nnx.as_pure, grads))
    how = (
        {"axis_name": "data", "mesh": auto_mesh(3)} if mesh else {"microbatch_size": 4}
    )
    fn = grads_of(
        loss_fn=loss, argnums=argnums, batch_argnums=0, concat_aux=True, **how
    )
    (value, rows), got = under_nnx_jit(fn, (X, Y), *models)
    assert_close(nnx.as_pure(got), grads)
    assert_close(value, sum(out[0] for out in outs) / 3)
    assert_close(rows, jnp.concatenate([out[1] for out in outs]))


# --- What writes to parameters ------------------------------------------------------


class Normed(nnx.Module):
    """SpectralNorm writes its statistics, and the normed weight in the place of it."""

    def __init__(self):
        self.layer = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        self.norm = nnx.SpectralNorm(self.layer, rngs=nnx.Rngs(1))
        self.out = nnx.Linear(4, 1, rngs=nnx.Rngs(2))

    def __call__(self, x):
        return self.out(nnx.tanh(self.norm(x, update_stats=True)))[:, 0]


def raw_state(model):
    return [nnx.as_pure(v) for _, v in nnx.to_flat_state(nnx.state(model))]


@SCANNED
def test_spectral_norm(scan_passes):
    model, theirs = Normed(), Normed()
    before = raw_state(model)
    out, grads, _ = by_hand(model, X, Y)
    got, got_grads = under_nnx_jit(grads_of(scan_passes=scan_passes), model, X, Y)
    assert_close((got, arrays(got_grads)), (out, grads))
    nnx.value_and_grad(loss_fn, has_aux=True)(theirs, X, Y)
    assert_close(raw_state(model), raw_state(theirs))
    pairs = zip(before, raw_state(model), strict=True)
    assert any(not np.allclose(x, y) for x, y in pairs)


def test_spectral_norm_of_sub_batches():
    model, theirs = Normed(), Normed()
    parts = [by_hand(model, x, y)[1] for x, y in rows_of(X, Y)]
    grad_fn = grads_of(microbatch_size=4, batch_argnums=(1, 2), concat_aux=True)
    _, got = under_nnx_jit(grad_fn, model, X, Y)
    assert_close(arrays(got), jax.tree.map(lambda *g: sum(g) / 3, *parts))
    nnx.value_and_grad(loss_fn, has_aux=True)(theirs, X, Y)
    assert_close(raw_state(model), raw_state(theirs))  # of no example


def test_a_parameter_that_the_loss_writes_to():
    def writing(model, x, y):
        model.hidden.kernel[...] = model.hidden.kernel[...] / 2
        return loss_fn(model, x, y)

    model = net()
    out, grads, after = by_hand(model, X, Y, loss_fn=writing)
    got, got_grads = under_nnx_jit(grads_of(loss_fn=writing), model, X, Y)
    assert_close((got, arrays(got_grads)), (out, grads))
    assert_close(state_of(model, X, Y), after)
    assert_close(model.hidden.kernel[...], NET.hidden.kernel[...] / 2)


# --- Variables that hold no single array --------------------------------------------


class Holds(nnx.Module):
    """A parameter and a variable, each of whatever it is given."""

    def __init__(self, param, variable):
        self.param = nnx.Param(param)
        self.variable = nnx.Variable(variable)


def squares(value):
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(value))


def counting(model, x):
    """The loss is |w|^2 times the mean example; every number of the variable grows."""
    old = model.variable.get_value()
    model.variable.set_value(jax.tree.map(lambda v: v + 1, old))
    return squares(model.param.get_value()) * jnp.mean(x), squares(old)


W = jnp.array([3.0, 4.0])
HELD = {
    "number": (W, 2),
    "float": (W, 0.5),
    "dict": (W, {"a": jnp.ones(2), "b": jnp.zeros(1)}),
    "nested": (W, {"a": {"b": jnp.ones(2)}, "c": [1, None]}),
    "state": (W, nnx.State({"a": jnp.ones(2)})),
    "empty": (W, {}),
    "parameters": ({"a": W, "b": [2 * W]}, jnp.zeros(())),
    "both": ({"a": W}, {"a": 1}),
}


@pytest.mark.parametrize("how", [lambda grad_fn, *args: grad_fn(*args), under_nnx_jit])
@pytest.mark.parametrize("name", HELD)
def test_variables_of_trees_and_numbers(name, how):
    """The climb of |w|^2 is along w: its gradient grows by 1 + rho / |w|."""
    theirs, model = Holds(*HELD[name]), Holds(*HELD[name])
    out, grads = nnx.value_and_grad(counting, has_aux=True)(theirs, jnp.ones(4))
    got, got_grads = how(grads_of(loss_fn=counting), model, jnp.ones(4))
    growth = 1 + RHO / jnp.sqrt(squares(HELD[name][0]))
    assert_close(got, out)
    assert jax.tree.structure(got_grads) == jax.tree.structure(grads)
    assert_close(got_grads, jax.tree.map(lambda g: growth * g, grads))
    states = nnx.state(model), nnx.state(theirs)
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    assert_close(*states)


@pytest.mark.parametrize("options", [{"microbatch_size": 2}, {"scan_passes": True}])
@pytest.mark.parametrize("name", HELD)
def test_variables_of_trees_and_numbers_with_options(name, options):
    """Counters are those of the first sub-batch, and a mean of equal ones is theirs."""
    plain, model = Holds(*HELD[name]), Holds(*HELD[name])
    expected = grads_of(loss_fn=counting)(plain, jnp.ones(4))
    got = under_nnx_jit(grads_of(loss_fn=counting, **options), model, jnp.ones(4))
    assert_close(got, expected)
    assert_close(nnx.state(model), nnx.state(plain))


def test_a_variable_that_is_an_argument_and_holds_a_dict():
    value = {"a": W, "b": 2 * W}
    param, theirs = nnx.Param(value), nnx.Param(value)

    def loss(param):
        return squares(param.get_value())

    got, grads = grads_of(loss_fn=loss, has_aux=False)(param)
    expected, their_grads = nnx.value_and_grad(loss)(theirs)
    growth = 1 + RHO / jnp.sqrt(squares(value))
    assert_close(got, expected)
    assert_close(grads, jax.tree.map(lambda g: growth * g, their_grads))
    assert_close(param, theirs)


# --- What it refuses ----------------------------------------------------------------


def test_wrt_beside_a_diff_state():
    for argnums in (nnx.DiffState(0, nnx.Param), (1, nnx.DiffState(0, nnx.Param))):
        with pytest.raises(ValueError, match=r"wrt.*DiffState"):
            grads_of(argnums=argnums, wrt=nnx.Param)


def test_wrt_for_another_argument():
    with pytest.raises(ValueError, match=r"wrt.*argument 0.*DiffState\(1"):
        grads_of(argnums=1, wrt=nnx.Param)


@pytest.mark.parametrize(
    ("argnums", "words"),
    [
        ((0, 0), "argnums = .*twice"),
        ((0, nnx.DiffState(-3, nnx.Param)), "argnums = .*twice"),
        (3, "argnums = 3.*only 3 positional"),
        ("model", "argnums = 'model'"),
    ],
    ids=str,
)
def test_argnums_that_name_no_argument(argnums, words):
    with pytest.raises((TypeError, ValueError), match=words):
        grads_of(argnums=argnums)(net(), X, Y)


def test_a_batch_that_was_not_given():
    fn = grads_of(microbatch_size=4, batch_argnums=3)
    with pytest.raises(TypeError, match=r"batch_argnums = 3.*only 3 positional"):
        fn(net(), X, Y)


def test_a_model_selected_in_two_ways():
    def loss(first, second, x):
        return jnp.sum(first(x) * second(x)), x

    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    ways = nnx.DiffState(0, KERNELS), nnx.DiffState(1, nnx.Param)
    with pytest.raises(ValueError, match=r"bias.*two filters"):
        grads_of(loss_fn=loss, argnums=ways)(model, model, X)
    other = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    grads_of(loss_fn=loss, argnums=ways)(model, other, X)


def test_a_tree_of_arrays_is_refused():
    with pytest.raises(TypeError, match=r"has type dict.*optax_sam.value_and_grad"):
        grads_of()({"kernel": X}, X, Y)


def test_a_module_without_such_variables_is_refused():
    with pytest.raises(TypeError, match=r"LoRAParam.*nothing to differentiate"):
        grads_of(wrt=nnx.LoRAParam)(net(), X, Y)


def test_a_vector_loss_is_refused():
    with pytest.raises(TypeError, match=r"shape \(12,\)"):
        grads_of(loss_fn=lambda m, x, y: m(x), has_aux=False)(net(), X, Y)


def test_a_tuple_without_has_aux_is_refused():
    with pytest.raises(TypeError, match="has_aux=True"):
        grads_of(has_aux=False)(net(), X, Y)


def test_an_ascent_with_state_is_refused():
    ascent = steepest_ascent(optax.linear_schedule(0.0, 1.0, 5))
    with pytest.raises(ValueError, match="keeps a state"):
        grads_of(ascent=ascent)(net(), X, Y)


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="rho"):
        grads_of(rho=0.1)(net(), X, Y)


def test_new_variables_and_attributes_are_refused():
    def adding(model, x, y):
        model.seen = nnx.Intermediate(x)
        return loss_fn(model, x, y)

    def switching(model, x, y):
        model.eval()
        return loss_fn(model, x, y)

    def growing(model, x, y):
        out = loss_fn(model, x, y)
        model.frozen.set_value({"old": model.frozen.get_value(), "new": x})
        return out

    for loss in (adding, switching, growing):
        model = net()
        before = state_of(model)
        with pytest.raises(ValueError, match=r"sow.*model.train\(\).*other leaves"):
            grads_of(loss_fn=loss)(model, X, Y)
        chex.assert_trees_all_equal(state_of(model), before)


@pytest.mark.slow
def test_reseeding_in_sub_batches_is_refused():
    def reseeding(model, x, y):
        nnx.reseed(model, dropout=7)
        return loss_fn(model, x, y)

    model = net()
    grads_of(loss_fn=reseeding)(model, X, Y)  # one pass: its keys are kept
    with pytest.raises(TypeError, match="random key"):
        grads_of(loss_fn=reseeding, microbatch_size=4, batch_argnums=(1, 2))(
            model, X, Y
        )


def test_without_flax(monkeypatch):
    real = builtins.__import__

    def no_flax(name, *args, **kwargs):
        if name.split(".")[0] == "flax":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_flax)
    spec = importlib.util.find_spec("optax_sam.nnx")
    with pytest.raises(ImportError, match="pip install flax"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_the_library_does_not_import_it():
    source = importlib.util.find_spec("optax_sam").loader.get_source("optax_sam")
    assert "nnx" not in source
