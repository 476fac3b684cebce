"""The smaller tasks, three studies of one script: seeds, tables, picture, commands."""

import json

import pytest

from benchmarks.accuracy import (
    fashion,
    fine_tuning_imagenet,
    label_noise,
    mnist_5k,
    other_tasks,
    own_method,
    untuned,
    which_method,
)
from benchmarks.lib import (
    blind,
    fixed_sets,
    gains_picture,
    gains_table,
    results,
    results_table,
)
from benchmarks.lib.results import Results, Verdict
from benchmarks.lib.statistics import Gain
from benchmarks.lib.store import Store

STUDIES = other_tasks.studies(fixed_sets.FASHION)
METHODS = ["SAM", "ASAM", "m-SAM"]


def test_the_seeds_that_report_are_new():
    others = [mnist_5k.STUDY, label_noise.STUDY, which_method.STUDY]
    others += [fashion.full(fixed_sets.FASHION)]
    others += [fine_tuning_imagenet.full(fixed_sets.FASHION)]
    seen = {seed for one in (*others, *STUDIES) for seed in one.tuning_seeds}
    seen |= {seed for one in others for seed in one.seeds}
    seen |= {*own_method.SEEDS, *untuned.SEEDS}
    assert not seen & {*other_tasks.SEEDS}
    assert {seed for one in STUDIES for seed in one.seeds} == {*other_tasks.SEEDS}


def test_all_tasks_have_the_same_methods_and_whole_sub_batches():
    for study in STUDIES:
        assert study.batch % study.m == 0
        assert all(list(task.rho) == METHODS for task in study.tasks.values())


def test_no_two_studies_share_a_name_or_a_task():
    tasks = [task for study in STUDIES for task in study.tasks]
    assert len({*tasks}) == len(tasks) == 9
    assert len({study.name for study in STUDIES}) == len(STUDIES)


# --- table and picture --------------------------------------------------------------


def test_a_long_name_has_a_line_for_itself():
    columns = 60 * "c"
    assert [*results_table.headed("short", 20, columns)] == [f"{'short':20}{columns}"]
    longest = max((task for study in STUDIES for task in study.tasks), key=len)
    assert [*results_table.headed(longest, 20, columns)] == [
        longest,
        f"{'':20}{columns}",
    ]


class MadeUp:
    """In place of results: the second method is not run on the last task."""

    def __init__(self, study):
        self.tasks = list(study.tasks)

    def methods(self, task):
        return METHODS

    def gains(self, task, method):
        if (task, method) == (self.tasks[-1], METHODS[1]):
            return None
        gain = Gain(1.0, 0.3, 0.4, 0.05)
        return dict.fromkeys((results.STEPS, results.GRADIENTS, results.LENGTH), gain)

    def verdicts(self):
        words = {"SAM": "gain", "ASAM": "suggestive", "m-SAM": "no gain"}
        return {
            (task, method): Verdict(self.gains(task, method), words[method], 0.05)
            for task in self.tasks
            for method in METHODS
        }


def test_the_table_of_all_tasks():
    head, *lines = gains_table.table([MadeUp(one) for one in STUDIES]).splitlines()
    assert head.split() == ["task", *METHODS]
    of = {line[:32].strip(): line[32:] for line in lines[:9]}
    assert list(of) == [task for study in STUDIES for task in study.tasks]
    assert of["MNIST CNN, clean"].split(maxsplit=6) == (
        ["+1.00", "/", "+1.00*", "+1.00", "/", "+1.00~", "+1.00 / +1.00"]
    )
    assert of["MNIST CNN, 60 % wrong"].split()[3:5] == ["not", "run"]
    assert max(map(len, (head, *lines))) <= 80


@pytest.mark.slow  # a study's machinery, not the library
def test_the_picture_of_all_tasks_is_readable(tmp_path):
    found = [MadeUp(study) for study in STUDIES]
    gains_picture.draw(found, tmp_path / "all.png")
    width = int.from_bytes((tmp_path / "all.png").read_bytes()[16:20], "big")
    assert width == 1400
    assert (tmp_path / "all-dark.png").exists()


def test_without_a_sound_network_there_is_nothing_to_show(tmp_path):
    nothing = MadeUp(STUDIES[0])
    nothing.tasks = []
    assert not gains_table.table([nothing])
    gains_picture.draw([nothing], tmp_path / "all.png")
    assert not (tmp_path / "all.png").exists()


# --- the commands -------------------------------------------------------------------


def run(monkeypatch, capsys, *options) -> str:
    monkeypatch.setattr("sys.argv", ["other_tasks", *map(str, options)])
    other_tasks.main()
    return capsys.readouterr().out


def test_without_a_report_there_is_no_table(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="nothing was reported yet"):
        run(monkeypatch, capsys, "--out", tmp_path)


def test_a_study_without_a_report_is_not_run(tmp_path, capsys):
    Store(tmp_path / f"{STUDIES[0].name}_report.json").describe({"study": "few"})
    assert other_tasks.begun(STUDIES, tmp_path) == STUDIES[:1]
    said = capsys.readouterr().out
    assert said.count("not run") == len(STUDIES) - 1
    assert "MNIST CNN, 60 % wrong: not run." in said


def test_no_report_of_settings_that_are_not_committed(tmp_path, monkeypatch, capsys):
    with pytest.raises(blind.NotCommittedError, match="--tune"):
        run(monkeypatch, capsys, "--report", "--settings", tmp_path, "--out", tmp_path)


@pytest.mark.slow
def test_all_commands_in_a_row(tmp_path, monkeypatch, capsys):
    if not fixed_sets.FASHION.is_dir():
        pytest.skip("no dataset-fashion-mnist here")
    said = run(monkeypatch, capsys, "--smoke", "--out", tmp_path)
    assert "not run" not in said
    assert (tmp_path / "other_tasks_smoke.png").exists()
    for study in map(other_tasks.tiny, STUDIES):
        path = tmp_path / f"{study.name}_report.json"
        settings = tmp_path / f"{study.name}_settings" / "settings.json"
        written = json.loads(path.read_text(encoding="utf-8"))
        assert written["settings_blob"] == blind.Committed(settings).blob
        seeds = {run["key"]["seed"] for run in written["runs"]}
        assert seeds == {*other_tasks.SEEDS[:2]}
        found = Results(Store(path))
        assert found.tasks == list(study.tasks)
        for task in found.tasks:
            assert found.methods(task) == METHODS
        table = results_table.table(found)
        assert table in said
        assert max(map(len, table.splitlines())) <= 80
