"""The family: every method against published runs, printed numbers and closed forms.

What a method becomes at the end of its range (SAM, or the base optimizer) is tested
beside it.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import (
    HESSIAN,
    START,
    TANH_BATCH,
    TANH_START,
    TORCH,
    classifier_loss,
    climb_of,
    descend_in_chain,
    load_trajectory,
    nested,
    quadratic,
    quick_jit,
    repeated,
    scan_steps,
    tanh_loss,
    torch_sgd,
    trajectory_batches,
)
from test_parity import FIVE_STEPS, assert_ends_at, assert_run_equals

import optax_sam
from optax_sam._ascent.random import coarse_uniform
from optax_sam._methods.esam import some_leaves

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(0)
steepest, adaptive = optax_sam.steepest_ascent, optax_sam.adaptive_ascent


def davda_adaptive(rho):
    return adaptive(rho, eta=0.0, mask=True)


def on_quadratic(tx, w=START, calls=1, inside=False):
    """What comes out of the last of several calls at the same point.

    With `inside` the method takes its own gradients, and is given none.
    """
    state = tx.init(w)
    for _ in range(calls):
        grads = None if inside else quick_jit(jax.grad(quadratic))(w)
        out, state = tx.update(grads, state, w, value_fn=quadratic)
    return out


def assert_close(got, want, tolerance=1e-8):
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)


# --- Runs of published code ----------------------------------------------------------

#: pytorch_optimizer takes norms in float32, so its runs agree to 1e-7.
RUNS = {
    "gsam_sgd": (optax_sam.gsam, 1e-10),
    "gsam_adaptive_adamw": (optax_sam.gsam, 1e-10),
    "wsam_coupled": (optax_sam.wsam, 1e-7),
    "friendly_sam_sgd": (optax_sam.friendly_sam, 1e-7),
    "looksam_layerwise_k5": (
        functools.partial(optax_sam.look_sam, per_leaf=True),
        1e-7,
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_published_run(name):
    record, (product, tolerance) = load_trajectory(name), RUNS[name]
    options = dict(record["options"])
    if "lmbda" in options:  # as pytorch_optimizer spells it
        options["decay"] = options.pop("lmbda")
    assert options.pop("decouple", False) is False
    if options.pop("adaptive", False):
        options["ascent"] = davda_adaptive(options.pop("rho"))
    base = TORCH[record["base_optimizer"]](**record["base_options"])
    history = descend_in_chain(
        classifier_loss,
        optax.chain(product(**options), base),
        nested(record["init"]),
        trajectory_batches(record),
    )
    assert_run_equals(record, *history, tolerance)


# --- Five steps on one tanh layer: research code's own numbers, 12 digits -------------


def look(per_leaf):
    return optax_sam.look_sam(0.1, k=2, alpha=0.7, per_leaf=per_leaf)


FIVE = {
    "gsam": (
        optax_sam.gsam(0.1, 0.4),
        """.770501711654 .153555199166 .732740866558 .262343072828
        .518378009741 -.266400741891""",
    ),
    "gsam adaptive": (
        optax_sam.gsam(alpha=0.4, ascent=davda_adaptive(0.5)),
        """.796161033086 .083865536949 .760204789778 .270904077435
        .478845673830 -.214780229904""",
    ),
    "wsam coupled": (
        optax_sam.wsam(0.1, 0.9),
        """1.072862627969 -.203567187377 .864172307509 .199400898826
        .429895607558 -.179026838077""",
    ),
    "f-sam": (
        optax_sam.friendly_sam(0.1),
        """.744210232596 .169140982278 .616498049695 .310654474185
        .511752582800 -.328679294956""",
    ),
    "looksam, per tensor": (
        look(per_leaf=True),
        """.868574116365 .059448298414 .838051965272 .247960291020
        .545184814022 -.180405557385""",
    ),
    "looksam, global": (
        look(per_leaf=False),
        """.867830838342 .066860162259 .841214878479 .236552629274
        .515705770593 -.189256136171""",
    ),
    "msam": (
        optax_sam.momentum_sam(0.1),
        """.706425706751 .196581946018 .652004162148 .308999367510
        .505567134466 -.302897050552""",
    ),
}

#: These codes add 1e-8 to norms they divide by.
PRINTED_WITH_EPSILON = {"looksam, global": 1e-7, "looksam, per tensor": 1e-9}


@pytest.mark.parametrize("name", FIVE)
def test_five_steps(name):
    tx, printed = FIVE[name]
    chain = optax.chain(tx, torch_sgd(0.1, 0.9))
    batches, inside = repeated(TANH_BATCH, 5), name == "msam"
    _, params = descend_in_chain(
        tanh_loss, chain, TANH_START, batches, with_batch=inside
    )
    got = [*np.ravel(params["weight"][-1]), *params["bias"][-1]]
    want = [float(x) for x in printed.split()]
    assert_close(got, want, PRINTED_WITH_EPSILON.get(name, 1e-11))


def test_momentum_sam_with_adam():
    """The published AdamW_MSAM climbs against Adam's own first moment."""
    chain = optax.chain(optax_sam.momentum_sam(0.1), optax.adam(0.01))
    history = descend_in_chain(
        tanh_loss, chain, TANH_START, repeated(TANH_BATCH, 5), with_batch=True
    )
    assert_ends_at(
        history,
        """.849879460405 -.349875791878 .349619318600 .650108908638
        .150046858073 -.246912337595""",
    )


