"""Outside of `jit` a loss is read as it is now, also where it was compiled once."""

import copy
import functools
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from matplotlib import pyplot as plt

import optax_sam

W = jnp.array([3.0, 1.0])
X = jnp.ones(2)  # rebound by the tests
ASCENT = optax_sam.steepest_ascent(0.5)


def loss(w):
    """Its gradient is X, wherever it is taken."""
    return jnp.sum(w * X)


def by_a_helper(w):
    return loss(w)


def inside_of_a_lambda(w):
    return sum(map(lambda x: x, [jnp.sum(w * X)]))


def optimizer(**options):
    tx = optax_sam.sam(0.5, **options)

    def gradient(fn):
        return tx.update(None, tx.init(W), W, value_fn=fn)[0]

    return gradient


def in_place_of_value_and_grad(**options):
    """One gradient function for each loss, as a training loop has it."""

    @functools.cache
    def made(fn):
        return optax_sam.value_and_grad(fn, ASCENT, **options)

    return lambda fn: made(fn)(W)[1]


def functional():
    @functools.cache
    def made(fn):
        return optax_sam.functional_value_and_grad(
            fn, lambda outputs: outputs, ASCENT, scan_passes=True
        )

    return lambda fn: made(fn)(W)[1]


def over_sub_batches():
    @functools.cache
    def made(fn):
        grad_fn = optax_sam.value_and_grad(lambda w, _: fn(w), ASCENT)
        return optax_sam.m_sharpness(grad_fn, microbatch_size=2)

    return lambda fn: made(fn)(W, jnp.ones(4))[1]


FORMS = {
    "when": lambda: optimizer(when=optax_sam.every_k(1)),
    "scan_passes": lambda: optimizer(scan_passes=True),
    "value_and_grad": lambda: in_place_of_value_and_grad(when=jnp.array(True)),
    "one loop": lambda: in_place_of_value_and_grad(scan_passes=True),
    "functional": functional,
    "m_sharpness": over_sub_batches,
}
forms = pytest.mark.parametrize("form", FORMS)


@forms
@pytest.mark.parametrize("fn", [loss, by_a_helper, inside_of_a_lambda])
def test_a_global_that_is_bound_anew(form, fn, monkeypatch):
    gradient = FORMS[form]()
    for x in (jnp.array([1.0, 2.0]), jnp.array([4.0, 3.0])):
        monkeypatch.setattr(f"{__name__}.X", x)
        np.testing.assert_allclose(gradient(fn), x)


def of_a_cell():
    x = jnp.zeros(2)

    def fn(w):
        return jnp.sum(w * x)

    def change(to):
        nonlocal x
        x = to

    return fn, change


def of_an_array_that_is_overwritten():
    x = np.zeros(2, np.float32)

    def change(to):
        x[:] = to

    return (lambda w: jnp.sum(w * x)), change


def of_a_list():
    xs = [jnp.zeros(2)]

    def change(to):
        xs[0] = to

    return (lambda w: jnp.sum(w * xs[0])), change


class Base:
    """Its methods are those of what inherits from it."""

    def loss(self, w):
        return jnp.sum(w * self.batch["x"])


class Trainer(Base):
    """Mutable, as trainers are."""

    def __init__(self):
        self.batch = {"x": jnp.zeros(2)}

    def change(self, to):
        self.batch = {"x": to}


def of_a_module():
    settings = types.ModuleType("settings_of_a_project")
    settings.x, settings.other = jnp.zeros(2), "what no function names"
    return (lambda w: jnp.sum(w * settings.x)), lambda to: setattr(settings, "x", to)


def of_a_set():
    xs = {(0.0, 0.0)}

    def change(to):
        xs.clear()
        xs.add(tuple(map(float, to)))

    return (lambda w: jnp.sum(w * jnp.array(next(iter(xs))))), change


def of_a_word():
    words = {"name": ""}

    def change(to):
        words["name"] = " ".join(map(str, map(float, to)))  # a new object every time

    return (lambda w: jnp.sum(w * np.float32(words["name"].split()))), change


