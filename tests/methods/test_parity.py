"""The library against numbers that other people's published code produced.

All runs are free: from the published start, with no correction on the way, so an
error in any one step shows in all later ones.
"""

import jax
import numpy as np
import optax
import pytest
from problems import (
    DATA,
    TANH_BATCH,
    TANH_START,
    TORCH,
    classifier_loss,
    climb_of,
    descend,
    descend_in_chain,
    load_trajectory,
    nested,
    quick_jit,
    repeated,
    scan_steps,
    tanh_loss,
    tanh_row,
    torch_sgd,
    trajectory_batches,
)

import optax_sam

pytestmark = pytest.mark.usefixtures("x64")

# --- Runs of davda54/sam and SamsungLabs/ASAM, 20 steps ------------------------------

#: For each file: the product of door 1 and the ascent of door 2, by the file's options.
METHODS = {
    "sam_davda54_sgd": (optax_sam.sam, optax_sam.steepest_ascent),
    "sam_davda54_adamw": (optax_sam.sam, optax_sam.steepest_ascent),
    "adaptive_davda54_sgd": (optax_sam.asam, optax_sam.adaptive_ascent),
    "asam_samsung_sgd": (optax_sam.asam, optax_sam.adaptive_ascent),
    "asam_samsung_eta0": (optax_sam.asam, optax_sam.adaptive_ascent),
}


def method_options(record):
    """Davda54's flag in the library's words: every leaf, and no eta."""
    options = dict(record["options"])
    if options.pop("adaptive", False):
        options |= {"eta": 0.0, "mask": True}
    return options


def assert_run_equals(record, losses, params, tolerance=1e-10):
    np.testing.assert_allclose(
        losses, record["clean_loss"], rtol=tolerance, atol=tolerance
    )
    assert len(record["params_after"]) == 6
    for step, published in record["params_after"].items():
        at_step = jax.tree.map(lambda x, i=int(step) - 1: x[i], params)
        jax.tree.map(
            lambda got, want, step=step: np.testing.assert_allclose(
                got, want, rtol=tolerance, atol=tolerance, err_msg=f"step {step}"
            ),
            at_step,
            nested(published),
        )


def test_every_file_of_data_has_a_test():
    assert {path.stem for path in DATA.glob("*.json")} >= {*METHODS, "base_sgd"}


@pytest.mark.parametrize("name", METHODS)
def test_trajectory_in_the_optimizer(name):
    record = load_trajectory(name)
    product, _ = METHODS[name]
    base = TORCH[record["base_optimizer"]](**record["base_options"])
    tx = optax.chain(product(**method_options(record)), base)
    losses, params = descend_in_chain(
        classifier_loss, tx, nested(record["init"]), trajectory_batches(record)
    )
    assert_run_equals(record, losses, params)


@pytest.mark.parametrize("name", METHODS)
def test_trajectory_of_value_and_grad(name):
    record = load_trajectory(name)
    _, ascent = METHODS[name]
    ascent = ascent(**method_options(record))
    grad_fn = optax_sam.value_and_grad(classifier_loss, ascent)
    base = TORCH[record["base_optimizer"]](**record["base_options"])
    losses, params = descend(
        grad_fn, base, nested(record["init"]), trajectory_batches(record)
    )
    assert_run_equals(record, losses, params)


def test_trajectory_of_the_base_optimizer_is_sam_with_rho_zero():
    record = load_trajectory("base_sgd")
    base = torch_sgd(**record["base_options"])
    start, batches = nested(record["init"]), trajectory_batches(record)
    plain = descend(jax.value_and_grad(classifier_loss), base, start, batches)
    assert_run_equals(record, *plain)
    chain = optax.chain(optax_sam.sam(rho=0.0), base)
    assert_run_equals(record, *descend_in_chain(classifier_loss, chain, start, batches))


# --- One tanh layer on four rows: first climbs and five steps of more codes ----------

#: The printed numbers have 12 digits, and the codes add up to 1e-12 to their norms.
PRINTED = 1e-11