def tanh_losses(params, batch):
    inputs, targets = batch
    outputs = jnp.tanh(inputs @ params["weight"].T + params["bias"])
    return 0.5 * jnp.sum((outputs - targets) ** 2, axis=1)


@pytest.mark.parametrize(
    ("gamma", "printed", "tolerance"),
    [
        # The published code adds 1e-7 to the norm.
        (1.0, FIVE_STEPS["sam"], 1e-11),
        # It keeps 1 of 4 examples at gamma = 1/2, an off-by-one; here that is 1/4.
        (
            0.25,
            """.431167869054 .931816601555 .955388844785 -.144443807000
            .973653012220 -.549301066123""",
            1e-6,
        ),
    ],
)
def test_esam_five_steps(gamma, printed, tolerance):
    tx = optax.chain(
        optax_sam.esam(0.1, beta=1.0, gamma=gamma, key=KEY), torch_sgd(0.1, 0.9)
    )

    def step(carry, batch):
        params, state = carry
        updates, state = tx.update(
            None, state, params, value_fn=tanh_losses, batch=batch
        )
        params = optax.apply_updates(params, updates)
        return (params, state), params

    params = scan_steps(step, TANH_START, tx, repeated(TANH_BATCH, 5))
    got = [*np.ravel(params["weight"][-1]), *params["bias"][-1]]
    assert_close(got, [float(x) for x in printed.split()], tolerance)


# --- The base quadratic ---------------------------------------------------------------

SAM = (3.3, 5.6)
CLEAN = (3.0, 4.0)


def test_gsam():
    assert_close(on_quadratic(optax_sam.gsam(0.5, 0.4)), (3.10913609, 5.71247337))
    assert_close(on_quadratic(optax_sam.gsam(0.5, 1.0)), (2.82284024, 5.88118343))
    assert_close(on_quadratic(optax_sam.gsam(0.5, 0.0)), SAM)


def test_the_surrogate_gap_is_orthogonal_to_the_climbed_gradient():
    combine = optax_sam.surrogate_gap(1.0)
    clean, climbed = {"a": jnp.array([3.0, 4.0])}, {"a": jnp.array(SAM)}
    gap = climbed["a"] - combine(clean, climbed)["a"]
    assert_close(gap, (403.2 / 845, -237.6 / 845))
    assert_close(gap @ climbed["a"], 0, 1e-12)


def test_gradient_norm_penalty():
    for alpha, out in (
        (0.0, CLEAN),
        (1.0, SAM),
        (0.5, (3.15, 4.8)),
        (9.0, (5.7, 18.4)),
    ):
        tx = optax_sam.sharpness_aware(
            steepest(0.5), combine=optax_sam.gradient_norm_penalty(alpha)
        )
        assert_close(on_quadratic(tx), out)
    assert_close(on_quadratic(optax_sam.wsam(0.5, gamma=0.9)), (5.7, 18.4))
    assert_close(on_quadratic(optax_sam.wsam(0.5, gamma=0.5)), SAM)


