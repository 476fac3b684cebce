"""The steps of docs/trainers.md, executed and compared with two passes by hand.

The blocks of a chapter run from top to bottom in one namespace, and each step of it has
trained on all batches when its block ends. The same training is done here with plain
formulas for SAM; the optimizer behind it is the page's own.
"""

import contextlib
import functools
import re
from pathlib import Path

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pages
import pytest
from flax import nnx

import optax_sam
import optax_sam.nnx

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
RHO = 0.05  # as on the page
slow = pytest.mark.slow
KERAS = (
    # Keras' own: arrays that know no `copy`, int64 where JAX has int32.
    "ignore:__array__ implementation:DeprecationWarning",
    "ignore:Explicitly requested dtype:UserWarning",
)


@functools.cache
def after(chapter):
    return pages.run_chapter(PAGE, chapter)


def last(chapter, heading=None):
    return after(chapter)[heading or chapter][-1]


def norm(tree):
    return jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)))


def two_passes(loss_fn, params, *args, rho=RHO):
    """SAM by hand: `loss_fn(params, *args)` returns the loss and aux."""
    differentiate = jax.value_and_grad(loss_fn, has_aux=True)
    out, clean = differentiate(params, *args)
    size = norm(clean)
    climbed = jax.tree.map(lambda w, g: w + rho * g / size, params, clean)
    return out, differentiate(climbed, *args)[1]


def with_none(loss_fn):
    return lambda *args: (loss_fn(*args), None)


def descend(tx, grads, opt_state, params):
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def train(loss_fn, params, tx, arguments, rho=RHO):
    """The whole training by hand; `arguments` of the loss, one tuple a step."""

    @jax.jit
    def step(params, opt_state, *args):
        (loss, _), grads = two_passes(with_none(loss_fn), params, *args, rho=rho)
        return *descend(tx, grads, opt_state, params), loss

    opt_state, losses = tx.init(params), []
    for args in arguments:
        params, opt_state, loss = step(params, opt_state, *args)
        losses.append(float(loss))
    return params, losses


def assert_close(tree, other, rtol=1e-3, atol=2e-5):
    chex.assert_trees_all_close(tree, other, rtol=rtol, atol=atol)


def assert_different(tree, other):
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    assert max(jnp.abs(x - y).max() for x, y in pairs) > 1e-3


def assert_same_bits(tree, other):
    chex.assert_trees_all_equal(tree, other)


# --- The page itself ----------------------------------------------------------------


def changed_lines(chapter):
    code = "\n".join(code for _, code in pages.chapters(PAGE)[chapter])
    return len(re.findall(r"# SAM$", code, re.MULTILINE))


def test_the_page_says_how_many_lines_change():
    rows = re.findall(r"^\| \[(.*?)\]\(#.*\| (\d+) \|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == 11
    assert {name: int(count) for name, count in rows} == {
        name: changed_lines(name) for name, _ in rows
    }
    in_place = [int(count) for name, count in rows if name != "Levanter"]
    assert (min(in_place), max(in_place)) == (2, 7)  # as the introduction says


def test_every_chapter_is_tested_and_says_what_does_not_work():
    _, *titles = pages.chapters(PAGE)
    mine = Path(__file__).read_text("utf-8")
    tested = re.findall(r'^[A-Z_0-9]+ = "(.*)"  # a chapter$', mine, re.MULTILINE)
    assert sorted(tested) == sorted(titles)
    chapters = re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]
    assert all("What does not work" in text for text in chapters)


# --- Keras --------------------------------------------------------------------------

KERAS_3 = "Keras 3 on JAX"  # a chapter


@pytest.fixture(scope="module")
def keras_names(tmp_path_factory):
    # The page sets KERAS_BACKEND itself; what it writes stays out of the checkout.
    with contextlib.chdir(tmp_path_factory.mktemp("keras")):
        (names,) = {id(n): n for n in after(KERAS_3)[KERAS_3][:1]}.values()
        return after(KERAS_3)[KERAS_3][-1] | {"best": names["best"]}


