"""In the optimizer: the Optax transformation of any method."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from optax_sam import _devices
from optax_sam._checks import check_holes, check_leaves, check_pair
from optax_sam._core.diagnostics import Diagnostics, no_diagnostics
from optax_sam._core.loss_argument import find_loss
from optax_sam._core.method import Method, Seen
from optax_sam._core.passes import Evaluation, Passes
from optax_sam._core.scanned import ScannedPasses
from optax_sam._examples.averaging import SubBatches
from optax_sam._examples.sub_batches import Parts
from optax_sam._keys import fresh_keys, refuse_keys
from optax_sam._once import CompiledOnce
from optax_sam._trees import cast_like
from optax_sam._types import AxisName, Tree, When
from optax_sam._when import check_when, choose, decide, known_in_python


class SharpnessAwareState(NamedTuple):
    """The state of every method.

    Attributes:
      step: how many updates there were; `None` where no condition asks for it.
      method: the method's own state.
      diagnostics: a `Diagnostics` of the last step, or `None`.
    """

    step: Any
    method: Any
    diagnostics: Any


class SharpnessAware(optax.GradientTransformationExtraArgs):
    """A transformation that `stateful_value_and_grad` can take its step from."""

    step: "Step"


class Given(NamedTuple):
    """What a step is given beside its loss function.

    Attributes:
      params: the parameters.
      batch: the examples, or `None` where the loss knows them.
      rest: other arguments of the loss, passed whole.
      clean: the clean pass, where it was made already.
      call: `call(loss_fn, point, examples, rest)` calls the loss function.
      has_aux: whether that returns `(value, aux)`.
    """

    params: Tree
    batch: Tree
    rest: Any
    clean: Evaluation | None
    call: Callable[..., Any]
    has_aux: bool = False


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a method: the local part, one average, the finish."""

    method: Method
    sub_batches: SubBatches
    when: When
    diagnostics: bool
    scan_passes: bool

    def init(self, params: Tree) -> SharpnessAwareState:
        """The state before the first step."""
        return SharpnessAwareState(
            jnp.zeros([], jnp.int32) if callable(self.when) else None,
            self.method.init(params),
            no_diagnostics(params) if self.diagnostics else None,
        )

    def __call__(
        self, loss_fn: Callable[..., Any], given: Given, state: SharpnessAwareState
    ) -> tuple[Tree, SharpnessAwareState, Seen]:
        """The gradient that comes out, the next state, and what was seen."""
        loops = self.sub_batches.split or self.scan_passes
        straight = known_in_python(self.when) and not loops
        step = self._step if straight else self._once
        gradient, new, seen = step(loss_fn, given, state)
        _devices.refuse_diverging(state, new)
        return gradient, new, seen

    @cached_property
    def _once(self) -> CompiledOnce:
        return CompiledOnce(self._step)

    def _step(
        self, loss_fn: Callable[..., Any], given: Given, state: SharpnessAwareState
    ) -> tuple[Tree, SharpnessAwareState, Seen]:
        climbs = decide(self.when, state.step)

        def part(params: Tree, examples: Tree, rest: Any) -> Parts:
            clean, others, own_state, climbs = rest
            passes = (ScannedPasses if self.scan_passes else Passes)(
                partial(self._loss, loss_fn, given, others),
                params,
                examples,
                given.has_aux,
                clean,
                self.diagnostics,
            )
            seen = self.method.local(passes, own_state, climbs)
            if not self.sub_batches.whole:
                refuse_keys(seen.aux)
            return Parts(seen, None)

        rest = given.clean, given.rest, state.method, climbs
        # The caller made the clean pass with the keys as they are, if there was one.
        own_keys = given.clean is None
        parts = self.sub_batches.average(
            part, given.params, given.batch, rest, _mean, own_keys
        )
        seen: Seen = parts.averaged
        gradient, method = self.method.finish(state.method, seen, climbs, given.params)
        step = None if state.step is None else optax.safe_increment(state.step)
        report = _running(state.diagnostics, seen.report)
        return gradient, SharpnessAwareState(step, method, report), seen

    def _loss(
        self,
        loss_fn: Callable[..., Any],
        given: Given,
        rest: Any,
        point: Tree,
        examples: Tree,
    ) -> Any:
        out = given.call(loss_fn, point, *fresh_keys((examples, rest)))
        if self.sub_batches.axis_name is not None:
            value, _ = check_pair(out, given.has_aux)
            _devices.refuse_averaged_value(value, self.sub_batches.axis_name)
        return out


def _running(old: Diagnostics | None, report: Any) -> Diagnostics | None:
    """The report of this step, with the gradients of all steps."""
    if old is None:
        return None
    count = old.num_gradients + jnp.asarray(report.num_gradients, jnp.int32)
    seen: Diagnostics = report._replace(num_gradients=count)
    return seen


