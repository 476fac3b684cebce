"""Over which examples: the one place where sub-batches are averaged."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
from jax.sharding import Mesh

from optax_sam import _devices
from optax_sam._checks import check_whole
from optax_sam._examples.sub_batches import (
    Parts,
    average_over,
    batch_size,
    count_sub_batches,
)
from optax_sam._keys import fold_keys, is_lone_key, warn_of_raw_keys
from optax_sam._trees import fill, partition
from optax_sam._types import AxisName, Tree

#: `part(params, examples, rest) -> Parts`: the work on one sub-batch.
Part: TypeAlias = Callable[[Tree, Tree, Any], Parts]

#: `mean(averaged, rest, names)`: the average over devices.
Mean: TypeAlias = Callable[[Tree, Any, tuple[str, ...]], Tree]


def mean_of_all(averaged: Tree, rest: Any, names: tuple[str, ...]) -> Tree:
    """The average over devices, in one collective for each dtype."""
    del rest
    return _devices.mean(averaged, names)


@dataclass(frozen=True)
class SubBatches:
    """Which examples climb together; see `m_sharpness` for the answers."""

    microbatch_size: int | None = None
    axis_name: AxisName | None = None
    mesh: Mesh | None = None
    at_once: int | None = None
    unroll: int | bool | None = None

    def __post_init__(self) -> None:
        unroll = None if isinstance(self.unroll, bool) else self.unroll
        numbers = {"microbatch_size": self.microbatch_size, "at_once": self.at_once}
        for name, value in (numbers | {"unroll": unroll}).items():
            if value is not None:
                check_whole(name, value)
        if self.at_once is not None and self.microbatch_size is None:
            raise ValueError(
                f"at_once = {self.at_once} says how many micro-batches run side by "
                f"side, but there are none: give microbatch_size= as well."
            )
        if self.mesh is not None and self.axis_name is None:
            raise ValueError(
                f"A mesh was given without axis_name. Its axes are "
                f"{self.mesh.axis_names}: name the one along which the examples are "
                f"split, axis_name=..."
            )

    def refuse_none(self) -> None:
        """Refuse to be the whole batch."""
        if self.whole:
            raise ValueError(
                "m-sharpness needs to know the sub-batches: give microbatch_size= (the "
                "examples in each), axis_name= (one for each device), or both."
            )

    @property
    def whole(self) -> bool:
        """Whether all examples climb together."""
        return self.microbatch_size is None and self.axis_name is None

    @property
    def split(self) -> bool:
        """Whether batches are split here, so that clean gradients are taken here."""
        return self.microbatch_size is not None or self.mesh is not None

    @property
    def names(self) -> tuple[str, ...]:
        """The mapped axes, as a tuple."""
        names = () if self.axis_name is None else self.axis_name
        return (names,) if isinstance(names, str) else tuple(names)

    def average(
        self,
        part: Part,
        params: Tree,
        batch: Tree,
        rest: Any,
        mean: Mean = mean_of_all,
        own_keys: bool = True,
    ) -> Parts:
        """`part(params, examples, rest)` on every sub-batch, averaged over all.

        Every typed random key in `rest` and, with `own_keys`, in the batch is folded
        with the global index of the sub-batch, unless all examples climb together.
        """
        if self.whole:
            return part(params, batch, rest)
        warn_of_raw_keys(rest)
        lone = jax.tree.map(lambda x: own_keys and is_lone_key(x), batch)
        examples, lone_keys = partition(batch, lone)
        whole = params, rest, lone_keys

        def local(examples: Tree, whole: Any) -> Parts:
            return self._local(part, mean, examples, whole)

        if self.mesh is None:
            self._check_cut(examples)
            return local(examples, whole)
        _devices.check_mesh(self.mesh, self.names, batch_size(examples))
        return Parts(*_devices.enter(local, self.mesh, self.names)(examples, whole))

    def _check_cut(self, examples: Tree) -> None:
        if self.microbatch_size is not None:
            batch_size(examples)
            _devices.refuse_explicit(examples, "microbatch_size=")

    def _local(self, part: Part, mean: Mean, examples: Tree, whole: Any) -> Parts:
        """The average over this device's sub-batches, and then over the devices."""
        params, *keyed = whole
        names, count = _devices.axis_names(self.names), 1
        first: Any = 0
        if self.microbatch_size is not None:
            size = batch_size(examples)
            count = count_sub_batches(size, self.microbatch_size, self.at_once or 1)
        if names:
            params = _devices.per_device(params, names)
            first = count * jax.lax.axis_index(names)

        def one(index: Any, examples: Tree) -> Parts:
            rest, lone_keys = fold_keys(keyed, index)
            return part(params, fill(examples, lone_keys), rest)

        parts = average_over(
            one, examples, count, first, self.at_once or 1, self.unroll or 1
        )
        if not names:
            return parts
        return parts._replace(averaged=mean(parts.averaged, keyed[0], names))
