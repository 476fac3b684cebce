"""Finished runs survive; processes share what is left."""

import json
import multiprocessing
import os
import tempfile

import pytest

from benchmarks.lib.store import Store

KEYS = [{"seed": seed, "settings": {"lr": 0.1}} for seed in range(4)]


def test_killed_at_any_time_only_the_run_in_progress_is_lost(tmp_path):
    done = []

    def dies(key):
        if key["seed"] == 2:
            raise KeyboardInterrupt
        done.append(key["seed"])
        return {"value": key["seed"]}

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path / "runs.json").run(KEYS, dies)
    assert done == [0, 1]
    again = Store(tmp_path / "runs.json")
    again.run(KEYS, lambda key: done.append(key["seed"]) or {"value": key["seed"]})
    assert done == [0, 1, 2, 3]
    assert [again.find(key)["value"] for key in KEYS] == [0, 1, 2, 3]
    assert again.find({"settings": {"lr": 0.1}, "seed": 3}) == {"value": 3}
    assert again.find({"settings": {"lr": 0.2}, "seed": 3}) is None


def test_reading_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert Store(tmp_path / "runs.json").keys() == []
    assert not any(tmp_path.iterdir())


def test_what_the_file_says_beside_its_runs_stays(tmp_path):
    store = Store(tmp_path / "runs.json")
    store.describe({"blob": "abc"})
    store.run(KEYS[:1], lambda key: {"value": 1})
    read = json.loads((tmp_path / "runs.json").read_text())
    assert read["blob"] == "abc"
    assert len(read["runs"]) == 1


def _share(path, log):
    def work(key):
        with open(log, "a") as file:
            file.write(f"{key['seed']}\n")
        return {"by": os.getpid()}

    Store(path).run([{"seed": seed} for seed in range(40)], work)


def test_two_processes_make_each_run_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    arguments = (tmp_path / "runs.json", tmp_path / "log")
    both = [context.Process(target=_share, args=arguments) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
        assert one.exitcode == 0
    assert sorted(map(int, arguments[1].read_text().split())) == list(range(40))
    assert len(Store(arguments[0]).keys()) == 40