def fresh(names, model_class, optimizer, **options):
    """A model of the page, built with its optimizer; each time with equal weights."""
    keras = names["keras"]
    keras.utils.set_random_seed(0)
    model = model_class(*names["layers"]())
    options.setdefault(
        "loss", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.compile(optimizer=optimizer, **options)
    optimizer.build(model.trainable_variables)
    return model


def values(variables):
    return [jnp.array(v.value) for v in variables]


def state_of(model):
    return (
        values(model.trainable_variables),
        values(model.non_trainable_variables),
        values(model.optimizer.variables),
        values(model.metrics_variables),
    )


def stateless(model, state, batch):
    """Keras' stateless functions as a loss with aux, without its trainer."""

    def loss_fn(params):
        y_pred, others = model.stateless_call(params, state[1], batch[0], training=True)
        logits = jax.nn.log_softmax(y_pred)
        picked = jnp.take_along_axis(logits, batch[1][:, None], 1)
        return -jnp.mean(picked), others

    return loss_fn


@slow
@pytest.mark.filterwarnings(*KERAS)
class TestKeras:
    def test_a_step_is_two_passes_by_hand(self, keras_names):
        keras, batch = keras_names["keras"], keras_names["batches"][0]
        optimizer = keras.optimizers.SGD(0.1)
        model = fresh(keras_names, keras_names["SAMModel"], optimizer)
        state = state_of(model)
        logs, new = jax.jit(model.train_step)(state, batch)
        loss_fn = stateless(model, state, batch)
        (loss, others), grads = jax.jit(functools.partial(two_passes, loss_fn))(
            state[0]
        )
        expected = jax.tree.map(lambda w, g: w - 0.1 * g, state[0], grads)
        assert_close(new[0], expected)
        assert_close(logs["loss"], loss)
        assert_close(new[1], others)
        assert_close(new[3][:2], [32 * loss, jnp.float32(32)])  # one batch was seen

    def test_statistics_and_seeds_move_once(self, keras_names):
        keras, (x, y) = keras_names["keras"], keras_names["batches"][0]
        model = fresh(keras_names, keras_names["SAMModel"], keras.optimizers.SGD(0.1))
        names = [v.path.split("/")[-1] for v in model.non_trainable_variables]
        state = state_of(model)
        _, new = jax.jit(model.train_step)(state, (x, y))
        before, now = (dict(zip(names, s[1], strict=True)) for s in (state, new))
        hidden = x @ state[0][0] + state[0][1]
        mean = 0.9 * before["moving_mean"] + 0.1 * hidden.mean(0)
        assert_close(now["moving_mean"], mean)
        seed = before["seed_generator_state"]
        assert (now["seed_generator_state"] == seed + jnp.array([0, 1])).all()

    def test_fit_callbacks_and_loading(self, keras_names):
        history, best = keras_names["history"].history, keras_names["best"]
        assert history["loss"][-1] < 0.6 * history["loss"][0]
        assert len(history["val_loss"]) == len(history["loss"])
        assert type(best) is keras_names["SAMModel"]
        test = (x.reshape(-1, *x.shape[2:]) for x in self.validation(keras_names))
        loss, accuracy = best.evaluate(*test, batch_size=32, verbose=0)
        assert loss == pytest.approx(min(history["val_loss"]), rel=1e-4)
        assert accuracy > 0.8

    def validation(self, names):
        return names["images"][6:], names["labels"][6:]

    def test_a_loaded_model_goes_on_with_sam(self, keras_names, tmp_path):
        keras, batch = keras_names["keras"], keras_names["batches"][0]
        keras_names["model"].save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        model = keras_names["model"]
        # Keras begins a loaded model's random streams anew.
        for here, there in zip(
            loaded.non_trainable_variables, model.non_trainable_variables, strict=True
        ):
            if "seed" in here.path:
                here.assign(jnp.array(there.value))  # steps donate theirs
        assert_same_bits(state_of(loaded)[:3], state_of(model)[:3])
        loaded.train_on_batch(*batch)
        model.train_on_batch(*batch)
        assert_close(state_of(loaded)[0], state_of(model)[0])

    def test_asam_finds_no_biases_in_a_list(self, keras_names):
        keras, batch = keras_names["keras"], keras_names["batches"][0]
        optimizer = keras.optimizers.SGD(0.1)
        model = fresh(keras_names, keras_names["ASAMModel"], optimizer)
        names = [v.path for v in model.trainable_variables]
        state = state_of(model)
        grads = jax.grad(lambda p: stateless(model, state, batch)(p)[0])(state[0])
        given, _ = model.ascent().update(grads, optax.EmptyState(), state[0])

        def climb_by_name(rename):
            trees = (
                {rename(n): x for n, x in zip(names, xs, strict=True)}
                for xs in (grads, state[0])
            )
            ascent = optax_sam.adaptive_ascent(rho=0.5)
            tree, params = map(nested, trees)
            climb, _ = ascent.update(tree, ascent.init(params), params)
            return [flat(climb)[rename(n)] for n in names]

        # The published rule, on a tree that has the names Flax gives.
        assert_close(given, climb_by_name(lambda n: n.replace("beta", "bias")))
        ascent = optax_sam.adaptive_ascent(rho=0.5)
        without_mask, _ = ascent.update(grads, ascent.init(state[0]), state[0])
        ascent = optax_sam.adaptive_ascent(rho=0.5, mask=True)
        every_leaf, _ = ascent.update(grads, ascent.init(state[0]), state[0])
        assert_same_bits(without_mask, every_leaf)
        assert_different(without_mask, given)

    def test_a_regular_expression_sees_numbers(self, keras_names):
        keras = keras_names["keras"]
        model = fresh(keras_names, keras_names["SAMModel"], keras.optimizers.SGD(0.1))
        params = state_of(model)[0]
        ascent = optax_sam.steepest_ascent(0.05)
        with pytest.raises(ValueError, match="No leaf"):
            optax_sam.climb_only(ascent, "kernel").init(params)
        mask = [v.name == "kernel" for v in model.trainable_variables]
        assert sum(mask) == 2
        optax_sam.climb_only(ascent, mask).init(params)

    def test_an_optax_optimizer_is_none_of_keras(self, keras_names):
        model = keras_names["SAMModel"](*keras_names["layers"]())
        with pytest.raises((TypeError, ValueError)):
            model.compile(optimizer=optax.chain(optax_sam.sam(0.05), optax.sgd(0.1)))

    def test_asam_trains(self, keras_names):
        keras, batch = keras_names["keras"], keras_names["batches"][0]
        optimizer = keras.optimizers.SGD(0.1)
        model = fresh(keras_names, keras_names["ASAMModel"], optimizer)
        losses = [float(model.train_on_batch(*batch)) for _ in range(5)]
        assert losses[-1] < losses[0]

    def test_loss_scaling(self, keras_names):
        keras, batch = keras_names["keras"], keras_names["batches"][0]
        after_step = []
        for scale in (None, 2.0**15):
            optimizer = keras.optimizers.SGD(0.1)
            if scale:
                optimizer = keras.optimizers.LossScaleOptimizer(optimizer, scale)
            model = fresh(keras_names, keras_names["SAMModel"], optimizer)
            after_step.append(jax.jit(model.train_step)(state_of(model), batch)[1])
        assert_close(after_step[0][:2], after_step[1][:2])

    def test_an_overflow_skips_the_step(self, keras_names):
        keras, batch = keras_names["keras"], keras_names["batches"][0]
        optimizer = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.1, momentum=0.9), initial_scale=2.0**127
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model = fresh(
            keras_names,
            keras_names["SAMModel"],
            optimizer,
            loss=lambda y, p: 1000 * loss(y, p),
        )
        state = state_of(model)
        _, new = jax.jit(model.train_step)(state, batch)
        assert_same_bits(new[0], state[0])
        inner = len(optimizer.inner_optimizer.variables)
        assert_same_bits(new[2][-inner:], state[2][-inner:])
        assert float(optimizer.dynamic_scale.value) == 2.0**127
        assert 2.0**126 in [float(x) for x in new[2] if x.shape == ()]
        assert_different(new[1][:1], state[1][:1])  # as Keras without SAM

    def test_accumulation_is_m_sam(self, keras_names):
        keras, batches = keras_names["keras"], keras_names["batches"]
        optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
        model = fresh(keras_names, keras_names["SAMModel"], optimizer)
        state, grads = state_of(model), []
        start, step = state[0], jax.jit(model.train_step)
        for batch in batches[:2]:
            loss_fn = stateless(model, state, batch)
            grads.append(jax.jit(functools.partial(two_passes, loss_fn))(start)[1])
            _, state = step(state, batch)
        expected = jax.tree.map(lambda w, a, b: w - 0.05 * (a + b), start, *grads)
        assert_close(state[0], expected)

    def test_no_m_sharpness(self, keras_names):
        keras, (x, _) = keras_names["keras"], keras_names["batches"][0]
        model = fresh(keras_names, keras_names["SAMModel"], keras.optimizers.SGD(0.1))
        params, others, _, _ = state_of(model)

        def loss_fn(params, x, others):
            y_pred, others = model.stateless_call(params, others, x, training=True)
            return jnp.mean(y_pred**2), {"pred": y_pred, "others": others}

        averaged = optax_sam.m_sharpness(
            jax.value_and_grad(loss_fn, has_aux=True),
            microbatch_size=16,
            concat_aux={"pred": True, "others": False},
        )
        twice = jnp.concatenate([x[:16], x[:16]])
        with pytest.warns(UserWarning, match="raw random key"):
            (_, aux), _ = jax.jit(averaged)(params, twice, others)
        (seed,) = [v for v in aux["others"] if v.shape == (2,)]
        assert seed.dtype == jnp.float32  # no seed any more
        # Equal halves, one mask: equal outputs.
        assert_same_bits(aux["pred"][:16], aux["pred"][16:])


