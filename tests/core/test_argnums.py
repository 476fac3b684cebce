"""Which arguments are differentiated, and integers among them.

The oracle is SAM written by hand around `jax.value_and_grad`, which knows `argnums` and
`allow_int` itself: all that is differentiated is one tree, with one norm, and leaves of
which JAX gives a `float0` gradient have no part in it.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import quick_jit, tanh_loss
from test_devices import CONTEXTS, ON_EACH, RHO, TANH, assert_same, oracle, run

import optax_sam
from optax_sam import m_sharpness, steepest_ascent, value_and_grad

pytestmark = pytest.mark.usefixtures("x64")

rng = np.random.default_rng(0)
TABLE, SIZES = rng.normal(size=(4, 3)), rng.normal(size=3)
WEIGHTS = {"b": rng.normal(size=()), "w": rng.normal(size=3)}
CHOICE = {"on": np.array(True), "pick": np.array([3, 1])}

#: An argument of floats alone, one of floats, integers, a bool and a hole, and a leaf.
ARGS = (WEIGHTS, CHOICE | {"none": None, "tilt": rng.normal(size=2)}, TABLE)


def loss(weights, choice, table, shift=0.1):
    rows = table[choice["pick"]] + choice["tilt"][:, None]
    out = jnp.tanh(rows @ weights["w"] + weights["b"] + shift)
    more = jnp.where(choice["on"], jnp.sum(weights["w"] ** 4), 0.0)
    return jnp.sum(out**2) + more, {"out": out, "positive": jnp.sum(out > 0)}


def value_only(*args, **kwargs):
    return loss(*args, **kwargs)[0]


def is_float0(x):
    return x.dtype == jax.dtypes.float0


def moved(tree, climb, sign=1.0):
    """The tree after a climb; leaves with a `float0` stay."""
    return jax.tree.map(lambda x, e: x if is_float0(e) else x + sign * e, tree, climb)


def climb_along(gradient, rho):
    squares = [jnp.sum(g**2) for g in jax.tree.leaves(gradient) if not is_float0(g)]
    size = jnp.sqrt(sum(squares))
    return jax.tree.map(lambda g: g if is_float0(g) else rho * g / size, gradient)


def put(args, argnums, new):
    args = list(args)
    if isinstance(argnums, int):
        argnums, new = (argnums,), (new,)
    for i, x in zip(argnums, new, strict=True):
        args[i] = x
    return args


def taken(args, argnums):
    if isinstance(argnums, int):
        return args[argnums]
    return tuple(args[i] for i in argnums)


def by_hand(argnums, has_aux=True, num_steps=1, args=ARGS, loss=loss, **kwargs):
    """SAM as a plain loop: what comes out of the first pass, and the last gradient."""
    fn = loss if has_aux else (lambda *a, **k: loss(*a, **k)[0])
    grad_fn = jax.value_and_grad(fn, argnums, has_aux=has_aux, allow_int=True)
    args = jax.tree.map(jnp.asarray, args)
    start, out = taken(args, argnums), None
    point = start
    for _ in range(num_steps):
        one, gradient = grad_fn(*put(args, argnums, point), **kwargs)
        out = one if out is None else out
        point = moved(point, climb_along(gradient, RHO / num_steps))
    clean = grad_fn(*args, **kwargs)[1]
    return out, grad_fn(*put(args, argnums, point), **kwargs)[1], clean


def assert_equal_but_for_rounding(got, expected):
    """The same trees, to 1e-12; `float0` in the same places, exactly as JAX's."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if is_float0(b):
            assert type(a) is type(b)
        else:
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def sam(argnums=0, fn=loss, ascent=None, **options):
    options = {"has_aux": True, "allow_int": True} | options
    ascent = steepest_ascent(RHO) if ascent is None else ascent
    return value_and_grad(fn, ascent, argnums=argnums, **options)


