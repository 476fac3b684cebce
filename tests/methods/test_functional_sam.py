"""Functional SAM: the head's gradient is taken once, at the clean outputs.

The oracle has the Jacobians of the net as matrices, and no line of the library.
"""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from problems import quick_jit
from test_devices import (
    CONTEXTS,
    EXACT,
    NETWORK,
    ON_EACH,
    RHO,
    SIZE,
    assert_same,
    by_every_path,
    network,
    run,
)

import optax_sam
from optax_sam import adaptive_ascent, functional_value_and_grad, steepest_ascent

SCANNED = pytest.mark.parametrize("scan_passes", [False, True])


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def unit(x):
    return x / np.linalg.norm(x)


def by_hand(net, head, params, rho=RHO):
    """Value and gradient, from the Jacobians at both points."""
    start, tree = ravel_pytree(params)
    out, tree_out = ravel_pytree(net(params))

    def vector(w):
        return ravel_pytree(net(tree(w)))[0]

    jacobian = quick_jit(jax.jacrev(vector))
    value, cotangent = jax.value_and_grad(lambda z: head(tree_out(z)))(out)
    cotangent = np.asarray(cotangent)
    climb = rho * unit(np.asarray(jacobian(start)).T @ cotangent)
    return value, np.asarray(jacobian(start + climb)).T @ cotangent


# --- The formula ---------------------------------------------------------------------


@SCANNED
@pytest.mark.usefixtures("x64")
def test_the_closed_form(scan_passes):
    """f = ab at (2, 1): the residual f - 1 = 1 at w times the Jacobian at the climb."""
    w, ascent = jnp.array([2.0, 1.0]), steepest_ascent(0.1)

    def net(w):
        return w[0] * w[1]

    def head(f):
        return 0.5 * (f - 1) ** 2

    grad_fn = functional_value_and_grad(net, head, ascent, scan_passes=scan_passes)
    value, got = grad_fn(w)
    climbed = np.array([2.0, 1.0]) + 0.1 * unit(np.array([1.0, 2.0]))
    np.testing.assert_allclose(value, 0.5)
    np.testing.assert_allclose(got, climbed[::-1], rtol=1e-14)
    np.testing.assert_allclose(got, [1.08944272, 2.04472136], rtol=1e-8)
    sam = optax_sam.value_and_grad(lambda w: head(net(w)), ascent)(w)[1]
    np.testing.assert_allclose(sam, [1.33740729, 2.51011386], rtol=1e-8)


def two_layers(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


def cross_entropy(logits, x, labels):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses)


def data(dtype=np.float64):
    draw = np.random.default_rng(5)
    params = {"a": draw.normal(size=(3, 4)), "b": draw.normal(size=(4, 3))}
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    x = jnp.asarray(draw.normal(size=(8, 3)), dtype)
    return params, x, jnp.asarray(draw.integers(0, 3, size=8))


def net_of_both(params, x, labels):
    return two_layers(params, x)


def loss_of_both(params, x, labels):
    return cross_entropy(two_layers(params, x), x, labels)


@pytest.mark.usefixtures("x64")
def test_five_steps_of_a_two_layer_net():
    params, *batch = data()
    grad_fn = quick_jit(
        functional_value_and_grad(net_of_both, cross_entropy, steepest_ascent(RHO))
    )
    theirs = params
    for _ in range(5):
        value, grads = grad_fn(params, *batch)
        expected = by_hand(
            lambda w: two_layers(w, batch[0]),
            lambda z: cross_entropy(z, *batch),
            theirs,
        )
        np.testing.assert_allclose(value, expected[0], rtol=1e-12)
        np.testing.assert_allclose(flat(grads), expected[1], **EXACT)
        params = jax.tree.map(lambda w, g: w - 0.5 * g, params, grads)
        start, tree = ravel_pytree(theirs)
        theirs = tree(start - 0.5 * expected[1])
    whole = optax_sam.value_and_grad(loss_of_both, steepest_ascent(RHO))
    assert np.abs(flat(whole(params, *batch)[1]) - flat(grads)).max() > 1e-3


