"""The loss among the arguments of `update`, whatever a trainer calls it."""

import difflib
from collections.abc import Callable
from typing import Any

from optax_sam._old_spellings import refuse
from optax_sam._types import Tree

#: What others call the loss, or what is made of it.
ALIKE = ("value_fn", "obj_fn", "loss_fn", "loss", "grad_fn", "fn", "closure", "value")


def find_loss(
    value_fn: Any, params: Tree, batch: Tree, split: bool, extra_args: dict[str, Any]
) -> Callable[..., Any]:
    """The loss of this step; refused where `update` lacks what SAM needs.

    It is `value_fn` or, as Levanter's trainer and `optax.contrib.sophia` call it,
    `obj_fn`. All other extra arguments are for the neighbours in the chain.
    """
    if "climb" in extra_args:
        refuse("update", "climb", "update no longer takes `climb`")
    obj_fn = extra_args.get("obj_fn")
    both = value_fn is not None and obj_fn is not None
    if both and value_fn is not obj_fn and value_fn != obj_fn:
        raise TypeError(
            "`update` was given two losses, value_fn= and obj_fn=, and each is taken "
            "for the loss of this step. Give one of them, or the same under both names."
        )
    loss: Any = obj_fn if value_fn is None else value_fn
    if loss is None:
        _refuse_missing(params, extra_args)
    if params is None:
        raise ValueError(
            "SAM climbs from the parameters, so `update` needs them; got "
            "params=None. Write update(grads, state, params, value_fn=...)."
        )
    if split and batch is None:
        raise ValueError(
            "With microbatch_size= or mesh= SAM splits the batch itself, so it "
            "must see it: update(None, state, params, value_fn=loss_fn, "
            "batch=batch), with loss_fn(params, batch)."
        )
    found: Callable[..., Any] = loss
    return found


def _refuse_missing(params: Tree, extra_args: dict[str, Any]) -> None:
    """Refuse an update without a loss, and name what looks like one."""
    needs = "the loss of this step"
    if params is None:
        needs = "the parameters, from which it climbs, and the loss of this step"
    given = [f"{name}=" for name, x in extra_args.items() if _looks_like_one(name, x)]
    found = ""
    if given:
        found = (
            f" It was given {' and '.join(given)}, but the loss is called value_fn= "
            f"here: a function of the parameters that returns a scalar."
        )
    raise TypeError(
        f"SAM takes a second gradient, so `update` needs {needs}.{found} Write "
        f"update(grads, state, params, value_fn=lambda p: loss_fn(p, batch))."
    )


def _looks_like_one(name: str, x: Any) -> bool:
    if x is None:
        return False
    return callable(x) or bool(difflib.get_close_matches(name, ALIKE, cutoff=0.75))
