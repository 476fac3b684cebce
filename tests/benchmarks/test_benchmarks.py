"""The data, the training loop and the main demonstration in `benchmarks/`."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from benchmarks.accuracy import flatness, flatness_picture
from benchmarks.lib import evaluation, report, statistics, tasks, training
from benchmarks.lib.data import Examples, split
from benchmarks.lib.networks import Conv3x3
from benchmarks.lib.training import Kind, Settings

ROOT = Path(__file__).parents[2]
REPORTED = json.loads((report.RESULTS / "flatness.json").read_text(encoding="utf-8"))


def numbered(size):
    """Images that tell their number, also after centring and scaling."""
    images = np.arange(size, dtype=np.float32).reshape(size, 1, 1, 1)
    return Examples(images, (np.arange(size) * 7 % 10).astype(np.int32))


@pytest.mark.parametrize(("train", "noise"), [(50, 0.4), (60, 0.25), (30, 0.0)])
def test_exactly_that_share_of_the_training_labels_is_wrong(train, noise):
    data = numbered(200)
    cut = split(data, train, 40, noise, seed=3)
    everything = np.concatenate([part.images.ravel() for part in cut[:3]])
    where = np.argsort(np.argsort(everything))  # the numbers, as no two are equal
    true = np.split(data.labels[where], [train, train + 40])
    np.testing.assert_array_equal(cut.train.labels != true[0], cut.wrong)
    assert cut.wrong.sum() == round(noise * train)
    np.testing.assert_array_equal(cut.validation.labels, true[1])
    np.testing.assert_array_equal(cut.test.labels, true[2])
    assert set(cut.train.labels) <= set(range(10))


def test_parts_are_disjoint_and_drawn_anew_for_each_seed():
    data = numbered(200)
    drawn = []
    for seed in (0, 1):
        cut = split(data, 50, 40, 0.4, seed)
        everything = np.concatenate([part.images.ravel() for part in cut[:3]])
        assert len(np.unique(everything)) == 200
        where = np.argsort(np.argsort(everything))
        drawn.append([set(part) for part in np.split(where, [50, 90])])
    for first, second in zip(*drawn, strict=True):
        assert first != second
    again = split(data, 50, 40, 0.4, seed=1)
    np.testing.assert_array_equal(again.train.images, cut.train.images)
    np.testing.assert_array_equal(again.train.labels, cut.train.labels)


def test_images_are_scaled_by_the_training_images():
    cut = tasks.DIGITS.split(tasks.DIGITS.load(), seed=0)
    assert [len(part.labels) for part in cut[:3]] == [500, 400, 897]
    assert abs(cut.train.images.mean()) < 1e-5
    assert abs(cut.train.images.std() - 1) < 1e-5
    assert cut.wrong.sum() == 200


@pytest.mark.parametrize("stride", [1, 2])
def test_shifted_slices_are_a_convolution(stride):
    x = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
    ours = Conv3x3(5, stride)
    flax = nn.Conv(5, (3, 3), stride, padding=1, use_bias=False)
    params = ours.init(jax.random.key(1), x)
    np.testing.assert_allclose(ours.apply(params, x), flax.apply(params, x), atol=1e-5)


@pytest.mark.slow  # a study's machinery, not the library
def test_one_program_for_all_settings_and_lengths():
    task = flatness.tiny(flatness.COMPARISONS[0]).task
    kind = Kind(ascent="sam", microbatch=10)
    data = jax.device_put(task.split(task.load(), 0).train)

    def trained(settings, epochs):
        states = list(training.run(task, kind, settings, epochs, 7, data))
        assert [epoch for epoch, _, _ in states] == list(range(1, epochs + 1))
        return states[-1][1], [float(loss) for _, _, loss in states]

    network, losses = trained(Settings(0.1, 0.01, 0.1), 8)
    assert losses[-1] < losses[0]
    for leaf in jax.tree.leaves(network.batch_stats):
        assert leaf.dtype == jnp.float32
    again, _ = trained(Settings(0.1, 0.01, 0.1), 8)
    other, _ = trained(Settings(0.2, 0.0, 0.0), 2)
    assert training.compiled_epoch(task, kind)._cache_size() == 1
    first, same, different = (
        n.params["Dense_0"]["bias"] for n in (network, again, other)
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, different)


def test_the_rise_of_a_landscape():
    bowls = np.array([[3.0, 1.0, 5.0], [2.0, 1.0, 2.0], [9.0, 1.0, 9.0]])
    assert evaluation.rise(bowls) == 3.0


def test_flatter_is_said_only_where_it_is():
    def row(name, rise, difference, ascent):
        summary = {"rise": (rise, 0.1), "rise_over_base": difference}
        role = "SAM" if ascent else "base"
        return {
            "name": name,
            "role": role,
            "ascent": ascent,
            "rho": 0.1,
            "summary": summary,
        }

    base = row("SGD", 2.0, None, None)
    clear = flatness_picture.flatness_claim([base, row("SAM", 1.0, (-1.0, 0.1), "sam")])
    assert clear == "SGD:\nSAM is\n50 % flatter"
    for difference in ((-0.15, 0.1), (0.5, 0.1)):
        rows = [base, row("SAM", 2 + difference[0], difference, "sam")]
        assert "not flatter" in flatness_picture.flatness_claim(rows)


def test_what_is_reported_was_run_as_it_is_written():
    assert REPORTED["seeds"] == flatness.parse_seeds(flatness.SEEDS)
    pairs = zip(REPORTED["comparisons"], flatness.COMPARISONS, strict=True)
    for found, comparison in pairs:
        assert found["title"] == comparison.title
        for row, method in zip(found["methods"], comparison.methods, strict=True):
            assert row["name"] == method.name
            assert row["epochs"] == method.epochs
            assert Settings(row["lr"], row["decay"], row["rho"]) == method.settings
            kind = Kind(row["optimizer"], row["ascent"], row["microbatch"])
            assert kind == method.kind
            assert [run["seed"] for run in row["runs"]] == REPORTED["seeds"]


def test_the_reported_means_are_those_of_the_reported_runs():
    for comparison in REPORTED["comparisons"]:
        rows = comparison["methods"]
        base = flatness.with_role(rows, "base")
        best = flatness.with_role(rows, "best")
        for row in rows:
            said = row["summary"]
            for name in flatness.MEASURES:
                again = statistics.mean_and_error(flatness.of_runs(row, name))
                np.testing.assert_allclose(said[name], again, rtol=1e-3)
            for name, other in (("gain", base), ("gain_over_best_length", best)):
                again = flatness.gain(row, other, "test_accuracy")
                assert (said[name] is None) == (again is None)
                if again is not None:
                    np.testing.assert_allclose(said[name], again, atol=1e-3)
            for run in row["runs"]:
                again = evaluation.rise(np.array(run["landscape"]))
                np.testing.assert_allclose(run["rise"], again, rtol=1e-3)


def python(*arguments, root=ROOT):
    """As a user does, from the root of the repository or of a copy."""
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def check_tables(text):
    lines = text.splitlines()
    assert "…" not in text
    assert max(map(len, lines)) <= 80
    for comparison in REPORTED["comparisons"]:
        for row in comparison["methods"]:
            said = row["summary"]
            cells = [
                row["name"],
                report.plus_minus(said["test_accuracy"], 2),
                report.plus_minus(said["gain"], 2, "+"),
                report.plus_minus(said["gain_over_best_length"], 2, "+"),
                report.plus_minus(said["lambda_max_held_out"], 1),
            ]
            words = " ".join(cells).split()
            assert words in [line.split() for line in lines]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_tables_fit_a_terminal_of_80_columns(width):
    written = io.StringIO()
    terminal = Console(file=written, width=width, force_terminal=True, no_color=True)
    flatness.print_tables(REPORTED, terminal)
    check_tables(re.sub(r"\x1b\[[\d;]*m", "", written.getvalue()))


@pytest.mark.slow
def test_tables_fit_a_pipe(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    committed = report.RESULTS / "flatness.json"
    shutil.copyfile(committed, tmp_path / "flatness.json")
    done = script("--redraw", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    check_tables(done.stdout)


def script(*options):
    return python("-m", "benchmarks.accuracy.flatness", *options)


@pytest.mark.slow
def test_the_whole_path_on_tiny_sizes(tmp_path):
    done = script("--smoke", "--tasks", "digits", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "m-SAM, m = 10" in done.stdout
    result = json.loads((tmp_path / "flatness.json").read_text(encoding="utf-8"))
    assert [c["task"] for c in result["comparisons"]] == ["digits"]
    for row in (row for c in result["comparisons"] for row in c["methods"]):
        for run in row["runs"]:
            assert np.isfinite(np.array(run["landscape"])).all()
            assert run["lambda_max_held_out"] is not None
    picture = (tmp_path / "flatness.png").read_bytes()

    again = script("--redraw", "--out", str(tmp_path))
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "flatness.png").read_bytes() == picture


@pytest.mark.parametrize(
    ("options", "folder"),
    [([], "."), (["--smoke"], "smoke"), (["--redraw"], "redrawn")],
)
def test_what_is_written_unasked_goes_to_out(options, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "OUT", tmp_path)
    monkeypatch.setattr("sys.argv", ["cost.py", *options])
    name = "cost.json"
    (tmp_path / name).write_text("a long run's")
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / name).write_text("an earlier smoke run's")
    chosen = report.parse(report.parser("text", name))
    assert chosen.out == tmp_path / folder
    assert (tmp_path / name).read_text() == "a long run's"
    if chosen.smoke:
        assert not (chosen.out / name).exists()
    if chosen.redraw:
        committed = (report.RESULTS / name).read_bytes()
        assert (chosen.out / name).read_bytes() == committed


@pytest.mark.parametrize("folder", ["lib", "accuracy", "cost", "pods"])
def test_folders_need_themselves_and_what_is_shared(folder):
    for path in (ROOT / "benchmarks" / folder).glob("*.py"):
        text = path.read_text(encoding="utf-8")
        needs = set(re.findall(r"^ *from benchmarks\.(\w+)", text, re.MULTILINE))
        assert needs <= {folder, "lib"}, path
        assert folder != "lib" or "__main__" not in text, path


def test_no_script_names_the_committed_results_itself():
    scripts = set((ROOT / "benchmarks").glob("*/*.py"))
    for path in scripts - {Path(report.__file__)}:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"report\.RESULTS|[\"']results[\"']", text), path
        if "ArgumentParser(" in text or "__main__" in text:
            assert re.search(r"report\.parse\(|commands\.on_fashion\(", text), path
            assert "ArgumentParser(" not in text, path


def test_commands_in_results_are_without_folders(monkeypatch):
    path = "/somewhere/benchmarks/cost/gpu.py"
    options = ["--only", "ViT", "--out", "/a b", "--checkpoint=/c", "--minutes", "3.5"]
    options += ["--settings", "/d/settings.json", "--data=/e"]
    monkeypatch.setattr("sys.argv", [path, *options])
    assert report.command() == "python -m benchmarks.cost.gpu --only ViT --minutes 3.5"
    for file in report.RESULTS.glob("*.json"):
        command = json.loads(file.read_text(encoding="utf-8"))["command"]
        assert re.fullmatch(r"python -m benchmarks(\.\w+){2}( [^/~]+)*", command), file


def test_only_a_part_needs_the_others(tmp_path):
    with pytest.raises(SystemExit, match="leave --only out"):
        report.earlier(tmp_path / "cost.json")


def git(*arguments, root):
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_a_users_runs_leave_the_committed_results_alone(tmp_path):
    """The README's first command, cut short, then its second: in a copy, since a run
    that did write where it should not would break the checkout."""
    files = git("ls-files", "-z", "-co", "--exclude-standard", root=ROOT).split("\0")
    for name in filter(None, files):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    git("init", root=tmp_path)
    git("add", "--all", root=tmp_path)
    before = git("status", "--porcelain", root=tmp_path)

    for options in (["--smoke"], ["--redraw"]):
        module = "benchmarks.accuracy.label_noise"
        done = python("-m", module, *options, root=tmp_path)
        assert done.returncode == 0, done.stderr
    assert git("status", "--porcelain", root=tmp_path) == before
    written = {path.parent.name for path in (tmp_path / "out").rglob("*.png")}
    assert written == {"smoke", "redrawn"}

    readers = (
        "benchmarks/test_benchmarks",
        "docs/test_claims",
        "benchmarks/test_evidence",
        "docs/test_shown_numbers",
    )
    files = [f"tests/{name}.py" for name in readers]
    which = "reported or result or runs or json"
    tests = python("-m", "pytest", "-n", "0", "-k", which, *files, root=tmp_path)
    assert tests.returncode == 0, tests.stdout


@pytest.mark.slow
def test_mnist_is_inside_a_package():
    data = tasks.MNIST.load()
    assert data.images.shape == (5000, 14, 14, 1)
    np.testing.assert_array_equal(np.bincount(data.labels), [500] * 10)
    cut = tasks.MNIST.split(data, seed=0)
    assert [len(part.labels) for part in cut[:3]] == [1000, 1000, 3000]
    assert cut.wrong.sum() == 400


@pytest.mark.slow
def test_help_explains_itself():
    done = script("--help")
    assert done.returncode == 0
    for word in ("digits", "mnist", "--smoke", "--seeds", "--redraw", "two cores"):
        assert word in done.stdout