ASCENTS = {
    "sgd": optax_sam.steepest_ascent(0.0),
    "sam": optax_sam.steepest_ascent(0.1),
    "davda adaptive": optax_sam.adaptive_ascent(0.5, eta=0.0, mask=True),
    "samsung eta .01": optax_sam.adaptive_ascent(0.5, eta=0.01),
    "samsung eta 0": optax_sam.adaptive_ascent(0.5, eta=0.0),
    "sam-on": optax_sam.adaptive_ascent(0.5, eta=0.01, mask=True),
    "sam-on linf": optax_sam.adaptive_ascent(0.05, eta=0.01, ord=np.inf, mask=True),
}

#: weight row by row, then bias, then the 2-norm of the climb.
FIRST_CLIMBS = {
    "sam": """.012635489669 -.054965383661 -.053055439668 .047562391559
        -.041717650803 .001314474083 .1""",
    "davda adaptive": """.114657703083 -.098522491917 -.053493198809 .261087395225
        -.004673540236 .000589031012 .3064366321""",
    "samsung eta .01": """.084947618512 -.075012445376 -.041393261956 .194651039686
        -.338685178020 .010671571392 .4089827949""",
    "samsung eta 0": """.083940895475 -.072128308640 -.039162366672 .191142061660
        -.342149844192 .010780738946 .4092679877""",
    "sam-on": """.114932075144 -.101490025968 -.056004083186 .263358153083
        -.005544617627 .000636732480 .3098947073""",
    "sam-on linf": """.0455 -.0205 -.0155 .0355 -.0055 .0105 .0642767454""",
}

#: After five full-batch steps of SGD with lr .1 and momentum .9.
FIVE_STEPS = {
    "sgd": """.721286676422 .195696658618 .695746805316 .280342691914
        .517360559838 -.287876670544""",
    "sam": """.755447764169 .168376173800 .722902700195 .266631287818
        .519916922142 -.272874897600""",
    "davda adaptive": """.776059712862 .111123106788 .738264209095 .276929213871
        .486458764048 -.235247686949""",
    "samsung eta .01": """.843138016577 .093542518721 .681703031742 .275285787742
        .515030264681 -.286560263345""",
    "samsung eta 0": """.842693952813 .095058327304 .680480981790 .274723801078
        .515864209872 -.288345707091""",
    "sam-on linf": """.735461582834 .175383875848 .713311626416 .267976586929
        .511209779716 -.280352891838""",
}

SAM_AND_ADAM = """.849803606496 -.349930717347 .349849853879 .649993524343
    .150029578437 -.170039700198"""

#: m-SAM by the number of rows in a micro-batch; four rows in one are plain SAM.
MICRO_BATCHES = {
    4: FIVE_STEPS["sam"],
    2: """.751643563824 .165785878512 .714179364918 .269901270284
        .513961640509 -.277818775690""",
    1: """.755269286720 .171586586127 .768915518028 .280697961352
        .523768070039 -.233095433545""",
}


def numbers(text):
    return np.array([float(word) for word in text.split()])


def assert_ends_at(history, text):
    _, params = history
    last = tanh_row(jax.tree.map(lambda x: x[-1], params))
    np.testing.assert_allclose(last, numbers(text), rtol=0, atol=PRINTED)


@pytest.fixture(scope="module")
def tanh_start_gradient():
    with jax.enable_x64(True):
        return jax.device_get(quick_jit(jax.value_and_grad(tanh_loss))(TANH_START))


def test_tanh_start(tanh_start_gradient):
    loss, grads = tanh_start_gradient
    published = """0.0979744816222558 -0.42619677687830104 -0.4113872382300529
        0.36879462369209914 -0.3234750151292331 0.010192317058837497"""
    np.testing.assert_allclose(loss, 0.8767237531902337, rtol=1e-14)
    np.testing.assert_allclose(tanh_row(grads), numbers(published), rtol=1e-13)


