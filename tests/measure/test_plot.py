"""The pictures say what the numbers say, on one scale, in colour and in grey."""

import sys
import types
from itertools import combinations

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb

import optax_sam
from optax_sam import measure, plot

pytestmark = pytest.mark.slow

mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

T = np.linspace(-1, 1, 21)
BOWL = T[:, None] ** 2 + 2 * T[:15] ** 2 + 1  # (21, 15), so no axis can be swapped


@pytest.fixture(autouse=True)
def a_session_of_its_own():
    """Without the figures and the style that other files have left behind."""
    plt.close("all")
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.use("Agg")
        yield
    plt.close("all")


def lines(ax):
    return {line.get_label(): np.array(line.get_data()) for line in ax.get_lines()}


def spectrum(values):
    nodes = jnp.asarray(values, float)
    weights = jnp.full(nodes.shape, 1 / nodes.shape[1])
    return measure.SpectralDensity(None, None, nodes, weights)


def diagnostics(size=9, **changes):
    names = "loss climbed_loss sharpness cosine climb_norm grad_norm climbed_grad_norm"
    seen = {name: np.full(size, float(i)) for i, name in enumerate(names.split())}
    return types.SimpleNamespace(**seen | changes)


DRAW = {
    "landscape": lambda items, **o: plot.landscape(T, items, **o),
    "spectral_densities": lambda items, **o: plot.spectral_densities(items, **o),
    "contours": lambda items, **o: plot.contours(T, T[:15], items, **o),
    "surfaces": lambda items, **o: plot.surfaces(T, T[:15], items, **o),
}
ITEMS = {
    "landscape": {"SGD": 4 * T**2, "SAM": T**2},
    "spectral_densities": {"SGD": spectrum([[0, 4.0]]), "SAM": spectrum([[0, 1.0]])},
    "contours": {"SGD": 4 * BOWL, "SAM": BOWL},
    "surfaces": {"SGD": 4 * BOWL, "SAM": BOWL},
}


# What is drawn


def test_landscape_draws_the_losses():
    several = np.stack([T**2, 2 * T**2, 9 * T**2])
    figure = plot.landscape(T, {"SGD": several, "SAM": T**2}, ylabel="held-out loss")
    (ax,) = figure.axes
    drawn = lines(ax)
    np.testing.assert_array_equal(drawn["SGD"], [T, 2 * T**2])  # the median
    np.testing.assert_array_equal(drawn["SAM"], [T, T**2])
    (band,) = ax.collections
    top = band.get_paths()[0].vertices[:, 1].max()
    np.testing.assert_allclose(top, 5.5)  # the highest quarter of 1, 2, 9 begins there
    assert ax.get_ylabel() == "held-out loss"
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["SGD", "SAM"]


def test_contours_are_at_their_coordinates_and_share_levels():
    figure = plot.contours(T, T[:15], ITEMS["contours"])
    first, second, bar = figure.axes
    assert [ax.get_title() for ax in (first, second)] == ["SGD", "SAM"]
    filled = [ax.collections[0] for ax in (first, second)]
    np.testing.assert_array_equal(filled[0].levels, filled[1].levels)
    assert filled[0].norm.boundaries is not None
    np.testing.assert_allclose(filled[0].levels[[0, -1]], [1, 4 * BOWL.max()])
    assert bar.get_ylabel() == "loss"
    for ax in (first, second):
        np.testing.assert_array_equal(ax.get_xlim(), T[[0, -1]])
        np.testing.assert_array_equal(ax.get_ylim(), T[[0, 14]])
        np.testing.assert_array_equal(ax.get_lines()[0].get_data(), [[0], [0]])


def test_contours_of_a_slope_along_the_first_direction():
    """Its contours are upright: x grows to the right."""
    slope = np.broadcast_to(T[:, None], BOWL.shape)
    (ax, _) = plot.contours(T, T[:15], {"slope": slope}).axes
    paths = ax.collections[1].get_paths()
    spans = [np.ptp(path.vertices, axis=0) for path in paths if len(path.vertices)]
    assert spans
    for across, up in spans:
        assert across < 1e-9
        np.testing.assert_allclose(up, np.ptp(T[:15]))


def test_surfaces_share_height_and_colours():
    first, second = plot.surfaces(T, T[:15], ITEMS["surfaces"]).axes
    assert first.get_zlim() == second.get_zlim()
    norms = [ax.collections[0].norm.boundaries for ax in (first, second)]
    np.testing.assert_array_equal(*norms)


@pytest.mark.parametrize("draw", [plot.contours, plot.surfaces])
def test_planes_with_losses_that_are_not_finite(draw):
    cliff = np.where(BOWL > 2, np.inf, BOWL)
    cliff[0, 0] = np.nan
    draw(T, T[:15], {"cliff": cliff}).canvas.draw()
    draw(T, T[:15], {"plain": np.ones_like(BOWL)}).canvas.draw()
    with pytest.raises(ValueError, match="No loss of the plane is finite"):
        draw(T, T[:15], {"nothing": np.full_like(BOWL, np.nan)})


