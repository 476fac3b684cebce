"""Finished runs, kept in a JSON that is written after each of them.

Kill it at any time: only the run in progress is lost. Start the same command several
times, and the processes share the work: a run is locked while one of them makes it.
"""

import contextlib
import fcntl
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

Key = dict[str, object]  # what identifies a run: study, task, row, settings, seed
WAIT = 1.0  # seconds between two looks at what the other processes have done


class Store:
    """The runs of one file; those of other processes too."""

    def __init__(self, path: Path):
        self.path = Path(path).resolve()
        name = hashlib.sha256(str(self.path).encode()).hexdigest()[:16]
        self._locks = Path(tempfile.gettempdir()) / f"optax_sam_runs_{name}"
        self.head: dict = {}  # what the file says beside its runs
        self._runs: dict[str, dict] = {}
        self._read_at: tuple | None = None
        self.read()

    def read(self) -> None:
        """What the file holds by now."""
        if not self.path.exists():
            return
        status = self.path.stat()
        if (stamp := (status.st_mtime_ns, status.st_ino)) != self._read_at:
            self.head = json.loads(self.path.read_text(encoding="utf-8"))
            self._runs = {named(run["key"]): run for run in self.head.pop("runs")}
            self._read_at = stamp

    def find(self, key: Key) -> dict | None:
        """The result of this run, if it is done."""
        run = self._runs.get(named(key))
        return run and run["found"]

    def keys(self) -> list[Key]:
        return [run["key"] for run in self._runs.values()]

    def run(self, keys: Iterable[Key], work: Callable[[Key], dict]) -> None:
        """`work(key)` for all that is missing, shared with whoever does the same."""
        left = list(keys)
        while left := [key for key in left if self.find(key) is None]:
            if not any([self._try(key, work) for key in left]):
                time.sleep(WAIT)
                self.read()

    def _try(self, key: Key, work: Callable[[Key], dict]) -> bool:
        """Make this run, unless another process is making it or has made it."""
        with self._lock(named(key)) as mine:
            self.read()
            if not mine or self.find(key) is not None:
                return False
            self._add(key, work(key))
        return True

    def _add(self, key: Key, found: dict) -> None:
        with self._lock("file", wait=True):
            self.read()
            self._runs[named(key)] = {"key": key, "found": found}
            self._write()

    def describe(self, head: dict) -> None:
        """Let the file say this beside its runs."""
        with self._lock("file", wait=True):
            self.read()
            self.head = head
            self._write()

    def _write(self) -> None:
        """One line a run; the old file stays until the new one is complete."""
        head = "".join(
            f"{json.dumps(k)}: {json.dumps(v)},\n" for k, v in self.head.items()
        )
        runs = ",\n".join(json.dumps(run) for run in self._runs.values())
        part = self.path.with_suffix(".part")
        part.write_text(f'{{{head}"runs": [\n{runs}\n]}}\n', encoding="utf-8")
        part.replace(self.path)

    @contextlib.contextmanager
    def _lock(self, name: str, wait: bool = False) -> Iterator[bool]:
        """Whether it is ours; the system opens it when a process ends, however."""
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        self._locks.mkdir(exist_ok=True)
        with (self._locks / digest).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True


def named(key: Key) -> str:
    """Equal for equal keys, whatever the order of their parts."""
    return json.dumps(key, sort_keys=True)
