"""How the benchmarks show what they found: progress, statistics, JSON, colours."""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import optax_sam

RESULTS = Path(__file__).parent / "results"
PACKAGES = "jax jaxlib optax flax numpy scikit-learn mlxtend matplotlib".split()

# Okabe and Ito's palette, safe for the colour-blind: one colour for each method in all
# pictures, and greys for what is not sharpness-aware.
STYLES = {
    "base": {"color": "#000000", "ls": "-"},
    "best": {"color": "#555555", "ls": (0, (4, 1.5))},
    "shorter": {"color": "#999999", "ls": (0, (1, 1))},
    "longer": {"color": "#999999", "ls": "-"},
    "control": {"color": "#cc79a7", "ls": "-"},
    "SAM": {"color": "#0072b2", "ls": "-"},
    "ASAM": {"color": "#e69f00", "ls": "-"},
    "m-SAM": {"color": "#009e73", "ls": "-"},
}


def parser(description: str, result: str | None = None) -> argparse.ArgumentParser:
    """The options that scripts share: where to write, and how much to do."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--out", type=Path, help="the folder to write to (default benchmarks/results)"
    )
    made.add_argument(
        "--smoke",
        action="store_true",
        help="the whole path on tiny sizes in seconds, written to a temporary folder",
    )
    if result is not None:
        made.add_argument(
            "--redraw",
            action="store_true",
            help=f"show what {result} in --out holds; measure nothing",
        )
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The options given; a smoke run leaves the committed results alone."""
    options = made.parse_args()
    if options.out is None:
        temporary = options.smoke and not getattr(options, "redraw", False)
        options.out = Path(tempfile.mkdtemp()) if temporary else RESULTS
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def console(width: int = 140) -> Console:
    """As wide as the terminal, or wide enough for the tables where there is none."""
    made = Console()
    return made if made.is_terminal else Console(width=width)


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        expand=True,
    )


# --- statistics ---------------------------------------------------------------------


def mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    """The mean and its standard error (NaN for one value)."""
    values = np.asarray(list(values), float)
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def plus_minus(pair: tuple[float, float] | None, digits: int, sign: str = "") -> str:
    """As in "81.5 ± 0.7"; nothing for no pair, "?" for the error of a single value."""
    if pair is None:
        return ""
    mean, error = pair
    known = error is not None and np.isfinite(error)  # JSON has null for NaN
    return f"{mean:{sign}.{digits}f} ± " + (f"{error:.{digits}f}" if known else "?")


# --- files --------------------------------------------------------------------------


def provenance() -> dict:
    """What someone needs to run it again."""
    versions = {name: version(name) for name in PACKAGES}
    return {
        "command": " ".join(
            ["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
        ),
        "versions": {
            "python": platform.python_version(),
            "optax_sam": optax_sam.__version__,
            **versions,
        },
        "cpus": os.cpu_count(),
    }


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def write_json(path: Path, result: dict) -> None:
    """Indented, with every list of numbers on a line of its own."""
    text = json.dumps(rounded(result), indent=1, ensure_ascii=False)
    text = re.sub(r"\[[^][{}]*\]", lambda match: " ".join(match[0].split()), text)
    path.write_text(text + "\n", encoding="utf-8")


def rounded(tree):
    """Five significant digits: more than the seeds can tell apart."""
    if isinstance(tree, dict):
        return {key: rounded(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [rounded(value) for value in tree]
    if isinstance(tree, float | np.floating):
        return float(f"{tree:.5g}") if np.isfinite(tree) else None
    return tree


# --- pictures -----------------------------------------------------------------------


def picture_style() -> None:
    """Sizes that stay readable when a README shows the picture at half its width."""
    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {
            "figure.facecolor": "white",
            "savefig.dpi": 150,
            "font.size": 12,
            "axes.titlesize": 12.5,
            "axes.titlelocation": "left",
            "axes.titlepad": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#888888",
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e6e6e6",
            "xtick.color": "#444444",
            "ytick.color": "#444444",
            "lines.linewidth": 2,
            "lines.solid_capstyle": "round",
        }
    )


def same_limits(axes: Iterable[Axes], which: str) -> None:
    """One scale for panels that are to be compared."""
    axes = list(axes)
    limits = np.array([getattr(one, f"get_{which}lim")() for one in axes])
    for one in axes:
        one.set(**{f"{which}lim": (limits.min(), limits.max())})