def nested(tree):
    out = {}
    for name, x in tree.items():
        first, second = name.split("/")
        out.setdefault(first, {})[second] = x
    return out


def flat(tree):
    return {f"{a}/{b}": x for a, inner in tree.items() for b, x in inner.items()}


# --- Flax linen ---------------------------------------------------------------------

LINEN = "Flax linen"  # a chapter


def linen_by_hand(names, rho_at):
    state = names["create_state"]()

    @jax.jit
    def step(state, batch, rho):
        out, grads = two_passes(names["loss_fn"], state.params, state, batch, rho=rho)
        return state.apply_gradients(grads=grads, batch_stats=out[1]), out[0]

    for i, batch in enumerate(names["batches"]):
        state, loss = step(state, batch, rho_at(i))
    return state, loss


@slow
def test_linen():
    names = after(LINEN)[LINEN][0]
    state, loss = linen_by_hand(names, lambda i: RHO)
    assert_close(names["state"].params, state.params)
    assert_close(names["state"].batch_stats, state.batch_stats)
    assert_close(names["loss"], loss)


@slow
def test_linen_with_a_schedule():
    names = last(LINEN)
    state, loss = linen_by_hand(names, lambda i: min(RHO * i / 4, RHO))
    assert_close(names["scheduled"].params, state.params)
    assert_close(names["scheduled"].batch_stats, state.batch_stats)
    assert_close(names["loss"], loss)
    assert_different(names["scheduled"].params, names["state"].params)


@slow
def test_apply_gradients_hands_on_no_loss():
    names = last(LINEN)
    state = names["create_state"]()
    tx = optax.chain(optax_sam.sam(0.05), optax.sgd(0.1))
    state = state.replace(tx=tx, opt_state=tx.init(state.params))
    with pytest.raises(TypeError, match="value_fn"):
        state.apply_gradients(grads=state.params)
    with pytest.raises(TypeError, match="value_fn"):
        state.apply_gradients(grads=state.params, value_fn=lambda p: 0.0)


# --- Flax NNX -----------------------------------------------------------------------

NNX = "Flax NNX"  # a chapter


@slow
def test_nnx():
    names = last(NNX)
    start = names["Net"](nnx.Rngs(1, dropout=2))
    graphdef, params, others = nnx.split(start, nnx.Param, ...)
    params, others = nnx.as_pure(params), nnx.as_pure(others)
    tx = optax.sgd(0.1, momentum=0.9)

    def loss_fn(params, others, batch):
        model = nnx.merge(graphdef, params, others)
        loss = names["loss_fn"](model, batch)
        return loss, nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))

    @jax.jit
    def step(params, others, opt_state, batch):
        (loss, others), grads = two_passes(loss_fn, params, others, batch)
        return *descend(tx, grads, opt_state, params), others, loss

    opt_state = tx.init(params)
    for batch in names["batches"]:
        params, opt_state, others, loss = step(params, others, opt_state, batch)
    model = names["model"]
    assert_close(nnx.as_pure(nnx.state(model, nnx.Param)), params)
    assert_close(model.norm.mean[...], others["norm"]["mean"])
    assert model.dropout.rngs.count[...] == len(names["batches"])
    assert_close(names["loss"], loss)


