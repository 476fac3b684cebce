"""ESAM: some leaves climb, and some examples descend."""

from dataclasses import replace
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from optax_sam._ascent.steepest import steepest_unless
from optax_sam._checks import check_pair
from optax_sam._core.method import (
    Method,
    Seen,
    finish_by,
    has_state,
    reporting,
    step_by,
)
from optax_sam._core.options import Options, product
from optax_sam._core.passes import Passes
from optax_sam._core.transformation import SharpnessAware, transformation
from optax_sam._examples.part_of_batch import check_fraction, count, part_of, take
from optax_sam._keys import own_key
from optax_sam._trees import once
from optax_sam._types import Ascent, Rho, Tree
from optax_sam._when import choose


@product
def esam(
    rho: Rho | None = None,
    beta: float = 0.5,
    gamma: float = 0.5,
    *,
    key: jax.Array,
    ascent: Ascent | None = None,
    climb_dtype: Any = None,
    **options: Unpack[Options],
) -> SharpnessAware:
    r"""ESAM: stochastic weight perturbation, and sharpness-sensitive data selection.

    .. math:: \epsilon_i = \frac{a_i}{\beta} \rho \frac{g_i}{\|g\|}, \
              a_i \sim \mathrm{Bernoulli}(\beta); \quad
              g = \nabla L_{B^+}(w + \epsilon), \quad
              B^+ = \operatorname{top}_{\lceil \gamma m \rceil}
                    \left[\ell(w + \epsilon) - \ell(w)\right]

    Every leaf i of the parameters climbs with probability beta; the last gradient is
    that of the examples whose loss rose most.

    Under XLA this saves less than published: the climb's gradient is taken of all
    leaves (its shapes must be known), and the selection is a forward pass of its own,
    so a step costs about (3 + 1 + 3 gamma) / 3 gradients, 1.83 at gamma = 0.5. For
    cheap steps see `look_sam`, `partial_climb` and `momentum_sam`. On a network with
    BatchNorm, whose statistics in the last pass are those of the selected examples, it
    did worse than no SAM (-3.7 points in
    `benchmarks/accuracy/which_method_small.py`; without BatchNorm it did as well as
    SAM).

    Args:
      rho: radius of the climb; `None` is 0.05.
      beta: the probability of each leaf to climb, in (0, 1]; a Python number.
      gamma: the share of each sub-batch in the last pass, in (0, 1]; exactly
        `ceil(gamma * m)` examples. (The authors' code keeps one fewer, by a strict
        inequality: an oversight that is not copied.) A Python number.
      key: a JAX random key; step t draws from `fold_in(key, t)`, every sub-batch its
        own.
      ascent: climb by this ascent instead of SAM's; then leave `rho` out.
      climb_dtype, when, diagnostics, has_aux, ignore_updates, microbatch_size,
        axis_name, mesh, at_once, unroll: as for `sharpness_aware`.

    Returns:
      A transformation for the head of a chain. Gradients are taken inside:
      `update(None, state, params, value_fn=losses_fn, batch=batch)`, where
      `losses_fn(params, batch)` returns **one loss per example** (or a pair of them
      and aux). The mean loss of the last pass is
      `optax.tree.get(state, "last_loss")`. beta = gamma = 1 is SAM.

    Raises:
      ValueError: a `beta` or `gamma` outside (0, 1]; both `rho` and `ascent`; `update`
        without `batch=`.
      TypeError: a loss that is not one number per example.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> def losses(w, x):
      ...     return 0.5 * (x @ w) ** 2
      >>> tx = optax_sam.esam(rho=0.5, beta=1.0, gamma=0.5, key=jax.random.key(0))
      >>> w, batch = jnp.array([3.0, 1.0]), jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> gradient, _ = tx.update(None, tx.init(w), w, value_fn=losses, batch=batch)
      >>> [round(float(x), 4) for x in gradient]
      [0.0, 5.6]

    Reference: Du et al. 2022 (arXiv:2110.03141), "Efficient Sharpness-aware
      Minimization for Improved Training of Neural Networks", algorithm 1.
    """
    check_fraction("beta", beta)
    check_fraction("gamma", gamma)
    ascent = some_leaves(steepest_unless(ascent, rho), beta, key)

    def local(passes: Passes, state: Any, climbs: Any) -> Seen:
        passes = _with_losses(passes)
        clean = passes.clean()
        losses, aux = clean.aux
        step = step_by(ascent, state)

        def climb() -> Any:
            point = passes.climb(step, clean, 1, climb_dtype)
            some = _where_loss_rose(passes, point, losses, gamma)
            there = some.at(point, clean.gradient)
            report = passes.show(clean, there, point, 2)
            return there.value, there.gradient, report

        def stay() -> Any:
            report = passes.show(clean, clean, passes.params, 1)
            return clean.value, clean.gradient, report

        value, gradient, report = choose(climbs, climb, stay)
        kept = clean.gradient if has_state(state.ascent) else None
        return Seen(value, gradient, kept, aux, report, clean.value)

    method = reporting(Method(ascent.init, local, finish_by(ascent)))
    return transformation(method, takes_updates=False, **options)