def of_an_attribute():
    trainer = Trainer()
    return (lambda w: trainer.loss(w)), trainer.change


def of_a_method():
    trainer = Trainer()
    fn = trainer.loss  # held: a method is a new object whenever it is looked up
    return fn, trainer.change


def of_a_partial():
    trainer = Trainer()
    return functools.partial(Trainer.loss, trainer), trainer.change


def of_a_class():
    class Config:
        x = jnp.zeros(2)

        @property
        def doubled(self):
            return 2 * Config.x

    config = Config()
    return (lambda w: jnp.sum(w * config.doubled / 2)), functools.partial(
        setattr, Config, "x"
    )


def of_a_flax_model():
    model, x = nn.Dense(1, use_bias=False), jnp.zeros(2)

    def fn(w):
        return jnp.sum(model.apply({"params": {"kernel": w[:, None]}}, x))

    def change(to):
        nonlocal x
        x = to

    return fn, change


def of_an_equinox_model():
    model = eqx.nn.Linear(2, 1, use_bias=False, key=jax.random.key(0))

    def change(to):
        nonlocal model
        model = eqx.tree_at(lambda m: m.weight, model, to[None])

    return (lambda w: jnp.sum(model(w))), change


def of_an_nnx_model():
    model = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
    return (lambda w: jnp.sum(model(w))), lambda to: model.kernel.set_value(to[:, None])


SURROUNDINGS = (
    of_a_module,
    of_a_set,
    of_a_word,
    of_a_class,
    of_a_flax_model,
    of_an_equinox_model,
    of_an_nnx_model,
    of_a_cell,
    of_an_array_that_is_overwritten,
    of_a_list,
    of_an_attribute,
    of_a_method,
    of_a_partial,
)


@forms
@pytest.mark.parametrize("make", SURROUNDINGS)
def test_what_a_loss_closes_over(form, make):
    gradient, (fn, change) = FORMS[form](), make()
    for x in ([1.0, 2.0], [4.0, 3.0]):
        change(jnp.array(x))
        np.testing.assert_allclose(gradient(fn), x)


class Training:
    """It holds what its loss does not read, and that changes at every step."""

    def __init__(self):
        self.scale, self.step, self.params, self.traced = 1.0, 0, W, 0
        self.config = types.SimpleNamespace(factor=1.0)
        grad_fn = optax_sam.value_and_grad(self.loss, ASCENT)
        self.grad_fn = optax_sam.m_sharpness(grad_fn, microbatch_size=2)

    def loss(self, w, x):
        self.note()
        variables = {"params": w, "step": x}  # words that are no attributes here
        w, x = variables["params"], variables["step"]
        return self.scaled(jnp.mean(x) * jnp.sum(w)) * self.config.factor

    def note(self):
        vars(self)["traced"] += 1

    def scaled(self, value):
        return getattr(self, "scale") * value  # noqa: B009 also by a word

    def advance(self):
        value, gradient = self.grad_fn(self.params, jnp.ones(4))
        self.params, self.step = self.params - 0.1 * gradient, self.step + 1
        return value


def test_what_a_loss_does_not_read_may_change():
    training = Training()
    training.advance()
    traced = training.traced
    for _ in range(3):
        training.advance()
    assert training.traced == traced
    before = training.params
    training.scale = 3.0
    assert training.advance() == pytest.approx(3 * float(jnp.sum(before)))
    assert training.traced > traced
    before, training.config.factor = training.params, 2.0
    assert training.advance() == pytest.approx(6 * float(jnp.sum(before)))


def test_an_argument_that_is_changed_in_place():
    class Config:
        scale = 1.0

    def scaled(w, config, x):
        return config.scale * jnp.mean(w * x)

    config = Config()
    fn = optax_sam.m_sharpness(
        optax_sam.value_and_grad(scaled, ASCENT), microbatch_size=2, batch_argnums=2
    )
    for scale in (1.0, 3.0):
        config.scale, config.step = scale, 10 * scale
        value, _ = fn(jnp.array(2.0), config, jnp.ones(4))
        assert value == 2 * scale


