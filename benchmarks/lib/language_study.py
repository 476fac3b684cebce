"""The study of a language model: its settings, one run of it, and what is chosen.

Test text never comes here but through `Bench.work`, for a report.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.lib import austen, language, report, resume
from benchmarks.lib.blind import Committed
from benchmarks.lib.grids import Axis, Found, fixed, search
from benchmarks.lib.language import BASE, Kind, Settings
from benchmarks.lib.models import Decoder
from benchmarks.lib.resume import Checkpoint, Clock, OutOfTime
from benchmarks.lib.store import Key, Store

TWICE, CHOSEN = "base, 2x steps", "base, length chosen"
BASE_ROWS = {BASE: 1, TWICE: 2}
AXES = {
    "lr": Axis((0.0005, 0.001, 0.002)),
    "decay": Axis((0.1, 0.3, 1.0), ratio=3.16, low=0.01),
}
RHO = {
    language.SAM: Axis((0.025, 0.05, 0.1), low=0.001),
    language.FUNCTIONAL: Axis((0.025, 0.05, 0.1), low=0.001),
    language.PRECONDITIONED: Axis((0.025, 0.05, 0.1), low=0.001),
    language.BOTH: Axis((0.025, 0.05, 0.1), low=0.001),
    language.MOMENTUM: Axis((0.05, 0.1, 0.2), low=0.001),
}
DECODER = Decoder(96, 384, 6, 6, dtype=jnp.bfloat16)
EVERY = 50  # steps between two looks at the clock


@dataclasses.dataclass(frozen=True)
class Study:
    """All that is fixed; `shortest` and `longest` bound the steps of the base."""

    text: Callable[[], austen.Text]
    test: Callable[[Committed], np.ndarray]
    name: str = "language_model"
    model: nn.Module = DECODER
    context: int = 256
    batch: int = 64
    steps: int = 1500
    shortest: int = 375
    longest: int = 6000
    base: dict[str, Axis] = dataclasses.field(default_factory=lambda: AXES)
    rho: dict[str, Axis] = dataclasses.field(default_factory=lambda: RHO)
    tuning_seeds: tuple[int, ...] = (100,)
    seeds: tuple[int, ...] = (1000, 1001, 1002)

    def key(self, method: str, steps: int, settings: dict, seed: int) -> Key:
        """A tuning run."""
        return {
            "study": self.name,
            "method": method,
            "steps": steps,
            "settings": settings,
            "seed": seed,
        }


class Bench:
    """What runs need: the text, the time, and where the run under way is saved."""

    def __init__(self, study: Study, clock: Clock, out: Path, tell=print):
        self.study, self.clock, self.out, self.tell = study, clock, out, tell
        self.text = study.text()
        self.train = jax.device_put(self.text.train)

    def started(self, key: Key):
        """The first state of a run, its step as `drive` takes it, and its model."""
        study = self.study
        kind = Kind(study.model, key["method"], study.context)
        init, step = language.compiled(kind)
        settings = Settings(**{k: float(v) for k, v in key["settings"].items()})
        size, steps = len(self.text.train), key["steps"]
        begin = language.starts(size, study.context, study.batch, steps, key["seed"])

        def numbered(state, number: int):
            return step(state, self.train, begin[number], settings, steps)

        return init(jax.random.key(key["seed"])), numbered, kind

    def work(self, key: Key, test: np.ndarray | None = None) -> dict:
        """One run, or the rest of one: its loss on the text that chooses, and of each
        block of a test."""
        kept = Checkpoint.of(self.out / self.study.name, key)
        state, step, kind = self.started(key)
        (params, _), seconds = resume.drive(
            state, step, key["steps"], self.clock, kept, EVERY
        )
        chosen_by = language.losses(kind, params, self.text.validation)
        found = {
            "validation": float(f"{np.mean(chosen_by):.6g}"),
            "seconds": round(seconds, 1),
            "device": jax.devices()[0].device_kind,
        }
        if test is not None:
            found["test"] = language.losses(kind, params, test)
        kept.remove()
        self.tell(
            f"{key['method']}, {key['steps']} steps, {key['settings']}, seed "
            f"{key['seed']}: {found['validation']:.4f} in {seconds:.0f} s"
        )
        return found


# --- choosing -----------------------------------------------------------------------


class Choice:
    """The base's learning rate and decay at the study's steps, at half and twice as
    many, and on until the best length lies between two that are worse; then the rho of
    each method. What was run before is taken from the store."""

    def __init__(self, bench: Bench, store: Store):
        self.bench, self.study, self.store = bench, bench.study, store
        self.lengths: dict[int, Found] = {}
        self.methods: dict[str, Found] = {}

    def run(self) -> dict:
        """All searches; the settings to commit."""
        study = self.study
        self.of_length(study.steps, study.base)
        while more := self.missing_lengths():
            for steps in more:
                self.of_length(steps, self.around(self.lengths[self.best_length()]))
        start = self.lengths[study.steps].best
        for method, axis in study.rho.items():
            points = {name: fixed(value) for name, value in start.items()}
            self.methods[method] = search(
                points | {"rho": axis},
                functools.partial(self.values, method, study.steps),
            )
        return self.settings()

    def values(self, method: str, steps: int, points: list[dict]) -> list[float]:
        """Minus the loss of each point, mean of the tuning seeds."""
        study = self.study
        keys = [
            study.key(method, steps, point, seed)
            for point in points
            for seed in study.tuning_seeds
        ]
        self.store.run(keys, self.bench.work)
        found = [self.store.find(key)["validation"] for key in keys]
        return (-np.reshape(found, (-1, len(study.tuning_seeds))).mean(1)).tolist()

    def of_length(self, steps: int, axes: dict[str, Axis]) -> None:
        evaluate = functools.partial(self.values, BASE, steps)
        self.lengths[steps] = search(axes, evaluate)

    def around(self, found: Found) -> dict[str, Axis]:
        """The base's axes, with that best point alone to start at."""
        return {
            name: dataclasses.replace(axis, start=(found.best[name],))
            for name, axis in self.study.base.items()
        }

    def best_length(self) -> int:
        return max(self.lengths, key=lambda steps: self.lengths[steps].value)

    def missing_lengths(self) -> list[int]:
        """Beside the best, and those that gains are taken over."""
        study, best = self.study, self.best_length()
        beside = [best // 2, 2 * best]
        inside = [n for n in beside if study.shortest <= n <= study.longest]
        wanted = inside + [times * study.steps for times in BASE_ROWS.values()]
        return [n for n in dict.fromkeys(wanted) if n not in self.lengths]

    def settings(self) -> dict:
        study, best = self.study, self.best_length()
        rows = {
            name: row(BASE, times * study.steps, self.lengths[times * study.steps])
            for name, times in BASE_ROWS.items()
        }
        rows[CHOSEN] = row(BASE, best, self.lengths[best])
        if not (study.shortest <= best // 2 and 2 * best <= study.longest):
            rows[CHOSEN]["at_bound"].append("steps")
        rows |= {name: row(name, study.steps, f) for name, f in self.methods.items()}
        return {
            "study": study.name,
            "tuning_seeds": list(study.tuning_seeds),
            "lengths": {n: -self.lengths[n].value for n in sorted(self.lengths)},
            "rows": rows,
        }


def row(method: str, steps: int, found: Found) -> dict:
    return {
        "method": method,
        "steps": steps,
        "settings": found.best,
        "validation": -found.value,
        "points": len(found.tried),
        "at_bound": found.at_bound(),
    }


def tune(bench: Bench, store: Store, path: Path) -> bool:
    """Search, and write what was chosen; whether it is all there now."""
    try:
        settings = Choice(bench, store).run()
    except OutOfTime:
        bench.tell(f"{len(store.keys())} runs are there: the same command goes on.")
        return False
    report.write_json(path, settings)
    bench.tell(f"Wrote {path.name}: commit it, then --report.")
    return True
