"""Over which examples: one climb for each sub-batch, one average of the gradients."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from optax_sam import _devices
from optax_sam._sub_batches import (
    Parts,
    average_over,
    batch_size,
    count_sub_batches,
    fold_keys,
    is_key,
    is_lone_key,
    merge,
    partition,
    spread,
)
from optax_sam._types import AxisName, Tree

GradFn = Callable[..., tuple[Any, Tree]]


def m_sharpness(
    grad_fn: GradFn,
    *,
    microbatch_size: int | None = None,
    axis_name: AxisName | None = None,
    mesh: Mesh | None = None,
    batch_argnums: int | tuple[int, ...] = 1,
    concat_aux: Any = False,
    at_once: int | None = None,
) -> GradFn:
    r"""Call `grad_fn` on each sub-batch and average the gradients.

    .. math:: g = \frac1n \sum_{j=1}^{n} \nabla L_{B_j}(w + \epsilon_j)

    Around `optax_sam.value_and_grad` this is m-SAM: every sub-batch B_j of m
    examples climbs by its own epsilon_j. The *gradients* are averaged, never the
    climbs. The numbers depend on the sub-batches alone, not on how many of them a
    device holds.

    Args:
      grad_fn: a function like that of `jax.value_and_grad` or
        `optax_sam.value_and_grad`: it returns `(value, gradient)` or
        `((value, aux), gradient)`, with respect to its first argument.
      microbatch_size: the paper's m, the number of *examples* in a sub-batch (other
        codes use "m" for the number of sub-batches). The sub-batches are contiguous
        and looped over with the memory of one.
      axis_name: the mapped axis (or axes) whose devices hold one sub-batch each, or
        several of `microbatch_size` examples.
      mesh: a device mesh that has `axis_name`: enter `jax.shard_map` from plain
        `jit`. Other axes of the mesh are left automatic.
      batch_argnums: positions of the arguments that hold examples along their
        leading axis. Every other argument, positional or keyword, is passed whole.
      concat_aux: a bool, or a prefix tree of bools for aux: leaves marked `True` come
        back concatenated in batch order, the others averaged (integers and booleans
        as float32).
      at_once: how many sub-batches are run side by side (`jax.vmap`): faster for
        small ones, with their memory. `None` is one after the other.

    Returns:
      A function that takes and returns what `grad_fn` does: the averages over the
      sub-batches. Every typed random key that it is given (also one key inside the
      batch) is folded with the global index of the sub-batch, also when there is
      only one.

    Raises:
      ValueError: neither `microbatch_size` nor `axis_name`; `at_once` without
        `microbatch_size`; a mesh without that axis; a `microbatch_size` that does not
        divide the (per-device) batch; batch leaves of different leading sizes;
        gradients or a value that do not vary over the axis, where JAX can tell.
      NameError: `axis_name` is not bound.
      TypeError: a random key in aux.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> def loss(w, x):
      ...     return jnp.mean(0.5 * (x @ w) ** 2)
      >>> grad_fn = optax_sam.value_and_grad(loss, optax_sam.steepest_ascent(0.5))
      >>> m_sam = optax_sam.m_sharpness(grad_fn, microbatch_size=1)
      >>> m_sam(jnp.array([3.0, 1.0]), jnp.array([[1.0, 0.0], [0.0, 2.0]]))[1]
      Array([1.75, 3.  ], dtype=float32)

    Reference: Foret et al. 2021, section 4.1; Andriushchenko and Flammarion 2022,
      "Towards Understanding Sharpness-Aware Minimization", figure 1.
    """
    names = _check_options(microbatch_size, axis_name, mesh, at_once)
    at_once = at_once or 1
    positions = _check_positions(batch_argnums)

    def averaged(*args: Any, **kwargs: Any) -> tuple[Any, Tree]:
        examples, whole = _split(args, kwargs, positions)
        part = functools.partial(_part, grad_fn, positions, concat_aux)
        local = functools.partial(_local, part, microbatch_size, names, at_once)
        if mesh is None:
            parts = local(examples, whole)
        else:
            _devices.check_mesh(mesh, names, batch_size(examples))
            parts = Parts(*_devices.enter(local, mesh, names)(examples, whole))
        return _join(parts)

    return averaged


def _local(
    part: Callable[..., Parts],
    microbatch_size: int | None,
    names: tuple[str, ...],
    at_once: int,
    examples: Tree,
    whole: Tree,
) -> Parts:
    """The average over this device's sub-batches, and then over the devices."""
    count = count_sub_batches(batch_size(examples), microbatch_size, at_once)
    if not names:
        return average_over(functools.partial(part, whole), examples, count, 0, at_once)
    args, *others = whole
    whole = ((_devices.per_device(args[0], names), *args[1:]), *others)
    first = count * jax.lax.axis_index(names)
    parts = average_over(
        functools.partial(part, whole), examples, count, first, at_once
    )
    value, gradient, _ = parts.averaged
    _devices.refuse_averaged_value(value, names)
    _devices.refuse_unvarying(gradient, names, "gradient")
    return parts._replace(averaged=_devices.mean(parts.averaged, names))


