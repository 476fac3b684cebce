"""In place of `nnx.value_and_grad`: NNX models are changed in place by the pass."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from optax_sam._arguments import Argnums
from optax_sam._checks import check_pair
from optax_sam._core.value_and_grad import value_and_grad as climb_then_differentiate
from optax_sam._core.value_and_grad import with_aux
from optax_sam._examples.m_sharpness import GradFn, m_sharpness
from optax_sam._trees import fill, partition
from optax_sam._types import Ascent, AxisName, Tree
from optax_sam.nnx._call import Call, as_nnx, chosen_of, of_arrays, take_apart, write


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
      ValueError: a loss that adds variables to the model (`sow`), changes its
        attributes (`model.train()`) or gives a variable a tree with other leaves; `wrt`
        beside an `nnx.DiffState` or for another argument than 0; a variable in two
        arguments that one filter selects and the other does not; what `m_sharpness`
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

    Reference: Foret et al. 2021 (arXiv:2010.01412), algorithm 1 and section 4.1.
    """
    sub_batches = {
        "microbatch_size": microbatch_size,
        "axis_name": axis_name,
        "mesh": mesh,
        "batch_argnums": batch_argnums,
        "concat_aux": concat_aux,
        "at_once": at_once,
        "unroll": unroll,
    }

    def climbed(call: Call, **options: Any) -> GradFn:
        loss = of_arrays(loss_fn, functools.partial(check_pair, has_aux=has_aux), call)
        return climb_then_differentiate(loss, ascent, **options)

    return drop_in(climbed, argnums, wrt, has_aux, sub_batches, options)


def drop_in(
    climbed: Callable[..., GradFn],
    argnums: Any,
    wrt: Any,
    has_aux: bool,
    sub_batches: dict[str, Any],
    options: dict[str, Any],
) -> GradFn:
    """A function like that of `nnx.value_and_grad`, of `climbed(call, **options)`."""
    report = bool(options.get("diagnostics"))
    places, filters = chosen_of(argnums, wrt)
    # As _in_rows returns them.
    concat_aux = sub_batches.get("concat_aux", False), False, False, True
    averaged = _averaged(**sub_batches | {"argnums": places, "concat_aux": concat_aux})
    options = options | {"argnums": places, "has_aux": True}

    def sam_value_and_grad(*args: Any, **kwargs: Any) -> Any:
        call = take_apart(places, filters, args, kwargs)
        grad_fn = averaged(_in_rows(climbed(call, **options), report))
        out, grads = grad_fn(*call.args, kwargs=call.kwargs, state=call.state)
        value, (aux, diagnostics, changed, rows) = out
        write(fill(changed, jax.tree.map(lambda x: x[0], rows)), call)
        shown = [aux] * has_aux + [diagnostics] * report
        return with_aux(value, shown), as_nnx(grads, places, call)

    return sam_value_and_grad


def _averaged(**options: Any) -> Callable[[GradFn], GradFn]:
    """m-sharpness, where there are sub-batches."""
    names = "microbatch_size", "axis_name", "mesh"
    if all(options.get(name) is None for name in names):
        return lambda grad_fn: grad_fn
    return functools.partial(m_sharpness, **options)


def _in_rows(grad_fn: GradFn, report: bool) -> GradFn:
    """Counters apart: they have no average, so each sub-batch gives a row of them."""

    def in_rows(*args: Any, **kwargs: Any) -> tuple[Any, Tree]:
        (value, out), grads = grad_fn(*args, **kwargs)
        (aux, state), diagnostics = out if report else (out, None)
        averaged, counters = partition(state, jax.tree.map(_is_exact, state))
        rows = jax.tree.map(lambda x: jnp.asarray(x)[None], counters)
        return (value, (aux, diagnostics, averaged, rows)), grads

    return in_rows


def _is_exact(x: Any) -> bool:
    return not jnp.issubdtype(jnp.result_type(x), jnp.inexact)
