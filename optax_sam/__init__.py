"""Sharpness-aware minimization as Optax gradient transformations."""

from optax_sam._aliases import asam as asam
from optax_sam._aliases import friendly_sam as friendly_sam
from optax_sam._aliases import gsam as gsam
from optax_sam._aliases import m_sam as m_sam
from optax_sam._aliases import sam as sam
from optax_sam._aliases import wsam as wsam
from optax_sam._ascent import adaptive_ascent as adaptive_ascent
from optax_sam._ascent import climb_only as climb_only
from optax_sam._ascent import coarse_uniform as coarse_uniform
from optax_sam._ascent import friendly_ascent as friendly_ascent
from optax_sam._ascent import random_ascent as random_ascent
from optax_sam._ascent import steepest_ascent as steepest_ascent
from optax_sam._cheaper import esam as esam
from optax_sam._cheaper import look_sam as look_sam
from optax_sam._cheaper import momentum_sam as momentum_sam
from optax_sam._cheaper import partial_climb as partial_climb
from optax_sam._cheaper import random_perturbation as random_perturbation
from optax_sam._combine import gradient_norm_penalty as gradient_norm_penalty
from optax_sam._combine import surrogate_gap as surrogate_gap
from optax_sam._devices import mean_over as mean_over
from optax_sam._devices import per_device as per_device
from optax_sam._diagnostics import Diagnostics as Diagnostics
from optax_sam._m_sharpness import m_sharpness as m_sharpness
from optax_sam._policies import every_k as every_k
from optax_sam._policies import only_last as only_last
from optax_sam._policies import with_probability as with_probability
from optax_sam._schedules import proportional_rho as proportional_rho
from optax_sam._schedules import tail_schedule as tail_schedule
from optax_sam._sharpness_aware import sharpness_aware as sharpness_aware
from optax_sam._value_and_grad import value_and_grad as value_and_grad

__version__ = "0.1.0"