@SCANNED
def test_a_radius_of_zero_gives_the_plain_gradient_bit_for_bit(scan_passes):
    args = data(np.float32)
    functional = functional_value_and_grad(
        net_of_both, cross_entropy, steepest_ascent(0.0), scan_passes=scan_passes
    )
    plain = jax.jit(jax.value_and_grad(loss_of_both))(*args)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(functional)(*args), plain)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ascent", [steepest_ascent(RHO), adaptive_ascent(RHO)])
def test_a_linear_head_makes_it_sam(ascent):
    params, x, _ = data()

    def head(outputs, x):
        return jnp.sum(outputs * jnp.arange(3.0)) + 2

    functional = functional_value_and_grad(two_layers, head, ascent)
    sam = optax_sam.value_and_grad(lambda w, x: head(two_layers(w, x), x), ascent)
    assert_same(functional(params, x), sam(params, x))


@pytest.mark.usefixtures("x64")
def test_combine_sees_the_clean_gradient_and_the_functional_one():
    args, ascent = data(), steepest_ascent(RHO)
    make = functools.partial(
        functional_value_and_grad, net_of_both, cross_entropy, ascent
    )

    def extrapolate(clean, climbed):
        return jax.tree.map(lambda g, g_s: 2 * g_s - g, clean, climbed)

    expected = extrapolate(jax.grad(loss_of_both)(*args), make()(*args)[1])
    assert_same(make(combine=extrapolate)(*args)[1], expected)


# --- What is counted -----------------------------------------------------------------


class CountedParts:
    """A net and a head that count their traces, and what runs of them."""

    def __init__(self):
        self.traces, self.ran = Counter(), Counter()

    def _count(self, part, x):
        self.traces[part] += 1
        # The value goes along, so that it is counted where the part really runs.
        jax.debug.callback(lambda _: self.ran.update([part]), jnp.sum(x))

    def net(self, params, x, labels):
        out = two_layers(params, x)
        self._count("net", out)
        return out

    def head(self, logits, x, labels):
        loss = cross_entropy(logits, x, labels)
        self._count("head", loss)
        return loss

    def seen(self):
        jax.effects_barrier()
        return dict(self.ran)


@SCANNED
@pytest.mark.parametrize("when", [None, "traced", False])
def test_the_net_runs_twice_and_the_head_once(scan_passes, when):
    params, *batch = data(np.float32)
    parts = CountedParts()

    @quick_jit
    def step(climbs, params):
        grad_fn = functional_value_and_grad(
            parts.net,
            parts.head,
            steepest_ascent(RHO),
            scan_passes=scan_passes,
            when=climbs if when == "traced" else when,
        )
        return grad_fn(params, *batch)

    jax.block_until_ready(step(True, params))
    assert parts.seen() == {"net": 1 if when is False else 2, "head": 1}
    assert parts.traces["net"] <= 2


def test_the_loss_after_the_climb_is_taken_only_where_it_is_shown():
    params, *batch = data(np.float32)
    parts = CountedParts()
    grad_fn = functional_value_and_grad(
        parts.net, parts.head, steepest_ascent(RHO), diagnostics=True
    )
    jax.block_until_ready(quick_jit(grad_fn)(params, *batch))
    assert parts.seen() == {"net": 2, "head": 2}


def products(function, *args):
    return str(jax.make_jaxpr(function)(*args)).count("dot_general[")


@pytest.mark.parametrize("options", [{}, {"diagnostics": True}], ids=str)
def test_the_net_is_in_a_scanned_program_once(options):
    """Products of matrices; without the loop those of two passes."""
    args = data(np.float32)
    make = functools.partial(
        functional_value_and_grad,
        net_of_both,
        cross_entropy,
        steepest_ascent(RHO),
        **options,
    )
    once = products(jax.value_and_grad(loss_of_both), *args)
    scanned = make(scan_passes=True)
    split = optax_sam.m_sharpness(scanned, microbatch_size=2, batch_argnums=(1, 2))
    assert products(scanned, *args) == products(split, *args) == once
    assert products(make(), *args) == 2 * once


def test_the_head_is_in_a_scanned_program_once():
    args = data(np.float32)
    grad_fn = functional_value_and_grad(
        net_of_both, cross_entropy, steepest_ascent(RHO), scan_passes=True
    )
    text = str(jax.make_jaxpr(grad_fn)(*args))
    plain = str(jax.make_jaxpr(jax.value_and_grad(loss_of_both))(*args))
    assert text.count(" log ") == plain.count(" log ") == 1


