"""Over which examples: one climb for each sub-batch, one average of the gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from optax_sam import _devices
from optax_sam._arguments import (
    Argnums,
    check_argnums,
    float0_again,
    pick,
    positions,
    put,
    split_inexact,
    without_float0,
)
from optax_sam._examples.averaging import SubBatches
from optax_sam._examples.sub_batches import Parts, spread
from optax_sam._keys import refuse_keys
from optax_sam._once import CompiledOnce, Static, is_data, unboxed
from optax_sam._trees import fill, partition
from optax_sam._types import AxisName, Tree

GradFn = Callable[..., tuple[Any, Tree]]


def m_sharpness(
    grad_fn: GradFn,
    *,
    microbatch_size: int | None = None,
    axis_name: AxisName | None = None,
    mesh: Mesh | None = None,
    argnums: Argnums = 0,
    batch_argnums: Argnums = 1,
    concat_aux: Any = False,
    at_once: int | None = None,
    unroll: int | bool = 1,
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
        `((value, aux), gradient)`.
      microbatch_size: the paper's m, the number of *examples* in a sub-batch
        (elsewhere "m" is the number of sub-batches). The sub-batches are contiguous
        and looped over with the memory of one.
      axis_name: the mapped axis (or axes) whose devices hold one sub-batch each, or
        several of `microbatch_size` examples.
      mesh: a device mesh that has `axis_name`: enter `jax.shard_map` from plain
        `jit`. Other axes of the mesh are left automatic.
      argnums: positions of the arguments in which `grad_fn` differentiates, the same
        as there: `m_sharpness(value_and_grad(..., argnums=1), argnums=1, ...)`. On a
        mapped axis these, and no others, are made the device's own, as by `per_device`.
      batch_argnums: positions of the arguments that hold examples along their
        leading axis. Every other argument, positional or keyword, is passed whole.
        Negative positions count from the end, here and in `argnums`.
      concat_aux: a bool, or a prefix tree of bools for aux: leaves marked `True` come
        back concatenated in batch order, the others averaged (integers and booleans
        as float32).
      at_once: how many sub-batches are run side by side (`jax.vmap`): faster for
        small ones, with their memory. `None` is one after the other.
      unroll: how many rounds of the loop over sub-batches stand in one round of the
        program, as for `jax.lax.scan`; `True` leaves no loop. On a CPU XLA runs the
        gradients of convolutions up to forty times slower inside a loop: train
        convolutional networks there with `unroll=True`.

    Returns:
      A function that takes and returns what `grad_fn` does: the averages over the
      sub-batches; gradients of `float0` as they are. Every typed random key that it is
      given (also one key inside the batch) is folded with the global index of the
      sub-batch, also when there is only one.

    Raises:
      ValueError: neither `microbatch_size` nor `axis_name`; `at_once` without
        `microbatch_size`; a mesh without that axis; a `microbatch_size` that does not
        divide the (per-device) batch; batch leaves of different leading sizes;
        gradients or a value that do not vary over the axis, where JAX can tell; an
        argument in both `argnums` and `batch_argnums`; other `argnums` than those of
        an `optax_sam.value_and_grad`.
      NameError: `axis_name` is not bound.
      TypeError: a random key in aux; positions for which no argument was given.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> def loss(w, x):
      ...     return jnp.mean(0.5 * (x @ w) ** 2)
      >>> grad_fn = optax_sam.value_and_grad(loss, optax_sam.steepest_ascent(0.5))
      >>> m_sam = optax_sam.m_sharpness(grad_fn, microbatch_size=1)
      >>> m_sam(jnp.array([3.0, 1.0]), jnp.array([[1.0, 0.0], [0.0, 2.0]]))[1]
      Array([1.75, 3.  ], dtype=float32)

    Reference: Foret et al. 2021 (arXiv:2010.01412), section 4.1; Andriushchenko and
      Flammarion 2022 (arXiv:2206.06232), "Towards Understanding Sharpness-Aware
      Minimization", figure 1.
    """
    sub_batches = SubBatches(microbatch_size, axis_name, mesh, at_once, unroll)
    sub_batches.refuse_none()
    argnums = check_argnums("argnums", argnums)
    batch_argnums = check_argnums("batch_argnums", batch_argnums)
    _refuse_both(argnums, batch_argnums)

    def run(grad_fn: GradFn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Parts:
        own, cut = _places(argnums, batch_argnums, len(args))

        def part(params: Tree, examples: Tree, rest: Any) -> Parts:
            others, still, kwargs = rest
            arguments = put(others, cut, examples)
            out = grad_fn(*put(arguments, own, fill(params, still)), **kwargs)
            return _taken_apart(out, concat_aux, sub_batches.names)

        params, still = split_inexact(pick(args, own))
        others = [None if i in own + cut else x for i, x in enumerate(args)]
        rest = others, still, kwargs
        return sub_batches.average(part, params, pick(args, cut), rest)

    once = CompiledOnce(run)

    def averaged(*args: Any, **kwargs: Any) -> tuple[Any, Tree]:
        own, _ = _places(argnums, batch_argnums, len(args))
        _refuse_others(own, getattr(grad_fn, "argnums", own), len(args))
        parts: Parts = once(grad_fn, args, kwargs)
        value, gradient, averaged = parts.averaged
        aux = fill(unboxed(averaged), unboxed(parts.rows))
        return ((value, *aux) if aux else value), float0_again(gradient)

    return averaged


def _taken_apart(
    out: tuple[Any, Tree], concat_aux: Any, names: tuple[str, ...]
) -> Parts:
    """What `grad_fn` returned, checked; aux in a list of one, or of none."""
    value, aux, gradient = _value_aux_gradient(out)
    gradient = without_float0(gradient)
    refuse_keys(*aux)
    _devices.refuse_averaged_value(value, names)
    _devices.refuse_unvarying(gradient, names, "gradient")
    averaged, rows = map(_boxed, partition(aux, spread(concat_aux, aux)))
    return Parts((value, gradient, averaged), jax.tree.map(jnp.atleast_1d, rows))


def _value_aux_gradient(out: Any) -> tuple[Any, list[Any], Tree]:
    pair = isinstance(out, tuple) and len(out) == 2
    value = out[0] if pair else None
    value, aux = (value[0], [value[1]]) if isinstance(value, tuple) else (value, [])
    if not (pair and _is_scalar(value)):
        raise TypeError(
            "m_sharpness averages what a function like jax.value_and_grad(loss_fn) "
            "returns, (value, gradient), or ((value, aux), gradient), but this one "
            f"returned {type(out).__name__}. Write m_sharpness(optax_sam."
            f"value_and_grad(loss_fn, steepest_ascent(rho)), ...), not a loss and not "
            f"jax.grad of one."
        )
    return value, aux, out[1]


def _is_scalar(x: Any) -> bool:
    return is_data(x) and np.ndim(x) == 0


def _boxed(tree: Tree) -> Tree:
    """The tree, with what is neither an array nor a number kept out of the program."""
    return jax.tree.map(lambda x: x if is_data(x) else Static(x), tree)


def _places(
    argnums: int | tuple[int, ...], batch_argnums: int | tuple[int, ...], count: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What is differentiated and what holds examples, of so many arguments."""
    own = positions("argnums", argnums, count)
    cut = positions("batch_argnums", batch_argnums, count)
    _refuse_both(own, cut)
    return own, cut


def _refuse_both(argnums: Argnums, batch_argnums: Argnums) -> None:
    own, cut = ({x} if isinstance(x, int) else set(x) for x in (argnums, batch_argnums))
    for i in own & cut:
        raise ValueError(
            f"argnums = {argnums} and batch_argnums = {batch_argnums} both name "
            f"argument {i}, but examples are cut into sub-batches, and what is "
            f"differentiated is whole in each. For loss(params, batch) write "
            f"argnums=0, batch_argnums=1; for loss(batch, params) argnums=1, "
            f"batch_argnums=0."
        )


def _refuse_others(own: tuple[int, ...], argnums: Any, count: int) -> None:
    """Refuse where a gradient would be summed over devices before anyone sees it."""
    theirs = positions("argnums", argnums, count)
    if set(theirs) != set(own):
        raise ValueError(
            f"value_and_grad differentiates in the arguments {theirs}, but m_sharpness "
            f"was told {own}: on a mapped axis what it makes the device's own must be "
            f"what is differentiated. Write m_sharpness(..., argnums={argnums})."
        )
