"""What SAM costs, counted and not timed: FLOPs, evaluations, traces, bytes.

XLA counts the FLOPs of a compiled program (the body of a loop once), a counter in
the loss counts what is traced, and a callback in it what really runs.
"""

import functools
import gc
import weakref
from collections import Counter

import jax
import jax.numpy as jnp
import optax
import pytest
from optax import contrib
from problems import quick_jit

import optax_sam

# --- Programs compiled for shapes alone ----------------------------------------------

#: Depth, width and batch of networks of square tanh layers. Where matrix products are
#: all, the climb's few operations on each parameter vanish against 6 times the batch.
MATMULS = (4, 256, 512)
#: Where activations are all: 4 MiB of them, 32 KiB of parameters.
ACTIVATIONS = (8, 32, 4096)


def shapes(size):
    depth, width, batch = size
    params = {f"layer{i}": jnp.zeros((width, width)) for i in range(depth)}
    tree = (params, jnp.zeros((batch, width)))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def deep_outputs(params, inputs):
    h = inputs
    for weight in params.values():
        h = jnp.tanh(h @ weight)
    return h


def mean_square(outputs, inputs):
    del inputs
    return jnp.mean(outputs**2)


def deep_loss(params, inputs):
    return mean_square(deep_outputs(params, inputs), inputs)


def compiled(function, size):
    return quick_jit(function).lower(*shapes(size)).compile()


@functools.cache
def flops(function, size=MATMULS):
    return compiled(function, size).cost_analysis()["flops"]


@functools.cache
def temporary_bytes(function, size=ACTIVATIONS):
    return compiled(function, size).memory_analysis().temp_size_in_bytes


CLEAN = jax.value_and_grad(deep_loss)


def by_door_1(tx):
    """A user's step: the clean value and gradient, and the gradient that comes out."""

    def step(params, inputs):
        value, grads = CLEAN(params, inputs)
        updates, _ = tx.update(
            grads, tx.init(params), params, value_fn=lambda p: deep_loss(p, inputs)
        )
        return value, updates

    return step


def by_door_1_inside(tx):
    """The same, with the clean pass inside, and its loss from the diagnostics."""

    def step(params, inputs):
        updates, state = tx.update(
            None, tx.init(params), params, value_fn=deep_loss, batch=inputs
        )
        return optax.tree.get(state, "diagnostics").loss, updates

    return step


def by_door_2(ascent, **options):
    return optax_sam.value_and_grad(deep_loss, ascent, **options)


TWO_PASSES = {
    "sam, door 1": by_door_1(optax_sam.sam()),
    "asam, door 1": by_door_1(optax_sam.asam()),
    "sam, all inside": by_door_1_inside(optax_sam.sam(diagnostics=True)),
    "sam, door 2": by_door_2(optax_sam.steepest_ascent()),
    "asam, door 2": by_door_2(optax_sam.adaptive_ascent()),
    "Functional SAM": optax_sam.functional_value_and_grad(
        deep_outputs, mean_square, optax_sam.steepest_ascent()
    ),
}


@pytest.mark.parametrize("name", TWO_PASSES)
def test_sam_has_the_flops_of_two_gradients(name):
    assert 2.00 <= flops(TWO_PASSES[name]) / flops(CLEAN) <= 2.01


def test_a_random_climb_without_the_clean_gradient_has_the_flops_of_one():
    """The clean gradient goes in unused and XLA drops it; its value is a forward pass.

    The rest is what the random numbers cost, drawn once.
    """
    tx = optax_sam.sharpness_aware(optax_sam.random_ascent(0.1, key=jax.random.key(0)))
    forward = flops(deep_loss) / flops(CLEAN)
    assert flops(by_door_1(tx)) / flops(CLEAN) <= 1.08 + forward


def by_contrib(params, inputs):
    climb = optax.chain(contrib.normalize(), optax.sgd(0.05))
    tx = contrib.sam(optax.identity(), climb, opaque_mode=True)
    value, grads = CLEAN(params, inputs)
    state, grad_fn = tx.init(params), jax.grad(lambda p, _: deep_loss(p, inputs))
    return value, tx.update(grads, state, params, grad_fn=grad_fn)[0]


