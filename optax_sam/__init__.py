"""Sharpness-aware minimization as Optax gradient transformations."""

import typing as _typing

from optax_sam._ascent import adaptive_ascent as adaptive_ascent
from optax_sam._ascent import climb_only as climb_only
from optax_sam._ascent import friendly_ascent as friendly_ascent
from optax_sam._ascent import loss_equated_ascent as loss_equated_ascent
from optax_sam._ascent import random_ascent as random_ascent
from optax_sam._ascent import steepest_ascent as steepest_ascent
from optax_sam._combine import gradient_norm_penalty as gradient_norm_penalty
from optax_sam._combine import surrogate_gap as surrogate_gap
from optax_sam._core.diagnostics import Diagnostics as Diagnostics
from optax_sam._core.functional import (
    functional_value_and_grad as functional_value_and_grad,
)
from optax_sam._core.method import Method as Method
from optax_sam._core.method import Seen as Seen
from optax_sam._core.method import climbing as climbing
from optax_sam._core.sharpness_aware import sharpness_aware as sharpness_aware
from optax_sam._core.stateful_value_and_grad import (
    stateful_value_and_grad as stateful_value_and_grad,
)
from optax_sam._core.transformation import transformation as transformation
from optax_sam._core.value_and_grad import value_and_grad as value_and_grad
from optax_sam._devices import mean_over as mean_over
from optax_sam._devices import per_device as per_device
from optax_sam._examples.m_sharpness import m_sharpness as m_sharpness
from optax_sam._methods.asam import asam as asam
from optax_sam._methods.esam import esam as esam
from optax_sam._methods.friendly_sam import friendly_sam as friendly_sam
from optax_sam._methods.gsam import gsam as gsam
from optax_sam._methods.le_sam import le_sam as le_sam
from optax_sam._methods.look_sam import look_sam as look_sam
from optax_sam._methods.m_sam import m_sam as m_sam
from optax_sam._methods.momentum_sam import momentum_sam as momentum_sam
from optax_sam._methods.partial_climb import partial_climb as partial_climb
from optax_sam._methods.random_perturbation import (
    random_perturbation as random_perturbation,
)
from optax_sam._methods.sam import sam as sam
from optax_sam._methods.stale_sam import stale_sam as stale_sam
from optax_sam._methods.wsam import wsam as wsam
from optax_sam._schedules import proportional_rho as proportional_rho
from optax_sam._schedules import tail_schedule as tail_schedule
from optax_sam._when import every_k as every_k
from optax_sam._when import from_step as from_step
from optax_sam._when import with_probability as with_probability

# To a type checker it would say that there is every name, misspelt ones too.
if not _typing.TYPE_CHECKING:
    from optax_sam._old_spellings import __getattr__ as __getattr__

__version__ = "0.2.0"