def _mean(seen: Seen, rest: Any, names: tuple[str, ...]) -> Seen:
    """The average over devices.

    Without a climb the clean gradient is the one that comes out, and is not moved
    once more.
    """
    *_, climbs = rest
    if seen.clean is None or climbs is True:
        averaged: Seen = _devices.mean(seen, names)
        return averaged
    out = _devices.mean(seen._replace(clean=None), names)
    clean = choose(
        climbs,
        lambda: _devices.mean(seen.clean, names),
        lambda: cast_like(out.gradient, seen.clean),
    )
    with_clean: Seen = out._replace(clean=clean)
    return with_clean


def transformation(
    method: Method,
    *,
    takes_updates: bool = True,
    when: When = None,
    diagnostics: bool = False,
    has_aux: bool = False,
    ignore_updates: bool = False,
    scan_passes: bool = False,
    microbatch_size: int | None = None,
    axis_name: AxisName | None = None,
    mesh: Mesh | None = None,
    at_once: int | None = None,
    unroll: int | bool | None = None,
) -> SharpnessAware:
    r"""The Optax transformation of a method (experimental: may still change).

    .. math:: (g, s_{t+1}) = \mathrm{finish}\Big(s_t, \frac1n \sum_{j=1}^{n}
              \mathrm{local}(B_j, s_t)\Big)

    Args:
      method: the three functions that make a method.
      takes_updates: whether the clean gradient of the whole sub-batch is one of the
        method's passes, so that it may come in as `updates`.
      when: on which steps to climb: a bool, or a function of the step.
      diagnostics: keep a `Diagnostics` of the last step in the state.
      has_aux: whether `value_fn` returns `(value, aux)`.
      ignore_updates: drop a gradient that comes in where the method takes its own.
      scan_passes: make the passes of `Passes.walk` in one loop; a method that makes
        passes otherwise is refused.
      microbatch_size, axis_name, mesh, at_once, unroll: what is a sub-batch, as for
        `sharpness_aware`.

    Returns:
      A transformation for the head of a chain; see `sharpness_aware`.

    Raises:
      TypeError, ValueError: as `sharpness_aware`.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> def local(passes, state, climbs):  # gradient descent
      ...     seen = passes.clean()
      ...     return optax_sam.Seen(seen.value, seen.gradient)
      >>> def finish(state, seen, climbs, params):
      ...     return seen.gradient, state
      >>> tx = optax_sam.transformation(
      ...     optax_sam.Method(lambda params: None, local, finish))
      >>> w = jnp.array([3.0])
      >>> tx.update(None, tx.init(w), w, value_fn=lambda w: jnp.sum(w**2))[0]
      Array([6.], dtype=float32)

    Reference: Foret et al. 2021, section 4.1 (m-sharpness), arXiv:2010.01412.
    """
    check_when(when)
    sub_batches = SubBatches(microbatch_size, axis_name, mesh, at_once, unroll)
    step = Step(method, sub_batches, when, diagnostics, scan_passes)
    inside = not takes_updates or sub_batches.split or scan_passes
    call = _call(has_aux)

    def update(
        updates: Tree,
        state: SharpnessAwareState,
        params: Tree = None,
        *,
        value_fn: Any = None,
        batch: Any = None,
        value: Any = None,
        **extra_args: Any,
    ) -> tuple[Tree, SharpnessAwareState]:
        more = {"value": value} | extra_args
        loss_fn = find_loss(value_fn, params, batch, sub_batches.split, more)
        if inside:
            _check_none(updates, params, ignore_updates)
            updates = None
        clean = _clean_pass(updates, params, value, axis_name)
        return step(loss_fn, Given(params, batch, None, clean, call), state)[:2]

    return _with_step(update, step)


def _with_step(update: Callable[..., Any], step: Step) -> SharpnessAware:
    made = SharpnessAware(step.init, update)
    made.step = step
    return made


def _of_batch(
    value_fn: Callable[..., Any], point: Tree, examples: Tree, rest: Any
) -> Any:
    del rest
    return value_fn(point) if examples is None else value_fn(point, examples)


def _call(has_aux: bool) -> Callable[..., Any]:
    return _without_aux if has_aux else _of_batch


def _without_aux(*args: Any) -> Any:
    value, _ = check_pair(_of_batch(*args), has_aux=True)
    return value


def _check_none(updates: Tree, params: Tree, ignore_updates: bool) -> None:
    """Refuse a gradient that would be dropped without a word."""
    check_holes(params, updates)
    if updates is not None and not ignore_updates:
        raise ValueError(
            "A gradient was given, but with these options SAM takes its gradients "
            "itself, from each sub-batch or at other points, and this one would be "
            "dropped. Write update(None, state, params, value_fn=..., batch=...); "
            "where a trainer always passes gradients, say ignore_updates=True."
        )


def _clean_pass(
    updates: Tree, params: Tree, value: Any, axis_name: AxisName | None
) -> Evaluation | None:
    """The clean pass that came in, checked; `None` where it is made inside."""
    check_leaves(params, params if updates is None else updates)
    if updates is None:
        return None
    if axis_name is not None:
        _devices.refuse_unvarying(updates, axis_name, "gradient")
    return Evaluation(value, updates)
