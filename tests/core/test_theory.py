"""The library against closed forms: what must come out, worked out on paper.

Most numbers are those of the quadratic Q of `problems.py`, L(w) = w.H.w / 2 with
H = diag(1, 4), at w = (3, 1) with rho = 0.5, where the gradient is g = (3, 4).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import (
    DOORS,
    EXAMPLES,
    HESSIAN,
    QUADRATIC_FORMS,
    START,
    TANH_START,
    by_transformation,
    climb_of,
    descend,
    flat,
    least_squares,
    quadratic,
    quick_jit,
    tanh_loss,
)

import optax_sam

pytestmark = pytest.mark.usefixtures("x64")

RHO = 0.5
EXACT = {"rtol": 1e-13, "atol": 1e-14}
#: For numbers that are printed with ten decimals.
DECIMALS = {"rtol": 0, "atol": 1e-10}


@pytest.fixture(params=QUADRATIC_FORMS)
def params(request):
    """Q's parameters as a bare array, as one leaf and as two."""
    return jax.tree.map(jnp.asarray, QUADRATIC_FORMS[request.param])


@pytest.fixture(params=DOORS)
def door(request):
    return DOORS[request.param]


def steepest(ord=None, rho=RHO):
    return optax_sam.steepest_ascent(rho, ord=ord)


def adaptive(eta, ord=None, mask=True, rho=RHO):
    return optax_sam.adaptive_ascent(rho, eta=eta, ord=ord, mask=mask)


def dual_order(ord):
    return np.inf if ord == 1 else 1.0 if np.isinf(ord) else ord / (ord - 1)


def numbers(tree):
    """`flat` without JAX: nothing to compile for each new structure."""
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def p_norm(tree, ord):
    return np.linalg.norm(numbers(tree), ord)


def inner(a, b):
    return numbers(a) @ numbers(b)


def assert_flat(tree, expected, **tolerance):
    np.testing.assert_allclose(numbers(tree), expected, **(tolerance or EXACT))


# --- Q: climbs and gradients ---------------------------------------------------------

root = np.sqrt

#: name -> (ascent, climb, <g, climb>). With q the dual order, <g, climb> is
#: rho times the q-norm of T g, and T = 1 for SAM.
CLIMBS = {
    "p=2": (steepest(), [0.3, 0.4], 2.5),
    "p=2, said": (steepest(2), [0.3, 0.4], 2.5),
    "p=1": (steepest(1), [0.0, 0.5], 2.0),
    "p=1.5": (steepest(1.5), [0.2224256759, 0.3954234238], 2.2489707226),
    "p=3": (steepest(3), [0.3664782379, 0.4231726186], 2.7921251882),
    "p=inf": (steepest(np.inf), [0.5, 0.5], 3.5),
    "ASAM": (adaptive(0.0), np.array([13.5, 2.0]) / root(97), 0.5 * root(97)),
    "ASAM, decimals": (adaptive(0.0), [1.3707173229, 0.2030692330], 0.5 * root(97)),
    "ASAM, eta": (
        adaptive(0.01),
        [1.3737765449, 0.2062360538],
        0.5 * np.hypot(3.01 * 3, 1.01 * 4),
    ),
    "ASAM, p=inf": (adaptive(0.0, np.inf), [1.5, 0.5], 6.5),
    "ASAM, p=1": (adaptive(0.0, 1), [1.5, 0.0], 4.5),
}

#: name -> the gradient at w + climb.
GRADIENTS = {
    "p=2": [33 / 10, 56 / 10],
    "p=1": [3, 6],
    "p=inf": [35 / 10, 6],
    "ASAM, decimals": [4.3707173229, 4.8122769321],
    "ASAM, eta": [4.3737765449, 4.8249442153],
    "ASAM, p=inf": [45 / 10, 6],
}


@pytest.mark.parametrize("name", CLIMBS)
def test_climb_on_quadratic(name, params):
    ascent, climb, rise = CLIMBS[name]
    grads = jax.grad(quadratic)(params)
    got = climb_of(ascent, grads, params)
    assert jax.tree.structure(got) == jax.tree.structure(params)
    assert_flat(got, climb, **DECIMALS)
    np.testing.assert_allclose(inner(grads, got), rise, **DECIMALS)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_on_quadratic(name, params, door):
    value, gradient = door(quadratic, CLIMBS[name][0])(params)
    assert_flat(gradient, GRADIENTS[name], **DECIMALS)
    np.testing.assert_allclose(value, 13 / 2, **EXACT)


def test_sam_is_exact_where_the_numbers_are_rational(params, door):
    _, gradient = door(quadratic, steepest())(params)
    assert_flat(gradient, [33 / 10, 56 / 10])
    np.testing.assert_allclose(p_norm(gradient, 2), 6.5, **EXACT)
    after = optax.apply_updates(params, jax.tree.map(lambda g: -0.1 * g, gradient))
    assert_flat(after, [267 / 100, 44 / 100])


