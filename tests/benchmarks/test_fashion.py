"""The study of Fashion-MNIST end to end on few images, none of which tests it."""

import json

import numpy as np
import pytest

from benchmarks.accuracy import fashion
from benchmarks.lib import blind, commands, fixed_sets, rehearsal, reporting
from benchmarks.lib.results import Results
from benchmarks.lib.store import Store


def numbered(size=60_000):
    """Images that tell their number, in place of the real ones."""
    images = np.arange(size, dtype=np.float32).reshape(size, 1, 1, 1)
    examples = fixed_sets.Examples(images, np.zeros(size, np.int32))
    official = fixed_sets.Examples(-images[:100], np.zeros(100, np.int32))
    return examples, {"official": official}


def test_a_rehearsal_reads_images_of_the_pool_alone():
    real = fixed_sets.Source(numbered, pool=20_000, validation=10_000, test=30_000)
    pool = set(real.indices()[0])
    examples, more = rehearsal.source(real).read()
    seen = [*examples.images.ravel(), *more["official"].images.ravel()]
    assert set(seen) <= pool
    assert len(set(seen)) == len(seen)


def test_a_smoke_run_without_the_images_says_so_and_ends(tmp_path, capsys):
    study = fashion.tiny(fashion.full(tmp_path))
    commands.smoke(study, tmp_path, fashion.draw)
    said = capsys.readouterr().out
    assert said.startswith("Skipped")
    assert "dataset-fashion-mnist" in said


@pytest.mark.slow
def test_all_commands_in_a_row(tmp_path, monkeypatch, capsys):
    if not fixed_sets.FASHION.is_dir():
        pytest.skip("no dataset-fashion-mnist here")
    command = ["fashion", "--smoke", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    fashion.main()
    said = capsys.readouterr().out
    assert "not run" not in said
    assert (tmp_path / "fashion_smoke.png").exists()

    path = tmp_path / "fashion_smoke_report.json"
    permit = blind.Committed(tmp_path / "fashion_smoke_settings" / "settings.json")
    written = json.loads(path.read_text())
    assert written["settings_blob"] == permit.blob
    assert written["settings"] == permit.settings
    assert {run["key"]["settings_blob"] for run in written["runs"]} == {permit.blob}
    assert {run["key"]["seed"] for run in written["runs"]} == {1000, 1001}
    for run in written["runs"]:
        assert set(run["found"]["right"]) == {"test", "official"}
        assert ("training_loss" in run["found"]) == (run["key"]["epochs"] > 0)

    study = fashion.tiny(fashion.full(fixed_sets.FASHION))
    found = Results(Store(path))
    shown = [line for line in said.splitlines() if " SAM's " in line]
    assert len(shown) == 8  # two methods, two tasks, over two bases
    for task in study.tasks:
        for row in found.rows(task):
            right = 100 * found.right(task, row).mean(1)
            runs = [run["test"] for run in found.runs(task, row)]
            np.testing.assert_allclose(right, runs, atol=1e-3)
    # Everything is there: nothing runs, and the file stays as it is.
    lines = []
    reporting.run(study, permit, Store(path), lines.append)
    assert lines == []
    assert json.loads(path.read_text())["runs"] == written["runs"]
