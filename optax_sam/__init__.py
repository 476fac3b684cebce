"""Sharpness-aware minimization as Optax gradient transformations."""

from optax_sam._aliases import asam as asam
from optax_sam._aliases import m_sam as m_sam
from optax_sam._aliases import sam as sam
from optax_sam._ascent import adaptive_ascent as adaptive_ascent
from optax_sam._ascent import random_ascent as random_ascent
from optax_sam._ascent import steepest_ascent as steepest_ascent
from optax_sam._devices import mean_over as mean_over
from optax_sam._devices import per_device as per_device
from optax_sam._m_sharpness import m_sharpness as m_sharpness
from optax_sam._sharpness_aware import sharpness_aware as sharpness_aware
from optax_sam._value_and_grad import value_and_grad as value_and_grad

__version__ = "0.1.0"