def test_general_formula_on_random_quadratics(door):
    """g_s = Hw + rho H^2 w / |Hw| for any symmetric H, definite or not."""
    rng = np.random.default_rng(0)
    for _ in range(3):
        hessian = rng.normal(size=(4, 4))
        hessian = hessian + hessian.T
        w = rng.normal(size=4)
        _, gradient = door(lambda p, h=hessian: quadratic(p, h), steepest(rho=0.7))(w)
        g = hessian @ w
        expected = g + 0.7 * hessian @ g / np.linalg.norm(g)
        assert_flat(gradient, expected, rtol=1e-11, atol=1e-12)


def test_equal_largest_entries_share_the_climb_of_p_1():
    grads = jnp.array([2.0, -2.0, 1.0])
    assert_flat(climb_of(steepest(1), grads, grads), [0.25, -0.25, 0.0])


def test_one_step_is_below_the_exact_inner_maximum():
    """The maximum over the sphere solves sum (g_i / (mu - lambda_i))^2 = rho^2."""
    g, eigenvalues = HESSIAN @ START, np.diag(HESSIAN)
    low, high = eigenvalues.max() + 1e-9, 100.0
    for _ in range(200):
        mu = (low + high) / 2
        too_long = np.sum((g / (mu - eigenvalues)) ** 2) > RHO**2
        low, high = (mu, high) if too_long else (low, mu)
    best = g / (mu - eigenvalues)
    np.testing.assert_allclose(best, [0.246097681, 0.435242382], rtol=0, atol=1e-9)
    np.testing.assert_allclose(mu, 13.19028, rtol=0, atol=1e-5)

    def rise(climb):
        return quadratic(START + climb) - quadratic(START)

    one_step = rise(climb_of(steepest(), jnp.asarray(g), START))
    np.testing.assert_allclose(one_step, 2.865, **EXACT)
    np.testing.assert_allclose(rise(best), 2.888416, rtol=0, atol=1e-6)
    assert one_step < rise(best)


@pytest.mark.parametrize("ascent", [steepest(rho=0.0), adaptive(0.01, rho=0.0)])
def test_rho_zero_gives_the_clean_gradient(ascent, params, door):
    assert_flat(door(quadratic, ascent)(params)[1], [3.0, 4.0], rtol=0, atol=0)


def test_products_are_their_ascents(params):
    """`sam` and `asam` on Q; `params` without a key `bias`, so all leaves adapt."""
    products = {
        "p=2": optax_sam.sam(RHO),
        "ASAM, decimals": optax_sam.asam(RHO, eta=0.0),
        "ASAM, eta": optax_sam.asam(RHO),
    }
    for name, product in products.items():
        grad_fn = by_transformation(quadratic, None, transformation=product)
        assert_flat(grad_fn(params)[1], GRADIENTS[name], **DECIMALS)


def test_the_default_mask_is_a_matter_of_the_last_key():
    """`bias` and `b` climb as in SAM (T = 1) wherever they stand; all else adapts."""
    w = {"bias": {"kernel": 3.0}, "layer": {"b": 2.0, "bias": 1.0, "biases": 5.0}}
    w = jax.tree.map(jnp.asarray, w)
    grads = jax.tree.map(lambda x: jnp.asarray(x + 1.0), w)
    t, g = np.array([3.0, 1.0, 1.0, 5.0]), numbers(grads)
    expected = RHO * t**2 * g / np.linalg.norm(t * g)
    assert_flat(climb_of(adaptive(0.0, mask=None), grads, w), expected)


def test_masks_of_booleans_and_functions():
    w = {"x": jnp.asarray(3.0), "y": jnp.asarray(1.5)}
    grads = {"x": jnp.asarray(3.0), "y": jnp.asarray(4.0)}
    t, g = np.array([1.0, 1.5]), np.array([3.0, 4.0])
    expected = RHO * t**2 * g / np.linalg.norm(t * g)
    tree = {"x": False, "y": True}
    for mask in (tree, lambda p: {k: k == "y" for k in p}):
        assert_flat(climb_of(adaptive(0.0, mask=mask), grads, w), expected)
    for everything in (True, {"x": True, "y": True}):
        t = np.array([3.0, 1.5])
        expected = RHO * t**2 * g / np.linalg.norm(t * g)
        assert_flat(climb_of(adaptive(0.0, mask=everything), grads, w), expected)


FREEZE_Y = {"x": False, "y": True}

