"""Door 1 from inside: the local part of a step, and the average behind it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from optax_sam import _devices
from optax_sam._checks import check_leaves, checked_loss
from optax_sam._m_sharpness import m_sharpness
from optax_sam._passes import Evaluation, Passes
from optax_sam._sub_batches import fold_keys
from optax_sam._types import AxisName, SharpnessAware, Tree

#: `((value, report), gradients)`, of one sub-batch or averaged over all.
Averaged: TypeAlias = tuple[tuple[Any, Any], Tree]

#: `local(passes, state)`: the work on one sub-batch.
Local: TypeAlias = Callable[[Passes, Any], Averaged]


class Given(NamedTuple):
    """What `update` was given of this step."""

    updates: Tree
    params: Tree
    value_fn: Callable[..., Any]
    batch: Any
    value: Any
    climb: bool


def transformation(
    init: Callable[[Tree], Any], step: Callable[[Given, Any], tuple[Tree, Any]]
) -> SharpnessAware:
    """The Optax transformation of a method, from what it does with what is given."""

    def update(
        updates: Tree,
        state: Any,
        params: Tree | None = None,
        *,
        value_fn: Callable[..., Any] | None = None,
        batch: Any = None,
        value: Any = None,
        climb: bool = True,
        **extra_args: Any,
    ) -> tuple[Tree, Any]:
        del extra_args  # for the neighbours in the chain
        if value_fn is None:
            raise TypeError(
                "SAM takes a second gradient, so `update` needs the loss of this step: "
                "update(grads, state, params, value_fn=lambda p: loss_fn(p, batch))."
            )
        if params is None:
            raise ValueError(
                "SAM climbs from the parameters, so `update` needs them; got "
                "params=None. Write update(grads, state, params, value_fn=...)."
            )
        given = Given(updates, params, value_fn, batch, value, climb)
        gradient, new_state = step(given, state)
        _devices.refuse_diverging(state, new_state)
        return gradient, new_state

    return SharpnessAware(init, update)


def clean_only(passes: Passes, state: Any) -> Averaged:
    """The local part of a step without a climb."""
    del state
    clean = passes.clean()
    return (clean.value, None), clean.gradient


@dataclass(frozen=True)
class SubBatches:
    """The static options of every product of door 1 that say what is a sub-batch."""

    has_aux: bool = False
    microbatch_size: int | None = None
    axis_name: AxisName | None = None
    mesh: Mesh | None = None
    at_once: int | None = None

    def __post_init__(self) -> None:
        if self.split or self.at_once is not None:
            self._m_sharpness(lambda *args: None)  # refuses bad options here

    @property
    def split(self) -> bool:
        """Whether batches are split here, so that clean gradients are taken here."""
        return self.microbatch_size is not None or self.mesh is not None

    @property
    def local_alone(self) -> bool:
        """Whether the average over devices, if there are any, is left to others."""
        return not self.split and self.axis_name is None

    def average(self, local: Local, given: Given, state: Any) -> Averaged:
        """`local(passes, state)` on every sub-batch by itself, averaged over all.

        Random keys in the state are folded with the index of the sub-batch.
        """
        if self.split:
            return self._over_parts(local, given, state)
        if self.axis_name is None:
            return local(self._whole(given, given.params), state)
        names = _devices.axis_names(self.axis_name)
        params = _devices.per_device(given.params, names)
        own_state = fold_keys(state, jax.lax.axis_index(names))
        out = _devices.mean(local(self._whole(given, params), own_state), names)
        return cast("Averaged", out)

    def check_clean(self, given: Given) -> None:
        """Refuse a clean gradient that came in, and from which no climb can be made."""
        if self.split:
            return
        if given.updates is None:
            raise ValueError(
                "SAM climbs from the clean gradient, and updates=None holds none: "
                "write update(jax.grad(value_fn)(params), state, params, "
                "value_fn=value_fn). "
                "With microbatch_size= or mesh= it is computed inside."
            )
        check_leaves(given.params, given.updates)
        if self.axis_name is not None:
            _devices.refuse_unvarying(given.updates, self.axis_name, "gradient")

    def _whole(self, given: Given, params: Tree) -> Passes:
        """The passes over what `value_fn` is the loss of; the clean one came in."""
        value_fn = checked_loss(given.value_fn, self.has_aux)

        def loss(point: Tree, examples: Tree) -> Any:
            out = value_fn(point) if given.batch is None else value_fn(point, examples)
            if self.axis_name is not None:
                value = out[0] if self.has_aux else out
                _devices.refuse_averaged_value(value, self.axis_name)
            return out

        value = jnp.nan if given.value is None else given.value
        clean = None if given.updates is None else Evaluation(value, given.updates)
        return Passes(loss, params, given.batch, self.has_aux, clean)

    def _over_parts(self, local: Local, given: Given, state: Any) -> Averaged:
        check_leaves(given.params, given.params)
        if given.batch is None:
            raise ValueError(
                "With microbatch_size= or mesh= SAM splits the batch itself, so it "
                "must see it: update(None, state, params, value_fn=loss_fn, "
                "batch=batch), with loss_fn(params, batch)."
            )
        value_fn = checked_loss(given.value_fn, self.has_aux)

        def part(params: Tree, batch: Any, state: Any) -> Averaged:
            return local(Passes(value_fn, params, batch, self.has_aux), state)

        averaged = self._m_sharpness(part)(given.params, given.batch, state)
        return cast("Averaged", averaged)

    def _m_sharpness(self, part: Callable[..., Any]) -> Callable[..., Any]:
        return m_sharpness(
            part,
            microbatch_size=self.microbatch_size,
            axis_name=self.axis_name,
            mesh=self.mesh,
            at_once=self.at_once,
        )