@pytest.mark.parametrize("name", FIRST_CLIMBS)
def test_first_climb(name, tanh_start_gradient):
    _, grads = tanh_start_gradient
    climb = quick_jit(lambda w: climb_of(ASCENTS[name], grads, w))(TANH_START)
    climb = tanh_row(climb)
    *published, norm = numbers(FIRST_CLIMBS[name])
    np.testing.assert_allclose(climb, published, rtol=0, atol=PRINTED)
    np.testing.assert_allclose(np.linalg.norm(climb), norm, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", FIVE_STEPS)
def test_five_steps(name):
    base, batches = torch_sgd(0.1, 0.9), repeated(TANH_BATCH, 5)
    chain = optax.chain(optax_sam.sharpness_aware(ASCENTS[name]), base)
    grad_fn = optax_sam.value_and_grad(tanh_loss, ASCENTS[name])
    door_1 = descend_in_chain(tanh_loss, chain, TANH_START, batches)
    door_2 = descend(grad_fn, base, TANH_START, batches)
    assert_ends_at(door_1, FIVE_STEPS[name])
    assert_ends_at(door_2, FIVE_STEPS[name])


def test_five_steps_with_adam():
    base, batches = optax.adam(0.01), repeated(TANH_BATCH, 5)
    chain = optax.chain(optax_sam.sam(0.1), base)
    grad_fn = optax_sam.value_and_grad(tanh_loss, ASCENTS["sam"])
    door_1 = descend_in_chain(tanh_loss, chain, TANH_START, batches)
    assert_ends_at(door_1, SAM_AND_ADAM)
    assert_ends_at(descend(grad_fn, base, TANH_START, batches), SAM_AND_ADAM)


@pytest.mark.parametrize("rows", MICRO_BATCHES)
def test_micro_batches_door_1(rows):
    sam = optax_sam.m_sam(0.1, microbatch_size=rows)
    chain = optax.chain(sam, torch_sgd(0.1, 0.9))
    history = descend_in_chain(
        tanh_loss, chain, TANH_START, repeated(TANH_BATCH, 5), with_batch=True
    )
    assert_ends_at(history, MICRO_BATCHES[rows])


@pytest.mark.parametrize("rows", MICRO_BATCHES)
def test_micro_batches_door_2(rows):
    sam = optax_sam.value_and_grad(tanh_loss, ASCENTS["sam"])
    grad_fn = optax_sam.m_sharpness(sam, microbatch_size=rows)
    history = descend(grad_fn, torch_sgd(0.1, 0.9), TANH_START, repeated(TANH_BATCH, 5))
    assert_ends_at(history, MICRO_BATCHES[rows])
    # The value is the mean over all rows at the point before the step.
    np.testing.assert_allclose(history[0][0], 0.8767237531902337, rtol=1e-14)


# --- Optax's own SAM, side by side ---------------------------------------------------


def optax_contrib_run(base, rho, params, batches):
    climb = optax.chain(optax.contrib.normalize(), optax.sgd(rho))
    tx = optax.contrib.sam(base, climb, sync_period=2, opaque_mode=True)

    def step(carry, batch):
        params, state = carry
        value, grads = jax.value_and_grad(tanh_loss)(params, batch)
        grad_fn = jax.grad(lambda p, _: tanh_loss(p, batch))
        updates, state = tx.update(grads, state, params, grad_fn=grad_fn)
        params = optax.apply_updates(params, updates)
        return (params, state), (value, params)

    return scan_steps(step, params, tx, batches)


@pytest.mark.parametrize(
    "base", [torch_sgd(0.1, 0.9, 5e-4), optax.adamw(1e-2)], ids=["sgd", "adamw"]
)
def test_optax_contrib_sam_takes_the_same_steps(base):
    rng = np.random.default_rng(0)
    batches = rng.normal(size=(10, 4, 2)), rng.normal(size=(10, 4, 2))
    theirs = optax_contrib_run(base, 0.1, TANH_START, batches)
    chain = optax.chain(optax_sam.sam(0.1), base)
    ours = descend_in_chain(tanh_loss, chain, TANH_START, batches)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11),
        ours,
        theirs,
    )