@pytest.mark.parametrize("zero", [0.0, 1e-300])
def test_gsam_of_a_zero_gradient_is_zero(zero):
    tx = optax_sam.gsam(0.0, 0.4)
    assert_close(on_quadratic(tx, np.full(2, zero)), (0, 0))


def test_rho_follows_the_learning_rate():
    warm = optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 100, end_value=0.02)
    rho = optax_sam.proportional_rho(
        warm, lr_max=0.1, lr_min=0.02, rho_max=0.6, rho_min=0.2
    )
    assert_close(rho(10), 0.6, 1e-6)
    assert_close(rho(100), 0.2, 1e-6)
    assert_close(rho(50), 0.2 + 0.4 * (warm(50) - 0.02) / 0.08, 1e-6)
    flat = optax_sam.proportional_rho(warm, lr_max=0.1, lr_min=0.1, rho_max=0.6)
    assert flat(3) == 0.6
    with pytest.raises(ValueError, match="lr_max"):
        optax_sam.proportional_rho(warm, lr_max=0.1, lr_min=0.2, rho_max=1)


def test_rho_stays_in_its_range_where_the_learning_rate_leaves_its_own():
    rho = optax_sam.proportional_rho(
        lambda t: 0.1 * t, lr_max=0.3, lr_min=0.1, rho_max=0.6, rho_min=0.2
    )
    assert_close([rho(t) for t in range(6)], (0.2, 0.2, 0.4, 0.6, 0.6, 0.6), 1e-12)


def test_look_sam_on_the_quadratic():
    tx = optax_sam.look_sam(0.5, k=2, alpha=0.7)
    state = tx.init(START)
    grad = jax.grad(quadratic)
    out, state = tx.update(grad(START), state, START, value_fn=quadratic)
    assert_close(out, SAM)
    assert_close(state.method.reused, (-0.576, 0.432))
    w = np.array([2.67, 0.44])
    out, state = tx.update(grad(w), state, w, value_fn=quadratic)
    assert_close(out, (0.87918164, 3.10311377))
    out, _ = tx.update(grad(w), state, w, value_fn=quadratic)
    assert_close(out, on_quadratic(optax_sam.sam(0.5), w))


@pytest.mark.parametrize("rho", [1e-3, 0.1, 5.0])
def test_the_direction_that_look_sam_reuses_does_not_depend_on_rho(rho):
    tx = optax_sam.look_sam(rho)
    grads = jax.grad(quadratic)(START)
    _, state = tx.update(grads, tx.init(START), START, value_fn=quadratic)
    reused = optax.tree.get(state, "reused")
    unit = reused / np.linalg.norm(reused)
    assert_close(unit, (-0.8, 0.6), 1e-6)


@pytest.mark.parametrize("per_leaf", [False, True])
@pytest.mark.parametrize("case", ["rho 0", "eigenvector", "round bowl"])
def test_look_sam_falls_back_to_the_clean_gradient(case, per_leaf):
    """Nothing is orthogonal here but rounding, which alpha would blow up."""
    hessian = np.eye(2) * 1.7 if case == "round bowl" else HESSIAN
    w = np.array([0.0, 1.3]) if case == "eigenvector" else np.array([3.0, 1.1])
    w = np.float32(w)  # rounding of float32, in a float64 world

    def loss(w):
        return 0.5 * w @ jnp.asarray(hessian, jnp.float32) @ w

    rho = 0.0 if case == "rho 0" else 0.3
    tx = optax_sam.look_sam(rho, k=2, alpha=0.7, per_leaf=per_leaf)
    grads = jax.grad(loss)(w)
    _, state = tx.update(grads, tx.init(w), w, value_fn=loss)
    out, _ = tx.update(grads, state, w, value_fn=loss)
    np.testing.assert_array_equal(out, grads)


def test_look_sam_with_k_1_is_sam():
    tx = optax_sam.look_sam(0.5, k=1)
    assert_close(on_quadratic(tx, calls=3), SAM, 1e-12)