#: A mask in front of the ascent gives a climb of full length on the leaves that are
#: left (SAM-ON); behind it the climb is shorter than rho (Sparse SAM).
MASKS = {
    "in front": (
        optax.chain(optax.masked(optax.set_to_zero(), FREEZE_Y), steepest()),
        [0.5, 0.0],
        [35 / 10, 4],
    ),
    "selective": (
        optax.selective_transform(steepest(), freeze_mask=FREEZE_Y),
        [0.5, 0.0],
        [35 / 10, 4],
    ),
    "behind": (
        optax.chain(steepest(), optax.masked(optax.set_to_zero(), FREEZE_Y)),
        [0.3, 0.0],
        [33 / 10, 4],
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_from_optax(name, door):
    ascent, climb, gradient = MASKS[name]
    params = jax.tree.map(jnp.asarray, QUADRATIC_FORMS["scalars"])
    grads = jax.grad(quadratic)(params)
    assert_flat(climb_of(ascent, grads, params), climb)
    assert_flat(door(quadratic, ascent)(params)[1], gradient)


#: Mixtures of the clean gradient (3, 4) and the climbed one (3.3, 5.6).
MIXTURES = {
    "penalty, alpha 0.8": (0.8, [324 / 100, 528 / 100]),
    "penalty, alpha 1 is SAM": (1.0, [33 / 10, 56 / 10]),
    "penalty, alpha 0 is the clean gradient": (0.0, [3, 4]),
    "WSAM coupled, gamma 0.9": (9.0, [57 / 10, 184 / 10]),
    "WSAM coupled, gamma 0.5 is SAM": (1.0, [33 / 10, 56 / 10]),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_combine_takes_the_clean_and_the_climbed_gradient(name, params, door):
    alpha, expected = MIXTURES[name]

    def mix(clean, climbed):
        return jax.tree.map(lambda c, s: (1 - alpha) * c + alpha * s, clean, climbed)

    value, gradient = door(quadratic, steepest(), combine=mix)(params)
    assert_flat(gradient, expected)
    np.testing.assert_allclose(value, 13 / 2, **EXACT)


# --- Duality -------------------------------------------------------------------------


def random_pair():
    """Parameters and a gradient with leaves of several shapes."""
    rng = np.random.default_rng(5)
    shapes = {"conv": (3, 2, 2), "dense": {"bias": (4,), "weight": (4, 3)}, "gain": ()}
    is_shape = {"is_leaf": lambda x: isinstance(x, tuple)}

    def draw(shape):
        return jnp.asarray(rng.normal(size=shape))

    params = jax.tree.map(draw, shapes, **is_shape)
    return params, jax.tree.map(draw, shapes, **is_shape)


@pytest.mark.parametrize("ord", [1, 1.2, 1.5, 2, 3, 10, np.inf])
def test_hoelder_equality(ord):
    """norm(climb, p) = rho, <g, climb> = rho norm(g, q): the climb is a maximizer."""
    params, grads = random_pair()
    climb = climb_of(steepest(ord), grads, params)
    np.testing.assert_allclose(p_norm(climb, ord), RHO, rtol=1e-12)
    rise = RHO * p_norm(grads, dual_order(ord))
    np.testing.assert_allclose(inner(grads, climb), rise, rtol=1e-12)


@pytest.mark.parametrize("mask", [True, None], ids=["every leaf", "no bias"])
@pytest.mark.parametrize("ord", [1, 1.5, 2, 3, np.inf])
def test_hoelder_equality_of_asam(ord, mask):
    """norm(climb / T, p) = rho and <g, climb> = rho norm(T g, q)."""
    params, grads = random_pair()
    climb = climb_of(adaptive(0.01, ord, mask), grads, params)
    scale = jax.tree.map(lambda w: jnp.abs(w) + 0.01, params)
    if mask is None:
        scale["dense"]["bias"] = jnp.ones(4)
    relative = jax.tree.map(jnp.divide, climb, scale)
    scaled = jax.tree.map(jnp.multiply, scale, grads)
    np.testing.assert_allclose(p_norm(relative, ord), RHO, rtol=1e-12)
    rise = RHO * p_norm(scaled, dual_order(ord))
    np.testing.assert_allclose(inner(grads, climb), rise, rtol=1e-12)


# --- First and second order ----------------------------------------------------------


def power_law(x, y):
    """The exponent of y against x: the slope of a straight line in log-log."""
    return np.polyfit(np.log(x), np.log(y), 1)[0]


RADII = np.geomspace(1e-1, 1e-3, 9)


@pytest.mark.parametrize(
    "ascent_of",
    [
        lambda rho: steepest(rho=rho),
        lambda rho: steepest(3, rho=rho),
        lambda rho: adaptive(0.01, rho=rho),
    ],
    ids=["SAM", "p=3", "ASAM"],
)
def test_the_error_of_the_linearized_gradient_has_slope_2(ascent_of, door):
    """g_s = g + H climb + O(rho^2), and not smaller: the loss is no quadratic."""

    @quick_jit
    def error(rho):
        grads = jax.grad(tanh_loss)(TANH_START)
        climb = climb_of(ascent_of(rho), grads, TANH_START)
        turn = jax.jvp(jax.grad(tanh_loss), (TANH_START,), (climb,))[1]
        _, climbed = door(tanh_loss, ascent_of(rho))(TANH_START)
        return jnp.linalg.norm(flat(climbed) - flat(grads) - flat(turn))

    slope = power_law(RADII, [error(rho) for rho in RADII])
    np.testing.assert_allclose(slope, 2.0, atol=0.05)


def second_order(loss_fn, ascent):
    return optax_sam.value_and_grad(loss_fn, ascent, second_order=True)


def test_second_order_on_quadratic(params):
    value, full = second_order(quadratic, steepest())(params)
    _, first = optax_sam.value_and_grad(quadratic, steepest())(params)
    np.testing.assert_allclose(value, 13 / 2, **EXACT)
    assert_flat(full, [32424 / 10000, 57728 / 10000])
    term = numbers(full) - numbers(first)
    np.testing.assert_allclose(term, [-576 / 10000, 1728 / 10000], atol=1e-14)
    g = np.array([3.0, 4.0])
    unit = g / 5
    turned = HESSIAN @ unit
    closed = RHO**2 / 5 * HESSIAN @ (turned - (unit @ turned) * unit)
    np.testing.assert_allclose(term, closed, atol=1e-14)
    cosine = inner(full, first) / (p_norm(full, 2) * p_norm(first, 2))
    np.testing.assert_allclose(cosine, 0.999785, atol=1e-6)


def test_second_order_is_the_gradient_of_the_climbed_loss_of_quadratic(params):
    """F(w) = w.H.w / 2 + rho |g| + rho^2 u.H.u / 2 with u = g / |g|."""

    def climbed_loss(w):
        g = HESSIAN @ flat(w)
        norm = jnp.sqrt(g @ g)
        unit = g / norm
        return quadratic(w) + RHO * norm + RHO**2 * unit @ HESSIAN @ unit / 2

    _, full = second_order(quadratic, steepest())(params)
    assert_flat(full, numbers(jax.grad(climbed_loss)(params)))


def climbed_tanh_loss(climb_from):
    """F(w) = L(w + climb(w)), with a climb written down in this file."""

    def climbed_loss(w):
        climb = climb_from(w, jax.grad(tanh_loss)(w))
        return tanh_loss(jax.tree.map(jnp.add, w, climb))

    return climbed_loss


def sam_by_hand(w, g):
    del w
    norm = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(g)))
    return jax.tree.map(lambda x: RHO * x / norm, g)


def p_3_by_hand(w, g):
    # q = 3/2: rho sign(g) |g|^(1/2) / (sum |g|^(3/2))^(1/3)
    del w
    total = sum(jnp.sum(jnp.abs(x) ** 1.5) for x in jax.tree.leaves(g))
    return jax.tree.map(
        lambda x: RHO * jnp.sign(x) * jnp.sqrt(jnp.abs(x)) / total ** (1 / 3), g
    )


def asam_by_hand(w, g):
    scaled = jax.tree.map(lambda w, x: (jnp.abs(w) + 0.01) * x, w, g)
    norm = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(scaled)))
    return jax.tree.map(lambda w, x: RHO * (jnp.abs(w) + 0.01) * x / norm, w, scaled)