def _where_loss_rose(
    passes: Passes, point: Tree, losses: jax.Array, gamma: float
) -> Passes:
    """The passes over the share of the examples whose losses the climb raised most."""
    if gamma == 1:  # all of them, and no need to look
        return passes
    rise = passes.out(point)[1][0] - losses
    rise = jnp.where(jnp.isnan(rise), jnp.inf, rise)  # what is broken is to be seen
    _, rows = jax.lax.top_k(rise, part_of(passes.examples, gamma))
    return passes.over(take(passes.examples, rows))


def _with_losses(passes: Passes) -> Passes:
    """The passes of a loss that is the mean of one for each example, its aux.

    Aux of the user's own comes second.
    """

    def loss(params: Tree, examples: Tree) -> tuple[jax.Array, Any]:
        losses, aux = check_pair(passes.loss(params, examples), passes.has_aux)
        size = count(examples)
        if jnp.shape(losses) != (size,):
            raise TypeError(
                f"esam selects examples by their losses, so the loss function must "
                f"return one for each, shape ({size},), but it returned shape "
                f"{jnp.shape(losses)}. Leave the mean out: return losses, not "
                f"jnp.mean(losses)."
            )
        return jnp.mean(losses), (losses, aux)

    return replace(passes, loss=loss, has_aux=True)


class SomeLeavesState(NamedTuple):
    """The key, the number of climbs drawn from it, the ascent's state."""

    key: jax.Array
    step: jax.Array
    ascent: Any


def some_leaves(ascent: Ascent, beta: float, key: jax.Array) -> Ascent:
    """ESAM's stochastic weight perturbation: every leaf climbs with probability beta.

    Those that do climb 1 / beta as far, so that the mean is the ascent's own.
    """
    ascent = optax.with_extra_args_support(ascent)

    def init(params: Tree) -> SomeLeavesState:
        count = jnp.zeros([], jnp.int32)
        return SomeLeavesState(own_key(key), count, ascent.init(params))

    def update(
        updates: Tree,
        state: SomeLeavesState,
        params: Tree | None = None,
        **extra_args: Any,
    ) -> tuple[Tree, SomeLeavesState]:
        climb, inner = ascent.update(updates, state.ascent, params, **extra_args)
        leaves, structure = jax.tree.flatten(climb)
        now = jax.random.fold_in(state.key, state.step)
        kept = once(jax.random.bernoulli(now, beta, [len(leaves)]))
        pairs = zip(kept, leaves, strict=True)
        some = [jnp.where(a, x / beta, 0) for a, x in pairs]
        step = optax.safe_increment(state.step)
        new = SomeLeavesState(state.key, step, inner)
        return jax.tree.unflatten(structure, some), new

    return optax.GradientTransformationExtraArgs(init, update)