@slow
@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
@pytest.mark.parametrize("change", ["train", "sow"])
def test_nnx_refuses_what_it_cannot_put_back(change):
    names = last(NNX)
    model = names["Net"](nnx.Rngs(1, dropout=2))
    model.eval()

    def loss_fn(model, batch):
        if change == "train":
            model.train()
        else:
            model.sow(nnx.Intermediate, "seen", batch[0])
        return names["loss_fn"](model, batch)

    grad_fn = optax_sam.nnx.value_and_grad(loss_fn, optax_sam.steepest_ascent(0.05))
    with pytest.raises(ValueError, match="adds variables"):
        grad_fn(model, names["batches"][0])


# --- Equinox ------------------------------------------------------------------------

EQUINOX = "Equinox"  # a chapter


@slow
def test_equinox():
    names = last(EQUINOX)
    model, state = eqx.nn.make_with_state(names["Net"])(jax.random.key(1))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    tx = names["optim"]

    def loss_fn(params, state, batch, key):
        return names["compute_loss"](eqx.combine(params, static), state, batch, key)

    @jax.jit
    def step(params, state, opt_state, batch, key):
        (loss, state), grads = two_passes(loss_fn, params, state, batch, key)
        return *descend(tx, grads, opt_state, params), state, loss

    opt_state, key = tx.init(params), jax.random.key(2)
    for batch in names["batches"]:
        key, now = jax.random.split(key)
        params, opt_state, state, loss = step(params, state, opt_state, batch, now)
    assert_close(eqx.filter(names["model"], eqx.is_inexact_array), params)
    assert_close(jax.tree.leaves(names["state"]), jax.tree.leaves(state))
    assert_close(names["loss"], loss)


@slow
def test_equinox_donates_all_and_the_error_names_what_is_left_out():
    names = last(EQUINOX)
    model, state = eqx.nn.make_with_state(names["Net"])(jax.random.key(1))
    params = eqx.filter(model, eqx.is_inexact_array)
    opt_state = names["optim"].init(params)
    batch = jax.tree.map(jnp.array, names["batches"][0])
    names["make_step"](model, state, opt_state, batch, jax.random.key(2))
    leaves = [*jax.tree.leaves(params), *batch]
    assert sum(x.is_deleted() for x in leaves) >= len(jax.tree.leaves(params))

    tx = optax.chain(optax_sam.sam(0.05), optax.sgd(0.1))
    params = eqx.filter(names["model"], eqx.is_inexact_array)
    with pytest.raises(TypeError, match=r"state, params, value_fn="):
        tx.update(params, tx.init(params))


@slow
def test_equinox_model_as_it_is():
    names = last(EQUINOX)
    model, state = eqx.nn.make_with_state(names["Net"])(jax.random.key(1))
    grad_fn = optax_sam.value_and_grad(
        names["compute_loss"], optax_sam.steepest_ascent(0.05), has_aux=True
    )
    with pytest.raises(TypeError):
        grad_fn(model, state, names["batches"][0], jax.random.key(2))


# --- Levanter -----------------------------------------------------------------------

LEVANTER = "Levanter"  # a chapter


@slow
def test_levanter():
    names = last(LEVANTER)
    model = eqx.nn.MLP(8, 3, 16, 1, key=jax.random.key(1))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss_fn(params, batch):
        logits = jax.vmap(eqx.combine(params, static))(batch[0])
        return names["cross_entropy"](logits, batch[1])

    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
    params, losses = train(loss_fn, params, tx, [(b,) for b in names["batches"]])
    assert_close(eqx.filter(names["model"], eqx.is_inexact_array), params)
    assert_close(names["loss"], losses[-1])


def test_levanter_has_no_micro_batches():
    tx = optax_sam.m_sam(microbatch_size=2)
    params = jnp.ones(2)
    with pytest.raises(ValueError, match="must see it"):
        tx.update(None, tx.init(params), params, obj_fn=lambda p: jnp.sum(p**2))


def test_levanter_a_chain_takes_extra_arguments():
    tx = optax.chain(optax_sam.sam(0.05), optax.scale(-1.0))
    params = jnp.ones(2)
    tx.update(params, tx.init(params), params, value_fn=jnp.sum, loss=jnp.ones([]))
    with pytest.raises(TypeError):
        optax.scale(-1.0).update(params, optax.ScaleState(), params, loss=1.0)
    plain = optax.with_extra_args_support(optax.scale(-1.0))
    plain.update(params, optax.ScaleState(), params, loss=1.0)


# --- MaxText ------------------------------------------------------------------------

MAXTEXT = "MaxText"  # a chapter


@slow
@pytest.mark.parametrize("accumulate", [1, 4])
def test_maxtext(accumulate):
    names = last(MAXTEXT)
    config = {"padding": 2, "accumulate": accumulate}
    state = names["create_state"]()

    def loss_fn(params, part, rng):
        config = {"padding": 2, "accumulate": 1}
        loss, aux = names["loss_fn"](names["apply"], config, part, rng, params)
        return loss, aux["total_weights"]

    @jax.jit
    def step(params, opt_state, batch, rng):
        parts = [
            jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:])[j], batch)  # noqa: B023
            for j in range(accumulate)
        ]
        outs = [two_passes(loss_fn, params, part, rng) for part in parts]
        counts = jnp.array([count for (_, count), _ in outs])
        shares = counts / counts.sum()
        grads = jax.tree.map(
            lambda *gs: sum(s * g for s, g in zip(shares, gs, strict=True)),
            *[g for _, g in outs],
        )
        return descend(state.tx, grads, opt_state, params)

    params, opt_state = state.params, state.opt_state
    run = jax.jit(functools.partial(names["train_step"], names["apply"], config))
    for i, batch in enumerate(names["batches"]):
        rng = jax.random.fold_in(jax.random.key(2), i)
        params, opt_state = step(params, opt_state, batch, rng)
        state, _ = run(state, batch, rng)
    assert_close(state.params, params)
    if accumulate == 4:
        assert_close(names["state"].params, params)


