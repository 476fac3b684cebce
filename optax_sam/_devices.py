"""Mapped axes: all that the library knows about devices stands in this file.

JAX has four ways to run one program on parts of a batch, and differentiates them
in two ways. Under `jax.pmap`, under `jax.vmap(axis_name=...)` and in
`jax.shard_map(check_vma=False)` the gradient is the device's own. In `jax.shard_map`
as it comes (`check_vma=True`) every value has a type that says over which axes it
*varies*, and the gradient at parameters that do not vary is **summed over the
devices** before anyone sees it. A climb from that sum is full-batch SAM, and the
gradient is as many times too large as there are devices. `per_device` makes all
four agree; `mean_over` refuses what cannot be an average.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from optax_sam._types import AxisName, Tree
from optax_sam._warn import warn


def axis_names(axis_name: AxisName) -> tuple[str, ...]:
    """The axis names as a tuple; refused when one is not bound here."""
    names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    for name in names:
        try:
            jax.lax.axis_size(name)
        except NameError:
            raise NameError(
                f"The axis {name!r} is not bound here, so there are no devices to "
                f"average over. Call this inside jax.shard_map, jax.pmap or "
                f"jax.vmap(axis_name={name!r}); from plain jit give "
                f"`mesh=` as well, and the library enters jax.shard_map itself."
            ) from None
    return names


def varying_axes(x: Any) -> frozenset[str]:
    """The axes over which JAX's type says that `x` differs between devices."""
    return frozenset(jax.typeof(x).manual_axis_type.varying)


def types_tell(name: str) -> bool:
    """Whether types say who varies over this axis: only `check_vma=True` does."""
    # The index of the device differs between devices whenever types are kept.
    return name in varying_axes(jax.lax.axis_index(name))