def arrays():
    return jax.tree.map(jnp.asarray, ARGS)


# --- As jax.value_and_grad ------------------------------------------------------------

ARGNUMS = [0, 1, 2, -1, -3, (0,), (1,), (0, 2), (2, 0), (0, -2), (-1, 1, 0), [1, 2]]


@pytest.mark.parametrize("argnums", ARGNUMS, ids=str)
def test_argnums(argnums):
    expected = by_hand(argnums, shift=0.2)[:2]
    got = sam(argnums)(*arrays(), shift=0.2)
    assert_equal_but_for_rounding(got, expected)


@pytest.mark.parametrize("argnums", [1, (2, 1)], ids=str)
@pytest.mark.parametrize("has_aux", [False, True])
def test_compiled(argnums, has_aux):
    fn = loss if has_aux else value_only
    got = jax.jit(sam(argnums, fn, has_aux=has_aux))(*arrays())
    assert_equal_but_for_rounding(got, by_hand(argnums, has_aux)[:2])


def test_one_norm_over_all_of_them():
    # Q at (3, 1) has the gradient (3, 4) of norm 5; either number alone has its own.
    def fn(x, y):
        return 0.5 * (x**2 + 4 * y**2)

    def climbed(argnums):
        return value_and_grad(fn, steepest_ascent(0.5), argnums=argnums)(3.0, 1.0)[1]

    np.testing.assert_allclose(climbed((0, 1)), (3.3, 5.6), rtol=1e-12)
    np.testing.assert_allclose(climbed(0), 3.5, rtol=1e-12)
    np.testing.assert_allclose(climbed(1), 6.0, rtol=1e-12)
    np.testing.assert_allclose(climbed((1,)), (6.0,), rtol=1e-12)


@pytest.mark.parametrize("compiled", [False, True])
def test_what_has_no_gradient_at_all(compiled):
    # JAX gives float0 alone; there is nothing to climb in.
    fn = sam(1)
    args = WEIGHTS, CHOICE | {"tilt": jnp.asarray([1, 2])}, TABLE
    got = (jax.jit(fn) if compiled else fn)(*jax.tree.map(jnp.asarray, args))
    jaxs = jax.value_and_grad(loss, 1, has_aux=True, allow_int=True)
    assert_equal_but_for_rounding(got, jaxs(*jax.tree.map(jnp.asarray, args)))


@pytest.mark.parametrize(
    "leaf",
    [3, True, np.uint8(3), np.arange(3), jnp.ones(2, bool), jax.random.key, None, 2.5],
    ids=lambda x: getattr(x, "__name__", repr(x)),
)
@pytest.mark.parametrize("when", [True, np.bool_(True)], ids=["straight", "compiled"])
def test_leaves_of_every_kind(leaf, when):
    leaf = leaf(0) if callable(leaf) else leaf
    params = {"leaf": leaf, "w": jnp.ones(2)}

    def fn(params):
        return jnp.sum(params["w"] ** 3)

    ours = sam(0, fn, has_aux=False, when=when)(params)
    theirs = jax.value_and_grad(fn, allow_int=True)(params)
    chex.assert_trees_all_equal_structs(ours, theirs)
    chex.assert_trees_all_equal_dtypes(ours[1], theirs[1])
    w = 3 * (1 + RHO / np.sqrt(2)) ** 2
    np.testing.assert_allclose(ours[1]["w"], [w, w], rtol=1e-12)


def test_keys_are_the_same_in_both_passes():
    def fn(params):
        return jnp.sum(params["w"] * jax.random.normal(params["key"], (5,)))

    params = {"key": jax.random.key(3), "w": jnp.ones(5)}
    _, grads = sam(0, fn, has_aux=False)(params)
    np.testing.assert_array_equal(grads["w"], jax.random.normal(params["key"], (5,)))


# --- With every option ----------------------------------------------------------------

