"""How the benchmarks show what they found: progress, numbers, JSON, colours."""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

import optax_sam

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"  # committed: what the pages tell of
OUT = ROOT / "out"  # ignored by git
WORK = ("smoke", "tune", "report")  # options that --redraw cannot stand beside
PACKAGES = "jax jaxlib optax flax numpy scikit-learn mlxtend matplotlib".split()

# Okabe and Ito's palette, safe for the colour-blind: one colour for each method in all
# pictures, and greys for what is not sharpness-aware.
STYLES = {
    "base": {"color": "#000000", "ls": "-"},
    "best": {"color": "#555555", "ls": (0, (4, 1.5))},
    "shorter": {"color": "#808080", "ls": (0, (1, 1))},
    "longer": {"color": "#808080", "ls": "-"},
    "control": {"color": "#cc79a7", "ls": "-"},
    "SAM": {"color": "#0072b2", "ls": "-"},
    "ASAM": {"color": "#e69f00", "ls": "-"},
    "m-SAM": {"color": "#009e73", "ls": "-"},
}


def parser(description: str, *results: str) -> argparse.ArgumentParser:
    """The options that scripts share: where to write, and how much to do. With the
    names of committed results there is a --redraw."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.set_defaults(results=results, redraw=False)
    made.add_argument(
        "--out",
        type=Path,
        help="the folder to write to, and to go on from (default out/, which git "
        "ignores; --out benchmarks/results replaces the committed results)",
    )
    made.add_argument(
        "--smoke",
        action="store_true",
        help="the whole path on tiny sizes in seconds (default folder out/smoke)",
    )
    if results:
        made.add_argument(
            "--redraw",
            action="store_true",
            help=f"measure nothing: show what {' and '.join(results)} in --out holds, "
            "or without --out what is committed, from a copy in out/redrawn",
        )
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The options given, with a folder to write to that is there."""
    options = made.parse_args()
    others = [name for name in WORK if getattr(options, name, False)]
    if options.redraw and others:
        made.error(f"--redraw measures nothing: leave it or --{others[0]} out")
    if options.out is None:
        options.out = default_folder(options)
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def default_folder(options: argparse.Namespace) -> Path:
    """Never that of the committed results. Smoke runs and redrawn results have one of
    their own, so as not to spoil what a longer run has left in out/."""
    if options.redraw:
        folder = OUT / "redrawn"
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.results:
            shutil.copyfile(RESULTS / name, folder / name)
        return folder
    if options.smoke:
        folder = OUT / "smoke"
        for name in options.results:  # a script that resumes would find all done
            (folder / name).unlink(missing_ok=True)
        return folder
    return OUT


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


# --- numbers ------------------------------------------------------------------------


def plus_minus(pair: tuple[float, float] | None, digits: int, sign: str = "") -> str:
    """As in "81.5 ± 0.7"; nothing for no pair, "?" for the error of a single value."""
    if pair is None:
        return ""
    mean, error = pair
    known = error is not None and np.isfinite(error)  # JSON has null for NaN
    return f"{mean:{sign}.{digits}f} ± " + (f"{error:.{digits}f}" if known else "?")


# --- files --------------------------------------------------------------------------


def earlier(path: Path) -> dict:
    """What an earlier run left there, of which --only makes one part anew."""
    if not path.exists():
        sys.exit(
            f"--only makes a part of {path} anew, and there is none yet: leave --only "
            "out, or name the folder of an earlier run with --out"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def table(title: str, *names: str) -> Table:
    """Words in the first column, numbers in the others."""
    made = Table(title=title, title_justify="left")
    for number, name in enumerate(names):
        made.add_column(name, justify="right" if number else "left", no_wrap=True)
    return made


def committed(name: str) -> dict:
    """A committed result, to read: what another script found."""
    return json.loads(where_committed(name).read_text(encoding="utf-8"))


def where_committed(name: str) -> Path:
    """Where it is, or would be."""
    return RESULTS / name


def command() -> str:
    """What was run, without the folders of this machine."""
    folders = argparse.ArgumentParser(add_help=False)
    for name in ("--out", "--settings", "--data", "--checkpoint"):
        folders.add_argument(name)
    _, rest = folders.parse_known_args(sys.argv[1:])
    script = Path(sys.argv[0])
    module = f"benchmarks.{script.parent.name}.{script.stem}"
    return " ".join(["python", "-m", module, *rest])


def provenance() -> dict:
    """What someone needs to run it again."""
    versions = {name: version(name) for name in PACKAGES}
    return {
        "command": command(),
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
    """Indented, with every list of numbers on a line of its own; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
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