@pytest.mark.parametrize(
    ("ascent", "by_hand"),
    [
        (steepest(), sam_by_hand),
        (steepest(3), p_3_by_hand),
        (adaptive(0.01), asam_by_hand),
    ],
    ids=["SAM", "p=3", "ASAM"],
)
def test_second_order_is_the_gradient_of_the_climbed_loss(ascent, by_hand):

    @quick_jit
    def results(w):
        value, full = second_order(tanh_loss, ascent)(w)
        _, first = optax_sam.value_and_grad(tanh_loss, ascent)(w)
        expected = jax.grad(climbed_tanh_loss(by_hand))(w)
        return value, tanh_loss(w), full, expected, first

    value, clean, full, expected, first = results(TANH_START)
    np.testing.assert_allclose(value, clean, rtol=1e-14)
    assert_flat(full, numbers(expected), rtol=1e-11, atol=1e-13)
    assert not np.allclose(numbers(full), numbers(first), rtol=1e-3)


def test_the_second_order_term_is_of_order_rho_squared():
    @quick_jit
    def term(rho):
        ascent = optax_sam.steepest_ascent(rho)
        _, full = second_order(tanh_loss, ascent)(TANH_START)
        _, first = optax_sam.value_and_grad(tanh_loss, ascent)(TANH_START)
        return jnp.linalg.norm(flat(full) - flat(first))

    slope = power_law(RADII, [term(rho) for rho in RADII])
    np.testing.assert_allclose(slope, 2.0, atol=0.1)


@pytest.mark.parametrize(
    ("hessian", "w"),
    [(HESSIAN, [0.0, 2.0]), (HESSIAN, [3.0, 0.0]), (2.5 * np.eye(2), [3.0, 1.0])],
    ids=["top eigenvector", "low eigenvector", "H = 2.5 I"],
)
def test_the_second_order_term_vanishes_at_eigenvectors(hessian, w):
    def loss(params):
        return quadratic(params, hessian)

    w = jnp.array(w)
    _, full = second_order(loss, steepest())(w)
    _, first = optax_sam.value_and_grad(loss, steepest())(w)
    np.testing.assert_allclose(full, first, atol=1e-14)
    assert not np.allclose(first, jax.grad(loss)(w))