def test_sam_moves_little_more_memory_than_optax_contrib_sam():
    """The largest entry, so that the norm overflows nowhere, is read and broadcast.

    That costs 2.25 times a gradient's bytes (3 by the oldest JAX); to store the scaled
    gradient and read it would make it 4.25.
    """

    def bytes_of(step):
        return compiled(step, MATMULS).cost_analysis()["bytes accessed"]

    gradient = sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes(MATMULS)[0])
    )
    more = bytes_of(TWO_PASSES["sam, door 1"]) - bytes_of(by_contrib)
    assert more <= 3.1 * gradient


def test_second_order_has_the_flops_of_four_gradients():
    full = by_door_2(optax_sam.steepest_ascent(), second_order=True)
    assert 3.0 <= flops(full) / flops(CLEAN) <= 5.0


@functools.cache
def m_sam_by_wrapper(microbatch_size, at_once=1):
    return optax_sam.m_sharpness(
        by_door_2(optax_sam.steepest_ascent()),
        microbatch_size=microbatch_size,
        at_once=at_once,
    )


@functools.cache
def m_sam_by_product(microbatch_size):
    tx = optax_sam.m_sam(microbatch_size=microbatch_size)

    def step(params, inputs):
        return tx.update(
            None, tx.init(params), params, value_fn=deep_loss, batch=inputs
        )[0]

    return step