def test_densities_are_smoothed_alike_and_hold_all_mass():
    (ax,) = plot.spectral_densities(ITEMS["spectral_densities"]).axes
    drawn = lines(ax)
    for name, top in (("SGD", 4), ("SAM", 1)):
        grid, density = drawn[name]
        step = grid[1] - grid[0]
        np.testing.assert_allclose(density.sum() * step, 1, rtol=1e-3)
        peak = density[np.abs(grid - top).argmin()]
        # Half the mass, in a peak of 1 % of the whole range wide.
        np.testing.assert_allclose(peak, 0.5 / (0.04 * np.sqrt(2 * np.pi)), rtol=0.05)
    assert ax.get_yscale() == "log"
    plot.spectral_densities({"all equal": spectrum([[0.0, 0.0]])}).canvas.draw()


def test_densities_of_a_measured_spectrum():
    def loss(w):
        return 0.5 * jnp.sum(jnp.array([1.0, 1, 1, 4]) * w**2)

    found = measure.spectral_density(
        loss, jnp.ones(4), key=jax.random.key(0), num_samples=2, num_iters=2
    )
    (ax,) = plot.spectral_densities({"quadratic": found}).axes
    grid, density = lines(ax)["quadratic"]
    theirs = np.interp(grid, found.grid, found.density)
    np.testing.assert_allclose(density, theirs, atol=0.02 * density.max())


def test_dashboard_draws_the_diagnostics_of_a_training():
    """The climb is rho long, the rise is the difference of the losses."""
    ascent = optax_sam.steepest_ascent(rho=0.5)
    grad_fn = optax_sam.value_and_grad(
        lambda w: jnp.sum(w**4), ascent, diagnostics=True
    )

    def step(w, _):
        (_, seen), gradient = grad_fn(w)
        return w - 0.01 * gradient, seen

    _, seen = jax.lax.scan(step, jnp.array([1.0, -1.0]), length=12)
    figure = plot.dashboard(seen, steps=10 * np.arange(12))
    loss, _, _, norms = (lines(ax) for ax in figure.axes)
    np.testing.assert_allclose(norms["climb"][1], 0.5, rtol=1e-6)
    np.testing.assert_allclose(loss["at w"][0], 10 * np.arange(12))
    difference = loss["at w + climb"][1] - loss["at w"][1]
    drawn = [line.get_ydata() for line in figure.axes[1].get_lines()]
    np.testing.assert_allclose(drawn[0], difference, rtol=1e-5)
    drawn = [line.get_ydata() for line in figure.axes[2].get_lines()]
    np.testing.assert_allclose(drawn[0], seen.cosine)
    np.testing.assert_allclose(norms["clean gradient"][1], seen.grad_norm)
    np.testing.assert_allclose(norms["climbed gradient"][1], seen.climbed_grad_norm)


def test_dashboard_of_many_steps_shows_running_means():
    noise = np.random.default_rng(0).normal(size=400)
    figure = plot.dashboard(diagnostics(400, loss=noise))
    x, y = lines(figure.axes[0])["at w"]
    assert y.size == 391  # windows of 10
    np.testing.assert_allclose(y[7], noise[7:17].mean())
    np.testing.assert_allclose(x[7], np.arange(7, 17).mean())
    np.testing.assert_array_equal(figure.axes[0].get_lines()[0].get_ydata(), noise)


def test_dashboard_without_the_loss():
    """At door 1 it may be unknown: NaN leaves a gap, no warning."""
    unknown = np.full(9, np.nan)
    plot.dashboard(diagnostics(loss=unknown, sharpness=unknown)).canvas.draw()


def swept(rhos, rise, cosine, error=0.0):
    """What a sweep found, the predicted rise 1 for each unit of rho."""
    rhos = np.asarray(rhos, float)

    def estimate(values):
        return measure.Estimate(np.asarray(values, float), np.full(rhos.shape, error))

    nothing = estimate(rhos)
    return measure.RadiusSweep(
        rhos=rhos,
        loss=measure.Estimate(1.0, error),
        climbed_loss=nothing,
        rise=estimate(rise),
        predicted_rise=nothing,
        cosine=estimate(cosine),
        climb_norm=nothing,
    )


def test_radius_sweep_draws_what_was_found():
    sweep = swept([0.1, 10, 1], [0.2, 40, 3], [1, -0.5, 0.5], error=0.125)
    rises, turns = plot.radius_sweep(sweep).axes
    drawn = lines(rises)
    order = [0.1, 1, 10]  # whatever the order it was swept in
    np.testing.assert_array_equal(drawn["as measured"], [order, [0.2, 3, 40]])
    np.testing.assert_array_equal(drawn["if the loss were linear"], [order, order])
    np.testing.assert_array_equal(turns.get_lines()[0].get_ydata(), [1, 0.5, -0.5])
    assert (rises.get_xscale(), rises.get_yscale()) == ("log", "log")
    assert (turns.get_xscale(), turns.get_yscale()) == ("log", "linear")
    texts = [text.get_text() for text in rises.get_legend().get_texts()]
    assert "± standard error" in texts
    band = turns.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose((band.min(), band.max()), (-0.625, 1.125))