# --- Dynamics ------------------------------------------------------------------------


def train(door, loss_fn, ascent, lr, start, steps):
    """The iterates of SGD behind the ascent, the start not included."""
    grad_fn = door(lambda p, _: loss_fn(p), ascent)
    return descend(grad_fn, optax.sgd(lr), np.array(start), np.zeros(steps))[1]


def test_two_cycle_in_one_dimension(door):
    """x* = eta lambda rho / (2 - eta lambda) = 0.1, reached by halves."""

    def loss(x):
        return 0.5 * x**2

    path = np.asarray(train(door, loss, steepest(rho=0.3), 0.5, 1.0, 60))
    np.testing.assert_allclose(path[:4], [0.35, 0.025, -0.1375, 0.08125], **EXACT)
    error = np.abs(path) - 0.1
    np.testing.assert_allclose(error[2:12] / error[1:11], -0.5, rtol=1e-9)
    np.testing.assert_allclose(np.abs(path[-2:]), 0.1, rtol=1e-12)
    assert path[-1] * path[-2] < 0


def test_two_cycle_along_the_top_eigenvector(door):
    path = train(door, quadratic, steepest(rho=0.3), 0.1, [1.0, 1.0], 300)
    np.testing.assert_allclose(path[-2:, 0], 0.0, atol=1e-12)
    np.testing.assert_allclose(np.abs(path[-2:, 1]), 0.075, rtol=1e-10)
    assert path[-1, 1] * path[-2, 1] < 0
    norm = np.linalg.norm(HESSIAN @ path[-1])
    np.testing.assert_allclose(norm, 0.3, rtol=1e-10)
    np.testing.assert_allclose(edge(norm, 0.3, 0.1), 4.0, rtol=1e-10)


def edge(norm, rho, lr):
    """The largest curvature at which a SAM step does not grow (Long & Bartlett)."""
    return norm / (2 * rho) * (np.sqrt(1 + 8 * rho / (lr * norm)) - 1)


def test_edge_of_stability(door):
    """At curvature `edge` a step maps x to -x; below it shrinks, above it grows."""
    np.testing.assert_allclose(edge(0.1, 0.3, 0.5), 1.0, rtol=1e-14)
    np.testing.assert_allclose(edge(1.0, 1e-9, 0.1), 2 / 0.1, rtol=1e-6)
    rng = np.random.default_rng(3)
    for norm, rho, lr in rng.uniform(0.05, 1.0, size=(4, 3)):
        for factor in (0.9, 1.0, 1.1):
            curvature = factor * edge(norm, rho, lr)

            def loss(x, curvature=curvature):
                return 0.5 * curvature * x**2

            # On the quadratic the norm of the gradient at x is curvature * x.
            x = jnp.asarray(norm / curvature)
            after = x - lr * door(loss, steepest(rho=rho))(x)[1]
            if factor == 1.0:
                np.testing.assert_allclose(after, -x, rtol=1e-12)
            else:
                assert after < 0
                assert (abs(after) > abs(x)) == (factor > 1)


def test_stalling_at_a_point_that_is_no_minimum(door):
    """From x = 0.5 the climb ends on the maximum at 0, where the gradient is 0."""

    def loss(x):
        return x**4 / 4 - x**2 / 2

    x = jnp.asarray(0.5)
    np.testing.assert_allclose(jax.grad(loss)(x), -0.375, **EXACT)
    assert door(loss, steepest(rho=0.5))(x)[1] == 0.0


def test_a_climb_without_normalization_is_linear(door):
    """climb = rho g: w' = (I - eta H (I + rho H)) w, stable iff the factor is."""
    for lr, factor in [(0.4, -0.6), (0.6, -1.4)]:
        path = train(door, lambda x: x**2, optax.scale(0.5), lr, 1.0, 3)
        np.testing.assert_allclose(path, factor ** np.arange(1, 4), rtol=1e-12)
    _, gradient = door(quadratic, optax.scale(RHO))(START)
    expected = HESSIAN @ (np.eye(2) + RHO * HESSIAN) @ START
    assert_flat(gradient, expected)


# --- ASAM and rescaled weights -------------------------------------------------------


def product_loss(params):
    a, c = flat(params)
    return 0.5 * (a * c - 1) ** 2


#: ascent -> the climbed loss at (2, 1) and at (20, 0.1), where the loss is the same.
RESCALED = {
    "ASAM": (adaptive(0.0, rho=0.1 * root(2)), 1.0082, 1.0082),
    "ASAM, eta": (adaptive(0.01, rho=0.1 * root(2)), 1.012894, 1.040379),
    "SAM": (steepest(rho=0.1 * root(2)), 0.876790, 7.328945),
}


