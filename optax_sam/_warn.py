"""Warnings, at the line of the user's own program."""

import sys
import warnings


def warn(message: str) -> None:
    """Warn at the user's own line, whatever stands between it and here."""
    passed = {"optax_sam", "jax", "optax", "flax", "equinox", "contextlib", "functools"}
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in passed:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level + 1)
