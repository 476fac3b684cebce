"""How sharp is it here? Rises, curvature and slices of a loss, as pure functions.

Everything here measures one loss function at one set of parameters, in evaluation
mode, and best on **held-out** data: around memorized examples loss and curvature
vanish together. Either close the loss over the data, `lambda p: loss_fn(p, batch)`,
or hand over `loss_fn(params, batch)` and `batches=`, for a mean over more data than
fit one batch. All of it works under `jax.jit`, which is worth it for what is measured
more than once.

Flat or sharp is a property of the parametrization as much as of the solution: the
numbers compare runs of one network, not networks, and a flatter minimum is no promise
of better accuracy. With every number report rho, the norm, m, the data, the steps.
"""

from optax_sam.measure._average import average_sharpness as average_sharpness
from optax_sam.measure._climb import climb_sharpness as climb_sharpness
from optax_sam.measure._estimate import Estimate as Estimate
from optax_sam.measure._hessian import hessian_eigenvalues as hessian_eigenvalues
from optax_sam.measure._landscape import (
    filter_normalized_direction as filter_normalized_direction,
)
from optax_sam.measure._landscape import loss_along as loss_along
from optax_sam.measure._landscape import loss_plane as loss_plane
from optax_sam.measure._logits import normalize_logits as normalize_logits
from optax_sam.measure._pac_bayes import pac_bayes_term as pac_bayes_term
from optax_sam.measure._radius_sweep import RadiusSweep as RadiusSweep
from optax_sam.measure._radius_sweep import radius_sweep as radius_sweep
from optax_sam.measure._spectrum import SpectralDensity as SpectralDensity
from optax_sam.measure._spectrum import hessian_trace as hessian_trace
from optax_sam.measure._spectrum import spectral_density as spectral_density
from optax_sam.measure._worst_case import worst_case_sharpness as worst_case_sharpness