def _part(
    grad_fn: GradFn,
    positions: tuple[int, ...],
    concat_aux: Any,
    whole: Tree,
    index: Any,
    examples: Tree,
) -> Parts:
    """`grad_fn` on one sub-batch; aux in a list of one, or of none."""
    params = whole[0][0]
    args, kwargs, lone_keys = fold_keys(whole, index)
    arguments = [params, *args[1:]]
    for position, some, keys in zip(positions, examples, lone_keys, strict=True):
        arguments[position] = merge(some, keys)
    value, gradient = grad_fn(*arguments, **kwargs)
    value, aux = (value[0], [value[1]]) if isinstance(value, tuple) else (value, [])
    _refuse_keys(aux)
    averaged, rows = partition(aux, spread(concat_aux, aux))
    return Parts((value, gradient, averaged), jax.tree.map(jnp.atleast_1d, rows))


def _split(
    args: tuple[Any, ...], kwargs: dict[str, Any], positions: tuple[int, ...]
) -> tuple[Tree, Tree]:
    """The examples, and all that every sub-batch gets whole."""
    if max(positions) >= len(args):
        raise TypeError(
            f"batch_argnums = {positions}, but only {len(args)} positional arguments "
            f"were given. Pass the batch by position."
        )
    batch = tuple(args[i] for i in positions)
    examples, lone_keys = partition(batch, jax.tree.map(is_lone_key, batch))
    rest = tuple(None if i in positions else x for i, x in enumerate(args))
    return examples, (rest, kwargs, lone_keys)


def _join(parts: Parts) -> tuple[Any, Tree]:
    value, gradient, averaged = parts.averaged
    aux = merge(averaged, parts.rows)
    return ((value, *aux) if aux else value), gradient


def _refuse_keys(aux: Tree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(aux):
        if is_key(leaf):
            raise TypeError(
                f"The aux leaf {jax.tree_util.keystr(path[1:]) or '(the root)'} is a "
                f"random key, and keys of several sub-batches have no average. Split "
                f"keys outside, and pass one as an argument: it is folded with the "
                f"index of the sub-batch."
            )


def _check_options(
    microbatch_size: int | None,
    axis_name: AxisName | None,
    mesh: Mesh | None,
    at_once: int | None,
) -> tuple[str, ...]:
    if microbatch_size is None and axis_name is None:
        raise ValueError(
            "m-sharpness needs to know the sub-batches: give microbatch_size= (the "
            "examples in each), axis_name= (one for each device), or both."
        )
    for name, value in (("microbatch_size", microbatch_size), ("at_once", at_once)):
        if isinstance(value, jax.Array):
            raise TypeError(
                f"{name} was given as an array, but it changes the program and must be "
                f"known in Python. Under optax.inject_hyperparams name it in "
                f"static_args=({name!r}, ...)."
            )
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {name} = {value}.")
    if at_once is not None and microbatch_size is None:
        raise ValueError(
            f"at_once = {at_once} says how many micro-batches run side by side, but "
            f"there are none: give microbatch_size= as well."
        )
    if mesh is not None and axis_name is None:
        raise ValueError(
            f"A mesh was given without axis_name. Its axes are {mesh.axis_names}: name "
            f"the one along which the examples are split, axis_name=..."
        )
    names = () if axis_name is None else axis_name
    return (names,) if isinstance(names, str) else tuple(names)


def _check_positions(batch_argnums: int | tuple[int, ...]) -> tuple[int, ...]:
    positions = batch_argnums if isinstance(batch_argnums, tuple) else (batch_argnums,)
    if not positions or min(positions) < 1:
        raise ValueError(
            f"batch_argnums = {batch_argnums}: argument 0 is what is differentiated, "
            f"so examples stand at positions 1 and up, as in loss(params, batch)."
        )
    return positions