def _cast(x: Any, names: tuple[str, ...]) -> Any:
    # `pcast` raises under vmap and on what already varies, so ask first.
    manual = jax.sharding.get_abstract_mesh().manual_axes
    missing = tuple(n for n in names if n in manual and n not in varying_axes(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def per_device(params: Tree, axis_name: AxisName) -> Tree:
    """The same values, but differentiated on each device by itself.

    Take the gradient at `per_device(params, axis_name)` and it is the gradient of
    this device's loss, in `jax.shard_map` (with `check_vma` True or False),
    `jax.pmap` and `jax.vmap(axis_name=...)` alike. Without it `jax.grad` inside
    `jax.shard_map` returns the sum over the devices. No data move.

    Args:
      params: a tree of arrays.
      axis_name: the mapped axis, or a tuple of them.

    Returns:
      The tree with the same values, dtypes and shapes.

    Raises:
      NameError: an axis is not bound.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> def local_gradient(w, x):
      ...     w = optax_sam.per_device(w, "data")
      ...     return jax.grad(lambda w: jnp.sum(w * x))(w)
      >>> jax.vmap(local_gradient, axis_name="data", in_axes=(None, 0))(
      ...     jnp.ones(1), jnp.array([1.0, 2.0])).ravel()
      Array([1., 2.], dtype=float32)

    Reference: JAX's documentation, "Autodiff and sharding": cotangent types are a
      function of primal types.
    """
    names = axis_names(axis_name)
    return jax.tree.map(lambda x: _cast(x, names), params)


def zeros(shapes: Tree) -> Tree:
    """Zeros of these shapes and dtypes that vary as their types say they must."""

    def zero(s: jax.ShapeDtypeStruct) -> Any:
        kind = s.manual_axis_type
        varying = () if kind is None else tuple(kind.varying)
        # `full` makes random keys as well; where axes are explicit, placed as they are.
        zero = jax.lax.full(s.shape, 0, s.dtype, sharding=s.sharding)
        return _cast(zero, varying)

    return jax.tree.map(zero, shapes)


def vary_like(tree: Tree, reference: Tree) -> Tree:
    """Each leaf of `tree`, made to vary over the axes its reference varies over.

    A climb that does not depend on the gradient leaves the point where the second
    gradient is taken equal on all devices, and that gradient would be their sum.
    """
    return jax.tree.map(lambda x, r: _cast(x, tuple(varying_axes(r))), tree, reference)


def vary_with(tree: Tree, reference: Tree) -> Tree:
    """Every leaf of `tree`, made to vary wherever any leaf of the reference does."""
    axes = frozenset[str]().union(*map(varying_axes, jax.tree.leaves(reference)))
    return jax.tree.map(lambda x: _cast(x, tuple(sorted(axes))), tree)


def refuse_unvarying(tree: Tree, axis_name: AxisName, what: str) -> None:
    """Raise unless every inexact leaf varies over the axes, as far as types tell."""
    for name in axis_names(axis_name):
        if not types_tell(name):
            continue
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            inexact = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
            if inexact and name not in varying_axes(leaf):
                raise ValueError(
                    f"The {what} leaf {jax.tree_util.keystr(path) or '(the root)'} is "
                    f"the same on all devices along {name!r}, so an average over "
                    f"{name!r} would change nothing: jax.grad at replicated "
                    f"parameters has already summed it over the devices. Take the "
                    f"gradient at optax_sam.per_device(params, {name!r}); m_sharpness "
                    f"does, for each argument that argnums= names."
                )


def warn_of_sums(value: Any, gradient: Tree) -> None:
    """Warn where types tell that JAX summed the gradients of losses that differ."""
    for leaf in jax.tree.leaves(gradient):
        for name in sorted(varying_axes(value) - varying_axes(leaf)):
            warn(
                f"The loss differs between the devices along {name!r}, but the "
                f"gradient is the same on all of them: JAX has summed it over "
                f"{name!r}, so it is that of the sum of all these losses. If each "
                f"device has the mean loss of its own examples, take the gradient at "
                f"optax_sam.per_device(params, {name!r}), or name the axis: "
                f"axis_name={name!r}. If each has a share of one global mean, write "
                f"jax.lax.psum(share, {name!r}) in the loss: the sum is then right."
            )
            return


def refuse_averaged_value(value: Any, axis_name: AxisName) -> None:
    """Raise when the loss is the same on all devices, as far as types tell."""
    for name in axis_names(axis_name):
        if types_tell(name) and name not in varying_axes(value):
            raise ValueError(
                f"The loss is the same on all devices along {name!r}, so it already "
                f"averages over {name!r} and every device would climb the same way. "
                f"Drop that pmean: return the loss of this device's examples, and "
                f"optax_sam averages the gradients."
            )


def refuse_diverging(state: Tree, new_state: Tree) -> None:
    """Raise when a state that was equal on all devices no longer is."""
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(new_state), strict=True)
    for old, new in pairs:
        for name in varying_axes(new) - varying_axes(old):
            raise ValueError(
                f"The state of this step (an average of gradients, or diagnostics) "
                f"would come to differ between the devices along {name!r}, since each "
                f"makes it of its own gradient. Name the axis in the product, "
                f"sam(rho, axis_name={name!r}), and drop mean_over: the state is then "
                f"made of the average."
            )


def mean(tree: Tree, axis_name: AxisName) -> Tree:
    """The average over the axes, in one collective for each dtype."""
    return jax.lax.pmean(tree, axis_names(axis_name))


def mean_over(axis_name: AxisName) -> optax.GradientTransformationExtraArgs:
    r"""The average over a mapped axis, as an Optax transformation.

    .. math:: g \mapsto \frac{1}{n} \sum_{d=1}^{n} g_d

    m-SAM is the *place* of the average in the chain: behind the climb,
    `chain(sam(rho), mean_over("data"), adamw(lr))`, every device climbs by itself;
    before it there is one climb for all. Full-batch SAM is `sam(rho)` alone under
    `jit`; a `pmean` in the loss under `jax.shard_map`; and
    `chain(mean_over("data"), sam(rho), mean_over("data"))` under `jax.pmap`: these
    are not interchangeable.

    Args:
      axis_name: the mapped axis, or a tuple of them.

    Returns:
      A stateless transformation. It ignores extra arguments.

    Raises:
      NameError: in `update`, when an axis is not bound.
      ValueError: in `update`, when a leaf does not vary over the axis: it has been
        summed by JAX already (take the gradient at `per_device(params, axis_name)`).
        Under `pmap`, `vmap` and `check_vma=False` JAX cannot tell.

    Example:
      >>> import jax, jax.numpy as jnp, optax_sam
      >>> average = optax_sam.mean_over("data")
      >>> state = average.init(jnp.zeros(()))
      >>> jax.vmap(lambda g: average.update(g, state)[0], axis_name="data")(
      ...     jnp.array([1.0, 3.0]))
      Array([2., 2.], dtype=float32)

    Reference: Foret et al. 2021 (arXiv:2010.01412), section 4.1 (m-sharpness).
    """

    def init(params: Tree) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: Tree, state: Any, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, Any]:
        del params, extra_args
        refuse_unvarying(updates, axis_name, "gradient")
        return mean(updates, axis_name), state

    return optax.GradientTransformationExtraArgs(init, update)