@pytest.mark.parametrize("name", RESCALED)
def test_rescaled_weights(name):
    ascent, *losses = RESCALED[name]
    for w, expected in zip([(2.0, 1.0), (20.0, 0.1)], losses, strict=True):
        w = jnp.array(w)
        climb = climb_of(ascent, jax.grad(product_loss)(w), w)
        # Six decimals are printed.
        np.testing.assert_allclose(product_loss(w + climb), expected, atol=6e-7)


def test_rescaled_weights_exactly(door):
    """Only the point of the climb is invariant: the gradient scales by 1 / A."""
    ascent = RESCALED["ASAM"][0]
    expected = {
        (2.0, 1.0): ([0.2, 0.1], [1.562, 3.124]),
        (20.0, 0.1): ([2.0, 0.01], [0.1562, 31.24]),
    }
    for w, (climb, gradient) in expected.items():
        w = jnp.array(w)
        assert_flat(climb_of(ascent, jax.grad(product_loss)(w), w), climb)
        assert_flat(door(product_loss, ascent)(w)[1], gradient)


def relu_loss(params):
    rng = np.random.default_rng(11)
    inputs, targets = rng.normal(size=(12, 4)), rng.normal(size=(12, 2))
    hidden = params["hidden"]
    h = jax.nn.relu(inputs @ hidden["weight"].T + hidden["bias"])
    outputs = h @ params["out"]["weight"].T
    return jnp.mean((outputs - targets) ** 2)


def rescale(params, factors):
    """Scale every hidden unit up and its outgoing weights down: the same network."""
    hidden, out = params["hidden"], params["out"]
    return {
        "hidden": {
            "weight": hidden["weight"] * factors[:, None],
            "bias": hidden["bias"] * factors,
        },
        "out": {"weight": out["weight"] / factors},
    }


@pytest.fixture(scope="module")
def relu_net():
    """Weights, and a rescaling of them that leaves the loss as it is."""
    rng = np.random.default_rng(2)
    w = {
        "hidden": {"weight": rng.normal(size=(5, 4)), "bias": rng.normal(size=5)},
        "out": {"weight": rng.normal(size=(2, 5))},
    }
    return w, np.geomspace(0.03, 20.0, 5)


def climbs_before_and_after(ascent, relu_net):
    """A climb(w) and climb(A w), which are equal if the ascent commutes with A."""
    w, factors = relu_net

    @quick_jit
    def climbs(w):
        scaled = rescale(w, factors)
        before = climb_of(ascent, jax.grad(relu_loss)(w), w)
        after = climb_of(ascent, jax.grad(relu_loss)(scaled), scaled)
        return flat(rescale(before, factors)), flat(after)

    return climbs(w)


def test_rescaling_leaves_the_loss(relu_net):
    w, factors = relu_net
    np.testing.assert_allclose(relu_loss(rescale(w, factors)), relu_loss(w), rtol=1e-12)


@pytest.mark.parametrize("ord", [1, 1.5, 2, np.inf])
def test_asam_commutes_with_every_rescaling(ord, relu_net):
    """L(Aw) = L(w) with A > 0 diagonal: T becomes A T, g / A, and the climb A times."""
    before, after = climbs_before_and_after(adaptive(0.0, ord), relu_net)
    np.testing.assert_allclose(after, before, rtol=1e-9)


@pytest.mark.parametrize(
    "ascent",
    [steepest(), steepest(np.inf), adaptive(0.01), adaptive(0.0, mask=None)],
    ids=["SAM", "p=inf", "ASAM, eta", "ASAM, biases not adapted"],
)
def test_other_climbs_do_not_commute(ascent, relu_net):
    before, after = climbs_before_and_after(ascent, relu_net)
    assert not np.allclose(after, before, rtol=1e-3)


def test_asam_gradient_under_rescaling(relu_net, door):
    w, factors = relu_net
    grad_fn = quick_jit(door(relu_loss, adaptive(0.0)))
    scaled = numbers(grad_fn(rescale(w, factors))[1])
    expected = numbers(rescale(grad_fn(w)[1], 1 / factors))
    np.testing.assert_allclose(scaled, expected, rtol=1e-9)


# --- m-SAM ---------------------------------------------------------------------------


def m_sam_by_product(loss_fn, microbatch_size, rho=RHO, ascent=None):
    """Door 1: `m_sam` computes all gradients itself, so none comes in."""
    how = {"rho": rho} if ascent is None else {"ascent": ascent}
    tx = optax_sam.m_sam(**how, microbatch_size=microbatch_size)

    def gradient(params, batch):
        state, what = tx.init(params), {"value_fn": loss_fn, "batch": batch}
        return tx.update(None, state, params, **what)[0]

    return gradient