@slow
def test_maxtext_two_trees_have_one_norm():
    names = last(MAXTEXT)
    params, scales, *rest = names["arguments"]

    def loss_fn(both, *rest):
        return names["loss_of_two"](*both, *rest)

    out, grads = two_passes(with_none(loss_fn), (params, scales), *rest)
    assert_close((names["grads"], names["scale_grads"]), grads)
    assert_close(names["loss"], out[0])


def test_half_precision_parameters_round_the_climb_away():
    params = jnp.full(1000, 1.0, jnp.bfloat16)

    def moved(**options):
        seen = optax_sam.value_and_grad(
            lambda p: jnp.sum(p.astype(jnp.float32)),
            optax_sam.steepest_ascent(0.05),
            diagnostics=True,
            **options,
        )(params)
        return seen[0][1].climb_norm

    with pytest.warns(UserWarning, match="half precision"):
        assert moved() == 0
    assert moved(climb_dtype=jnp.float32) == pytest.approx(0.05, rel=1e-3)


# --- Tunix --------------------------------------------------------------------------

TUNIX = "Tunix"  # a chapter


@slow
def test_tunix():
    names = last(TUNIX)
    start = names["Decoder"](nnx.Rngs(1))
    graphdef, adapters, base = nnx.split(start, nnx.LoRAParam, ...)
    adapters, base = nnx.as_pure(adapters), nnx.as_pure(base)

    def loss_fn(adapters, x, y):
        return names["loss_fn"](nnx.merge(graphdef, adapters, base), x, y)

    expected, losses = train(loss_fn, adapters, optax.adamw(1e-2), names["batches"])
    _, trained, rest = nnx.split(names["trainer"].model, nnx.LoRAParam, ...)
    assert_close(nnx.as_pure(trained), expected)
    assert_same_bits(nnx.as_pure(rest), base)
    assert_close(names["loss"], losses[-1])
    assert_different(expected, adapters)


@slow
def test_tunix_norm_is_over_the_adapters_and_that_of_the_climbed_gradient():
    names = last(TUNIX)
    model, (x, y) = names["trainer"].model, names["batches"][0]
    grad_fn = optax_sam.nnx.value_and_grad(
        names["loss_fn"],
        optax_sam.steepest_ascent(0.05),
        wrt=nnx.LoRAParam,
        diagnostics=True,
    )
    (_, seen), grads = grad_fn(model, x=x, y=y)
    assert seen.climb_norm == pytest.approx(0.05, rel=1e-4)
    assert optax.tree.norm(grads) == pytest.approx(
        float(seen.climbed_grad_norm), rel=1e-4
    )
    assert len(jax.tree.leaves(grads)) == 4


@slow
def test_tunix_without_lora():
    names = last(TUNIX)
    trainer = names["PeftTrainer"](
        names["Decoder"](nnx.Rngs(1)), optax.sgd(0.1), names["loss_fn"], False
    )
    before = jax.tree.map(jnp.array, nnx.as_pure(nnx.state(trainer.model, nnx.Param)))
    x, y = names["batches"][0]
    trainer.step(trainer.model, trainer.optimizer, {"x": x, "y": y})
    after_step = nnx.as_pure(nnx.state(trainer.model, nnx.Param))
    assert_different(after_step["hidden"]["kernel"], before["hidden"]["kernel"])


@slow
@pytest.mark.parametrize("by_name", [False, True])
def test_tunix_micro_batches_want_positions(by_name):
    names = last(TUNIX)
    model, (x, y) = names["trainer"].model, names["batches"][0]
    grad_fn = optax_sam.nnx.value_and_grad(
        names["loss_fn"],
        optax_sam.steepest_ascent(0.05),
        wrt=nnx.LoRAParam,
        microbatch_size=16,
        batch_argnums=(1, 2),
    )
    if by_name:
        with pytest.raises(TypeError, match="by position"):
            grad_fn(model, x=x, y=y)
        return
    graphdef, adapters, base = nnx.split(model, nnx.LoRAParam, ...)

    def loss_fn(adapters, x, y):
        return names["loss_fn"](nnx.merge(graphdef, adapters, base), x, y)

    halves = [
        two_passes(with_none(loss_fn), nnx.as_pure(adapters), x[part], y[part])
        for part in (slice(16), slice(16, None))
    ]
    (losses, grads) = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    out = grad_fn(model, x, y)
    assert_close((out[0], nnx.as_pure(out[1])), (losses[0], grads), atol=1e-4)


# --- Kauldron -----------------------------------------------------------------------

KAULDRON = "Kauldron"  # a chapter


def kauldron_arguments(names):
    keys = [jax.random.fold_in(jax.random.key(2), i) for i in range(8)]
    return [(*b, key) for b, key in zip(names["batches"], keys, strict=True)]


@slow
def test_kauldron():
    names = last(KAULDRON)

    def loss_fn(params, x, y, key):
        return names["cross_entropy"](names["apply"](params, x, key), y)

    start = names["init"](jax.random.key(1))
    tx = names["optimizer"]
    params, losses = train(loss_fn, start, tx, kauldron_arguments(names))
    assert_close(names["params"], params)
    assert_close(names["context"].loss, losses[-1])