# --- Sub-batches, devices, aux and keys ----------------------------------------------


def logits_of(params, examples, key):
    """The network up to its head; what it costs beyond is dropped."""
    aux = network(params, examples, key)[1]
    return aux["logits"], aux


def head_of(logits, examples, key):
    del key
    return cross_entropy(logits, *examples)


@functools.cache
def loop(size):
    """Each sub-batch climbs for itself and has a key of its own."""
    params, tree = ravel_pytree(NETWORK.start)
    found = []
    for index in range(SIZE // size):
        rows = slice(index * size, (index + 1) * size)
        part = jax.tree.map(lambda x, rows=rows: x[rows], NETWORK.examples)
        key = jax.random.fold_in(jax.random.key(1), index)

        def net(params, part=part, key=key):
            return logits_of(params, part, key)[0]

        def head(logits, part=part, key=key):
            return head_of(logits, part, key)

        aux = logits_of(tree(params), part, key)[1]
        found.append((*by_hand(net, head, tree(params)), aux))
    values, gradients, auxes = zip(*found, strict=True)

    def join(rows, *parts):
        return np.concatenate(parts) if rows else np.mean(parts, axis=0)

    aux = jax.tree.map(join, jax.tree.broadcast(NETWORK.rows, auxes[0]), *auxes)
    return np.mean(values), aux, tree(np.mean(gradients, axis=0))


@pytest.mark.slow
@SCANNED
@by_every_path
@pytest.mark.usefixtures("x64")
def test_m_sharpness_is_the_loop(context, microbatch_size, scan_passes):
    """BatchNorm statistics of the clean pass, dropout keys, counts and rows in aux."""
    grad_fn = functional_value_and_grad(
        logits_of,
        head_of,
        steepest_ascent(RHO),
        has_aux=True,
        scan_passes=scan_passes,
    )
    split = optax_sam.m_sharpness(
        grad_fn,
        concat_aux=NETWORK.rows,
        **CONTEXTS[context].options(microbatch_size),
    )

    def step(params, examples, key):
        (value, aux), grads = split(params, examples, key=key)
        rows = {name: aux.pop(name) for name in ("logits", "mask")}
        return (value, aux, grads), rows

    (value, aux, grads), rows = run(CONTEXTS[context].run, NETWORK, step)
    expected = loop(microbatch_size or ON_EACH)
    assert_same((value, aux | rows, grads), expected)


@SCANNED
@pytest.mark.usefixtures("x64")
def test_sub_batches_side_by_side(scan_passes):
    args = data()
    grad_fn = functional_value_and_grad(
        net_of_both, cross_entropy, steepest_ascent(RHO), scan_passes=scan_passes
    )

    def split(at_once):
        return optax_sam.m_sharpness(
            grad_fn, microbatch_size=2, batch_argnums=(1, 2), at_once=at_once
        )

    assert_same(split(4)(*args), split(1)(*args))


@SCANNED
@pytest.mark.usefixtures("x64")
def test_one_climb_for_all_devices(scan_passes):
    """A global mean in the head, with parameters that are everybody's: JAX adds up."""
    params, x, labels = data()
    mesh = Mesh(np.array(jax.devices()), ("data",))

    def head(logits, x, labels):
        return jax.lax.pmean(cross_entropy(logits, x, labels), "data")

    make = functools.partial(
        functional_value_and_grad, net_of_both, ascent=steepest_ascent(RHO)
    )
    step = jax.shard_map(
        make(head=head, scan_passes=scan_passes),
        mesh=mesh,
        in_specs=(P(), P("data"), P("data")),
        out_specs=P(),
    )
    expected = make(head=cross_entropy)(params, x, labels)
    assert_same(quick_jit(step)(params, x, labels), expected)


# --- Arguments -----------------------------------------------------------------------


@SCANNED
@pytest.mark.usefixtures("x64")
def test_the_head_gets_all_arguments_that_are_not_differentiated(scan_passes):
    params, x, labels = data()

    def net(x, a, labels, b, *, scale):
        return scale * two_layers({"a": a, "b": b}, x)

    def head(logits, x, labels, *, scale):
        return scale * cross_entropy(logits, x, labels)

    grad_fn = functional_value_and_grad(
        net,
        head,
        steepest_ascent(RHO),
        argnums=(1, -1),
        scan_passes=scan_passes,
    )
    value, grads = grad_fn(x, params["a"], labels, params["b"], scale=2.0)
    expected = by_hand(
        lambda w: 2.0 * two_layers(w, x),
        lambda z: 2.0 * cross_entropy(z, x, labels),
        params,
    )
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)
    np.testing.assert_allclose(flat(grads), expected[1], **EXACT)