def test_radius_sweep_leaves_out_what_has_no_logarithm():
    nan = float("nan")
    sweep = swept([0, 0.1, 1, 10], [0, -1, 3, np.inf], [1, 1, 0.5, 0], error=nan)
    figure = plot.radius_sweep(sweep)
    drawn = lines(figure.axes[0])["as measured"]
    np.testing.assert_array_equal(drawn, [[0.1, 1, 10], [nan, 3, np.inf]])
    assert not figure.axes[1].collections  # one batch: no band
    figure.canvas.draw()


def test_radius_sweep_draws_into_the_axes_it_is_given():
    figure, axes = plt.subplots(1, 2)
    assert plot.radius_sweep(swept([1, 2], [1, 2], [1, 1]), axes=axes) is figure
    assert all(ax.has_data() for ax in axes)
    assert len(plt.get_fignums()) == 1


def test_radius_sweep_refuses_a_single_radius():
    with pytest.raises(ValueError, match="at least two positive ones"):
        plot.radius_sweep(swept([0, 1], [0, 1], [1, 1]))


# Where it is drawn


@pytest.mark.parametrize("name", DRAW)
def test_draws_into_the_axes_it_is_given(name):
    size, options = (1, {}) if name in ("landscape", "spectral_densities") else (2, {})
    if name == "surfaces":
        options = {"subplot_kw": {"projection": "3d"}}
    figure, axes = plt.subplots(1, size, squeeze=False, **options)
    where = {"axes": axes[0]} if size > 1 else {"ax": axes[0, 0]}
    assert DRAW[name](ITEMS[name], **where) is figure
    assert all(ax.has_data() for ax in axes[0])
    assert len(plt.get_fignums()) == 1
    figure.canvas.draw()


def test_dashboard_draws_into_the_axes_it_is_given():
    figure, axes = plt.subplots(4, 1)
    assert plot.dashboard(diagnostics(), axes=axes) is figure
    assert len(plt.get_fignums()) == 1


# Colour-blind readers and grey prints


def luminance(color):
    return np.dot([0.2126, 0.7152, 0.0722], to_rgb(color))


def test_lines_differ_in_more_than_colour():
    many = {f"solution {i}": T**2 + i for i in range(6)}
    drawn = plot.landscape(T, many).axes[0].get_lines()
    for a, b in combinations(drawn, 2):
        assert a.get_color() != b.get_color()
        assert a.get_marker() != b.get_marker()
    assert len({line.get_linestyle() for line in drawn[:4]}) == 4
    first, second, third = (luminance(line.get_color()) for line in drawn[:3])
    assert min(second - first, third - first) > 0.15


def test_maps_grow_lighter_all_the_way():
    (ax, _) = plot.contours(T, T[:15], {"bowl": BOWL}).axes
    colors = ax.collections[0].get_facecolor()
    light = [luminance(color[:3]) for color in colors]
    assert np.all(np.diff(light) > 0)


# Refusals


@pytest.mark.parametrize("name", DRAW)
def test_refuses_nothing(name):
    with pytest.raises(ValueError, match="nothing to draw"):
        DRAW[name]({})


def test_refuses_losses_of_another_shape():
    with pytest.raises(ValueError, match=r"shape \(3,\) for 'SGD' at 21 distances"):
        plot.landscape(T, {"SGD": np.ones(3)})
    for draw in (plot.contours, plot.surfaces):
        with pytest.raises(ValueError, match=r"shape \(15, 21\).*21 xs and 15 ys"):
            draw(T, T[:15], {"SGD": BOWL.T})
    with pytest.raises(ValueError, match="A line of numbers"):
        plot.landscape(BOWL, {"SGD": T})


def test_refuses_another_number_of_axes():
    _, axes = plt.subplots(1, 3)
    with pytest.raises(ValueError, match="2 panels need as many axes, got 3"):
        plot.contours(T, T[:15], ITEMS["contours"], axes=axes)
    with pytest.raises(ValueError, match="4 panels need as many axes, got 3"):
        plot.dashboard(diagnostics(), axes=axes)


@pytest.mark.parametrize("size", [(), 1, (3, 2)])
def test_refuses_diagnostics_that_are_not_stacked(size):
    with pytest.raises(ValueError, match=r"Stack the diagnostics.*jax\.lax\.scan"):
        plot.dashboard(diagnostics(size))


def test_without_matplotlib(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("optax_sam.plot")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    loader = plot.__spec__.loader
    with pytest.raises(ImportError, match=r"pip install 'optax-sam\[plot\]'"):
        exec(loader.get_code(plot.__name__), {"__name__": "optax_sam.plot"})
