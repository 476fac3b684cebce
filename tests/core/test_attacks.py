"""What users get wrong, or are told wrong, without a word: each is right or refused."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax import serialization as flax_serialization
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from problems import quick_jit

import optax_sam
from optax_sam import steepest_ascent, value_and_grad
from optax_sam._examples.part_of_batch import part_of

PARAMS = {"a": np.float32([1.0, 2.0]), "b": np.float32([0.5])}
BATCH = np.linspace(0.5, 2, 16, dtype=np.float32).reshape(8, 2)


def params():
    return jax.tree.map(jnp.asarray, PARAMS)


def losses(w, x):
    return (x @ w["a"]) ** 2 + jnp.sum(w["b"] ** 2) * jnp.sum(x, 1)


def loss(w, x):
    return jnp.mean(losses(w, x))


KEY = functools.partial(jax.random.key, 0)
#: Each takes its own gradients, so that `updates` is `None`.
PRODUCTS = {
    "sam": lambda **o: optax_sam.sam(0.1, **o),
    "sam ord 1": lambda **o: optax_sam.sam(0.1, ord=1, **o),
    "sam of a schedule": lambda **o: optax_sam.sam(lambda t: 0.1, **o),
    "sam steps": lambda **o: optax_sam.sam(0.1, num_steps=2, **o),
    "sam scanned": lambda **o: optax_sam.sam(0.1, scan_passes=True, **o),
    "every_k": lambda **o: optax_sam.sam(0.1, when=optax_sam.every_k(2), **o),
    "asam": lambda **o: optax_sam.asam(0.1, **o),
    "m_sam": lambda **o: optax_sam.m_sam(0.1, microbatch_size=2, **o),
    "gsam": lambda **o: optax_sam.gsam(0.1, **o),
    "wsam": lambda **o: optax_sam.wsam(0.1, **o),
    "friendly_sam": lambda **o: optax_sam.friendly_sam(0.1, **o),
    "look_sam": lambda **o: optax_sam.look_sam(0.1, **o),
    "momentum_sam": lambda **o: optax_sam.momentum_sam(0.1, **o),
    "stale_sam": lambda **o: optax_sam.stale_sam(0.1, **o),
    "le_sam": lambda **o: optax_sam.le_sam(0.1, rho_max=0.5, of_loss=True, **o),
    "partial_climb": lambda **o: optax_sam.partial_climb(0.1, **o),
    "random_perturbation": lambda **o: optax_sam.random_perturbation(
        0.1, key=KEY(), **o
    ),
    "esam": lambda **o: optax_sam.esam(0.1, key=KEY(), **o),
}
every_product = pytest.mark.parametrize("name", PRODUCTS)


def two_steps(name, w, value_fn=None, **options):
    tx = PRODUCTS[name](**options)
    value_fn = value_fn or (losses if name == "esam" else loss)
    state = tx.init(w)
    for _ in range(2):
        out, state = tx.update(None, state, w, value_fn=value_fn, batch=BATCH)
    return out, state


# --- The trap: a gradient that JAX has summed over the devices ------------------------


def over_devices(step, axes=("data",), shape=(8,)):
    mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))
    run = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(axes)), out_specs=P())
    return quick_jit(run)(params(), jnp.asarray(BATCH))


def by_transformation(**options):
    tx = optax_sam.sam(0.1, **options)

    def step(w, x):
        return tx.update(None, tx.init(w), w, value_fn=loss, batch=x)[0]

    return step


def by_gradient(w, x):
    return value_and_grad(loss, steepest_ascent(0.1))(w, x)[1]


def with_given_gradient(w, x):
    tx = optax_sam.sam(0.1)
    return tx.update(jax.grad(loss)(w, x), tx.init(w), w, value_fn=loss, batch=x)[0]


@pytest.mark.parametrize(
    "step",
    [
        by_transformation(),
        by_transformation(microbatch_size=1),
        by_transformation(scan_passes=True),
        by_gradient,
        with_given_gradient,
    ],
    ids=["sam", "micro-batches", "scanned", "value_and_grad", "given"],
)
def test_a_sum_over_devices_is_warned_of(step):
    with pytest.warns(UserWarning, match="per_device.*psum") as seen:
        over_devices(step)
    assert seen[0].filename == __file__


def test_an_axis_that_was_forgotten_is_warned_of():
    step = by_transformation(axis_name="data")
    with pytest.warns(UserWarning, match="along 'more'"):
        over_devices(step, ("data", "more"), (4, 2))


@pytest.mark.parametrize("axes", ["data", ("data",)])
def test_no_warning_where_all_is_right(axes, recwarn):
    over_devices(by_transformation(axis_name=axes))

    def share(w, x):
        return jax.lax.psum(loss(w, x) / 8, "data")

    over_devices(lambda w, x: value_and_grad(share, steepest_ascent(0.1))(w, x)[1])
    assert not [w for w in recwarn if "per_device" in str(w.message)]


# --- Rules by the names of leaves -----------------------------------------------------


def boxed_trees():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    yield nnx.split(model)[1]
    yield nnx.state(model, nnx.Param)
    init = nn.with_partitioning(nn.initializers.ones, (None, "x"))
    bias = nn.with_partitioning(nn.initializers.ones, ("x",))
    yield nn.Dense(3, kernel_init=init, bias_init=bias).init(KEY(), jnp.ones((1, 2)))


@pytest.mark.parametrize("number", range(3))
def test_biases_in_boxes_are_biases(number):
    """The published rule: T = 1 for them."""
    w = list(boxed_trees())[number]
    ones = jax.tree.map(jnp.ones_like, w)
    far = jax.tree.map(lambda x: 100 * jnp.ones_like(x), w)
    ascent = optax_sam.adaptive_ascent(1.0, eta=0.0)
    climb = ascent.update(ones, ascent.init(far), far)[0]
    sizes = {
        optax_sam._trees.path_name(path): float(jnp.max(x))
        for path, x in jax.tree_util.tree_leaves_with_path(climb)
    }
    (kernel,) = [x for path, x in sizes.items() if path.endswith("kernel")]
    (bias,) = [x for path, x in sizes.items() if path.endswith("bias")]
    np.testing.assert_allclose(kernel / bias, 100**2, rtol=1e-5)
    only = optax_sam.climb_only(steepest_ascent(1.0), r"bias$")
    climb = only.update(ones, only.init(far), far)[0]
    np.testing.assert_allclose(optax.tree.norm(climb), 1, rtol=1e-6)


# --- Parameters split by hand ---------------------------------------------------------

SPLIT = {
    "sam": lambda **o: optax_sam.sharpness_aware(steepest_ascent(0.3, **o)),
    "gsam": lambda **o: optax_sam.gsam(0.3, alpha=0.5, **o),
    "look_sam": lambda **o: optax_sam.look_sam(0.3, k=2, **o),
    "look_sam per leaf": lambda **o: optax_sam.look_sam(0.3, k=2, per_leaf=True, **o),
    "friendly_sam": lambda **o: optax_sam.friendly_sam(0.3, **o),
    "momentum_sam": lambda **o: optax_sam.momentum_sam(0.3, **o),
}


def train(make, whole, value_fn, **options):
    tx = optax.chain(make(**options), optax.sgd(0.1))
    state = tx.init(whole)
    for _ in range(3):
        out, state = tx.update(None, state, whole, value_fn=value_fn)
        whole = optax.apply_updates(whole, out)
    return whole


@pytest.mark.slow
@pytest.mark.parametrize("name", SPLIT)
def test_split_by_hand_is_the_whole(name, x64):
    """Projections, norms and averages of the whole tree, a part on each device."""
    hidden = jnp.asarray(np.random.default_rng(1).normal(size=(16, 3)))
    x = jnp.asarray(np.random.default_rng(2).normal(size=3))

    def local(w):
        return jnp.sum(jnp.tanh(w["h"] @ x) ** 3)

    def of_device(w):
        return jax.lax.psum(local(w), "model") + jnp.sum(w["c"] ** 4)

    def of_all(w):
        return local(w) + jnp.sum(w["c"] ** 4)

    start = {"h": hidden, "c": jnp.array([0.5, -1.0])}
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    specs = {"h": P("model"), "c": P()}
    run = jax.shard_map(
        lambda w: train(SPLIT[name], w, of_device, params_axis_name="model"),
        mesh=mesh,
        in_specs=(specs,),
        out_specs=specs,
    )
    got = quick_jit(run)(start)
    want = quick_jit(lambda w: train(SPLIT[name], w, of_all))(start)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), got, want)


def test_noise_of_parameters_split_by_hand():
    """Every device draws its own part, and the norm is that of the whole."""
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    specs = {"h": P("model"), "c": P()}
    tx = optax_sam.random_perturbation(0.5, key=KEY(), params_axis_name="model")

    def climb(w):
        def revealing(q):
            moved = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2) / 2, q, w)
            return jax.lax.psum(moved["h"], "model") + moved["c"]

        return tx.update(None, tx.init(w), w, value_fn=revealing)[0]

    run = jax.shard_map(climb, mesh=mesh, in_specs=(specs,), out_specs=specs)
    out = quick_jit(run)({"h": jnp.zeros((16, 3)), "c": jnp.zeros(4)})
    np.testing.assert_allclose(optax.tree.norm(out), 0.5, rtol=1e-6)
    rows = out["h"].reshape(8, -1)
    assert len({tuple(np.asarray(row)) for row in rows}) == 8


# --- Shares, radii, what stands in front ----------------------------------------------


@pytest.mark.parametrize(
    ("share", "size", "count"),
    [
        (0.07, 100, 7),
        (0.14, 50, 7),
        (0.28, 200, 56),
        (0.29, 100, 29),
        (0.25, 10, 3),
        (1 / 3, 3, 1),
        (2 / 3, 3, 2),
        (1, 7, 7),
        (0.001, 10, 1),
    ],
)
def test_a_share_is_rounded_up_as_it_is_written(share, size, count):
    assert part_of(jnp.ones((size, 2)), share) == count


@pytest.mark.parametrize("bad", [-0.1, np.float32(-0.1), np.array(-0.1)])
@pytest.mark.parametrize("traced", [False, True])
def test_a_negative_radius_is_refused_wherever_its_value_is_known(bad, traced):
    with pytest.raises(ValueError, match="rho must be non-negative"):
        optax_sam.sam(jnp.asarray(bad) if traced else bad)


@pytest.mark.parametrize("of", [np.array, jnp.array])
def test_a_radius_is_one_number(of):
    with pytest.raises(ValueError, match="one number for the whole tree"):
        optax_sam.asam(of([0.1, 0.2]))


def test_decay_in_front_of_what_takes_its_own_gradients_is_refused():
    tx = optax.chain(
        optax.add_decayed_weights(0.1), optax_sam.m_sam(0.1, microbatch_size=2)
    )
    w = params()
    with pytest.raises(ValueError, match="would be dropped"):
        tx.update(jax.grad(loss)(w, BATCH), tx.init(w), w, value_fn=loss, batch=BATCH)


def test_what_a_descent_in_place_of_a_climb_looks_like():
    """The diagnostics page says: a negative sharpness."""
    tx, w = optax_sam.sharpness_aware(optax.sgd(0.05), diagnostics=True), params()
    _, state = tx.update(None, tx.init(w), w, value_fn=loss, batch=BATCH)
    assert state.diagnostics.sharpness < 0
    behind = optax.chain(optax.adam(1e-2), optax_sam.sam(0.1, diagnostics=True))
    value, grads = jax.value_and_grad(loss)(w, BATCH)
    _, state = behind.update(
        grads, behind.init(w), w, value_fn=loss, batch=BATCH, value=value
    )
    assert optax.tree.get(state, "sharpness") < 0
    _, state = two_steps("sam", w, diagnostics=True)
    assert state.diagnostics.sharpness > 0


@pytest.mark.slow
def test_rho_that_follows_the_learning_rate_behind_accumulated_gradients():
    """The recipe: MultiSteps behind SAM asks the optimizer every k-th step only."""
    k, steps = 4, 10
    rate = optax.linear_schedule(0.1, 0.0, steps)
    follow = functools.partial(optax_sam.proportional_rho, lr_max=0.1, rho_max=0.5)
    naive, recipe = follow(rate), follow(lambda t: rate(t // k))
    w, seen = params(), []
    tx = optax.chain(
        optax_sam.sam(recipe, diagnostics=True), optax.MultiSteps(optax.sgd(rate), k)
    )
    state, grads = tx.init(w), jax.grad(loss)(w, BATCH)
    for _ in range(3 * k):
        _, state = tx.update(grads, state, w, value_fn=loss, batch=BATCH)
        seen.append(float(state[0].diagnostics.climb_norm))
    want = [0.5 * float(rate(t // k)) / 0.1 for t in range(3 * k)]
    np.testing.assert_allclose(seen, want, rtol=1e-4)
    assert float(naive(3 * k - 1)) == 0 < want[-1]


# --- Random keys ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["sam", "momentum_sam", "partial_climb", "random_perturbation"]
)
def test_a_lone_key_in_the_batch_is_each_devices_own(name):
    """With `axis_name` alone: otherwise all devices would draw the same mask."""
    options = {"axis_name": "data"}
    tx = PRODUCTS[name](**options)

    def noisy(w, batch):
        x, key = batch
        return jnp.mean(x @ w["a"]) * jax.random.normal(key) + 0 * w["b"][0]

    def step(w, x, key):
        out = tx.update(None, tx.init(w), w, value_fn=noisy, batch=(x, key))[0]
        return out["a"]

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    run = jax.shard_map(step, mesh=mesh, in_specs=(P(), P("data"), P()), out_specs=P())
    x, key = jnp.ones((8, 2)), jax.random.key(3)
    draws = [jax.random.normal(jax.random.fold_in(key, i)) for i in range(8)]
    got = quick_jit(run)(params(), x, key)
    np.testing.assert_allclose(got, np.mean(draws) * np.ones(2), rtol=1e-4)


def test_raw_keys_are_warned_of():
    def noisy(w, x, key):
        return loss(w, x) * jax.random.uniform(key)

    grad_fn = value_and_grad(noisy, steepest_ascent(0.1))
    split = optax_sam.m_sharpness(grad_fn, microbatch_size=2)
    with pytest.warns(UserWarning, match="wrap_key_data"):
        split(params(), jnp.asarray(BATCH), jax.random.PRNGKey(0))


@pytest.mark.slow
def test_the_checker_for_the_reuse_of_keys(recwarn):
    """Both passes of a step see the same key, on purpose."""

    def noisy(w, x, key):
        return loss(w, x) * jax.random.uniform(key)

    grad_fn = value_and_grad(noisy, steepest_ascent(0.1))
    with jax.debug_key_reuse(True):
        grad_fn(params(), BATCH, jax.random.key(0))
        quick_jit(grad_fn)(params(), BATCH, jax.random.key(0))
        tx, w = optax_sam.sam(0.1), params()
        quick_jit(
            lambda key: tx.update(
                None,
                tx.init(w),
                w,
                value_fn=lambda w, b: noisy(w, *b),
                batch=(BATCH, key),
            )
        )(jax.random.key(0))


# --- Dtypes and modes -----------------------------------------------------------------


def careful(name, dtype):
    """A loss that JAX accepts where nothing is promoted."""

    def of_examples(w, x):
        w = jax.tree.map(lambda p: p.astype(dtype), w)
        return losses(w, jnp.asarray(x).astype(dtype))

    return of_examples if name == "esam" else lambda w, x: jnp.mean(of_examples(w, x))


@pytest.mark.slow
@every_product
@pytest.mark.parametrize("diagnostics", [False, True])
@pytest.mark.parametrize("kind", ["bfloat16", "float32", "mixed"])
@pytest.mark.filterwarnings("ignore:SAM climbs from parameters stored in half")
def test_strict_promotion(name, diagnostics, kind):
    half = {"bfloat16": "ab", "float32": "", "mixed": "a"}[kind]
    w = {
        k: x.astype(jnp.bfloat16 if k in half else jnp.float32)
        for k, x in params().items()
    }
    with jax.numpy_dtype_promotion("strict"):
        out, _ = two_steps(name, w, careful(name, jnp.float32), diagnostics=diagnostics)
    assert jax.tree.map(lambda x: x.dtype, out) == jax.tree.map(lambda x: x.dtype, w)


@pytest.mark.slow
@every_product
def test_strict_promotion_of_double_precision_beside_single(name, x64):
    w = {"a": params()["a"].astype(jnp.float64), "b": params()["b"]}
    with jax.numpy_dtype_promotion("strict"):
        two_steps(name, w, careful(name, jnp.float64), diagnostics=True)


@pytest.mark.slow
@every_product
def test_debug_nans(name):
    """Diagnostics name what no pass has shown without stopping the training."""
    with jax.debug_nans(True):
        two_steps(name, params(), diagnostics=True)


def test_debug_nans_with_a_given_gradient_and_no_value():
    tx, w = optax_sam.sam(0.1, diagnostics=True), params()
    grads = jax.grad(loss)(w, BATCH)
    with jax.debug_nans(True):
        _, state = tx.update(grads, tx.init(w), w, value_fn=loss, batch=BATCH)
    assert jnp.isinf(state.diagnostics.loss)
    _, state = tx.update(grads, tx.init(w), w, value_fn=loss, batch=BATCH)
    assert jnp.isnan(state.diagnostics.loss)


@pytest.mark.slow
@every_product
def test_parameters_that_are_numbers_of_python(name):
    def of_number(w, x):
        each = (w["x"] * jnp.asarray(x)[:, 0]) ** 2
        return each if name == "esam" else jnp.mean(each)

    out, _ = two_steps(name, {"x": 3.0}, of_number)
    want, _ = two_steps(name, {"x": jnp.float32(3.0)}, of_number)
    np.testing.assert_allclose(out["x"], want["x"], rtol=1e-6)


def test_value_and_grad_of_a_number_of_python():
    grad_fn = value_and_grad(lambda w: w**2, steepest_ascent(0.5))
    np.testing.assert_allclose(grad_fn(3.0), (9, 7))


def test_look_sam_with_gradients_of_another_dtype():
    tx, w = optax_sam.look_sam(0.1, k=2), params()
    grads = jax.tree.map(lambda g: g.astype(jnp.bfloat16), jax.grad(loss)(w, BATCH))
    state = tx.init(w)
    for _ in range(3):
        out, new = tx.update(grads, state, w, value_fn=loss, batch=BATCH)
        assert jax.tree.map(lambda x: x.dtype, new) == jax.tree.map(
            lambda x: x.dtype, state
        )
        state = new
    assert out["a"].dtype == jnp.bfloat16


def test_a_mask_with_a_gradient_left_out():
    mask = {"a": True, "b": False}
    tx, w = optax_sam.asam(0.1, mask=mask), params()
    grads = jax.grad(loss)(w, BATCH) | {"b": None}
    out, _ = tx.update(grads, tx.init(w), w, value_fn=loss, batch=BATCH)
    assert out["b"] is None
    assert jnp.all(jnp.isfinite(out["a"]))


@pytest.mark.filterwarnings("ignore:SAM climbs from parameters stored in half")
@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_parameters_of_eight_bits(dtype):
    def of_bits(w):
        return jnp.sum(w.astype(jnp.float32) ** 2)

    w = jnp.ones(4, dtype)
    tx = optax_sam.sam(2.0, diagnostics=True)
    out, _ = tx.update(None, tx.init(w), w, value_fn=of_bits)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out.astype(jnp.float32), 4)


# --- States ---------------------------------------------------------------------------


@every_product
def test_a_fresh_state_may_be_donated(name):
    """No two leaves share an array: an accelerator refuses to donate one twice."""
    state = PRODUCTS[name](diagnostics=True).init(params())
    arrays = [x for x in jax.tree.leaves(state) if not _is_key(x)]
    places = [x.unsafe_buffer_pointer() for x in arrays]
    assert len(set(places)) == len(places)


def _is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def test_states_with_keys_as_bytes():
    """The recipe for what cannot store typed keys: their numbers, and back."""
    tx, w = PRODUCTS["random_perturbation"](), params()
    state = tx.init(w)
    template = jax.tree.map(
        lambda x: jax.random.key_data(x) if _is_key(x) else x, state
    )
    stored = flax_serialization.to_bytes(template)
    read = flax_serialization.from_bytes(template, stored)
    back = jax.tree.map(
        lambda x, y: jax.random.wrap_key_data(x) if _is_key(y) else x, read, state
    )
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        assert jnp.all(a == b)


# --- Batches --------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [True, False])
def test_esam_with_a_batch_of_numpy(compiled):
    tx, w = PRODUCTS["esam"](), params()
    step = lambda w: tx.update(  # noqa: E731
        None, tx.init(w), w, value_fn=losses, batch=BATCH
    )[0]
    want = tx.update(None, tx.init(w), w, value_fn=losses, batch=jnp.asarray(BATCH))[0]
    got = (quick_jit(step) if compiled else step)(w)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)


@pytest.mark.parametrize("name", ["m_sam", "partial_climb", "esam"])
def test_an_empty_batch_is_refused(name):
    tx, w = PRODUCTS[name](), params()
    value_fn = losses if name == "esam" else loss
    with pytest.raises(ValueError, match="no examples"):
        tx.update(None, tx.init(w), w, value_fn=value_fn, batch=np.ones((0, 2)))


@dataclasses.dataclass
class Unregistered:
    x: np.ndarray


@pytest.mark.parametrize("what", ["hello", Unregistered(BATCH)])
@pytest.mark.parametrize("name", ["m_sam", "partial_climb"])
def test_a_batch_of_what_cannot_be_cut(name, what):
    tx, w = PRODUCTS[name](), params()
    with pytest.raises(TypeError, match=r"batch leaf \['n'\] is a"):
        tx.update(
            None,
            tx.init(w),
            w,
            value_fn=lambda w, b: loss(w, b["x"]),
            batch={"x": BATCH, "n": what},
        )


# --- Messages -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: value_and_grad(loss, optax_sam.sam(0.05)), "whole step.*steepest_"),
        (lambda: value_and_grad(loss, 0.05), "given is 0.05.*steepest_ascent"),
        (lambda: optax_sam.sharpness_aware(0.05), "given is 0.05.*steepest_ascent"),
        (lambda: optax_sam.gsam(ascent=0.05), "given is 0.05.*steepest_ascent"),
        (lambda: optax_sam.sharpness_aware(optax_sam.sam(0.05)), "whole step"),
        (lambda: optax_sam.sam(optax.sgd(0.1)), r"optax.chain\(sam\(rho=0.05\)"),
        (
            lambda: optax.inject_hyperparams(optax_sam.sam)(num_steps=2).init(params()),
            r"static_args=\('num_steps'",
        ),
    ],
)
def test_what_stands_in_the_wrong_place_is_named(call, words):
    with pytest.raises(TypeError) as error:
        call()
    assert re.search(words, str(error.value), re.DOTALL)


def test_a_tail_of_no_step():
    with pytest.raises(ValueError, match=r"not a single step.*0\.01"):
        optax_sam.tail_schedule(0.1, num_steps=100, tail=0.001)


def test_diagnostics_with_the_average_behind():
    tx = optax.chain(optax_sam.sam(0.1, diagnostics=True), optax_sam.mean_over("data"))

    def step(w, x):
        here = optax_sam.per_device(w, "data")
        grads = jax.grad(loss)(here, x)
        return tx.update(grads, tx.init(w), w, value_fn=loss, batch=x)[0]

    with pytest.raises(ValueError, match=r"diagnostics.*axis_name='data'.*mean_over"):
        over_devices(step)


@pytest.mark.parametrize("wrong", [loss, jax.grad(loss), lambda w, x: (w["a"], w)])
@pytest.mark.parametrize("options", [{"microbatch_size": 2}, {"microbatch_size": 8}])
def test_m_sharpness_of_what_gives_no_value_and_gradient(wrong, options):
    with pytest.raises(TypeError, match=r"\(value, gradient\).*value_and_grad"):
        optax_sam.m_sharpness(wrong, **options)(params(), jnp.asarray(BATCH))


def with_plain_aux(w, x):
    return loss(w, x), {"n": 3, "s": "text", "a": x.sum(), "f": 1.5}


@pytest.mark.parametrize("context", ["micro-batches", "mesh", "shard_map"])
@pytest.mark.parametrize("scan_passes", [False, True])
def test_aux_of_numbers_and_text(context, scan_passes):
    """Numbers are averaged like arrays, text comes back as it is."""
    grad_fn = value_and_grad(
        with_plain_aux, steepest_ascent(0.1), has_aux=True, scan_passes=scan_passes
    )
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    options = {
        "micro-batches": {"microbatch_size": 2},
        "mesh": {"axis_name": "data", "mesh": mesh},
        "shard_map": {"axis_name": "data"},
    }[context]
    split = optax_sam.m_sharpness(grad_fn, **options)

    def step(w, x):
        (value, aux), grads = split(w, x)
        assert aux.pop("s") == "text"
        return value, aux, grads

    if context == "shard_map":
        _, aux, _ = over_devices(step)
    else:
        _, aux, _ = quick_jit(step)(params(), jnp.asarray(BATCH))
    assert (aux["n"], aux["f"]) == (3, 1.5)
