"""What a method is: three functions. And the one that most methods are made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam._checks import check_ascent, check_combined, check_whole
from optax_sam._core.diagnostics import no_loss
from optax_sam._core.passes import ClimbOf, Passes, add_climb
from optax_sam._trees import cast, matching
from optax_sam._types import Ascent, Combine, Tree
from optax_sam._when import choose


class Seen(NamedTuple):
    """What was seen on one sub-batch; then the average over all of them.

    Attributes:
      value: the loss of the first pass.
      gradient: the one that comes out.
      clean: what the next state is made of, where that is another gradient than the
        one that comes out; `None` where it is not. On a step without a climb it is
        the gradient that comes out.
      aux: that of the first pass.
      report: a `Diagnostics`, where they are asked for.
      told: the clean loss that the climb was made with, which an ascent that takes
        `value=` is told for its state too; `None` where nobody knows it.
    """

    value: Any
    gradient: Tree
    clean: Tree = None
    aux: Any = None
    report: Any = None
    told: Any = None


class Method(NamedTuple):
    """A method of sharpness-aware minimization (experimental: may still change).

    Attributes:
      init: `init(params) -> state`.
      local: `local(passes, state, climbs) -> Seen`, the work on one sub-batch, whose
        random keys (in `state` and in the examples) are its own. `climbs` is a bool,
        of Python or traced: only where it holds are further passes made. It leaves
        the state as it is.
      finish: `finish(state, seen, climbs, params) -> (gradient, state)`, from the
        averages over all sub-batches: the same on every device.
    """

    init: Callable[[Tree], Any]
    local: Callable[[Passes, Any, Any], Seen]
    finish: Callable[[Any, Seen, Any, Tree], tuple[Tree, Any]]


def climbing(
    ascent: Ascent,
    combine: Combine | None = None,
    *,
    num_steps: int | None = None,
    climb_dtype: Any = None,
    keep_clean: bool = False,
) -> Method:
    r"""The method of SAM: climb by an ascent, differentiate there, combine.

    .. math:: g \mapsto c\big(g, \nabla L(w + \epsilon)\big), \quad \epsilon = a(g)

    For methods of your own that begin as SAM does, and finish otherwise (experimental:
    may still change).

    Args:
      ascent: from a gradient to a climb.
      combine: a function of the clean and the climbed gradient that gives the one to
        come out; `None` is the climbed one.
      num_steps: how many steps the climb takes; `None` is one.
      climb_dtype: the dtype of the climbed copy of the parameters; `None` is their own.
      keep_clean: whether `finish` is to see the averaged clean gradient,
        `seen.clean`, also where the ascent keeps no state.

    Returns:
      A `Method`, whose state is that of the ascent.

    Raises:
      TypeError, ValueError: a `num_steps` that is no whole number, or below 1.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> method = optax_sam.climbing(optax_sam.steepest_ascent(rho=0.5))
      >>> tx = optax_sam.transformation(method)
      >>> w, loss = jnp.array([1.0]), lambda w: jnp.sum(w**2)
      >>> tx.update(None, tx.init(w), w, value_fn=loss)[0]
      Array([3.], dtype=float32)

    Reference: Foret et al. 2021, algorithm 1, arXiv:2010.01412.
    """
    check_ascent(ascent)
    steps = number_of(num_steps)

    def local(passes: Passes, state: Any, climbs: Any) -> Seen:
        climb_of = step_by(ascent, state, steps)
        keep = keep_clean or has_state(state)
        walk = passes.walk(
            climb_of,
            climbs,
            num_steps=steps,
            climb_dtype=climb_dtype,
            keep_clean=keep or combine is not None,
        )
        clean, out = walk.clean.gradient, walk.gradient
        if combine is not None:
            out = choose(
                climbs, lambda: check_combined(combine(clean, out), out), lambda: out
            )
        kept = clean if keep else None
        told = passes.known_loss(walk.clean) if has_state(state) else None
        return Seen(walk.clean.value, out, kept, walk.clean.aux, walk.report, told)

    return Method(ascent.init, local, finish_by(ascent))


def finish_by(ascent: Ascent) -> Callable[..., tuple[Tree, Any]]:
    """The finish of a method whose state is the ascent's: the gradient as it is."""

    def finish(state: Any, seen: Seen, climbs: Any, params: Tree) -> tuple[Tree, Any]:
        del climbs  # clocks and averages go on, whether or not this step climbs
        clean = seen.gradient if seen.clean is None else seen.clean
        return seen.gradient, advance(ascent, state, clean, params, seen.told)

    return finish


class LastLossState(NamedTuple):
    """The loss of the last pass, and the method's own state."""

    last_loss: jax.Array
    method: Any


def reporting(method: Method) -> Method:
    """The method, with the loss of its last pass in its state."""

    def init(params: Tree) -> LastLossState:
        return LastLossState(no_loss(params), method.init(params))

    def local(passes: Passes, state: LastLossState, climbs: Any) -> Seen:
        return method.local(passes, state.method, climbs)

    def finish(
        state: LastLossState, seen: Seen, climbs: Any, params: Tree
    ) -> tuple[Tree, LastLossState]:
        gradient, inner = method.finish(state.method, seen, climbs, params)
        loss = jnp.asarray(seen.value, state.last_loss.dtype)
        return gradient, LastLossState(loss, inner)

    return Method(init, local, finish)


def one_pass(
    passes: Passes, climb: Callable[[], Tree], climbs: Any, climb_dtype: Any
) -> Seen:
    """What is seen in the one pass after a climb that asks for no gradient.

    Where no climb is made, it is the clean pass.
    """
    here = passes.params

    def away() -> Tree:
        return add_climb(here, climb(), here, climb_dtype)

    point = choose(climbs, away, lambda: cast(here, climb_dtype))
    only = passes.at(point, here)
    report = passes.show(None, only, point, 1)
    return Seen(only.value, only.gradient, None, only.aux, report)


def number_of(num_steps: int | None) -> int:
    """How many steps a climb takes; `None` is one."""
    if num_steps is None:
        return 1
    check_whole("num_steps", num_steps)
    return num_steps


def step_by(ascent: Ascent, state: Any, num_steps: int = 1) -> ClimbOf:
    """One of `num_steps` steps of a climb, each a share of the ascent's."""

    def climb_of(gradient: Tree, params: Tree, value: Any = None) -> Tree:
        climb = ask(ascent, gradient, state, params, value)[0]
        if num_steps == 1:
            return climb
        return jax.tree.map(lambda e: e / num_steps, climb)

    return climb_of


def ask(
    ascent: Ascent, gradient: Tree, state: Any, params: Tree, value: Any = None
) -> tuple[Tree, Any]:
    """The ascent's climb and next state; one that takes `value=` gets the loss."""
    told = {} if value is None else {"value": value}
    asked = optax.with_extra_args_support(ascent)
    climb, new = asked.update(gradient, state, params, **told)
    return climb, new


def advance(
    ascent: Ascent, state: Any, gradient: Tree, params: Tree, value: Any = None
) -> Any:
    """The ascent's state after a step, from what was averaged over sub-batches."""
    if not has_state(state):
        return state
    return ask(ascent, gradient, state, matching(params, gradient), value)[1]


def has_state(state: Any) -> bool:
    """Whether there is anything to carry from step to step."""
    return bool(jax.tree.leaves(state))