def outputs_of_all_kinds(params, x, labels):
    return {"logits": two_layers(params, x), "labels": labels, "none": None}


def head_of_all_kinds(outputs, x, labels):
    assert outputs["none"] is None
    return cross_entropy(outputs["logits"], x, outputs["labels"])


@SCANNED
@pytest.mark.usefixtures("x64")
def test_integers_in_outputs_go_to_the_head_as_they_are(scan_passes):
    args, options = data(), {"scan_passes": scan_passes}
    ascent = steepest_ascent(RHO)
    parts = outputs_of_all_kinds, head_of_all_kinds
    got = functional_value_and_grad(*parts, ascent, **options)(*args)
    parts = net_of_both, cross_entropy
    assert_same(got, functional_value_and_grad(*parts, ascent, **options)(*args))


@SCANNED
@pytest.mark.usefixtures("x64")
def test_integers_among_the_parameters(scan_passes):
    params, x, labels = data()
    grad_fn = functional_value_and_grad(
        net_of_both,
        cross_entropy,
        steepest_ascent(RHO),
        allow_int=True,
        scan_passes=scan_passes,
    )
    _, grads = grad_fn(params | {"steps": jnp.arange(3)}, x, labels)
    assert grads.pop("steps").dtype == jax.dtypes.float0
    plain = functional_value_and_grad(net_of_both, cross_entropy, steepest_ascent(RHO))
    assert_same(grads, plain(params, x, labels)[1])


@SCANNED
@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.usefixtures("x64")
def test_when(scan_passes, jitted):
    args = data()

    def at(climbs, *args):
        grad_fn = functional_value_and_grad(
            net_of_both,
            cross_entropy,
            steepest_ascent(RHO),
            when=climbs,
            scan_passes=scan_passes,
            diagnostics=True,
        )
        return grad_fn(*args)

    always = functional_value_and_grad(net_of_both, cross_entropy, steepest_ascent(RHO))
    step = quick_jit(at) if jitted else at
    for climbs, expected in (
        (True, always(*args)),
        (False, jax.value_and_grad(loss_of_both)(*args)),
    ):
        (value, report), grads = step(climbs, *args)
        assert_same((value, grads), expected)
        assert report.num_gradients == 1 + climbs


@SCANNED
@pytest.mark.usefixtures("x64")
def test_diagnostics_are_those_of_the_losses(scan_passes):
    """The climbed loss is the true one, though its head's gradient is not taken."""
    args, ascent = data(), steepest_ascent(RHO)
    (value, report), grads = functional_value_and_grad(
        net_of_both,
        cross_entropy,
        ascent,
        diagnostics=True,
        scan_passes=scan_passes,
    )(*args)
    sam = optax_sam.value_and_grad(loss_of_both, ascent, diagnostics=True)
    theirs = sam(*args)[0][1]
    assert_same(value, report.loss)
    assert_same(report.climbed_loss, theirs.climbed_loss)
    assert_same(report.climb_norm, theirs.climb_norm)
    assert_same(report.climbed_grad_norm, np.linalg.norm(flat(grads)))
    assert report.num_gradients == 2


# --- Dtypes --------------------------------------------------------------------------


@SCANNED
@pytest.mark.filterwarnings("ignore:SAM climbs from parameters stored in half")
def test_leaves_of_half_precision_under_strict_promotion(scan_passes):
    args = data(jnp.bfloat16)

    def head(logits, x, labels):
        return cross_entropy(logits.astype(jnp.float32), x, labels)

    grad_fn = functional_value_and_grad(
        net_of_both, head, steepest_ascent(RHO), scan_passes=scan_passes
    )
    with jax.numpy_dtype_promotion("strict"):
        value, grads = grad_fn(*args)
    assert value.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}
    single = jax.tree.map(lambda x: x.astype(jnp.float32), args[:2])
    expected = by_hand(
        lambda w: two_layers(w, single[1]),
        lambda z: cross_entropy(z, single[1], args[2]),
        single[0],
    )[1]
    np.testing.assert_allclose(flat(grads).astype(np.float32), expected, atol=0.02)