def test_friendly_sam_on_the_quadratic():
    """d = g - m with m = (1, 0): along (2, 4)."""
    ascent = optax_sam.friendly_ascent(steepest(0.5))
    w = START
    state = ascent.init(w)._replace(average=jnp.array([1.0, 0.0]), step=1)
    climb, state = ascent.update(jnp.array(CLEAN), state, w)
    assert_close(climb, 0.5 * np.array([0.4472136, 0.8944272]))
    assert_close(state.average, (0.9 + 0.3, 0.4))
    assert_close(on_quadratic(optax_sam.friendly_sam(0.5)), SAM)
    assert_close(on_quadratic(optax_sam.friendly_sam(0.5, sigma=0.0), calls=2), SAM)


def test_momentum_sam_sequence():
    """The first step survives 0 / 0."""
    tx = optax.chain(optax_sam.momentum_sam(0.3), optax.sgd(0.1, momentum=0.9))
    w = np.array([1.0])
    state, seen = tx.init(w), []
    for _ in range(5):
        updates, state = tx.update(None, state, w, value_fn=lambda w: 0.5 * w @ w)
        w = optax.apply_updates(w, updates)
        seen.append(float(w[0]))
    assert_close(seen, (0.9, 0.75, 0.57, 0.381, 0.2028), 1e-12)


def test_random_perturbation():
    tx = optax_sam.random_perturbation(0.5, key=KEY)
    one, again = on_quadratic(tx, inside=True), on_quadratic(tx, inside=True)
    np.testing.assert_array_equal(one, again)
    climb = np.linalg.solve(HESSIAN, one - np.array(CLEAN))
    assert_close(np.linalg.norm(climb), 0.5)
    assert np.abs(on_quadratic(tx, calls=2, inside=True) - one).max() > 1e-3


SAMPLERS = {"coarse": coarse_uniform, "normal": jax.random.normal}


@pytest.mark.parametrize("name", SAMPLERS)
def test_random_perturbations_scatter_as_they_must(name):
    """Mean g, covariance rho^2 H^2 / 2 = diag(0.125, 2)."""

    def out(key):
        tx = optax_sam.random_perturbation(0.5, key=key, sampler=SAMPLERS[name])
        return tx.update(None, tx.init(START), START, value_fn=quadratic)[0]

    outs = quick_jit(jax.vmap(out))(jax.random.split(KEY, 4096))
    assert_close(outs.mean(0), CLEAN, 0.1)
    assert_close(np.cov(outs.T), np.diag([0.125, 2.0]), 0.05)


@pytest.mark.parametrize("name", ["default", *SAMPLERS])
def test_a_random_perturbation_draws_from_what_is_asked_for(name):
    """And its default is the one of `random_ascent`."""
    sampler = SAMPLERS.get(name)
    tx = optax_sam.random_perturbation(0.5, key=KEY, sampler=sampler)
    ascent = optax_sam.random_ascent(0.5, key=KEY, sampler=sampler)
    climb, _ = ascent.update(START, ascent.init(START))
    assert_close(
        on_quadratic(tx, inside=True), np.array(CLEAN) + np.asarray(HESSIAN) @ climb
    )


def test_the_default_sampler_is_the_coarse_one():
    for make, extra in (
        (optax_sam.random_ascent, {}),
        (optax_sam.random_perturbation, {"value_fn": quadratic}),
    ):
        by_default, coarse, normal = (
            tx.update(None, tx.init(START), START, **extra)[0]
            for tx in (
                make(0.5, key=KEY),
                make(0.5, key=KEY, sampler=coarse_uniform),
                make(0.5, key=KEY, sampler=jax.random.normal),
            )
        )
        np.testing.assert_array_equal(by_default, coarse)
        assert np.abs(by_default - normal).max() > 1e-3