def test_micro_batches_have_the_flops_of_two_gradients():
    """All at once nothing is hidden in a loop, so XLA counts the whole."""
    _, _, batch = MATMULS
    ratio = flops(m_sam_by_wrapper(batch // 2, at_once=2)) / flops(CLEAN)
    assert 2.00 <= ratio <= 2.02


@pytest.mark.parametrize("by_door", [m_sam_by_wrapper, m_sam_by_product])
def test_the_loop_over_micro_batches_has_the_body_of_one(by_door):
    """XLA counts a loop's body once: here half the batch, so half of the two passes.

    An unrolled loop, or more passes for each micro-batch, would count more.
    """
    _, _, batch = MATMULS
    ratio = flops(by_door(batch // 2)) / flops(CLEAN)
    assert 1.00 <= ratio <= 1.01


# --- Memory --------------------------------------------------------------------------


@pytest.mark.parametrize("by_door", [m_sam_by_wrapper, m_sam_by_product])
def test_micro_batches_need_the_memory_of_one(by_door):
    """1/64 of the batch: its activations and some copies of the parameters, no more.

    A stack of the gradients of all micro-batches would alone take 2 MiB.
    """
    depth, width, batch = ACTIVATIONS
    bytes_of_params = 4 * depth * width**2
    bytes_of_activations = 4 * depth * width * batch
    whole = temporary_bytes(by_door_2(optax_sam.steepest_ascent()))
    split = temporary_bytes(by_door(batch // 64))
    assert whole >= bytes_of_activations
    assert split <= 2 * bytes_of_activations // 64 + 4 * bytes_of_params


def bytes_of(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


STATELESS = {
    "sam": optax_sam.sam(),
    "sam, p=inf": optax_sam.sam(ord=jnp.inf),
    "asam": optax_sam.asam(),
    "m_sam": optax_sam.m_sam(microbatch_size=64),
}


@pytest.mark.parametrize("name", STATELESS)
def test_a_constant_rho_needs_no_state(name):
    params, _ = shapes(MATMULS)
    state = jax.eval_shape(STATELESS[name].init, params)
    assert jax.tree.leaves(state) == []


SCHEDULE = optax.linear_schedule(0.0, 0.1, 10)
SCHEDULED = {
    "sam": optax_sam.sam(SCHEDULE),
    "asam": optax_sam.asam(SCHEDULE),
    "m_sam": optax_sam.m_sam(SCHEDULE, microbatch_size=256),
}


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_schedule_needs_scalars_only(name):
    tx = SCHEDULED[name]

    def update(params, inputs):
        grads = None if name == "m_sam" else params
        return tx.update(
            grads, tx.init(params), params, value_fn=deep_loss, batch=inputs
        )[1]

    params, inputs = shapes(MATMULS)
    before = jax.eval_shape(tx.init, params)
    after = jax.eval_shape(update, params, inputs)
    assert 0 < bytes_of(before) <= 16
    assert all(x.shape == () for x in jax.tree.leaves(before))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(
        lambda x: (x.shape, x.dtype), after
    )


def test_a_chain_has_the_state_of_its_base_optimizer_alone():
    params, _ = shapes(MATMULS)
    chain = optax.chain(optax_sam.sam(), optax.sgd(0.1, momentum=0.9))
    state = jax.eval_shape(chain.init, params)
    assert bytes_of(state) == bytes_of(params)


# --- Evaluations and traces ----------------------------------------------------------


class CountedLoss:
    """A loss that counts its traces in Python and its evaluations as they run."""

    def __init__(self):
        self.counts = Counter()

    def __call__(self, params, inputs):
        self.counts["traces"] += 1
        value = 0.5 * jnp.mean((inputs @ params) ** 2)
        # The value goes along so that `vmap` sees one call for each sub-batch.
        jax.debug.callback(self._ran, value)
        return value

    def _ran(self, value):
        del value
        self.counts["evaluations"] += 1

    def ran(self):
        jax.effects_barrier()
        return self.counts["evaluations"]


PARAMS, INPUTS = jnp.ones(3), jnp.arange(24.0).reshape(8, 3)
ROWS = len(INPUTS)


def under_jit(step, steps):
    """The step compiled once and called `steps` times."""
    jitted = quick_jit(step)
    for _ in range(steps):
        jax.block_until_ready(jitted(PARAMS, INPUTS))


def under_scan(step, steps):
    """All steps in one compiled loop."""

    @quick_jit
    def run(params, inputs):
        def body(params, _):
            return params - 0.01 * step(params, inputs)[1], None

        return jax.lax.scan(body, params, length=steps)[0]

    jax.block_until_ready(run(PARAMS, INPUTS))


RUNNERS = {"jit": under_jit, "scan": under_scan}
STEPS = 3


@pytest.fixture(params=RUNNERS)
def runner(request):
    return RUNNERS[request.param]


def test_the_counters_count(runner):
    """One gradient: one trace and one evaluation for each step."""
    loss = CountedLoss()
    runner(jax.value_and_grad(loss), STEPS)
    assert loss.ran() == STEPS
    assert loss.counts["traces"] == 1


def test_door_2_evaluates_twice_and_traces_at_most_twice(runner):
    loss = CountedLoss()
    runner(optax_sam.value_and_grad(loss, optax_sam.steepest_ascent()), STEPS)
    assert loss.ran() == 2 * STEPS
    assert loss.counts["traces"] <= 2


def test_door_1_evaluates_and_traces_once(runner):
    """Counted apart from the user's own clean gradient."""
    clean, climbed = CountedLoss(), CountedLoss()
    tx = optax_sam.sam()

    def step(params, inputs):
        value, grads = jax.value_and_grad(clean)(params, inputs)
        updates, _ = tx.update(
            grads, tx.init(params), params, value_fn=lambda p: climbed(p, inputs)
        )
        return value, updates

    runner(step, STEPS)
    assert climbed.ran() == STEPS
    assert climbed.counts["traces"] == 1
    assert clean.ran() == STEPS


def count_m_sharpness(loss, microbatch_size, at_once):
    sam = optax_sam.value_and_grad(loss, optax_sam.steepest_ascent())
    return optax_sam.m_sharpness(sam, microbatch_size=microbatch_size, at_once=at_once)


def count_m_sam(loss, microbatch_size, at_once):
    tx = optax_sam.m_sam(microbatch_size=microbatch_size, at_once=at_once)

    def step(params, inputs):
        extra = {"value_fn": loss, "batch": inputs}
        return None, tx.update(None, tx.init(params), params, **extra)[0]

    return step


@pytest.mark.parametrize("by_door", [count_m_sharpness, count_m_sam])
@pytest.mark.parametrize(("microbatch_size", "at_once"), [(1, 1), (2, 1), (2, 2)])
def test_micro_batches_evaluate_twice_each(runner, by_door, microbatch_size, at_once):
    """Traced once for each of the two passes: the loop re-uses it."""
    loss = CountedLoss()
    runner(by_door(loss, microbatch_size, at_once), STEPS)
    assert loss.ran() == 2 * STEPS * ROWS // microbatch_size
    assert loss.counts["traces"] == 2


@pytest.mark.parametrize("by_door", [count_m_sharpness, count_m_sam])
def test_traces_do_not_grow_with_the_number_of_micro_batches(by_door):
    traces = set()
    for microbatch_size in (1, 2, 4):
        loss = CountedLoss()
        jax.eval_shape(by_door(loss, microbatch_size, 1), PARAMS, INPUTS)
        traces.add(loss.counts["traces"])
    assert len(traces) == 1


# --- Outside of `jit` ----------------------------------------------------------------


def eager_m_sharpness_of(loss):
    sam = optax_sam.value_and_grad(loss, optax_sam.steepest_ascent())
    m_sam = optax_sam.m_sharpness(sam, microbatch_size=2)

    def step(state):
        m_sam(PARAMS, INPUTS)
        return state

    return step, None


def eager_product(**options):
    def make(loss):
        tx = optax_sam.sam(**options)

        def step(state):
            extra = {"value_fn": loss, "batch": INPUTS}
            return tx.update(None, state, PARAMS, **extra)[1]

        return step, tx.init(PARAMS)

    return make


EAGER = {
    "m_sharpness": eager_m_sharpness_of,
    "micro-batches": eager_product(microbatch_size=2),
    "every_k": eager_product(when=optax_sam.every_k(2)),
    "every_k, micro-batches": eager_product(
        when=optax_sam.every_k(2), microbatch_size=2
    ),
}


def counted_loss():
    """A loss, and how often it was traced or called."""
    calls = []

    def loss(params, inputs):
        calls.append(1)
        return 0.5 * jnp.mean((inputs @ params) ** 2)

    return loss, calls


@pytest.mark.parametrize("name", EAGER)
def test_a_second_eager_call_traces_no_more(name):
    loss, calls = counted_loss()
    step, state = EAGER[name](loss)
    state = step(state)
    traced = len(calls)
    assert traced >= 1
    for _ in range(4):
        state = step(state)
    assert len(calls) == traced


@pytest.mark.parametrize("name", [name for name in EAGER if name != "m_sharpness"])
def test_a_loss_that_was_dropped_is_freed(name):
    """The transformation outlives it, and must not hold what its closure held."""
    tx = optax_sam.sam(
        when=optax_sam.every_k(2) if "every_k" in name else None,
        microbatch_size=2 if "micro" in name else None,
    )
    big, state = jnp.ones(1000), tx.init(PARAMS)

    def loss(params, inputs):
        return 0.5 * jnp.mean((inputs @ params) ** 2) + 0 * jnp.sum(big)

    extra = {"value_fn": loss, "batch": INPUTS}
    for _ in range(2):
        _, state = tx.update(None, state, PARAMS, **extra)
    held = weakref.ref(loss)
    del loss, extra
    gc.collect()
    assert held() is None
    # And it goes on with the next one.
    tx.update(None, state, PARAMS, value_fn=counted_loss()[0], batch=INPUTS)


def test_a_gradient_function_that_was_dropped_is_freed():
    def make():
        loss, _ = counted_loss()
        step, state = eager_m_sharpness_of(loss)
        step(state)
        return weakref.ref(loss)

    held = make()
    gc.collect()
    assert held() is None