def m_sam_by_wrapper(loss_fn, microbatch_size, rho=RHO, ascent=None, **options):
    """Door 2; checks on the way that the value is that of the whole batch."""
    sam = optax_sam.value_and_grad(loss_fn, ascent or steepest(rho=rho))
    split = optax_sam.m_sharpness(sam, microbatch_size=microbatch_size, **options)

    def gradient(params, batch):
        value, grads = split(params, batch)
        np.testing.assert_allclose(value, loss_fn(params, batch), rtol=1e-12)
        return grads

    return gradient


def m_sam_at_once(loss_fn, microbatch_size, **options):
    return m_sam_by_wrapper(loss_fn, microbatch_size, at_once=2, **options)


M_SAM = {
    "m_sam": m_sam_by_product,
    "m_sharpness": m_sam_by_wrapper,
    "two at once": m_sam_at_once,
}


@pytest.fixture(params=M_SAM)
def m_sam(request):
    return M_SAM[request.param]


def test_m_sam_of_two_examples(params, m_sam):
    assert_flat(jax.grad(least_squares)(params, EXAMPLES), [3 / 2, 2])
    one = m_sam(least_squares, 1)(params, EXAMPLES)
    assert_flat(one, [7 / 4, 3])
    if m_sam is not m_sam_at_once:
        assert_flat(m_sam(least_squares, 2)(params, EXAMPLES), [33 / 20, 14 / 5])


def test_m_sam_with_rho_zero_is_the_clean_gradient(params, m_sam):
    assert_flat(m_sam(least_squares, 1, rho=0.0)(params, EXAMPLES), [3 / 2, 2])


def split_gradients(w):
    """The gradients of the two examples, one in a row, by hand."""
    return EXAMPLES * (EXAMPLES @ w)[:, None]


def gradients_at(points):
    """The gradient of example i at point i, one in a row, by hand."""
    return EXAMPLES * np.sum(EXAMPLES * points, axis=1)[:, None]