BOTH = pytest.mark.parametrize("argnums", [1, (1, 0, 2)], ids=str)
SLOW = pytest.mark.slow
AUX = pytest.mark.parametrize("has_aux", [pytest.param(False, marks=SLOW), True])


@pytest.mark.slow
@BOTH
@AUX
@pytest.mark.parametrize("scan_passes", [False, True])
@pytest.mark.parametrize("num_steps", [None, 3])
def test_steps_and_scanned_passes(argnums, has_aux, scan_passes, num_steps):
    fn = loss if has_aux else value_only
    options = {"num_steps": num_steps, "scan_passes": scan_passes, "has_aux": has_aux}
    got = quick_jit(sam(argnums, fn, **options))(*arrays())
    expected = by_hand(argnums, has_aux, num_steps or 1)[:2]
    assert_equal_but_for_rounding(got, expected)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("scan_passes", [False, True])
@pytest.mark.parametrize("when", [False, True])
@pytest.mark.parametrize("traced", [False, True])
def test_when(argnums, scan_passes, when, traced):
    out, climbed, clean = by_hand(argnums)

    def step(when, *args):
        return sam(argnums, when=when, scan_passes=scan_passes)(*args)

    when_ = jnp.asarray(when) if traced else when
    got = step(when_, *arrays())
    assert_equal_but_for_rounding(got, (out, climbed if when else clean))


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("second_order", [False, True])
@AUX
def test_diagnostics(argnums, second_order, has_aux):
    fn = loss if has_aux else value_only
    options = {"has_aux": has_aux, "diagnostics": True, "second_order": second_order}
    (value, shown), gradient = quick_jit(sam(argnums, fn, **options))(*arrays())
    out, _, clean = by_hand(argnums)
    aux, report = shown if has_aux else (out[1], shown)
    assert_equal_but_for_rounding((value, aux), out)

    def size(tree):
        leaves = [x for x in jax.tree.leaves(tree) if not is_float0(x)]
        return np.sqrt(sum(np.sum(np.square(x)) for x in leaves))

    np.testing.assert_allclose(report.grad_norm, size(clean), rtol=1e-12)
    np.testing.assert_allclose(report.climbed_grad_norm, size(gradient), rtol=1e-12)
    np.testing.assert_allclose(report.climb_norm, RHO, rtol=1e-12)
    assert report.num_gradients == (4 if second_order else 2)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("when", [True, np.bool_(True)], ids=["straight", "compiled"])
@pytest.mark.parametrize("num_steps", [1, pytest.param(2, marks=SLOW)])
def test_second_order(argnums, when, num_steps):
    """The derivative of L(w + climb(w)), with the climb written by hand."""

    def climbed(*args, **kwargs):
        start = point = taken(args, argnums)
        for _ in range(num_steps):
            gradient = jax.grad(value_only, argnums, allow_int=True)
            here = gradient(*put(args, argnums, point))
            point = moved(point, climb_along(here, RHO / num_steps))
        del start
        return value_only(*put(args, argnums, point))

    expected = jax.grad(climbed, argnums, allow_int=True)(*arrays())
    fn = sam(argnums, second_order=True, num_steps=num_steps, when=when)
    out, gradient = fn(*arrays())
    assert_equal_but_for_rounding(gradient, expected)
    assert_equal_but_for_rounding(out, by_hand(argnums)[0])


@BOTH
@pytest.mark.parametrize("second_order", [False, True])
def test_ascent_and_combine_see_floats_alone(argnums, second_order):
    seen = []

    def floats_alone(*trees):
        for tree in trees:
            structure = jax.tree.structure(tree)
            hidden = jax.tree.map(lambda _: None, taken(ARGS, argnums))
            assert jax.tree.structure(tree) != jax.tree.structure(hidden)
            assert all(
                jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(tree)
            )
            seen.append(structure)

    def update(gradient, state, params):
        floats_alone(gradient, params)
        return steepest_ascent(RHO).update(gradient, state, params)

    def combine(clean, climbed):
        floats_alone(clean, climbed)
        return climbed

    ascent = optax.GradientTransformation(steepest_ascent(RHO).init, update)
    fn = sam(argnums, ascent=ascent, combine=combine, second_order=second_order)
    _, gradient = fn(*arrays())
    if not second_order:
        assert_equal_but_for_rounding(gradient, by_hand(argnums)[1])
    assert len(set(seen)) == 1