def test_a_sampler_is_static_where_rho_is_injected():
    make = optax_sam.random_perturbation
    inject = optax.inject_hyperparams(make, static_args=("sampler",))
    for sampler in (None, jax.random.normal):
        injected = inject(rho=0.5, key=KEY, sampler=sampler)
        alone = make(0.5, key=KEY, sampler=sampler)
        assert_close(
            on_quadratic(injected, inside=True), on_quadratic(alone, inside=True)
        )


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (5, 7), (3, 3, 1, 16)])
def test_coarse_uniform_numbers_are_odd_parts_of_255(shape):
    numbers = coarse_uniform(KEY, shape, jnp.float32)
    assert numbers.shape == shape
    assert numbers.dtype == jnp.float32
    levels = 255 * np.asarray(numbers, np.float64)
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
    np.testing.assert_array_equal(np.round(levels) % 2, np.ones(shape))


def test_coarse_uniform_numbers_are_uniform_and_independent():
    """Mean 0, covariance (256^2 - 1) / 3 / 255^2, also within a word: 5 sigma."""
    count = 50_000
    levels = 255 * np.asarray(coarse_uniform(KEY, (count, 10)), np.float64)
    variance = (256**2 - 1) / 3
    covariance = levels.T @ levels / count / variance
    moments = np.column_stack([levels.mean(0) / variance**0.5, covariance - np.eye(10)])
    assert np.abs(moments).max() < 5 / np.sqrt(count)
    assert np.unique(np.round(levels)).size == 256


MASKED = {
    "norm of the chosen (SAM-ON)": (
        optax_sam.climb_only(steepest(0.5), "x"),
        (0.5, 0),
        (3.5, 4),
    ),
    "norm of all (Sparse SAM)": (
        optax.chain(steepest(0.5), optax_sam.climb_only(optax.identity(), "x")),
        (0.3, 0),
        (3.3, 4),
    ),
    "by a tree": (
        optax_sam.climb_only(steepest(0.5), {"x": True, "y": False}),
        (0.5, 0),
        (3.5, 4),
    ),
    "by a function": (
        optax_sam.climb_only(
            steepest(0.5), lambda tree: jax.tree.map(lambda x: x is tree["x"], tree)
        ),
        (0.5, 0),
        (3.5, 4),
    ),
}


@pytest.mark.parametrize("name", MASKED)
def test_masks(name):
    ascent, climb, out = MASKED[name]
    w = {"x": START[0], "y": START[1]}
    grads = jax.grad(quadratic)(w)
    assert_close([*climb_of(ascent, grads, w).values()], climb)
    tx = optax_sam.sharpness_aware(ascent)
    got = quick_jit(lambda w: tx.update(grads, tx.init(w), w, value_fn=quadratic)[0])(w)
    assert_close([*got.values()], out)


def test_sam_on_with_asam():
    """The published code's element-wise row for normalization layers alone: here the
    leaf `bias` plays that part, with T = abs(w) + eta on it."""
    ascent = optax_sam.climb_only(adaptive(0.5, eta=0.01, mask=True), "bias")
    grads = quick_jit(jax.grad(tanh_loss))(TANH_START)
    climb = climb_of(ascent, grads, TANH_START)
    size = np.abs(TANH_START["bias"]) + 0.01
    want = 0.5 * size**2 * grads["bias"] / np.linalg.norm(size * grads["bias"])
    assert_close(climb["bias"], want, 1e-12)
    assert not climb["weight"].any()


def test_a_mask_that_matches_nothing_is_refused():
    ascent = optax_sam.climb_only(steepest(0.5), "norm")
    with pytest.raises(ValueError, match=r"No leaf.*'norm'.*weight"):
        ascent.init(TANH_START)


# --- Parts of the batch ---------------------------------------------------------------


def test_esam_selects_what_the_climb_made_worse():
    """papers.md 5.4: at the point of m = 2 the losses rise by 0.945 and 1.92."""
    inputs = np.array([[1.0, 0.0], [0.0, 2.0]])

    def losses(w, x):
        return 0.5 * (x @ w) ** 2

    tx = optax_sam.esam(0.5, beta=1.0, gamma=0.5, key=KEY)
    out, state = tx.update(None, tx.init(START), START, value_fn=losses, batch=inputs)
    assert_close(out, (0, 5.6))
    climbed = START + 0.5 * np.array([1.5, 2.0]) / 2.5
    seen = optax.tree.get(state, "last_loss")
    assert_close(seen, losses(climbed, inputs)[1], 1e-12)