def test_the_sign_of_a_zero_among_the_arguments():
    def signed(w, zero):
        return jnp.sum(w) * np.copysign(1.0, zero)

    fn = optax_sam.value_and_grad(signed, ASCENT, when=jnp.array(True))
    for zero in (0.0, -0.0):
        np.testing.assert_allclose(fn(W, zero)[1], np.copysign(1.0, zero) * X)


@forms
def test_one_of_two_that_are_both_there(form):
    both = [jnp.array([1.0, 2.0]), jnp.array([4.0, 3.0])]
    x = both[0]

    def fn(w):
        return jnp.sum(w * x) + 0 * len(both)

    gradient = FORMS[form]()
    for x in both:
        np.testing.assert_allclose(gradient(fn), x)


@forms
@pytest.mark.parametrize("make", SURROUNDINGS)
def test_nothing_is_traced_again_while_nothing_changes(form, make):
    gradient, (fn, change), traced = FORMS[form](), make(), []
    change(jnp.array([1.0, 2.0]))

    def counted(w):
        traced.append(isinstance(w, jax.core.Tracer))
        return fn(w)

    gradient(counted)
    before = len(traced)
    assert before
    for _ in range(3):
        gradient(counted)
    assert len(traced) == before


def test_what_has_compiled_can_be_copied():
    tx = optax_sam.sam(0.5, when=optax_sam.every_k(1))
    for one in (tx, copy.deepcopy(tx)):
        tx.update(None, tx.init(W), W, value_fn=loss)
        out, _ = copy.deepcopy(one).update(None, tx.init(W), W, value_fn=loss)
        np.testing.assert_allclose(out, X)


def test_a_loss_that_names_itself_is_let_go():
    """What surrounds it is held, and it is not."""
    import gc
    import weakref

    tx = optax_sam.sam(0.5, when=optax_sam.every_k(1))

    def made():
        def fn(w):
            fn.calls = None
            return jnp.sum(w**2)

        tx.update(None, tx.init(W), W, value_fn=fn)
        return weakref.ref(fn)

    held = made()
    gc.collect()
    assert held() is None


def test_what_cannot_be_compared_or_has_no_tree_is_read_all_the_same():
    class Odd:
        def __eq__(self, other):
            raise RuntimeError("no comparison")

        def __hash__(self):
            return 0

    class Odder:
        @property
        def __dict__(self):
            raise RuntimeError("no attributes")

    mixed = {1: Odd(), "one": jnp.ones(2), 2.5: np.array([None, Odd()])}
    of_itself, odder = [], Odder()
    of_itself.append(of_itself)
    gradient = optimizer(when=optax_sam.every_k(1))

    def fn(w):
        return jnp.sum(w * mixed["one"]) + 0 * len(of_itself)

    def other(w):
        return fn(w) + 0 * (odder is None)

    grad_fn = optax_sam.value_and_grad(lambda w, x, _: jnp.mean(x) * jnp.sum(w), ASCENT)
    with_an_argument = optax_sam.m_sharpness(grad_fn, microbatch_size=2)
    for _ in range(2):
        np.testing.assert_allclose(gradient(fn), X)
        np.testing.assert_allclose(gradient(other), X)
        np.testing.assert_allclose(with_an_argument(W, jnp.ones(4), odder)[1], X)


def test_a_package_that_is_named_costs_no_compilation():
    """Its caches change whenever it is used."""
    traced = []

    def fn(w):
        traced.append(isinstance(w, jax.core.Tracer))
        return jnp.sum(w**2) if plt else None

    gradient = optimizer(when=optax_sam.every_k(1))
    gradient(fn)
    before = len(traced)
    for _ in range(3):
        plt.close("all")
        gradient(fn)
    assert len(traced) == before