@slow
def test_kauldron_images_would_climb_and_count():
    names = last(KAULDRON)
    x, y = names["batches"][0]
    params, key = names["init"](jax.random.key(1)), jax.random.key(2)

    def loss_fn(both):
        return names["cross_entropy"](names["apply"](both[0], both[1], key), y)

    whole = optax_sam.value_and_grad(loss_fn, optax_sam.steepest_ascent(0.5))
    of_params = optax_sam.value_and_grad(
        lambda p: loss_fn((p, x)), optax_sam.steepest_ascent(0.5)
    )
    (grads, _), expected = whole((params, x))[1], of_params(params)[1]
    assert_different(grads, expected)
    alone = optax_sam.climb_only(optax_sam.steepest_ascent(0.5), "^0")
    only = optax_sam.value_and_grad(loss_fn, alone)
    assert_close(only((params, x))[1][0], expected)


@slow
def test_kauldron_with_its_own_call():
    names = last(KAULDRON)
    x, y = names["batches"][0]
    params, key = names["init"](jax.random.key(1)), jax.random.key(2)
    batch = {"image": x, "label": y}
    context = names["Context"](jnp.array(0), params, batch)
    alone = optax_sam.climb_only(optax_sam.steepest_ascent(rho=0.05), "params")
    grad_fn = optax_sam.value_and_grad(
        names["forward"], alone, argnums=0, has_aux=True, allow_int=True
    )
    _, grads = grad_fn(context, rngs=key)

    def loss_fn(params):
        return names["cross_entropy"](names["apply"](params, x, key), y)

    assert_close(grads.params, two_passes(with_none(loss_fn), params)[1])


def test_kauldron_in_the_optimizer_has_no_loss():
    tx = optax.chain(optax_sam.sam(0.05), optax.sgd(0.1))
    params = jnp.ones(2)
    with pytest.raises(TypeError, match="value_fn"):
        tx.update(params, tx.init(params), params)


# --- nanodo -------------------------------------------------------------------------

NANODO = "nanodo"  # a chapter


@slow
def test_nanodo():
    names = last(NANODO)
    state = names["create_state"]()

    @jax.jit
    def gradient(params, x):
        loss_fn = names["get_loss_fn"](x, names["apply"], None)
        return two_passes(loss_fn, params)[1]

    tx = optax.adamw(1e-2)
    params, opt_state = state.params, tx.init(state.params)
    images = names["images"]
    for a, b in zip(images[::2], images[1::2], strict=True):
        mean = jax.tree.map(
            lambda x, y: (x + y) / 2, gradient(params, a), gradient(params, b)
        )
        params, opt_state = descend(tx, mean, opt_state, params)
    assert_close(names["state"].params, params)
    assert names["state"].opt_state.gradient_step == 4
    assert names["state"].step == 4

    names["step_fn"](state, jnp.array(images[0]))
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))


def test_nanodo_multi_steps_must_be_outermost():
    tx = optax.chain(optax_sam.sam(0.05), optax.MultiSteps(optax.sgd(0.1), 2))
    assert not hasattr(tx.init(jnp.ones(2)), "gradient_step")

    # Inside it: the last micro-batch alone is differentiated.
    inside = optax.MultiSteps(optax.chain(optax_sam.sam(0.05), optax.scale(1.0)), 2)
    params = jnp.array([1.0, 2.0])
    state = inside.init(params)
    scales = jnp.array([1.0, 3.0]), jnp.array([2.0, 1.0])

    def loss(p, scale):
        return jnp.sum(scale * p**2)

    for scale in scales:
        grads = jax.grad(loss)(params, scale)
        updates, state = inside.update(
            grads, state, params, value_fn=functools.partial(loss, scale=scale)
        )
    mean = sum(jax.grad(loss)(params, scale) for scale in scales) / 2
    climbed = params + 0.05 * mean / norm(mean)
    assert_close(updates, jax.grad(loss)(climbed, scales[1]))


# --- big_vision ---------------------------------------------------------------------

BIG_VISION = "big_vision"  # a chapter


@slow
def test_big_vision():
    names = last(BIG_VISION)
    rng, arguments = jax.random.key(2), []
    for batch in names["batches"]:
        rng, now = jax.random.split(rng)
        arguments.append((*batch, now))

    def loss_fn(params, x, y, key):
        return names["cross_entropy"](names["apply"](params, x, key), y)

    start = names["init"](jax.random.key(1))
    params, losses = train(loss_fn, start, names["tx"], arguments)
    assert_close(names["train_state"]["params"], params)
    assert_close(names["measurements"]["training_loss"], losses[-1])


@slow
def test_big_vision_m_sam():
    names = last(BIG_VISION)
    params, (x, y) = names["init"](jax.random.key(1)), names["batches"][0]

    def loss_fn(params, batch):
        logits = names["apply"](params, batch[0], jax.random.key(3))
        return names["cross_entropy"](logits, batch[1])

    def closure(params):
        return loss_fn(params, (x, y))

    ascent = optax_sam.steepest_ascent(0.05)
    of_closure = optax_sam.value_and_grad(closure, ascent)
    with pytest.raises(TypeError, match="by position"):
        optax_sam.m_sharpness(of_closure, microbatch_size=8)(params)
    grad_fn = optax_sam.value_and_grad(loss_fn, ascent)
    _, grads = optax_sam.m_sharpness(grad_fn, microbatch_size=16)(params, (x, y))
    halves = [
        two_passes(with_none(loss_fn), params, (x[i : i + 16], y[i : i + 16]))[1]
        for i in (0, 16)
    ]
    assert_close(grads, jax.tree.map(lambda a, b: (a + b) / 2, *halves), atol=1e-4)
    ascent = optax_sam.steepest_ascent(optax.linear_schedule(0.0, 0.1, 10))
    with pytest.raises(ValueError, match="stateful_value_and_grad"):
        optax_sam.value_and_grad(loss_fn, ascent)(params, (x, y))


# --- PureJaxRL ----------------------------------------------------------------------

