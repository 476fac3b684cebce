"""In place of `nnx.value_and_grad`: NNX models are changed in place by the pass.

Optional: it needs Flax, and nothing else in the library imports it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from optax_sam._arguments import Argnums, check_argnums, pick, positions, put
from optax_sam._checks import check_pair, check_scalar
from optax_sam._core.value_and_grad import value_and_grad as climb_then_differentiate
from optax_sam._core.value_and_grad import with_aux
from optax_sam._examples.m_sharpness import GradFn, m_sharpness
from optax_sam._trees import fill, partition
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
    argnums: Any = 0,
    wrt: Any = None,
    has_aux: bool = False,
    microbatch_size: int | None = None,
    axis_name: AxisName | None = None,
    mesh: Mesh | None = None,
    batch_argnums: Argnums = 1,
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
      argnums: what to differentiate, and to climb in, as for `nnx.value_and_grad`: the
        position of an argument, whose `nnx.Param`s are meant, an
        `nnx.DiffState(position, filter)`, or a tuple of these. All other variables stay
        where they are. An argument may be a tree (a dict of models; plain arrays in it
        are differentiated, too), and several are one tree with one norm.
      wrt: an NNX filter, the same as for `nnx.Optimizer`; `wrt=filter` is short for
        `argnums=nnx.DiffState(0, filter)`.
      has_aux: whether `loss_fn` returns auxiliary data.
      microbatch_size: the paper's m, the examples in each sub-batch that climbs by
        itself: m-SAM. See `optax_sam.m_sharpness`, and so for all that follow. NNX
        objects are passed whole, and their random keys are folded with the index of
        the sub-batch.
      axis_name: the mapped axis whose devices climb by themselves.
      mesh: the mesh of `axis_name`, to be used from plain `jit`.
      batch_argnums: positions of the arguments that hold examples.
      concat_aux: which leaves of aux are concatenated, not averaged.
      at_once: how many sub-batches are run side by side.
      unroll: how far the loop over sub-batches is unrolled.
      **options: those of `optax_sam.value_and_grad`: `combine`, `second_order`,
        `num_steps`, `climb_dtype`, `scan_passes`, `when`, `allow_int`; `diagnostics`,
        which come back as they do there.

    Returns:
      A function with the arguments and results of
      `nnx.value_and_grad(loss_fn, argnums=argnums, has_aux=has_aux)`: the gradient of a
      model is an `nnx.State`. Value, aux and what is left in the NNX objects are those
      of the clean pass, also in parameters that the loss writes to
      (`nnx.SpectralNorm`). With sub-batches, each starts from the state before the
      call: floating-point state (BatchNorm statistics) is averaged over them, all other
      that changes (counters) is that of the first. Use it under `nnx.jit`, or under
      `jax.jit` between `nnx.merge` and `nnx.split`.

    Raises:
      TypeError: no variable of what `argnums` names is selected; an argument that was
        not given by position; what `optax_sam.value_and_grad` refuses.
      ValueError: a loss that adds variables to the model (`sow`) or changes its
        attributes (`model.train()`); `wrt` beside an `nnx.DiffState` or for another
        argument than 0; a variable in two arguments that one filter selects and the
        other does not; what `m_sharpness` refuses.

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
    places, filters = _chosen(argnums, wrt)
    averaged = _averaged(
        microbatch_size=microbatch_size,
        axis_name=axis_name,
        mesh=mesh,
        argnums=places,
        batch_argnums=batch_argnums,
        concat_aux=(concat_aux, False, False, True),  # as _in_rows returns them
        at_once=at_once,
        unroll=unroll,
    )
    options |= {"argnums": places, "has_aux": True}

    def sam_value_and_grad(*args: Any, **kwargs: Any) -> Any:
        call = _take_apart(places, filters, args, kwargs)
        loss = _functional(loss_fn, has_aux, call)
        climbed = climb_then_differentiate(loss, ascent, **options)
        grad_fn = averaged(_in_rows(climbed, report))
        out, grads = grad_fn(*call.args, kwargs=call.kwargs, state=call.state)
        value, (aux, diagnostics, changed, rows) = out
        _write(fill(changed, jax.tree.map(lambda x: x[0], rows)), call)
        shown = [aux] * has_aux + [diagnostics] * report
        return with_aux(value, shown), _as_nnx(grads, places, call)

    return sam_value_and_grad


def _averaged(**options: Any) -> Callable[[GradFn], GradFn]:
    """m-sharpness, where there are sub-batches."""
    names = "microbatch_size", "axis_name", "mesh"
    if all(options[name] is None for name in names):
        return lambda grad_fn: grad_fn
    return functools.partial(m_sharpness, **options)


#: `select(path, variable)`: whether a variable is differentiated.
_Select: TypeAlias = Callable[..., bool]


class _Call(NamedTuple):
    """One call, with what is NNX and what is not in different places."""

    objects: tuple[Any, ...]  # all NNX objects, those that are differentiated first
    graphdef: Any
    select: _Select
    gradients: list[Any]  # the structures of what nnx.value_and_grad returns of them
    state: Tree  # plain arrays: all variables that are not differentiated
    arguments: Any  # the structure of (args, kwargs), an NNX object being a leaf
    order: list[int | None]  # for each leaf the number of an object, if it is one
    args: tuple[Any, ...]  # with parameters in the place of an NNX object, or None
    kwargs: dict[str, Any]


def _chosen(argnums: Any, wrt: Any) -> tuple[int | tuple[int, ...], list[Any]]:
    """Positions, as for JAX, and the filter of each."""
    several = isinstance(argnums, (tuple, list))
    given = list(argnums) if several else [argnums]
    named = [x for x in given if isinstance(x, nnx.DiffState)]
    numbers = [x.argnum if isinstance(x, nnx.DiffState) else x for x in given]
    places = check_argnums("argnums", tuple(numbers) if several else numbers[0])
    if wrt is not None and (named or 0 not in numbers):
        raise ValueError(
            f"wrt={wrt} is the filter of argument 0, and argnums = {argnums} gives "
            f"filters itself, as an nnx.DiffState, or leaves argument 0 out. Write it "
            f"there: argnums=nnx.DiffState({numbers[0]}, {wrt})."
        )
    short = {0: nnx.Param if wrt is None else wrt}
    filters = [
        x.filter if isinstance(x, nnx.DiffState) else short.get(x, nnx.Param)
        for x in given
    ]
    return places, filters


def _is_nnx(x: Any) -> bool:
    return isinstance(x, nnx.Pytree | nnx.Variable)


def _take_apart(
    argnums: int | tuple[int, ...],
    filters: list[Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> _Call:
    places = positions("argnums", argnums, len(args))
    by_place = dict(zip(places, filters, strict=True))
    paths, arguments = jax.tree_util.tree_flatten_with_path(
        (args, kwargs), is_leaf=_is_nnx
    )
    # The path of a positional argument is (0, its position, ...).
    at = [path[1].idx if path[0].idx == 0 else -1 for path, _ in paths]
    # What is shared counts where it comes first: so what is differentiated does.
    found = [i for i, (_, x) in enumerate(paths) if _is_nnx(x)]
    found.sort(key=lambda i: at[i] not in by_place)
    objects = tuple(paths[i][1] for i in found)
    chosen = [by_place[at[i]] for i in found if at[i] in by_place]
    select = _select(chosen, objects)
    # One split of all objects, so that what they share stays shared.
    graphdef, *states = nnx.split(objects, select, ...)
    params, state = states
    own = [params[j] if j in params else nnx.State({}) for j in range(len(chosen))]
    # The variables of the split are the model's own and change with it, arrays do not.
    pure = [*map(nnx.as_pure, own), *[None] * len(found)]
    number = {i: j for j, i in enumerate(found)}
    order = [number.get(i) for i in range(len(paths))]
    leaves = [
        x if j is None else pure[j] for (_, x), j in zip(paths, order, strict=True)
    ]
    plain = jax.tree.unflatten(arguments, leaves)
    if not (objects and jax.tree.leaves([plain[0][i] for i in places])):
        _refuse_nothing(args, by_place)
    gradients = [jax.tree.structure(x) for x in own]
    return _Call(
        objects,
        graphdef,
        select,
        gradients,
        nnx.as_pure(state),
        arguments,
        order,
        *plain,
    )


def _select(filters: list[Any], objects: tuple[Any, ...]) -> _Select:
    """What is differentiated of the first objects, which have a filter each."""
    # nnx differentiates a variable that is an argument itself, of whatever type.
    chosen = [
        nnx.filterlib.to_predicate(... if isinstance(x, nnx.Variable) else y)
        for x, y in zip(objects, filters, strict=False)
    ]
    _refuse_unlike(chosen, objects)

    def select(path: tuple[Any, ...], variable: Any) -> bool:
        j = path[0]
        return j < len(chosen) and bool(chosen[j](path[1:], variable))

    return select


def _refuse_unlike(chosen: list[_Select], objects: tuple[Any, ...]) -> None:
    """Refuse what one use would differentiate and another would not."""
    if len(chosen) < 2:
        return
    seen: dict[int, bool] = {}
    for selects, x in zip(chosen, objects, strict=False):
        for path, variable in nnx.iter_graph(x):
            if not isinstance(variable, nnx.Variable):
                continue
            now = bool(selects(path, variable))
            if seen.setdefault(id(variable), now) != now:
                raise ValueError(
                    f"The variable {'.'.join(map(str, path))} is in two of the "
                    f"arguments that are differentiated, and of their two filters "
                    f"only one selects it. Give both arguments the same filter."
                )


def _refuse_nothing(args: tuple[Any, ...], by_place: dict[int, Any]) -> NoReturn:
    types = ", ".join(
        f"argument {i} has type {type(args[i]).__name__}, and in it {chosen} selects "
        f"no variable"
        for i, chosen in by_place.items()
    )
    raise TypeError(
        f"Of what argnums= and wrt= name, {types}: so there is nothing to "
        f"differentiate. Name an nnx.Module that has such variables; for trees of "
        f"arrays use optax_sam.value_and_grad."
    )


def _functional(
    loss_fn: Callable[..., Any], has_aux: bool, call: _Call
) -> Callable[..., Any]:
    """The loss as a function of arrays, with what it has changed in its aux."""

    def loss(*args: Any, kwargs: dict[str, Any], state: Tree) -> tuple[Any, Any]:
        leaves = call.arguments.flatten_up_to((args, kwargs))
        params = _parameters(leaves, call)
        objects = nnx.merge(call.graphdef, params, state)
        pairs = zip(leaves, call.order, strict=True)
        leaves = [x if j is None else objects[j] for x, j in pairs]
        args, kwargs = jax.tree.unflatten(call.arguments, leaves)
        value, aux = check_pair(loss_fn(*args, **kwargs), has_aux)
        check_scalar(value)
        return value, (aux, _changed(objects, params, state, call))

    return loss


def _parameters(leaves: list[Any], call: _Call) -> dict[int, Tree]:
    """Those of the objects that are differentiated, among the arguments."""
    pairs = zip(leaves, call.order, strict=True)
    own = range(len(call.gradients))
    return {j: x for x, j in pairs if j is not None and j in own}


def _changed(objects: Any, params: Tree, state: Tree, call: _Call) -> Any:
    """What the pass has written, `None` for a leaf that it has not."""
    graphdef, *states = nnx.split(objects, call.select, ...)
    if graphdef != call.graphdef:
        raise ValueError(
            "The loss adds variables to an NNX object (sow) or changes its attributes "
            "(model.train()), and after a climb only values are put back. Return what "
            "is sown as aux, and call model.train() before."
        )

    def written(new: Any, old: Any) -> Any:
        return None if new is old else new

    own, new_state = map(nnx.as_pure, states)
    new_params = {j: own[j] if j in own else nnx.State({}) for j in params}
    return jax.tree.map(written, (new_params, new_state), (params, state))


def _write(changed: Any, call: _Call) -> None:
    """Leave in the objects what the clean pass has written."""
    params, state = changed
    leaves = call.arguments.flatten_up_to((call.args, call.kwargs))
    before = _parameters(leaves, call)
    some = {j: fill(x, before[j]) for j, x in params.items() if jax.tree.leaves(x)}
    nnx.update(call.objects, some, fill(state, call.state))


def _as_nnx(grads: Tree, argnums: int | tuple[int, ...], call: _Call) -> Tree:
    """The gradient as nnx.value_and_grad returns it."""
    args = tuple(put(call.args, argnums, grads))
    leaves = call.arguments.flatten_up_to((args, call.kwargs))
    for i, j in enumerate(call.order):
        if j is not None and j < len(call.gradients):
            leaves[i] = jax.tree.unflatten(
                call.gradients[j], jax.tree.leaves(leaves[i])
            )
    args, _ = jax.tree.unflatten(call.arguments, leaves)
    return pick(args, argnums)


def _in_rows(grad_fn: GradFn, report: bool) -> GradFn:
    """Counters apart: they have no average, so each sub-batch gives a row of them."""

    def in_rows(*args: Any, **kwargs: Any) -> tuple[Any, Tree]:
        (value, out), grads = grad_fn(*args, **kwargs)
        (aux, state), diagnostics = out if report else (out, None)
        exact = jax.tree.map(lambda x: not jnp.issubdtype(x.dtype, jnp.inexact), state)
        averaged, counters = partition(state, exact)
        rows = jax.tree.map(lambda x: x[None], counters)
        return (value, (aux, diagnostics, averaged, rows)), grads

    return in_rows
