"""The studies on MNIST: shares of a gain, tuning on several seeds, and all commands."""

import dataclasses
import re
import subprocess

import numpy as np
import pytest

from benchmarks.accuracy import label_noise, mnist_5k, own_method, which_method
from benchmarks.lib import commands, fixed_sets, loop, methods, statistics
from benchmarks.lib.choose import Choice
from benchmarks.lib.store import Store
from benchmarks.lib.study import packed


def known(share: float, seeds=20, images=2000, noise=0.01, start=0) -> np.ndarray:
    """Classifiers that know the easiest images, seeds a little apart."""
    rng = np.random.default_rng(start)
    levels = share + rng.normal(0, noise, seeds)
    return np.linspace(0, 1, images)[None] < levels[:, None]


# --- shares -------------------------------------------------------------------------


@pytest.mark.slow  # a study's machinery, not the library
def test_a_share_is_the_ratio_of_the_gains():
    base, whole, ours = known(0.80), known(0.90), known(0.88)
    found = statistics.share(ours, whole, base, 0.05)
    assert found.of == pytest.approx(0.8, abs=0.02)
    assert found.low < found.of < found.high


@pytest.mark.slow  # a study's machinery, not the library
def test_more_intervals_at_once_are_wider():
    base, whole, ours = known(0.80, start=1), known(0.90, start=2), known(0.88)
    one = statistics.share(ours, whole, base, 0.05)
    six = statistics.share(ours, whole, base, 0.05 / 6)
    assert six.low < one.low < one.high < six.high


@pytest.mark.slow  # a study's machinery, not the library
def test_an_interval_holds_the_truth_as_often_as_it_says():
    """True gains of 8 and 10 points, eight seeds, errors of seeds alone: at 80 %, of
    400 intervals 320 hold the ratio, give or take 3 sqrt(400 * 0.8 * 0.2) = 24."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        images = np.linspace(0, 1, 200)
        levels = np.array([[0.5], [0.6], [0.58]]) + rng.normal(0, 0.02, (3, 8))
        base, whole, ours = images < levels[..., None]
        # the same images for all: what is left is the error of the seeds
        found = of_seeds_alone(ours, whole, base, 0.2)
        held += found is not None and found.low < 0.8 < found.high
    assert abs(held - 320) <= 24


def of_seeds_alone(*right_and_chance):
    """Each seed's accuracy on as many images that are all alike."""
    *right, chance = right_and_chance
    alike = [np.repeat(one.mean(1, keepdims=True), 2, axis=1) for one in right]
    return statistics.share(*alike, chance)


def test_no_share_of_a_gain_that_is_none():
    base, whole = known(0.80, noise=0.05), known(0.81, noise=0.05, start=1)
    assert statistics.share(base, whole, base, 0.05) is None


@pytest.mark.slow  # a study's machinery, not the library
def test_no_share_where_the_whole_gain_may_be_none():
    """Two and a half standard errors: at 95 % an interval, at 99.9 % none."""
    rng = np.random.default_rng(0)
    easy, noise = rng.random((1, 2000)), rng.normal(0, 0.01, (2, 20, 1))
    base, whole = easy < 0.8 + noise[0], easy < 0.8104 + noise[1]
    gain = statistics.gain(whole, base)
    assert 2.2 < gain.mean / gain.error < 2.9
    assert statistics.share(whole, whole, base, 0.05) is not None
    assert statistics.share(whole, whole, base, 0.001) is None


# --- the study ----------------------------------------------------------------------


class Formula:
    """A bench whose accuracy depends on the seed; on average lr 0.2 is the best."""

    def __init__(self, study):
        self.study = study
        empty = fixed_sets.Examples(np.zeros(100), np.zeros(100, np.int32))
        self.sets = fixed_sets.Sets(empty, empty)

    def work(self, key) -> dict:
        lr, seed = key["settings"].get("lr", 1.0), key["seed"]
        value = {0.1: (90, 60, 60), 0.2: (80,) * 3}.get(lr, (10,) * 3)[seed - 100]
        right = np.arange(100) < value
        return {
            "validation": value,
            "seconds": 0,
            "right": {"validation": packed(right)},
        }


def test_a_point_counts_by_its_mean_over_the_tuning_seeds(tmp_path):
    study = dataclasses.replace(mnist_5k.STUDY, seeds=(1000,))
    choice = Choice(Formula(study), Store(tmp_path / "runs.json"), lambda line: None)
    choice.of_base(mnist_5k.SGD)
    found = choice.base[mnist_5k.SGD, study.epochs]
    assert found.best["lr"] == 0.2  # 0.1 is better on the first seed
    assert found.value == 80
    right = choice.right(mnist_5k.SGD, "base", study.epochs, found.best)
    assert right.mean() == pytest.approx(0.8)


def test_a_method_is_searched_on_the_grid_of_the_base_too(tmp_path):
    study = label_noise.STUDY
    choice = Choice(Formula(study), Store(tmp_path / "runs.json"), lambda line: None)
    choice.of_base(mnist_5k.SGD)
    choice.of_method(mnist_5k.SGD, "SAM")
    start = [point for point, _ in choice.methods[mnist_5k.SGD, "SAM"].tried[:9]]
    grid = {(lr, decay) for lr in (0.1, 0.2, 0.4) for decay in (0.01, 0.02, 0.04)}
    assert {(point["lr"], point["decay"]) for point in start} == grid
    assert {point["rho"] for point in start} == {0.1}