def sum_over(x: Any, axis_name: AxisName | None) -> Any:
    """The sum over the axes along which `x` is split; `x` itself without axes."""
    names = split_axes(x, axis_name)
    return jax.lax.psum(x, names) if names else x


def max_over(x: Any, axis_name: AxisName | None) -> Any:
    """The largest over the axes along which `x` is split; `x` itself without axes."""
    names = split_axes(x, axis_name)
    return jax.lax.pmax(x, names) if names else x


def split_axes(x: Any, axis_name: AxisName | None) -> tuple[str, ...]:
    """The axes along which an array is split: whole ones are counted once."""
    names = () if axis_name is None else axis_names(axis_name)
    return tuple(n for n in names if not types_tell(n) or n in varying_axes(x))


def zeros_like(x: Any) -> jax.Array:
    """Zeros like an array that is a device's own: it stays so in a state."""
    zeros: jax.Array = _cast(jnp.zeros_like(x), tuple(varying_axes(x)))
    return zeros


def check_mesh(mesh: Mesh, names: tuple[str, ...], size: int) -> None:
    """Refuse a mesh without the axes, or one that cannot share the batch equally."""
    for name in names:
        if name not in mesh.axis_names:
            raise ValueError(
                f"The mesh has no axis {name!r}, its axes are {mesh.axis_names}. Give "
                f"axis_name= one of them, or a tuple of several."
            )
    devices = 1
    for name in names:
        devices *= mesh.shape[name]
    if size % devices:
        raise ValueError(
            f"The batch has {size} examples, which {devices} devices along {names} "
            f"cannot share equally. Drop the last {size % devices}."
        )


def refuse_explicit(examples: Tree, what: str) -> None:
    """Refuse to cut or choose among examples whose type says where each one lies."""
    for x in jax.tree.leaves(examples):
        spec = jax.typeof(x).sharding.spec
        if spec and spec[0] is not None:
            axes = (spec[0],) if isinstance(spec[0], str) else tuple(spec[0])
            name = axes[0] if len(axes) == 1 else axes
            raise ValueError(
                f"The batch is split along the explicit axes {axes} of the mesh, and "
                f"{what} would move examples between devices, which JAX does not do "
                f"by itself there. Let every device work on its own examples, "
                f"axis_name={name!r}, mesh=mesh, or reshard the batch before."
            )


def enter(fn: Callable[..., Any], mesh: Mesh, names: tuple[str, ...]) -> Any:
    """`fn(examples, whole)` on each part of a batch, from plain `jit`.

    The leaves of `examples` are cut along the axes, those of `whole` are the same on
    all devices; `fn` returns a pair: what is the same on all devices, and rows.
    """
    split, same = PartitionSpec(names), PartitionSpec()

    def entered(examples: Tree, whole: Tree) -> Any:
        # Only arrays can cross; whatever else was passed is known to the trace.
        leaves, structure = jax.tree.flatten(whole)
        arrays = [x if _is_array(x) else None for x in leaves]

        def local(examples: Tree, arrays: list[Any]) -> Any:
            pairs = zip(arrays, leaves, strict=True)
            filled = [x if a is None else a for a, x in pairs]
            return tuple(fn(examples, jax.tree.unflatten(structure, filled)))

        run = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(split, same),
            out_specs=(same, split),
            axis_names=set(names),
        )
        examples = _place(examples, mesh, names, names)
        return jax.jit(run)(examples, _place(arrays, mesh, names, ()))

    return entered


def _is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray))


def _place(
    tree: Tree, mesh: Mesh, names: tuple[str, ...], first: tuple[str, ...]
) -> Tree:
    """The tree, cut along the axes as `shard_map` will ask for: only at its first ones.

    Explicit axes are part of a value's type, and shard_map moves no data for them. All
    others stay: a model that is split stays split.
    """
    if AxisType.Explicit not in mesh.axis_types:
        return tree

    def place(x: Any) -> Any:
        had = jax.typeof(x).sharding.spec
        spec = [_without(names, entry) for entry in had]
        if first:
            spec[0] = (*first, *(spec[0] or ()))
        return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree.map(place, tree)


def _without(names: tuple[str, ...], entry: Any) -> tuple[str, ...] | None:
    axes = (entry,) if isinstance(entry, str) else tuple(entry or ())
    return tuple(name for name in axes if name not in names) or None
