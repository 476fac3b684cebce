"""In place of `nnx.value_and_grad`: NNX models are changed in place by the pass.

Optional: it needs Flax, and nothing else in the library imports it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from optax_sam._checks import check_pair, check_scalar
from optax_sam._core.value_and_grad import value_and_grad as climb_then_differentiate
from optax_sam._core.value_and_grad import with_aux
from optax_sam._examples.m_sharpness import GradFn, m_sharpness
from optax_sam._trees import fill, keystr, partition
from optax_sam._types import Ascent, AxisName, Tree

try:
    from flax import nnx
except ImportError as error:
    raise ImportError(
        "optax_sam.nnx is for models written in Flax NNX, and Flax is not installed. "
        "Write `pip install flax`; without Flax use optax_sam.value_and_grad."
    ) from error


def value_and_grad(
    loss_fn: Callable[..., Any],
    ascent: Ascent,
    *,
    wrt: Any = nnx.Param,
    has_aux: bool = False,
    microbatch_size: int | None = None,
    axis_name: AxisName | None = None,
    mesh: Mesh | None = None,
    batch_argnums: int | tuple[int, ...] = 1,
    concat_aux: Any = False,
    at_once: int | None = None,
    unroll: int | bool = 1,
    **options: Any,
) -> GradFn:
    r"""The value of a loss of an NNX model, and the gradient after a climb.

    .. math:: L(w), \quad \nabla L(w + \epsilon), \quad \epsilon = a(\nabla L(w))

    It stands where `nnx.value_and_grad` stood. Both passes start from the same state,
    so they draw the same dropout masks; the model is left as after the clean pass
    alone: BatchNorm has seen the batch once, and every random stream has counted once.
    The same holds for NNX objects among the other arguments (`nnx.Rngs`, metrics).

    Args:
      loss_fn: `loss_fn(model, *args, **kwargs)` returns a scalar, or `(scalar, aux)`
        with `has_aux`.
      ascent: from a gradient to a climb, e.g. `steepest_ascent(rho)`; stateless, as
        for `optax_sam.value_and_grad`. It sees the parameters as plain arrays.
      wrt: an NNX filter: the variables of argument 0 to differentiate, and to climb in
        (all others stay where they are): the same as for `nnx.Optimizer`.
      has_aux: whether `loss_fn` returns auxiliary data.
      microbatch_size: the paper's m, the examples in each sub-batch that climbs by
        itself: m-SAM. See `optax_sam.m_sharpness`, and so for all that follow. NNX
        objects are passed whole, and their random keys are folded with the index of
        the sub-batch.
      axis_name: the mapped axis whose devices climb by themselves.
      mesh: the mesh of `axis_name`, to be used from plain `jit`.
      batch_argnums: positions of the arguments that hold examples; the model is 0.
      concat_aux: which leaves of aux are concatenated, not averaged.
      at_once: how many sub-batches are run side by side.
      unroll: how far the loop over sub-batches is unrolled.
      **options: those of `optax_sam.value_and_grad`: `combine`, `second_order`,
        `num_steps`, `climb_dtype`, `scan_passes`, `when`; `diagnostics`, which come
        back as they do there.

    Returns:
      A function with the arguments and results of
      `nnx.value_and_grad(loss_fn, has_aux=has_aux)`: the gradient is an `nnx.State`.
      Value, aux and what is left in the NNX objects are those of the clean pass. With
      sub-batches, each starts from the state before the call: floating-point state
      (BatchNorm statistics) is averaged over them, all other that changes (counters)
      is that of the first. Use it under `nnx.jit`, or under `jax.jit` between
      `nnx.merge` and `nnx.split`.

    Raises:
      TypeError: no variable of argument 0 is selected by `wrt`; what
        `optax_sam.value_and_grad` refuses.
      ValueError: a loss that adds variables to the model (`sow`), changes its
        attributes (`model.train()`) or writes to its parameters; what `m_sharpness`
        refuses.

    Example:
      >>> import jax.numpy as jnp, optax_sam, optax_sam.nnx
      >>> from flax import nnx
      >>> model = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
      >>> model.kernel[...] = jnp.array([[3.0], [1.0]])
      >>> def loss_fn(model, x):
      ...     return jnp.mean(0.5 * model(x) ** 2)
      >>> grad_fn = optax_sam.nnx.value_and_grad(
      ...     loss_fn, optax_sam.steepest_ascent(rho=0.5), microbatch_size=1)
      >>> loss, grads = grad_fn(model, jnp.array([[1.0, 0.0], [0.0, 2.0]]))
      >>> loss, grads["kernel"][...].ravel()
      (Array(3.25, dtype=float32), Array([1.75, 3.  ], dtype=float32))

    Reference: Foret et al. 2021, algorithm 1 and section 4.1.
    """
    report = bool(options.get("diagnostics"))
    averaged = functools.partial(
        m_sharpness,
        microbatch_size=microbatch_size,
        axis_name=axis_name,
        mesh=mesh,
        batch_argnums=batch_argnums,
        concat_aux=(concat_aux, False, False, True),  # as _in_rows returns them
        at_once=at_once,
        unroll=unroll,
    )
    split = any(x is not None for x in (microbatch_size, axis_name, mesh))

    def sam_value_and_grad(model: Any, /, *args: Any, **kwargs: Any) -> Any:
        call = _take_apart(wrt, model, args, kwargs)
        loss = _functional(loss_fn, has_aux, call)
        climbed = climb_then_differentiate(loss, ascent, has_aux=True, **options)
        grad_fn = _in_rows(climbed, report)
        grad_fn = averaged(grad_fn) if split else grad_fn
        out, grads = grad_fn(call.params, *call.args, call.kwargs, call.state)
        value, (aux, diagnostics, state, rows) = out
        changed = fill(state, jax.tree.map(lambda x: x[0], rows))
        nnx.update(call.objects, fill(changed, call.state))
        grads = jax.tree.unflatten(call.gradient, jax.tree.leaves(grads))
        return with_aux(value, [aux] * has_aux + [diagnostics] * report), grads

    return sam_value_and_grad


class _Call(NamedTuple):
    """One call, with what is NNX and what is not in different places."""

    objects: tuple[Any, ...]  # the model, and all NNX objects among the arguments
    graphdef: Any
    select: Callable[..., bool]  # the variables that are differentiated
    gradient: Any  # the structure of what nnx.value_and_grad returns
    params: Tree  # plain arrays, and so is `state`: all other variables
    state: Tree
    arguments: Any  # the structure of (args, kwargs), an NNX object being a leaf
    args: tuple[Any, ...]  # with None in the place of an NNX object
    kwargs: dict[str, Any]


def _is_nnx(x: Any) -> bool:
    return isinstance(x, nnx.Pytree | nnx.Variable)


def _take_apart(
    wrt: Any, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> _Call:
    leaves, arguments = jax.tree.flatten((args, kwargs), is_leaf=_is_nnx)
    plain = [None if _is_nnx(x) else x for x in leaves]
    objects = (model, *(x for x in leaves if _is_nnx(x)))
    chosen = nnx.filterlib.to_predicate(wrt)

    def select(path: tuple[Any, ...], variable: Any) -> bool:
        return path[0] == 0 and chosen(path[1:], variable)

    # One split of all objects, so that what they share stays shared.
    graphdef, *states = nnx.split(objects, select, ...)
    params, state = states
    if not jax.tree.leaves(params):
        raise TypeError(
            f"The first argument has type {type(model).__name__}, and in it "
            f"wrt={wrt} selects no variable, so there is nothing to differentiate. "
            f"Give an nnx.Module first; for a tree of arrays use "
            f"optax_sam.value_and_grad."
        )
    # The variables of the split are the model's own and change with it, arrays do not.
    gradient = jax.tree.structure(params[0])
    params, state = nnx.as_pure(params[0]), nnx.as_pure(state)
    args, kwargs = jax.tree.unflatten(arguments, plain)
    return _Call(
        objects, graphdef, select, gradient, params, state, arguments, args, kwargs
    )


def _functional(
    loss_fn: Callable[..., Any], has_aux: bool, call: _Call
) -> Callable[..., Any]:
    """The loss as a function of arrays, with the changed state in its aux."""

    def loss(params: Tree, *rest: Any) -> tuple[Any, Any]:
        *plain, plain_kwargs, state = rest
        model, *others = nnx.merge(call.graphdef, {0: params}, state)
        objects = iter(others)
        leaves = call.arguments.flatten_up_to((tuple(plain), plain_kwargs))
        leaves = [next(objects) if x is None else x for x in leaves]
        args, kwargs = jax.tree.unflatten(call.arguments, leaves)
        value, aux = check_pair(loss_fn(model, *args, **kwargs), has_aux)
        check_scalar(value)
        after = _changed((model, *others), params, state, call)
        return value, (aux, after)

    return loss


def _changed(objects: Any, params: Tree, state: Tree, call: _Call) -> Tree:
    """The state after the pass, `None` for a leaf that the pass has not written."""
    graphdef, *states = nnx.split(objects, call.select, ...)
    if graphdef != call.graphdef:
        raise ValueError(
            "The loss adds variables to an NNX object (sow) or changes its attributes "
            "(model.train()), and after a climb only values are put back. Return what "
            "is sown as aux, and call model.train() before."
        )

    def written(new: Any, old: Any) -> Any:
        return None if new is old else new

    new_params, new_state = map(nnx.as_pure, states)
    changed = jax.tree.map(written, new_params[0], params)
    for path, _ in jax.tree_util.tree_leaves_with_path(changed):
        raise ValueError(
            f"The loss writes to the parameter {keystr(path)}, which is differentiated "
            f"and climbs. Keep what a pass changes in a variable that wrt does not "
            f"select, e.g. an nnx.BatchStat."
        )
    return jax.tree.map(written, new_state, state)


def _in_rows(grad_fn: GradFn, report: bool) -> GradFn:
    """Counters apart: they have no average, so each sub-batch gives a row of them."""

    def in_rows(*arguments: Any) -> tuple[Any, Tree]:
        (value, out), grads = grad_fn(*arguments)
        (aux, state), diagnostics = out if report else (out, None)
        exact = jax.tree.map(lambda x: not jnp.issubdtype(x.dtype, jnp.inexact), state)
        averaged, counters = partition(state, exact)
        rows = jax.tree.map(lambda x: x[None], counters)
        return (value, (aux, diagnostics, averaged, rows)), grads

    return in_rows