@pytest.mark.parametrize(("gamma", "kept"), [(0.3, 3), (0.5, 4), (0.51, 5), (1.0, 8)])
def test_esam_keeps_exactly_the_share_rounded_up(gamma, kept):
    seen = []

    def losses(w, x):
        seen.append(len(x))
        return x @ w

    tx = optax_sam.esam(0.1, beta=1.0, gamma=gamma, key=KEY)
    w, x = np.ones(3), np.arange(24.0).reshape(8, 3)
    tx.update(None, tx.init(w), w, value_fn=losses, batch=x)
    assert seen[-1] == kept


def test_esam_perturbs_leaves_with_probability_beta():
    """A leaf that climbs goes 1 / beta as far, so the mean is SAM's climb."""
    ascent = some_leaves(steepest(1.0), 0.25, KEY)
    grads = {f"{i}": jnp.array([3.0, 4.0]) for i in range(10)}
    unit = 1 / np.sqrt(10)

    def step(state, _):
        climb, state = ascent.update(grads, state, grads)
        return state, jnp.stack([jnp.linalg.norm(leaf) for leaf in climb.values()])

    run = quick_jit(lambda state: jax.lax.scan(step, state, length=200)[1])
    climbs = run(ascent.init(grads))
    assert_close(np.unique(np.round(climbs, 9)), (0, unit / 0.25))
    assert abs(np.mean(climbs) / unit - 1) < 0.15
    assert not np.array_equal(climbs[0], climbs[1])


def test_esam_without_selection_or_dropping_is_sam():
    tx = optax_sam.esam(0.1, beta=1.0, gamma=1.0, key=KEY)
    out, _ = tx.update(
        None, tx.init(TANH_START), TANH_START, value_fn=tanh_losses, batch=TANH_BATCH
    )
    chex.assert_trees_all_close(out, sam_of_tanh(0.1), rtol=1e-12)


def sam_of_tanh(rho, batch=TANH_BATCH, climb_batch=None):
    """SAM by hand, whose climb may come from other examples."""

    @quick_jit
    def out(w):
        clean = jax.grad(tanh_loss)(w, batch if climb_batch is None else climb_batch)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(clean)))
        point = jax.tree.map(lambda p, g: p + rho * g / norm, w, clean)
        return jax.grad(tanh_loss)(point, batch)

    return out(TANH_START)


@pytest.mark.parametrize(
    ("fraction", "rows"), [(0.25, 1), (0.3, 2), (0.5, 2), (1.0, 4)]
)
def test_partial_climb(fraction, rows):
    tx = optax_sam.partial_climb(0.1, fraction)
    out, state = tx.update(
        None, tx.init(TANH_START), TANH_START, value_fn=tanh_loss, batch=TANH_BATCH
    )
    rows = {0.25: 1, 0.3: 2, 0.5: 2, 1.0: 4}[fraction]
    few = jax.tree.map(lambda x: x[:rows], TANH_BATCH)
    chex.assert_trees_all_close(out, sam_of_tanh(0.1, climb_batch=few), rtol=1e-12)
    assert optax.tree.get(state, "last_loss") > 0.8767  # that of the clean pass


def test_a_random_key_in_the_batch_is_no_example():
    """It has no axis of examples, and both passes see it whole."""

    def loss(w, batch):
        x, key = batch
        return jnp.mean((x @ w) * jax.random.normal(key, ()))

    tx = optax_sam.partial_climb(0.1, 0.5)
    w, x = np.ones(2), np.eye(2)
    out, _ = tx.update(None, tx.init(w), w, value_fn=loss, batch=(x, KEY))
    assert_close(out, np.full(2, 0.5 * jax.random.normal(KEY, ())), 1e-12)


# --- Refused --------------------------------------------------------------------------