PUREJAXRL = "PureJaxRL"  # a chapter


@slow
def test_purejaxrl():
    names = after(PUREJAXRL)[PUREJAXRL][0]

    def loss_fn(params, observations, gae):
        return names["_loss_fn"](params, observations, gae)[0]

    minibatches = list(zip(names["images"], names["advantages"], strict=True)) * 2
    start = names["init"](jax.random.key(1))
    params, losses = train(loss_fn, start, names["tx"], minibatches, rho=0.01)
    assert_close(names["state"].params, params)
    assert_close(names["losses"][0].ravel(), jnp.array(losses))


@slow
def test_purejaxrl_normalization_couples_sub_batches():
    names = last(PUREJAXRL)
    params = names["init"](jax.random.key(1))
    x, gae = names["images"][0], names["advantages"][0]

    def policy_loss(params, x, gae):
        # Linear in what the advantages multiply, and no dropout.
        hidden = jax.nn.relu(x @ params["hidden"]["kernel"])
        log_prob = jax.nn.log_softmax(hidden @ params["out"]["kernel"])[:, 0]
        return -jnp.mean(log_prob * gae)

    def inside(params, x, gae):
        return policy_loss(params, x, names["normalize"](gae))

    def whole_and_parts(loss_fn, gae):
        grad_fn = jax.value_and_grad(loss_fn)
        parts = optax_sam.m_sharpness(grad_fn, microbatch_size=8, batch_argnums=(1, 2))
        return grad_fn(params, x, gae)[1], parts(params, x, gae)[1]

    assert_different(*whole_and_parts(inside, gae))
    assert_close(*whole_and_parts(policy_loss, names["normalize"](gae)))


@slow
def test_purejaxrl_over_seeds_a_condition_becomes_a_choice():
    def grads(params, step):
        grad_fn = optax_sam.value_and_grad(
            lambda p: jnp.sum(jnp.sin(p) ** 2),
            optax_sam.steepest_ascent(0.05),
            when=step % 2 == 0,
        )
        return grad_fn(params)

    seeds = jnp.ones((3, 4)), jnp.arange(3)
    over_seeds = str(jax.make_jaxpr(jax.vmap(grads))(*seeds))
    one_counter = jax.vmap(grads, in_axes=(0, None))
    assert "cond[" not in over_seeds
    assert "cond[" in str(jax.make_jaxpr(one_counter)(seeds[0], 1))


# --- LoRA ---------------------------------------------------------------------------

LORA = "LoRA"  # a chapter


def by_path(tree, wanted):
    return {
        jax.tree_util.keystr(path): x
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
        if ("lora" in jax.tree_util.keystr(path)) == wanted and eqx.is_array(x)
    }


@slow
def test_lora_linen():
    names = last(LORA, "LoRA in linen")
    start, trained = names["params"], names["state"].params
    adapters, base = by_path(start, True), by_path(start, False)
    treedef, paths = (
        jax.tree.structure(start),
        [
            jax.tree_util.keystr(p)
            for p, _ in jax.tree_util.tree_leaves_with_path(start)
        ],
    )

    def loss_fn(adapters, batch):
        leaves = [(adapters | base)[path] for path in paths]
        return names["loss_fn"](jax.tree.unflatten(treedef, leaves), batch)

    batches = [(b,) for b in names["batches"]]
    expected, losses = train(loss_fn, adapters, optax.adamw(1e-2), batches)
    assert_close(by_path(trained, True), expected)
    assert_same_bits(by_path(trained, False), base)
    assert_close(names["loss"], losses[-1])
    assert_different(expected, adapters)


@slow
def test_lora_equinox():
    names = last(LORA, "LoRA in Equinox")
    trained, frozen = eqx.partition(names["start"], names["adapters"])

    def loss_fn(trained, batch):
        return names["loss_fn"](trained, frozen, batch)

    batches = [(b,) for b in names["batches"]]
    expected, losses = train(loss_fn, trained, names["optimizer"], batches)
    after_training, base = eqx.partition(names["model"], names["adapters"])
    assert_close(after_training, expected)
    assert_same_bits(by_path(base, False), by_path(frozen, False))
    assert len(jax.tree.leaves(after_training)) == 4
    assert_close(names["loss"], losses[-1])
    assert_different(expected, trained)


def first_climb(names, ascent):
    """Of linen's LoRA: where the climb of the first step goes."""
    loss_fn, batch = names["loss_fn"], names["batches"][0]
    grads = jax.grad(loss_fn)(names["params"], batch)
    return ascent.update(grads, ascent.init(grads), names["params"])[0]


@slow
def test_lora_norm_is_over_the_adapters():
    names = last(LORA, "LoRA in linen")
    climb = first_climb(names, names["ascent"])
    assert norm(by_path(climb, True)) == pytest.approx(0.05, rel=1e-4)
    assert norm(by_path(climb, False)) == 0
    # lora_b is zero, so lora_a has no gradient yet.
    first = by_path(climb, True)
    assert all(norm(x) == 0 for path, x in first.items() if "lora_a" in path)

    # Without a mask on the ascent the base climbs, and takes the larger part.
    bare = first_climb(names, optax_sam.steepest_ascent(0.05))
    assert norm(by_path(bare, False)) > norm(by_path(bare, True))


@slow
def test_lora_masked_around_sam_is_refused():
    names = last(LORA, "LoRA in linen")
    params, batch = names["params"], names["batches"][0]
    mask = jax.tree.map(lambda label: label == "adapter", names["labels_of"](params))

    def value_fn(params):
        return names["loss_fn"](params, batch)

    tx = optax.masked(optax_sam.sam(0.05), mask)
    grads = jax.grad(value_fn)(params)
    with pytest.raises(ValueError, match="holes"):
        tx.update(grads, tx.init(params), params, value_fn=value_fn)


