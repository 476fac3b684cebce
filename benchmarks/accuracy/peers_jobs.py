"""What peers.py has all libraries train: methods, tasks, settings, and batches."""

from typing import NamedTuple

import numpy as np

from benchmarks.accuracy.flatness import COMPARISONS, tiny
from benchmarks.lib.tasks import DIGITS, MNIST, Task
from benchmarks.lib.training import Settings

# The methods: each library's SAM, and the plain optimizer of its framework.
OURS, CONTRIB, TORCH = "optax_sam", "optax.contrib.sam", "pytorch_optimizer"
SGD, TORCH_SGD = "SGD (Optax)", "SGD (PyTorch)"
JAX_METHODS, TORCH_METHODS = (SGD, OURS, CONTRIB), (TORCH_SGD, TORCH)
METHODS = JAX_METHODS + TORCH_METHODS


class Job(NamedTuple):
    """A task, and how it is trained."""

    name: str
    task: Task
    settings: Settings
    epochs: int

    @property
    def steps(self) -> int:
        return self.epochs * (self.task.train // self.task.batch)


def jobs(smoke: bool) -> list[Job]:
    """Each task as flatness.py trains it by SGD with SAM."""
    found = []
    for name, task in (("MLP", MNIST), ("conv net", DIGITS)):
        comparison = next(c for c in COMPARISONS if c.task is task)
        comparison = tiny(comparison) if smoke else comparison
        sam = next(m for m in comparison.methods if m.role == "SAM")
        found.append(Job(name, comparison.task, sam.settings, sam.epochs))
    return found[:1] if smoke else found


def batches(job: Job, seed: int) -> np.ndarray:
    rng, batch = np.random.default_rng(seed), job.task.batch
    rows = [
        rng.permutation(job.task.train)[: job.task.train // batch * batch]
        for _ in range(job.epochs)
    ]
    return np.concatenate(rows).reshape(-1, batch)