def unit_rows(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def bug_average_the_climbs(w):
    climb = np.mean(RHO * unit_rows(split_gradients(w)), axis=0)
    return np.mean(gradients_at(np.stack([w + climb] * 2)), axis=0)


def bug_norm_of_the_whole_batch(w):
    local = split_gradients(w)
    climbs = RHO * local / np.linalg.norm(local.mean(axis=0))
    return np.mean(gradients_at(w + climbs), axis=0)


def bug_sum_for_mean(w):
    return np.sum(gradients_at(w + RHO * unit_rows(split_gradients(w))), axis=0)


def bug_last_micro_batch_only(w):
    return gradients_at(w + RHO * unit_rows(split_gradients(w)))[-1]


def bug_one_climb_for_all(w):
    g = split_gradients(w).mean(axis=0)
    climb = RHO * g / np.linalg.norm(g)
    return np.mean(gradients_at(np.stack([w + climb] * 2)), axis=0)


#: What the usual mistakes give on the same two examples, exactly.
BUGS = {
    "average of the climbs": (bug_average_the_climbs, [1.625, 2.5]),
    "norm of the whole batch": (bug_norm_of_the_whole_batch, [1.8, 3.6]),
    "sum for mean": (bug_sum_for_mean, [3.5, 6.0]),
    "last micro-batch only": (bug_last_micro_batch_only, [0.0, 6.0]),
    "one climb for all": (bug_one_climb_for_all, [1.65, 2.8]),
}


@pytest.mark.parametrize("name", BUGS)
def test_m_sam_makes_none_of_the_usual_mistakes(name, m_sam):
    """Each mistake, planted by hand, gives its known value: the example tells them."""
    bug, value = BUGS[name]
    np.testing.assert_allclose(bug(START), value, **EXACT)
    got = m_sam(least_squares, 1)(START, EXAMPLES)
    assert not np.allclose(got, value, rtol=1e-3)


def bug_norm_per_leaf():
    """Each leaf climbs by itself: parameters split over devices, no sum over them."""

    def update(grads, state, params=None):
        del params
        return jax.tree.map(lambda g: RHO * g / jnp.linalg.norm(g), grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def test_the_norm_is_the_norm_of_the_whole_tree():
    params = jax.tree.map(jnp.asarray, QUADRATIC_FORMS["scalars"])
    grads = jax.grad(quadratic)(params)
    wrong = climb_of(bug_norm_per_leaf(), grads, params)
    assert_flat(wrong, [0.5, 0.5])
    np.testing.assert_allclose(p_norm(wrong, 2), RHO * root(2), **EXACT)
    right = climb_of(steepest(), grads, params)
    np.testing.assert_allclose(p_norm(right, 2), RHO, **EXACT)
    assert not np.allclose(numbers(right), numbers(wrong), rtol=1e-2)


def test_one_example_at_a_time_has_a_closed_form(m_sam):
    """mean_i (1 + rho |x_i| / |r_i|) r_i x_i with r_i = <x_i, w>."""
    rng = np.random.default_rng(4)
    inputs, w = rng.normal(size=(6, 3)), rng.normal(size=3)
    residuals = inputs @ w
    growth = 1 + RHO * np.linalg.norm(inputs, axis=1) / np.abs(residuals)
    expected = np.mean((growth * residuals)[:, None] * inputs, axis=0)
    assert_flat(m_sam(least_squares, 1)(w, inputs), expected, rtol=1e-12)


def test_micro_batches_are_contiguous(m_sam):
    """Rows 0-1 and 2-3 climb together, not 0, 2 and 1, 3 (what a stride would do)."""
    rng = np.random.default_rng(6)
    inputs, w = rng.normal(size=(4, 3)), rng.normal(size=3)

    def sam(rows):
        return optax_sam.value_and_grad(least_squares, steepest())(w, rows)[1]

    got = m_sam(least_squares, 2)(w, inputs)
    contiguous = (sam(inputs[:2]) + sam(inputs[2:])) / 2
    strided = (sam(inputs[::2]) + sam(inputs[1::2])) / 2
    np.testing.assert_allclose(got, contiguous, rtol=1e-12)
    assert not np.allclose(strided, contiguous, rtol=1e-3)


def test_identical_micro_batches_are_sam(m_sam):
    rng = np.random.default_rng(7)
    one, w = rng.normal(size=(2, 3)), rng.normal(size=3)
    sam = optax_sam.value_and_grad(least_squares, steepest())(w, one)[1]
    got = m_sam(least_squares, 2)(w, np.concatenate([one] * 4))
    np.testing.assert_allclose(got, sam, rtol=1e-12)


@pytest.mark.parametrize("name", ["m_sam", "m_sharpness"])
def test_one_micro_batch_is_sam(name):
    rng = np.random.default_rng(8)
    inputs, w = rng.normal(size=(4, 3)), rng.normal(size=3)
    sam = optax_sam.value_and_grad(least_squares, steepest())(w, inputs)[1]
    got = M_SAM[name](least_squares, 4)(w, inputs)
    np.testing.assert_allclose(got, sam, rtol=1e-12)


def test_an_example_that_fits_adds_nothing(m_sam):
    """r_1 = 0: no gradient, no direction to climb in, and no NaN."""
    w = jnp.array([0.0, 1.0])
    # The other example as ever: h_2 = (0, 6), averaged over two.
    assert_flat(m_sam(least_squares, 1)(w, EXAMPLES), [0.0, 3.0])


def test_micro_batches_of_asam(m_sam):
    """Each micro-batch climbs by itself: rho abs(w) along the one weight it has."""
    ascent = adaptive(0.0)
    # g_1 = (3, 0), climb (1.5, 0); g_2 = (0, 4), climb (0, 0.5).
    got = m_sam(least_squares, 1, ascent=ascent)(START, EXAMPLES)
    assert_flat(got, [4.5 / 2, 6 / 2])


def test_m_sharpness_of_the_clean_gradient_is_the_clean_gradient():
    rng = np.random.default_rng(9)
    inputs, w = rng.normal(size=(6, 3)), rng.normal(size=3)
    grad_fn = jax.value_and_grad(least_squares)
    value, grads = optax_sam.m_sharpness(grad_fn, microbatch_size=2)(w, inputs)
    expected_value, expected = grad_fn(w, inputs)
    np.testing.assert_allclose(value, expected_value, rtol=1e-12)
    np.testing.assert_allclose(grads, expected, rtol=1e-12)


# --- A random climb ------------------------------------------------------------------


def random_gradients(keys):
    """SAM gradients of Q, climbing in random directions, one for each key."""

    def gradient(key):
        ascent = optax_sam.random_ascent(RHO, key=key)
        return by_transformation(quadratic, ascent)(START)[1]

    return jax.device_get(quick_jit(jax.vmap(gradient))(keys))


def test_random_climbs_average_to_the_clean_gradient():
    """Mean g, covariance rho^2 H^2 / d = diag(0.125, 2) over the sphere."""
    count = 20_000
    sample = random_gradients(jax.random.split(jax.random.key(0), count))
    spread = np.array([0.125, 2.0])
    np.testing.assert_allclose(
        np.mean(sample, axis=0), [3.0, 4.0], atol=4 * np.sqrt(spread.max() / count)
    )
    np.testing.assert_allclose(np.cov(sample.T), np.diag(spread), atol=0.03)
    # Every climb has norm rho: |H^-1 (g_s - g)| = rho.
    climbs = (sample - np.array([3.0, 4.0])) / np.diag(HESSIAN)
    np.testing.assert_allclose(np.linalg.norm(climbs, axis=1), RHO, rtol=1e-10)


def test_opposite_random_climbs_cancel_on_a_quadratic():
    grads = jax.grad(quadratic)(START)
    ascent = optax_sam.random_ascent(RHO, key=jax.random.key(1))
    climb = climb_of(ascent, grads, START)
    up, down = jax.grad(quadratic)(START + climb), jax.grad(quadratic)(START - climb)
    np.testing.assert_allclose((up + down) / 2, [3.0, 4.0], **EXACT)
    assert not np.allclose(up, down)