def test_a_climbed_copy_in_single_precision():
    """The climb is not rounded away: the net, too, sees float32 in the second pass."""
    params, x, labels = data(jnp.bfloat16)
    seen = []

    def net(params, x, labels):
        seen.append(params["a"].dtype)
        return two_layers(params, x.astype(params["a"].dtype))

    grad_fn = functional_value_and_grad(
        net, cross_entropy, steepest_ascent(1e-4), climb_dtype=jnp.float32
    )
    _, grads = grad_fn(params, x, labels)
    assert seen == [jnp.bfloat16, jnp.float32]
    assert grads["a"].dtype == jnp.bfloat16


@SCANNED
def test_a_gradient_of_zero_gives_no_climb(scan_passes):
    params, x, _ = data(np.float32)
    grad_fn = functional_value_and_grad(
        two_layers,
        lambda z, x: 0 * jnp.sum(z),
        steepest_ascent(RHO),
        scan_passes=scan_passes,
    )
    with jax.debug_nans(True):
        _, grads = grad_fn(params, x)
    assert not flat(grads).any()


def test_random_keys_are_shared_on_purpose():
    params, x, _ = data(np.float32)

    def net(params, x, key):
        mask = jax.random.bernoulli(key, 0.5, x.shape)
        return two_layers(params, x * mask)

    def head(outputs, x, key):
        return jnp.mean(outputs**2) + 0 * jax.random.normal(key)

    with jax.debug_key_reuse(True):
        grad_fn = functional_value_and_grad(net, head, steepest_ascent(RHO))
        quick_jit(grad_fn)(params, x, jax.random.key(0))


# --- What is refused -----------------------------------------------------------------


def refused(words, *args, net=two_layers, head=None, ascent=None, **options):
    def mean(z, x):
        return jnp.mean(z)

    error = options.pop("error", TypeError)
    params, x, _ = data(np.float32)

    def call():
        grad_fn = functional_value_and_grad(
            net, head or mean, ascent or steepest_ascent(RHO), **options
        )
        grad_fn(params, x, *args)

    with pytest.raises(error, match=words):
        call()


@SCANNED
def test_heads_that_are_no_loss_are_refused(scan_passes):
    options = {"scan_passes": scan_passes}
    refused("must return a scalar", head=lambda z, x: z[0], **options)
    refused("head returned a tuple", head=lambda z, x: (z[0, 0], 1), **options)


def test_a_net_without_aux_is_refused():
    refused(r"net must return \(outputs, aux\)", has_aux=True)


def test_outputs_without_a_number_are_refused():
    refused("no floating-point", net=lambda w, x: jnp.argmax(two_layers(w, x), 1))


def test_integers_in_what_is_differentiated_are_refused():
    refused("allow_int=True", jnp.arange(3), argnums=2)


def test_an_ascent_with_a_state_is_refused():
    random = optax_sam.random_ascent(RHO, key=jax.random.key(0))
    refused("keeps a state", ascent=random, error=ValueError)
    refused("An ascent is wanted", ascent=optax_sam.sam(RHO))


def test_a_condition_on_the_step_is_refused():
    refused("no count of steps", when=optax_sam.every_k(5))


def test_options_that_exclude_each_other_are_refused():
    options = {"scan_passes": True, "climb_dtype": jnp.float32}
    refused("climb_dtype", error=ValueError, **options)


def test_options_that_make_no_sense_are_not_there():
    refused("second_order", second_order=True)
    refused("num_steps", num_steps=2)


def test_m_sharpness_is_told_the_same_arguments():
    params, x, _ = data(np.float32)
    grad_fn = functional_value_and_grad(
        lambda x, w: two_layers(w, x),
        lambda z, x: jnp.mean(z**2),
        steepest_ascent(RHO),
        argnums=1,
    )
    with pytest.raises(ValueError, match="was told"):
        optax_sam.m_sharpness(grad_fn, microbatch_size=2)(x, params)
