"""The ascents, one file each: from a gradient to a climb."""

from optax_sam._ascent.adaptive import adaptive_ascent as adaptive_ascent
from optax_sam._ascent.friendly import friendly_ascent as friendly_ascent
from optax_sam._ascent.loss_equated import loss_equated_ascent as loss_equated_ascent
from optax_sam._ascent.masked import climb_only as climb_only
from optax_sam._ascent.random import random_ascent as random_ascent
from optax_sam._ascent.steepest import steepest_ascent as steepest_ascent