@pytest.mark.slow
def test_climb_dtype():
    fn = sam((0, 1), climb_dtype=jnp.float32)
    _, gradient = fn(*arrays())
    expected = by_hand((0, 1))[1]
    chex.assert_trees_all_equal_dtypes(gradient, expected)
    w, other = gradient[0]["w"], expected[0]["w"]
    np.testing.assert_allclose(w, other, rtol=1e-5)


def masks(argnums, name):
    """True for the leaves of this name, in the structure of what is differentiated."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) == name,
        taken(ARGS, argnums),
    )


@pytest.mark.parametrize("argnums", [1, (1, 0, 2)], ids=str)
@pytest.mark.parametrize("as_function", [False, True])
def test_masks_have_the_structure_of_what_is_differentiated(argnums, as_function):
    name = "tilt" if argnums == 1 else "w"
    mask = masks(argnums, name)

    def named(tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) == name, tree
        )

    given = named if as_function else mask
    grad_fn = jax.value_and_grad(loss, argnums, has_aux=True, allow_int=True)
    _, clean = grad_fn(*arrays())
    start = taken(arrays(), argnums)

    def gradient_after(climb):
        return grad_fn(*put(arrays(), argnums, moved(start, climb)))[1]

    def scaled(chosen, g, w):  # T = abs(w) + eta there, and 1 elsewhere
        return g if is_float0(g) else (jnp.abs(w) + 0.01 if chosen else 1.0) * g

    def only(chosen, g):
        return g if is_float0(g) or chosen else jnp.zeros_like(g)

    climb = climb_along(jax.tree.map(scaled, mask, clean, start), RHO)
    climb = jax.tree.map(scaled, mask, climb, start)
    _, got = sam(argnums, ascent=optax_sam.adaptive_ascent(RHO, mask=given))(*arrays())
    assert_equal_but_for_rounding(got, gradient_after(climb))

    climb = climb_along(jax.tree.map(only, mask, clean), RHO)
    ascent = optax_sam.climb_only(steepest_ascent(RHO), given)
    _, got = sam(argnums, ascent=ascent)(*arrays())
    assert_equal_but_for_rounding(got, gradient_after(climb))


@pytest.mark.parametrize("argnums", [1, (1, 0, 2)], ids=str)
def test_masks_may_name_integers(argnums):
    everywhere = jax.tree.map(lambda _: True, taken(ARGS, argnums))
    ascents = [
        (optax_sam.climb_only(steepest_ascent(RHO), everywhere), steepest_ascent(RHO)),
        (
            optax_sam.adaptive_ascent(RHO, mask=everywhere),
            optax_sam.adaptive_ascent(RHO, mask=True),
        ),
    ]
    for ascent, same in ascents:
        got, expected = (sam(argnums, ascent=x)(*arrays()) for x in (ascent, same))
        assert_equal_but_for_rounding(got, expected)


def test_a_mask_may_name_a_whole_argument():
    # A prefix of what is differentiated: the second argument alone climbs.
    ascent = optax_sam.climb_only(steepest_ascent(RHO), (False, True))
    _, got = sam((0, 1), ascent=ascent)(*arrays())
    clean = by_hand((0, 1))[2]
    climb = (jax.tree.map(jnp.zeros_like, clean[0]), climb_along(clean[1], RHO))
    point = moved(taken(arrays(), (0, 1)), climb)
    grad_fn = jax.value_and_grad(loss, (0, 1), has_aux=True, allow_int=True)
    assert_equal_but_for_rounding(got, grad_fn(*point, *arrays()[2:])[1])


@pytest.mark.parametrize("scan_passes", [False, True])
def test_traced_once_and_never_again(scan_passes):
    traces = []

    def counted(*args):
        traces.append(1)
        return loss(*args)

    fn = sam((1, 0), counted, when=np.bool_(True), scan_passes=scan_passes)
    for _ in range(3):
        fn(*arrays())
        assert len(traces) == (1 if scan_passes else 2)


# --- m-sharpness ----------------------------------------------------------------------
# The problem of `test_devices.py`, its oracle too: a loop over sub-batches.


def tanh_of_three(examples, weight, rest):
    """The examples first, and the parameters in two arguments, integers among them."""
    params = {"bias": rest["bias"], "weight": weight}
    return tanh_loss(params, examples) * (rest["one"] / 1)


def integers():
    return {"one": jnp.asarray(1), "on": jnp.asarray([True, False])}


def three_of(params, examples):
    return examples, params["weight"], {"bias": params["bias"]} | integers()


def split_of_three(microbatch_size, context, **options):
    grad_fn = value_and_grad(
        tanh_of_three,
        steepest_ascent(RHO),
        argnums=(1, -1),
        allow_int=True,
        scan_passes=options.pop("scan_passes", False),
    )
    return m_sharpness(
        grad_fn,
        argnums=(1, -1),
        batch_argnums=0,
        **CONTEXTS[context].options(microbatch_size),
        **options,
    )


@pytest.mark.parametrize(
    ("context", "microbatch_size", "options"),
    [
        ("one device", ON_EACH, {}),
        ("one device", 2, {"at_once": 4}),
        ("one device", 2, {"scan_passes": True}),
        ("shard_map", None, {}),
        ("shard_map", 2, {"scan_passes": True}),
        ("shard_map", 2, {"at_once": 2}),
        ("unchecked", 2, {}),
        ("mesh", None, {}),
        ("mesh", 2, {}),
        pytest.param("pmap", None, {}, marks=pytest.mark.slow),
        pytest.param("vmap", 2, {}, marks=pytest.mark.slow),
    ],
)
def test_sub_batches_are_the_loop(context, microbatch_size, options):
    split = split_of_three(microbatch_size, context, **options)

    def step(params, examples, key):
        value, (weight, rest) = split(*three_of(params, examples))
        jaxs = jax.grad(tanh_of_three, 2, allow_int=True)
        like = jaxs(*three_of(TANH.start, jax.tree.map(jnp.asarray, TANH.examples)))
        for name in integers():
            assert type(rest[name]) is type(like[name])
            assert (rest[name].dtype, rest[name].shape) == (
                like[name].dtype,
                like[name].shape,
            )
        return (value, {"bias": rest["bias"], "weight": weight}), ()

    (value, grads), _ = run(CONTEXTS[context].run, TANH, step)
    expected = oracle(TANH, microbatch_size or ON_EACH)
    assert_same((value, grads), (expected.value, expected.gradient))


@pytest.mark.parametrize("context", ["one device", "mesh"])
def test_one_argument_that_is_not_the_first(context):
    # Outside of `jit`, where programs are compiled once and for all.
    split = m_sharpness(
        value_and_grad(
            lambda examples, params: tanh_loss(params, examples),
            steepest_ascent(RHO),
            argnums=1,
        ),
        argnums=-1,
        batch_argnums=-2,
        **CONTEXTS[context].options(2),
    )
    examples, params = jax.tree.map(jnp.asarray, (TANH.examples, TANH.start))
    got = split(examples, params)
    expected = oracle(TANH, 2)
    assert_same(got, (expected.value, expected.gradient))


def test_float0_outside_of_jit():
    split = split_of_three(2, "one device")
    examples, params = jax.tree.map(jnp.asarray, (TANH.examples, TANH.start))
    _, (_, rest) = split(*three_of(params, examples))
    assert rest["on"].dtype == jax.dtypes.float0
    assert rest["on"].shape == (2,)


def test_integers_do_not_travel():
    """As many collectives as without them, none of integers."""

    def text(argnums):
        def fn(examples, weight, bias, rest):
            return tanh_of_three(examples, weight, {"bias": bias} | rest)

        grad_fn = value_and_grad(
            fn, steepest_ascent(RHO), argnums=argnums, allow_int=True
        )
        split = m_sharpness(
            grad_fn,
            argnums=argnums,
            batch_argnums=0,
            **CONTEXTS["shard_map"].options(None),
        )

        def step(params, examples, key):
            args = examples, params["weight"], params["bias"], integers()
            return split(*args)[1][:2], ()

        examples, params = jax.tree.map(jnp.asarray, (TANH.examples, TANH.start))
        step = jax.jit(CONTEXTS["shard_map"].run(step))
        return step.lower(params, examples, jax.random.key(0)).as_text()

    with_them, without = text((1, 2, 3)), text((1, 2))
    assert with_them.count("all_reduce") == without.count("all_reduce") > 0


@pytest.mark.slow
@pytest.mark.parametrize("context", ["one device", "mesh"])
def test_keys_that_are_differentiated_are_folded(context):
    # Like all that a step is given: a sub-batch draws its own numbers.
    def fn(params, x):
        return jnp.mean(x) * jnp.sum(params["w"] * jax.random.normal(params["key"], 3))

    fn = functools.partial(fn)
    grad_fn = value_and_grad(fn, steepest_ascent(RHO), allow_int=True)
    split = m_sharpness(grad_fn, **CONTEXTS[context].options(2))
    params = {"key": jax.random.key(5), "w": jnp.ones(3)}
    _, grads = split(params, jnp.ones((16, 1)))
    drawn = [
        jax.random.normal(jax.random.fold_in(params["key"], i), 3) for i in range(8)
    ]
    np.testing.assert_allclose(grads["w"], np.mean(drawn, 0), rtol=1e-12)
    assert grads["key"].dtype == jax.dtypes.float0


def test_holes_stay_holes():
    # As equinox gives them: a gradient function of its own, `None` for integers.
    def grad_fn(params, x):
        value, gradient = jax.value_and_grad(lambda w: jnp.mean(x @ w))(params["w"])
        return value, {"w": gradient, "steps": None}

    params = {"w": jnp.ones(2), "steps": jnp.asarray(3)}
    _, grads = m_sharpness(grad_fn, microbatch_size=2)(params, jnp.ones((4, 2)))
    assert grads["steps"] is None
    np.testing.assert_allclose(grads["w"], [1, 1])


def test_aux_that_is_no_array_beside_the_exact_gradient():
    fn = optax_sam.value_and_grad(
        lambda w: (jnp.sum(w**2), "a word"),
        optax_sam.steepest_ascent(0.5),
        has_aux=True,
        second_order=True,
        when=jnp.array(True),
    )
    assert fn(jnp.array([3.0, 4.0]))[0] == (25.0, "a word")


@pytest.mark.parametrize("at_once", [1, 2])
def test_keys_of_each_example_under_jaxs_checker(at_once):
    def loss(w, keys):
        return jnp.mean(w * jax.vmap(jax.random.normal)(keys))

    fn = optax_sam.m_sharpness(
        optax_sam.value_and_grad(loss, optax_sam.steepest_ascent(0.5)),
        microbatch_size=2,
        at_once=at_once,
    )
    keys, w = jax.random.split(jax.random.key(0), 8), jnp.float32(1.0)
    expected = fn(w, keys)
    with jax.debug_key_reuse(True):
        np.testing.assert_allclose(fn(w, keys), expected)
