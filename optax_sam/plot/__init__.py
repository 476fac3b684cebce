"""Pictures of what `optax_sam.measure` and the diagnostics say; needs matplotlib.

Every function draws into the axes it is given, or into a new figure, and returns the
figure. Several solutions share one scale. Lines differ in colour (Okabe and Ito's
palette, made for colour-blind readers), in style and in marker, maps in lightness, so
that a grey print says the same.
"""

import importlib.util

if importlib.util.find_spec("matplotlib") is None:
    raise ImportError(
        "optax_sam.plot needs matplotlib, an optional dependency. Install it with "
        "pip install 'optax-sam[plot]'."
    )

from optax_sam.plot._dashboard import dashboard as dashboard
from optax_sam.plot._lines import landscape as landscape
from optax_sam.plot._lines import spectral_densities as spectral_densities
from optax_sam.plot._planes import contours as contours
from optax_sam.plot._planes import surfaces as surfaces
from optax_sam.plot._sweep import radius_sweep as radius_sweep
