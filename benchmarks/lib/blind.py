"""Settings chosen blind: reporting takes them from a committed file and no other."""

import json
import subprocess
from pathlib import Path


class NotCommittedError(RuntimeError):
    """The settings are not those that the last commit has."""


class Committed:
    """Settings that equal what git's HEAD has of their file; `blob` is its hash.

    To make one is to have the permit that `fixed_sets.test_sets` asks for.
    """

    def __init__(self, path: Path):
        path = Path(path).resolve()
        self.blob = _git(path, "hash-object", "--", path.name)
        committed = _git(path, "rev-parse", f"HEAD:./{path.name}")
        if self.blob != committed:
            raise NotCommittedError(
                f"{path.name} differs from the file that the last commit has: commit "
                "what --tune wrote, or take back the change, and only then report."
            )
        self.settings = json.loads(path.read_text(encoding="utf-8"))


def _git(path: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=path.parent, capture_output=True, text=True
    )
    if done.returncode:
        raise NotCommittedError(
            f"git {arguments[0]} knows no committed {path.name}: write it with --tune "
            f"and commit it, and only then report. {done.stderr.strip()}"
        )
    return done.stdout.strip()