REFUSED = {
    "k": (ValueError, "k must be at least 1", lambda: optax_sam.look_sam(k=0)),
    "fraction": (ValueError, "fraction", lambda: optax_sam.partial_climb(fraction=0.0)),
    "an array": (
        TypeError,
        "static_args",
        lambda: optax_sam.partial_climb(fraction=jnp.array(0.5)),
    ),
    "beta": (ValueError, "beta", lambda: optax_sam.esam(beta=1.5, key=KEY)),
    "gamma": (ValueError, "gamma", lambda: optax_sam.esam(gamma=-1.0, key=KEY)),
    "rho and ascent": (
        ValueError,
        "its own radius",
        lambda: optax_sam.gsam(0.1, ascent=steepest(0.1)),
    ),
    "misspelt": (
        TypeError,
        "microbatchsize",
        lambda: optax_sam.gsam(microbatchsize=4),
    ),
    "no steps in one gradient": (
        TypeError,
        "num_steps",
        lambda: optax_sam.momentum_sam(num_steps=2),
    ),
    "nothing to run at once": (
        ValueError,
        "microbatch_size",
        lambda: optax_sam.sam(axis_name="data", at_once=2),
    ),
    "no batch": (
        ValueError,
        "batch=batch",
        lambda: on_quadratic(optax_sam.partial_climb(0.1), inside=True),
    ),
    "one loss for all": (
        TypeError,
        "one for each",
        lambda: optax_sam.esam(key=KEY).update(
            None,
            optax_sam.esam(key=KEY).init(TANH_START),
            TANH_START,
            value_fn=tanh_loss,
            batch=TANH_BATCH,
        ),
    ),
    "door 2": (
        ValueError,
        "keeps a state",
        lambda: optax_sam.value_and_grad(
            quadratic, optax_sam.friendly_ascent(steepest(0.1))
        )(START),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    error, words, call = REFUSED[name]
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("bad", [jnp.inf, -jnp.inf, jnp.nan, -jnp.nan, 1e30])
def test_esam_shows_an_example_that_is_broken(bad):
    """It is selected, so that what stands behind can skip the step."""
    tx = optax_sam.esam(0.5, beta=1.0, key=jax.random.key(0))
    w = jnp.array([3.0, 1.0], jnp.float32)
    batch = jnp.ones((4, 2), jnp.float32).at[0].set(bad)
    out, _ = tx.update(
        None, tx.init(w), w, value_fn=lambda w, x: (x @ w) ** 2, batch=batch
    )
    assert not jnp.isfinite(out).all()


@pytest.mark.parametrize("scale", [1.0, 1e20, 1e-20])
def test_look_sam_does_not_depend_on_the_scale_of_the_loss(scale):
    w, curvature = np.float32([[3.0, 1.0], [1.0, 4.0]])
    w, scale = jnp.array(w), jnp.float32(scale)
    tx = optax_sam.look_sam(0.5, k=2, alpha=0.5)
    state = tx.init(w)
    for expected in ([3.3, 5.6], [1.0, 5.5]):
        out, state = tx.update(
            None,
            state,
            w,
            value_fn=lambda w: scale * 0.5 * jnp.sum(curvature * w**2),
        )
        np.testing.assert_allclose(out / scale, expected, rtol=1e-4)


def test_a_momentum_that_would_overflow_stays_what_it_was():
    """An infinite one would be so for ever, and no step would climb again."""
    tx, w = optax_sam.momentum_sam(0.5), jnp.ones(2, jnp.float32)
    state = tx.init(w)
    for _ in range(20):
        _, state = tx.update(
            None, state, w, value_fn=lambda w: jnp.float32(3e38) * w[0]
        )
    assert jnp.isfinite(state.method.method.momentum).all()


@pytest.mark.parametrize(
    "tx",
    [
        optax_sam.sam(0.5, diagnostics=True),
        optax_sam.friendly_sam(0.5),
        optax_sam.look_sam(0.5),
    ],
)
def test_leaves_without_a_gradient_stay_where_they_are(tx):
    params = {"w": jnp.array([3.0, 4.0]), "key": jax.random.key(0), "act": jnp.tanh}

    def loss(params):
        return 0.5 * jnp.sum(params["w"] ** 2)

    gradient, state = {"w": params["w"], "key": None, "act": None}, tx.init(params)
    for _ in range(2):
        out, state = tx.update(gradient, state, params, value_fn=loss)
    assert out["key"] is None
    assert out["act"] is None
    np.testing.assert_allclose(out["w"], [3.3, 4.4], rtol=0.2)
