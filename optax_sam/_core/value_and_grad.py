"""In place of `jax.value_and_grad`: a drop-in for your own training loop."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax

from optax_sam._arguments import (
    Argnums,
    check_argnums,
    pick,
    positions,
    put,
    split_inexact,
    with_float0,
)
from optax_sam._checks import check_ascent, check_combined, check_leaves
from optax_sam._core.method import (
    Method,
    Seen,
    climbing,
    has_state,
    number_of,
    step_by,
)
from optax_sam._core.passes import Evaluation, Passes
from optax_sam._core.scanned import ScannedPasses
from optax_sam._keys import fresh_keys
from optax_sam._once import CompiledOnce, boxed, unboxed
from optax_sam._trees import fill
from optax_sam._types import Ascent, Combine, Tree, When
from optax_sam._when import check_when, choose, decide, known_in_python


def value_and_grad(
    loss_fn: Callable[..., Any],
    ascent: Ascent,
    *,
    argnums: Argnums = 0,
    combine: Combine | None = None,
    when: When = None,
    has_aux: bool = False,
    allow_int: bool = False,
    second_order: bool = False,
    num_steps: int | None = None,
    climb_dtype: Any = None,
    scan_passes: bool = False,
    diagnostics: bool = False,
) -> Callable[..., tuple[Any, Tree]]:
    r"""The value of a loss, and the gradient after a climb.

    .. math:: L(w), \quad \nabla L(w + \epsilon), \quad \epsilon = a(\nabla L(w))

    Args:
      loss_fn: `loss_fn(params, *args, **kwargs)` returns a scalar, or `(scalar, aux)`
        with `has_aux`.
      ascent: from a gradient to a climb, e.g. `steepest_ascent(rho)` for SAM or
        `adaptive_ascent(rho)` for ASAM. It must be stateless; a schedule for rho is
        written `steepest_ascent(rho=schedule(step))` inside the training step.
      argnums: the positional argument to differentiate, or a tuple of several: they are
        then one tree, their tuple, with one norm. Negative ones count from the end. A
        mask of the ascent has the structure of what is differentiated.
      combine: a function of the clean and the climbed gradient that gives the one to
        return; `None` is the climbed one.
      when: whether to climb, a bool of Python or a traced one (`step % 5 == 0`); where
        not, the gradient is the clean one, and no further pass is made. `None` is
        yes.
      has_aux: whether `loss_fn` returns auxiliary data, as for `jax.value_and_grad`.
      allow_int: whether there may be leaves that are no floating-point numbers
        (integers, booleans, random keys) in what is differentiated. They neither climb
        nor count in the norm, ascent and combine see `None` in their place, and their
        gradient is JAX's `float0`.
      second_order: keep the term that SAM drops: differentiate `L(w + epsilon(w))`
        through the climb. About four gradients' FLOPs instead of two, three more for
        each further step.
      num_steps: how many steps the climb takes, of rho / num_steps each (`None` is 1).
      climb_dtype: the dtype of the climbed copy of the parameters, e.g. `jnp.float32`
        where half precision would round the climb away; `None` is their own.
      scan_passes: make the passes in one loop, so that the model is in the program
        once; see `sharpness_aware`. Not together with `second_order` or `climb_dtype`.
      diagnostics: also return a `Diagnostics` of the two passes: as aux, or as
        `(aux, diagnostics)` with `has_aux`. No further pass is made.

    Returns:
      A function with the arguments and results of
      `jax.value_and_grad(loss_fn, argnums, has_aux=has_aux, allow_int=allow_int)`.
      Value and aux are those of the clean pass, so BatchNorm statistics are updated
      once. Two gradients are evaluated, one after the other, with the same arguments
      and so the same random keys; `loss_fn` is traced twice, with `scan_passes` once.

    Raises:
      ValueError: an ascent that keeps state; `scan_passes` with `second_order` or
        `climb_dtype`; an argument named twice in `argnums`.
      TypeError: a loss that is not a scalar; a tuple without `has_aux`; leaves that
        are not floating-point, without `allow_int`; a `when` that is no bool; an
        argument in `argnums` that was not given by position.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> def loss(w):
      ...     return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * w**2)
      >>> grad_fn = optax_sam.value_and_grad(loss, optax_sam.steepest_ascent(rho=0.5))
      >>> value, gradient = grad_fn(jnp.array([3.0, 1.0]))
      >>> value, gradient
      (Array(6.5, dtype=float32), Array([3.3, 5.6], dtype=float32))

    Reference: Foret et al. 2021 (arXiv:2010.01412), algorithm 1; equation 3 and
      appendix C.4 for `second_order`.
    """
    check_options(ascent, when, scan_passes, second_order)
    argnums = check_argnums("argnums", argnums)
    make_passes = ScannedPasses if scan_passes else Passes
    make = through_the_climb if second_order else climbing
    method = make(ascent, combine, num_steps=num_steps, climb_dtype=climb_dtype)

    def run(loss_fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        params, still = split_inexact(pick(args, argnums))

        def loss(point: Tree, _: Tree) -> Any:
            some, named = fresh_keys((args, kwargs))
            return loss_fn(*put(some, argnums, fill(point, still)), **named)

        passes = make_passes(loss, params, has_aux=has_aux, watched=diagnostics)
        return one_step(passes, method, when)

    compiles = scan_passes or not known_in_python(when)
    step = functools.partial(CompiledOnce(run) if compiles else run, loss_fn)
    return drop_in(step, ascent, argnums, allow_int)


def one_step(passes: Passes, method: Method, when: When) -> tuple[Any, Tree]:
    """The value, with what is shown beside it, and the gradient of a step."""
    seen = method.local(passes, method.init(passes.params), decide(when, None))
    shown = [seen.aux] * passes.has_aux + [seen.report] * passes.watched
    return with_aux(seen.value, shown), seen.gradient


def drop_in(
    step: Callable[..., tuple[Any, Tree]],
    ascent: Ascent,
    argnums: int | tuple[int, ...],
    allow_int: bool,
) -> Callable[..., tuple[Any, Tree]]:
    """A function like that of `jax.value_and_grad`, of `step(args, kwargs)`."""

    def sam_value_and_grad(*args: Any, **kwargs: Any) -> Any:
        positions("argnums", argnums, len(args))
        chosen = pick(args, argnums)
        params, still = split_inexact(chosen)
        check_leaves(chosen, params if allow_int else chosen)
        _refuse_state(ascent, params)
        out, gradient = step(args, kwargs)
        return out, with_float0(gradient, still)

    vars(sam_value_and_grad)["argnums"] = argnums  # m_sharpness must be told the same
    return sam_value_and_grad


def check_options(
    ascent: Any, when: When, scan_passes: bool, second_order: bool = False
) -> None:
    """Refuse what cannot be in a function without a state."""
    check_ascent(ascent)
    check_when(when)
    if callable(when):
        raise TypeError(
            "value_and_grad keeps no count of steps, so `when` must be a bool: "
            "value_and_grad(loss_fn, ascent, when=step % 5 == 0) inside the training "
            "step, or stateful_value_and_grad(loss_fn, sam(rho, when=every_k(5)))."
        )
    if scan_passes and second_order:
        raise ValueError(
            "second_order=True differentiates the second pass through the first, so "
            "the two cannot be trips of one loop. Leave scan_passes out."
        )


def through_the_climb(
    ascent: Ascent,
    combine: Combine | None = None,
    *,
    num_steps: int | None = None,
    climb_dtype: Any = None,
) -> Method:
    """SAM's method with the term that it drops.

    The climb is a function of the parameters, and differentiated as such.
    """
    steps = number_of(num_steps)

    def local(passes: Passes, state: Any, climbs: Any) -> Seen:
        climb_of = step_by(ascent, state, steps)

        def climbed_loss(params: Tree) -> Any:
            here = replace(passes, params=params)
            clean = here.clean()
            point = here.climb(climb_of, clean, steps, climb_dtype)
            return here.out(point)[0], (clean, point)

        def climbed() -> Any:
            differentiate = jax.value_and_grad(climbed_loss, has_aux=True)
            (value, (clean, point)), gradient = differentiate(passes.params)
            last = Evaluation(value, gradient)
            report = passes.show(clean, last, point, 1 + 3 * steps)
            out = gradient
            if combine is not None:
                out = check_combined(combine(clean.gradient, gradient), gradient)
            return Seen(clean.value, out, None, boxed(clean.aux), report)

        def stayed() -> Any:
            clean = passes.clean()
            report = passes.show(clean, clean, passes.params, 1)
            return Seen(clean.value, clean.gradient, None, boxed(clean.aux), report)

        seen: Seen = choose(climbs, climbed, stayed)
        return seen._replace(aux=unboxed(seen.aux))

    return climbing(ascent)._replace(local=local)


def with_aux(value: Any, shown: list[Any]) -> Any:
    """The value alone, or a pair of it and what is shown."""
    if not shown:
        return value
    return value, tuple(shown) if len(shown) > 1 else shown[0]


def _refuse_state(ascent: Ascent, params: Tree) -> None:
    """Refuse an ascent that keeps a state from step to step."""
    if has_state(jax.eval_shape(ascent.init, params)):
        raise ValueError(
            "This ascent keeps a state (a schedule, a random key or an average), and "
            "value_and_grad has no place for it. Use stateful_value_and_grad(loss_fn, "
            "optax_sam.sharpness_aware(ascent)), which has one; or SAM in the "
            "optimizer, optax.chain(optax_sam.sharpness_aware(ascent), optimizer); or, "
            "for a schedule, write "
            "steepest_ascent(rho=schedule(step)) inside the training step."
        )
