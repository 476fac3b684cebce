"""Functional SAM: the net is differentiated after the climb, its head before it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from optax_sam._arguments import (
    Argnums,
    check_argnums,
    pick,
    positions,
    put,
    split_inexact,
)
from optax_sam._checks import check_scalar
from optax_sam._core.method import climbing
from optax_sam._core.passes import Evaluation, Passes
from optax_sam._core.scanned import ScannedPasses
from optax_sam._core.value_and_grad import check_options, drop_in, one_step
from optax_sam._devices import warn_of_sums
from optax_sam._keys import fresh_keys
from optax_sam._once import CompiledOnce
from optax_sam._trees import cast_like, fill
from optax_sam._types import Ascent, Combine, Tree, When
from optax_sam._when import choose, known_in_python


def functional_value_and_grad(
    net: Callable[..., Any],
    head: Callable[..., Any],
    ascent: Ascent,
    *,
    argnums: Argnums = 0,
    combine: Combine | None = None,
    when: When = None,
    has_aux: bool = False,
    allow_int: bool = False,
    climb_dtype: Any = None,
    scan_passes: bool = False,
    diagnostics: bool = False,
) -> Callable[..., tuple[Any, Tree]]:
    r"""The value of a loss, and Functional SAM's gradient, for language models.

    .. math::
        u = \nabla \ell(f(w)), \quad \epsilon = a(J(w)^\top u), \quad
        g = J(w + \epsilon)^\top u

    The loss is :math:`\ell(f(w))`, a head after a net with the Jacobian J. SAM also
    takes the head's gradient anew at the climbed outputs, and so makes confident
    outputs flat; here only the net is taken after the climb. With a head that is
    linear in the outputs the two are the same.

    Args:
      net: `net(params, *args, **kwargs)` returns the outputs (logits), or `(outputs,
        aux)` with `has_aux`. They are any tree; what is no floating-point number in it
        goes to the head as it is.
      head: `head(outputs, *args, **kwargs)` returns the loss, a scalar. It is given all
        arguments of `net` that are not differentiated, in their order. A parameter
        that it uses otherwise has no gradient through it: what is trained (the last
        linear layer, too) belongs to `net`.
      ascent: from a gradient to a climb, e.g. `steepest_ascent(rho)`. It must be
        stateless, as for `value_and_grad`.
      argnums: the positional argument of `net` to differentiate, or a tuple of several:
        one tree, with one norm.
      combine: a function of the clean gradient and g that gives the one to return;
        `None` is g.
      when: whether to climb, a bool of Python or a traced one; where not, the gradient
        is the clean one, and no further pass is made. `None` is yes.
      has_aux: whether `net` returns auxiliary data.
      allow_int: whether there may be leaves that are no floating-point numbers in what
        is differentiated; their gradient is JAX's `float0`.
      climb_dtype: the dtype of the climbed copy of the parameters; `None` is their own.
      scan_passes: make the two passes in one loop, so that net and head are in the
        program once; see `sharpness_aware`. Not together with `climb_dtype`.
      diagnostics: also return a `Diagnostics`: as aux, or as `(aux, diagnostics)` with
        `has_aux`. Its `climbed_loss` is that of the climbed outputs, for which the
        head is evaluated once more, and not differentiated.

    Returns:
      A function with the arguments of `net` and the results of
      `jax.value_and_grad(loss, argnums, has_aux=has_aux, allow_int=allow_int)`. Value
      and aux are those of the clean pass. Two gradients of `net` are evaluated and one
      of `head`, with the same arguments and so the same random keys. It can stand in
      `m_sharpness`.

    Raises:
      ValueError: an ascent that keeps state; `scan_passes` with `climb_dtype`; an
        argument named twice in `argnums`.
      TypeError: a head whose result is not a scalar; a `net` that returns no pair with
        `has_aux`; outputs without a floating-point number; leaves that are not
        floating-point, without `allow_int`; a `when` that is no bool; an argument in
        `argnums` that was not given by position.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> def net(w, x):
      ...     return x * w[0] * w[1]
      >>> def head(outputs, x):
      ...     return jnp.mean(0.5 * (outputs - 1) ** 2)
      >>> grad_fn = optax_sam.functional_value_and_grad(
      ...     net, head, optax_sam.steepest_ascent(rho=0.5))
      >>> grad_fn(jnp.array([4.0, 3.0]), jnp.array([0.25]))
      (Array(2., dtype=float32), Array([1.7 , 2.15], dtype=float32))

    Reference: Singh et al. 2025, "Avoiding spurious sharpness minimization broadens
      applicability of SAM", arXiv:2502.02407.
    """
    check_options(ascent, when, scan_passes)
    argnums = check_argnums("argnums", argnums)
    make_passes = ScannedFunctionalPasses if scan_passes else FunctionalPasses
    method = climbing(ascent, combine, climb_dtype=climb_dtype)

    def run(net: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        params, still = split_inexact(pick(args, argnums))
        own = positions("argnums", argnums, len(args))
        rest = [x for i, x in enumerate(args) if i not in own]

        def outputs(point: Tree, _: Tree) -> Any:
            some, named = fresh_keys((args, kwargs))
            return net(*put(some, argnums, fill(point, still)), **named)

        def loss(outputs: Tree) -> Any:
            some, named = fresh_keys((rest, kwargs))
            return head(outputs, *some, **named)

        passes = make_passes(
            outputs, params, has_aux=has_aux, watched=diagnostics, head=loss
        )
        return one_step(passes, method, when)

    compiles = scan_passes or not known_in_python(when)
    step = functools.partial(CompiledOnce(run) if compiles else run, net)
    return drop_in(step, ascent, argnums, allow_int)


@dataclass(frozen=True)
class FunctionalPasses(Passes):
    """Passes whose `loss` is a net that returns outputs, and that share one head.

    The clean pass tells the further ones the loss and its gradient in the outputs.

    Attributes:
      head: `head(outputs)` returns the loss.
      told: the clean loss and the gradient of the head there; `None` before.
      first: whether this pass is the clean one, although something was told.
    """

    head: Callable[[Tree], Any] = lambda outputs: outputs
    told: Any = None
    first: Any = False

    def after(self, told: Any, first: Any = False) -> "FunctionalPasses":
        """The passes that pull back what the clean one has found."""
        return FunctionalPasses(**vars(self) | {"told": told, "first": first})

    def at(self, point: Tree, like: Tree = None) -> Evaluation:
        """The head's gradient at the clean outputs, pulled back through the net here.

        The value is the loss here in the clean pass and where diagnostics are asked
        for; elsewhere nobody sees it, and it is the clean one.
        """
        outputs, pull_back, (fixed, aux) = jax.vjp(self.outputs, point, has_aux=True)

        def loss(moving: Tree) -> Any:
            return _scalar(self.head(fill(moving, fixed)))

        def clean() -> Any:
            return jax.value_and_grad(loss)(outputs)

        def again() -> Any:
            value, slope = self.told
            return loss(outputs) if self.watched else value, slope

        known = self.told is not None
        value, slope = choose(self.first, clean, again) if known else clean()
        (gradient,) = pull_back(cast_like(slope, outputs))
        warn_of_sums(value, gradient)
        if like is not None:
            gradient = cast_like(gradient, like)
        return Evaluation(value, gradient, aux, (value, slope))

    def outputs(self, point: Tree) -> tuple[Tree, tuple[Tree, Any]]:
        """What of the outputs has a gradient; what has none, and aux."""
        out = self.loss(fill(point, self.params), self.examples)
        out, aux = check_outputs(out, self.has_aux)
        moving, fixed = split_inexact(out)
        if not jax.tree.leaves(moving):
            raise TypeError(
                "There is no floating-point number in what the net returned, so no "
                "gradient can go through it. Return the logits; what the head makes "
                "of them (argmax, the loss) belongs to the head."
            )
        return moving, (fixed, aux)


@dataclass(frozen=True)
class ScannedFunctionalPasses(ScannedPasses):
    """The same passes, as the two trips of one loop."""

    head: Callable[[Tree], Any] = lambda outputs: outputs

    def straight(self) -> FunctionalPasses:
        """The passes one by one: what a trip makes."""
        return FunctionalPasses(**vars(self))


def check_outputs(out: Any, has_aux: bool) -> tuple[Any, Any]:
    """Outputs and aux of what a net returned; refused when it is no such."""
    if not has_aux:
        return out, None
    if not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(
            f"With has_aux=True the net must return (outputs, aux), but it returned "
            f"{type(out).__name__}. Return a pair, or drop has_aux."
        )
    outputs, aux = out
    return outputs, aux


def _scalar(value: Any) -> Any:
    if isinstance(value, tuple):
        raise TypeError(
            "The head returned a tuple, but it must return the loss alone, a scalar. "
            "Auxiliary data come from the net: return (outputs, aux) there, with "
            "has_aux=True."
        )
    check_scalar(value)
    return value