def test_the_seeds_that_report_chose_nothing():
    study = mnist_5k.STUDY
    every = [study.seeds, study.tuning_seeds, own_method.SEEDS]
    every += [label_noise.STUDY.seeds, which_method.STUDY.seeds]
    together = [seed for seeds in every for seed in seeds]
    assert len(set(together)) == len(together)


def test_only_a_method_that_starts_late_has_a_program_for_each_length():
    kinds = {
        name: loop.Kind(None, name).of_length(165).steps for name in methods.BY_NAME
    }
    assert {name for name, steps in kinds.items() if steps} == {"last 1/5 of steps"}


@pytest.mark.slow  # a study's machinery, not the library
def test_before_the_last_fifth_it_is_the_base():
    """Ten steps, of which the last two climb: after eight (a schedule as if there were
    ten) the parameters are those of the base, after ten they are not."""
    data = fixed_sets.Examples(
        np.random.default_rng(0).normal(size=(80, 14, 14, 1)).astype(np.float32),
        np.arange(80, dtype=np.int32) % 10,
    )
    model = mnist_5k.tiny(mnist_5k.STUDY).model
    late = loop.Kind(model, "last 1/5 of steps", batch=8).of_length(10)
    schedule, start = loop.late_start(late, 0.1)
    assert start == 8
    assert float(schedule(9)) < float(schedule(8))  # which falls from there alone
    far, near = (
        loop.train(late, loop.Settings(0.1, 0.001, rho), 1, 0, data).params
        for rho in (0.5, 1e-9)
    )
    assert not np.allclose(far["Dense_0"]["kernel"], near["Dense_0"]["kernel"])


# --- all commands -------------------------------------------------------------------


def run(module, monkeypatch, capsys, *options) -> str:
    monkeypatch.setattr("sys.argv", ["script", *map(str, options)])
    module.main()
    return capsys.readouterr().out


@pytest.mark.slow
def test_all_commands_on_tiny_sizes(tmp_path, monkeypatch, capsys):
    said = run(mnist_5k, monkeypatch, capsys, "--smoke", "--out", tmp_path)
    assert "not run" not in said
    assert "nearest neighbours" in said
    assert max(map(len, said[said.index("SGD  ") :].splitlines())) <= 80
    picture = (tmp_path / "mnist_5k_smoke.png").read_bytes()
    commands.show(mnist_5k.tiny(mnist_5k.STUDY), tmp_path, mnist_5k.draw)
    assert said.endswith(capsys.readouterr().out)
    assert (tmp_path / "mnist_5k_smoke.png").read_bytes() == picture
    assert (tmp_path / "mnist_5k_smoke-dark.png").exists()


MINE = """
import optax_sam
from benchmarks.lib.methods import Method

METHOD = Method("mine", lambda setting: optax_sam.sam(setting.rho), gradients=2)
RHO = (0.1,)
"""


@pytest.mark.slow
def test_a_method_of_ones_own_beside_sam(tmp_path, monkeypatch, capsys):
    """The same method under another name gains nothing over SAM, at the same rho."""
    (tmp_path / "my.py").write_text(MINE)
    options = ("--method", tmp_path / "my.py", "--smoke", "--out", tmp_path)
    monkeypatch.setattr(own_method, "SEEDS", (3000, 3001))
    said = run(which_method, monkeypatch, capsys, *options)
    assert "validation images" in said
    mine = next(line for line in said.splitlines() if line.count("±") == 4)
    assert re.match(r"mine [0-9a-f]{6}  ", mine)  # over the base, and over SAM


def test_another_file_is_another_method(tmp_path):
    """Its runs are not those of the file that was there before."""
    names = []
    for text in (MINE, MINE, MINE.replace("setting.rho", "2 * setting.rho")):
        (tmp_path / "my.py").write_text(text)
        names.append(own_method.load(tmp_path / "my.py")[0].name)
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("RHO = (0.1,)", "METHOD"),
        (MINE.replace('"mine"', '"SAM"'), "name of its own|a name"),
    ],
)
def test_a_file_that_is_no_method_says_what_is_missing(text, match, tmp_path):
    (tmp_path / "my.py").write_text(text)
    with pytest.raises(ValueError, match=match):
        own_method.load(tmp_path / "my.py")


def test_settings_that_are_not_there_are_asked_for(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    out = str(tmp_path)
    options = ["script", "--report", "--out", out, "--settings", f"{out}/settings.json"]
    monkeypatch.setattr("sys.argv", options)
    with pytest.raises(RuntimeError, match="--tune"):
        mnist_5k.main()


@pytest.mark.parametrize("seeds", ["0", "11"])
def test_seeds_that_are_not_there_are_refused(seeds, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["label_noise", "--seeds", seeds])
    with pytest.raises(SystemExit):
        label_noise.main()
    assert "there are 10, take 1 to 10" in capsys.readouterr().err
