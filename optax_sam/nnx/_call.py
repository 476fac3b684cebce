"""One call of a function of NNX objects, as one of plain arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeAlias

import jax
from flax import nnx

from optax_sam._arguments import check_argnums, pick, positions, put
from optax_sam._trees import fill
from optax_sam._types import Tree

#: `select(path, variable)`: whether a variable is differentiated.
_Select: TypeAlias = Callable[..., bool]


class Call(NamedTuple):
    """One call, with what is NNX and what is not in different places."""

    objects: tuple[Any, ...]  # all NNX objects, those that are differentiated first
    graphdef: Any
    select: _Select
    gradients: list[Any]  # the structures of what nnx.value_and_grad returns of them
    rest: Any  # the structure of the state, in variables
    state: Tree  # plain arrays: all variables that are not differentiated
    arguments: Any  # the structure of (args, kwargs), an NNX object being a leaf
    order: list[int | None]  # for each leaf the number of an object, if it is one
    args: tuple[Any, ...]  # with parameters in the place of an NNX object, or None
    kwargs: dict[str, Any]


def chosen_of(argnums: Any, wrt: Any) -> tuple[int | tuple[int, ...], list[Any]]:
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


def take_apart(
    argnums: int | tuple[int, ...],
    filters: list[Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Call:
    """Split the NNX objects of a call into parameters, which are arguments, and state.

    Args:
      argnums: the positions that are differentiated.
      filters: for each of these which variables of its object are.
      args: positional arguments; NNX objects may stand anywhere in them.
      kwargs: arguments by name, whose objects are never differentiated.

    Returns:
      The call on plain arrays: the parameters of a differentiated object stand in its
      place, `None` in that of any other, and all other variables are in `state`.

    Raises:
      ValueError: a variable is shared, and only one of two filters selects it.
      TypeError: nothing is selected.
    """
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
    graphdef, own, state = _split(objects, select, len(chosen))
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
    return Call(
        objects,
        graphdef,
        select,
        gradients,
        jax.tree.structure(state),
        nnx.as_pure(state),
        arguments,
        order,
        *plain,
    )


def _split(objects: Any, select: _Select, count: int) -> tuple[Any, list[Any], Any]:
    """In their variables: the parameters of the first objects, and all other state."""
    # One split of all objects, so that what they share stays shared.
    graphdef, *states = nnx.split(objects, select, ...)
    params, state = states
    own = [params[j] if j in params else nnx.State({}) for j in range(count)]
    return graphdef, own, state


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


def of_arrays(
    fn: Callable[..., Any], check: Callable[[Any], tuple[Any, Any]], call: Call
) -> Callable[..., Any]:
    """A loss or a net as a function of arrays, with what it has changed in its aux.

    `check` gives value and aux of what it returned.
    """

    def of_arrays(*args: Any, kwargs: dict[str, Any], state: Tree) -> tuple[Any, Any]:
        leaves = call.arguments.flatten_up_to((args, kwargs))
        params = _parameters(leaves, call)
        objects = nnx.merge(call.graphdef, *_in_variables(params, state, call))
        pairs = zip(leaves, call.order, strict=True)
        leaves = [x if j is None else objects[j] for x, j in pairs]
        args, kwargs = jax.tree.unflatten(call.arguments, leaves)
        value, aux = check(fn(*args, **kwargs))
        return value, (aux, _changed(objects, params, state, call))

    return of_arrays


def _parameters(leaves: list[Any], call: Call) -> dict[int, Tree]:
    """Those of the objects that are differentiated, among the arguments."""
    pairs = zip(leaves, call.order, strict=True)
    own = range(len(call.gradients))
    return {j: x for x, j in pairs if j is not None and j in own}


def _in_variables(
    params: dict[int, Tree], state: Tree, call: Call
) -> tuple[dict[int, Any], Any]:
    """Plain arrays in variables again: NNX would take a dict in one for a module."""

    def of(structure: Any, tree: Tree) -> Any:
        return jax.tree.unflatten(structure, jax.tree.leaves(tree))

    own = {j: of(call.gradients[j], x) for j, x in params.items()}
    return own, of(call.rest, state)


def _changed(objects: Any, params: Tree, state: Tree, call: Call) -> Any:
    """What the pass has written, `None` for a leaf that it has not."""
    graphdef, own, new_state = _split(objects, call.select, len(call.gradients))
    structures = jax.tree.structure(new_state), [*map(jax.tree.structure, own)]
    if graphdef != call.graphdef or structures != (call.rest, call.gradients):
        raise ValueError(
            "The loss adds variables to an NNX object (sow), changes its attributes "
            "(model.train()) or gives a variable a tree with other leaves, and after a "
            "climb only values are put back. Return what is sown as aux, call "
            "model.train() before, and give such a variable its leaves where it is "
            "made."
        )

    def written(new: Any, old: Any) -> Any:
        return None if new is old else new

    new = dict(enumerate(map(nnx.as_pure, own))), nnx.as_pure(new_state)
    return jax.tree.map(written, new, (params, state))


def write(changed: Any, call: Call) -> None:
    """Leave in the objects what the clean pass has written."""
    params, state = changed
    leaves = call.arguments.flatten_up_to((call.args, call.kwargs))
    before = _parameters(leaves, call)
    some = {j: fill(x, before[j]) for j, x in params.items() if jax.tree.leaves(x)}
    nnx.update(call.objects, *_in_variables(some, fill(state, call.state), call))


def as_nnx(grads: Tree, argnums: int | tuple[int, ...], call: Call) -> Tree:
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
