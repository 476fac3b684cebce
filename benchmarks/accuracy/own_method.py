"""A method of yours beside SAM: `python -m benchmarks.accuracy.which_method --method
my.py`.

The file has two names; the method is made with a `methods.Setting`, whose `rho` is
tuned:

    from benchmarks.lib.methods import Method

    METHOD = Method("mine", lambda setting: my_sam(setting.rho), gradients=2)
    RHO = (0.05, 0.1, 0.2)  # where the search starts

(`inside=True` of a method that takes its gradients itself.) Yours is tuned as SAM was,
over rho, learning rate and decay on three tuning seeds; then base, SAM and yours run on
ten new seeds. All of it on validation images: compare as often as you like, the test
images stay closed. Its name is followed by a few digits of the file's hash: what an
older file did is kept, and is not taken for the newer one's. Some minutes on two cores.
"""

import dataclasses
import hashlib
import runpy
import shutil
from pathlib import Path

import numpy as np

from benchmarks.accuracy import label_noise, mnist_5k
from benchmarks.lib import commands, methods, statistics
from benchmarks.lib.choose import Choice
from benchmarks.lib.grids import Axis
from benchmarks.lib.methods import Method
from benchmarks.lib.results_table import signed
from benchmarks.lib.store import Store
from benchmarks.lib.study import BASE, Bench, Study, unpacked

RUNS = Path(__file__).parents[1] / "runs" / "label_noise.json"
SEEDS = tuple(range(3000, 3010))


def compare(file: Path, out: Path, smoke: bool) -> None:
    """Tune yours, run all three, and print the gains."""
    method, rho = load(file)
    whole = dataclasses.replace(label_noise.STUDY, seeds=SEEDS)
    study = with_method(mnist_5k.tiny(whole) if smoke else whole, method, rho)
    store = Store(started(out / f"{study.name}_own.json"))
    bench = Bench(study)
    chosen = tuned(bench, store, [BASE, "SAM", method.name])
    right = {
        name: validated(bench, store, name, settings)
        for name, settings in chosen.items()
    }
    print(table(right, chosen))


def load(file: Path) -> tuple[Method, Axis]:
    """What the file says, under a name that changes when the file does; an error that
    says what is missing."""
    found = runpy.run_path(str(file))
    missing = [name for name in ("METHOD", "RHO") if name not in found]
    if missing or not isinstance(found["METHOD"], Method):
        raise ValueError(
            f"{file} has to define METHOD, a benchmarks.lib.methods.Method, and RHO, "
            "the radii where the search starts: METHOD = Method('mine', lambda "
            "setting: my_sam(setting.rho), gradients=2), RHO = (0.05, 0.1, 0.2)."
        )
    if found["METHOD"].name in methods.BY_NAME:
        raise ValueError(
            f"{found['METHOD'].name!r} is a method of the library: give yours a name "
            "of its own, so that the two are told apart."
        )
    name = f"{found['METHOD'].name} {hashlib.sha256(file.read_bytes()).hexdigest()[:6]}"
    return dataclasses.replace(found["METHOD"], name=name), Axis(tuple(found["RHO"]))


def with_method(study: Study, method: Method, rho: Axis) -> Study:
    """The same study with yours beside SAM."""
    methods.register(method)
    task = study.tasks[mnist_5k.SGD]
    task = dataclasses.replace(task, rho=task.rho | {method.name: rho})
    return dataclasses.replace(study, tasks={mnist_5k.SGD: task})


def started(path: Path) -> Path:
    """A file that has the tuning runs of the library's methods already."""
    if not path.exists() and RUNS.exists():
        shutil.copyfile(RUNS, path)
    return path


def tuned(bench: Bench, store: Store, names: list[str]) -> dict[str, dict]:
    """The settings of each, by the search that chose those of every method."""
    choice = Choice(bench, store, commands.tell)
    choice.of_base(mnist_5k.SGD)
    for name in names[1:]:
        choice.of_method(mnist_5k.SGD, name)
    base = choice.base[mnist_5k.SGD, bench.study.epochs].best
    methods_of = {name: choice.methods[mnist_5k.SGD, name].best for name in names[1:]}
    return {names[0]: base, **methods_of}


def validated(bench: Bench, store: Store, name: str, settings: dict) -> np.ndarray:
    """Per-image correctness on validation images, (seeds, images)."""
    study, count = bench.study, len(bench.sets.validation.labels)
    keys = [
        study.key(mnist_5k.SGD, name, study.epochs, settings, seed) for seed in SEEDS
    ]
    store.run(keys, bench.work)
    found = [store.find(key)["right"]["validation"] for key in keys]
    return np.stack([unpacked(text, count) for text in found])


def table(right: dict[str, np.ndarray], chosen: dict[str, dict]) -> str:
    """Accuracy on validation images, and gains over the base and over SAM."""
    lines = [
        f"{'validation images':22}{'accuracy':>10}{'over base':>16}{'over SAM':>16}"
    ]
    for name, of in right.items():
        gains = [
            "" if other == name else signed(statistics.gain(of, right[other]))
            for other in (BASE, "SAM")
        ]
        accuracy = f"{100 * of.mean():.2f}"
        lines.append(f"{name:22}{accuracy:>10}{gains[0]:>16}{gains[1]:>16}")
    lines += [f"{name}: {settings}" for name, settings in chosen.items()]
    lines.append(
        f"{len(SEEDS)} seeds; ± standard error over seeds ± that of the images. What "
        "chose the settings\nis what they are compared on: these gains flatter whoever "
        "was tried most."
    )
    return "\n".join(lines)