# --- Dynamic loss scaling -----------------------------------------------------------

SCALING = "Dynamic loss scaling"  # a chapter


@slow
def test_scaling_against_steps_by_hand():
    names = last(SCALING)
    tx = names["optimizer"]

    @jax.jit
    def step(params, opt_state, scale, batch, key):
        def loss_fn(p):
            return names["scaled_loss"](p, scale, batch, key)

        (_, loss), clean = jax.value_and_grad(loss_fn, has_aux=True)(params)
        # An infinite clean gradient gives no climb, and the step is lost anyway.
        size = norm(jax.tree.map(lambda g: g / scale, clean)) * scale
        climb = jax.tree.map(lambda g: jnp.nan_to_num(RHO * g / size), clean)
        climbed = jax.tree.map(jnp.add, params, climb)
        grads, _ = jax.grad(loss_fn, has_aux=True)(climbed)
        grads = jax.tree.map(lambda g: g / scale, grads)
        return *descend(tx, grads, opt_state, params), loss, grads

    params = names["init"](jax.random.key(1))
    opt_state, scale, halved = tx.init(params), jnp.float32(2.0**20), 0
    for i, batch in enumerate(names["batches"]):
        key = jax.random.fold_in(jax.random.key(2), i)
        *new, loss, grads = step(params, opt_state, scale, batch, key)
        if all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads)):
            params, opt_state = new
        else:
            scale, halved = scale / 2, halved + 1
    assert 0 < halved < 8
    assert names["scale"] == scale
    assert_close(names["params"], params)
    assert_close(names["loss"], loss)


@slow
def test_scaling_leaves_the_climb_alone():
    names = last(SCALING)
    params, batch = names["init"](jax.random.key(1)), names["batches"][0]

    def loss_fn(params, scale):
        logits = names["apply"](params, batch[0], jax.random.key(3))
        return scale * names["cross_entropy"](logits, batch[1])

    ascent, climbs = optax_sam.steepest_ascent(0.05), []
    for scale in (1.0, 2.0**10, 2.0**40):
        grads = jax.grad(loss_fn)(params, scale)
        climbs.append(ascent.update(grads, ascent.init(params), params)[0])
    assert norm(climbs[0]) == pytest.approx(0.05, rel=1e-5)
    for climb in climbs[1:]:
        assert_close(climb, climbs[0], rtol=1e-5, atol=1e-8)

    grad_fn = jax.jit(optax_sam.value_and_grad(loss_fn, ascent))
    scaled = jax.tree.map(lambda g: g / 2.0**10, grad_fn(params, 2.0**10)[1])
    assert_close(scaled, grad_fn(params, 1.0)[1], rtol=1e-4, atol=1e-7)


@slow
@pytest.mark.parametrize("broken", ["both passes", "the climbed pass"])
def test_scaling_an_overflow_changes_no_state(broken):
    names = last(SCALING)
    params, opt_state = names["params"], names["opt_state"]
    batch, key = names["batches"][0], jax.random.key(3)
    if broken == "both passes":
        # Float16 ends at 65504.
        args = jnp.float32(2.0**40), batch, key
        step = names["train_step"]
    else:
        start = params["out"]["bias"]

        def only_there(params, scale, batch, key):
            away = jnp.any(params["out"]["bias"] != start)
            loss = names["cross_entropy"](
                names["apply"](params, batch[0], key), batch[1]
            )
            return jnp.where(away, jnp.inf, scale) * loss, loss

        args = jnp.float32(1.0), batch, key
        step = with_other_gradient(names, only_there)
    new_params, new_state, scale, loss = step(params, opt_state, *args)
    assert_same_bits((new_params, new_state), (params, opt_state))
    assert scale == args[0] / 2
    assert jnp.isfinite(loss)


def with_other_gradient(names, loss_fn):
    """The page's step, with another loss."""
    _, (_, code) = (
        pages.chapters(PAGE)["In your trainer"][0],
        pages.chapters(PAGE)[SCALING][0],
    )
    code = code.split("params = init(")[0].replace(
        "scaled_loss, opt", "other_loss, opt"
    )
    code = code.replace("    scaled_loss,", "    other_loss,")
    own = dict(names) | {"other_loss": loss_fn}
    exec(code, own)
    return own["train_step"]


@slow
def test_scaling_by_apply_if_finite():
    names = last(SCALING)
    params, batch, key = names["params"], names["batches"][0], jax.random.key(3)
    tx = optax.apply_if_finite(optax.adamw(1e-2), 5)
    state = tx.init(params)
    _, grads = names["grad_fn"](params, jnp.float32(2.0**40), batch, key)
    grads = jax.tree.map(lambda g: g / 2.0**40, grads)
    new, new_state = descend(tx, grads, state, params)
    assert_same_bits((new, new_state.inner_state), (params, state.inner_state))
    assert new_state.notfinite_count == 1


def test_scaling_averages_mix_scales():
    def loss(p, scale):
        return scale * jnp.sum(jnp.array([1.0, 4.0]) * jnp.cosh(p))

    init, grad_fn = optax_sam.stateful_value_and_grad(
        loss, optax_sam.friendly_sam(0.5, sigma=0.5, decay=0.5)
    )

    def second(scales):
        # Two different points, so that the average matters.
        state = init(jnp.array([1.0, 0.2]))
        _, _, state = grad_fn(state, jnp.array([1.0, 0.2]), scales[0])
        return grad_fn(state, jnp.array([-0.3, 1.0]), scales[1])[1] / scales[1]

    assert_close(second((1.0, 1.0)), second((64.0, 64.0)), rtol=1e-4)
    assert_different(second((1.0, 1.0)), second((64.0, 1.0)))
