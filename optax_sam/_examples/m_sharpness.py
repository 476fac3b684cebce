"""Over which examples: one climb for each sub-batch, one average of the gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from optax_sam import _devices
from optax_sam._examples.averaging import SubBatches
from optax_sam._examples.sub_batches import Parts, spread
from optax_sam._keys import is_key
from optax_sam._once import CompiledOnce
from optax_sam._trees import fill, keystr, partition
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
      unroll: how many rounds of the loop over sub-batches stand in one round of the
        program, as for `jax.lax.scan`; `True` leaves no loop. On a CPU XLA runs the
        gradients of convolutions up to forty times slower inside a loop: train
        convolutional networks there with `unroll=True`.

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
    sub_batches = SubBatches(microbatch_size, axis_name, mesh, at_once, unroll)
    sub_batches.refuse_none()
    positions = _check_positions(batch_argnums)

    def run(grad_fn: GradFn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Parts:
        def part(params: Tree, examples: Tree, rest: Any) -> Parts:
            others, kwargs = rest
            arguments = [params, *others[1:]]
            for position, some in zip(positions, examples, strict=True):
                arguments[position] = some
            out = grad_fn(*arguments, **kwargs)
            return _taken_apart(out, concat_aux, sub_batches.names)

        batch = tuple(args[i] for i in positions)
        others = tuple(None if i in (0, *positions) else x for i, x in enumerate(args))
        return sub_batches.average(part, args[0], batch, (others, kwargs))

    once = CompiledOnce(run)

    def averaged(*args: Any, **kwargs: Any) -> tuple[Any, Tree]:
        if max(positions) >= len(args):
            raise TypeError(
                f"batch_argnums = {positions}, but only {len(args)} positional "
                f"arguments were given. Pass the batch by position."
            )
        parts: Parts = once(grad_fn, args, kwargs)
        value, gradient, averaged = parts.averaged
        aux = fill(averaged, parts.rows)
        return ((value, *aux) if aux else value), gradient

    return averaged


def _taken_apart(
    out: tuple[Any, Tree], concat_aux: Any, names: tuple[str, ...]
) -> Parts:
    """What `grad_fn` returned, checked; aux in a list of one, or of none."""
    value, gradient = out
    value, aux = (value[0], [value[1]]) if isinstance(value, tuple) else (value, [])
    _refuse_keys(aux)
    _devices.refuse_averaged_value(value, names)
    _devices.refuse_unvarying(gradient, names, "gradient")
    averaged, rows = partition(aux, spread(concat_aux, aux))
    return Parts((value, gradient, averaged), jax.tree.map(jnp.atleast_1d, rows))


def _refuse_keys(aux: Tree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(aux):
        if is_key(leaf):
            raise TypeError(
                f"The aux leaf {keystr(path[1:]) or '(the root)'} is a "
                f"random key, and keys of several sub-batches have no average. Split "
                f"keys outside, and pass one as an argument: it is folded with the "
                f"index of the sub-batch."
            )


def _check_positions(batch_argnums: int | tuple[int, ...]) -> tuple[int, ...]:
    positions = batch_argnums if isinstance(batch_argnums, tuple) else (batch_argnums,)
    if not positions or min(positions) < 1:
        raise ValueError(
            f"batch_argnums = {batch_argnums}: argument 0 is what is differentiated, "
            f"so examples stand at positions 1 and up, as in loss(params, batch)."
        )
    return positions
