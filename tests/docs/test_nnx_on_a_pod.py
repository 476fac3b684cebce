"""The files of docs/nnx_on_a_pod.md: they run, and print and count what it says."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pages
import processes
import pytest

slow = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "nnx_on_a_pod.md"
FILE = re.compile(r"\s*# (\w+\.py)(, continued)?\n")
OUTPUT = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All files side by side, as the page asks."""
    folder = tmp_path_factory.mktemp("pod")
    for code in pages.blocks(PAGE):
        with (folder / FILE.match(code)[1]).open("a", encoding="utf-8") as file:
            file.write(code.lstrip("\n"))
    return folder


@pytest.fixture
def run(folder, monkeypatch):
    """Run a file in this process, on its eight devices; the names it leaves."""
    monkeypatch.syspath_prepend(folder)
    yield lambda name: runpy.run_path(str(folder / name))
    for name in ("model", "pod"):
        sys.modules.pop(name, None)


def said():
    return OUTPUT.findall(PAGE.read_text("utf-8"))


def losses(lines):
    return [line for line in lines if line.startswith("step")]


def train(folder, out, steps, count=2, devices=8):
    """What process 0 printed in a rehearsal; all must have ended well."""
    address = f"localhost:{processes.free_port()}"
    command = [sys.executable, folder / "train.py", out, str(steps), address]
    running = processes.start(
        [[*command, str(count), str(rank)] for rank in range(count)],
        JAX_PLATFORMS="cpu",
        JAX_NUM_CPU_DEVICES=str(devices // count),
        PYTHONPATH=str(ROOT),
        no_proxy="localhost",
    )
    ended = processes.finish(running)
    # Gloo's threads write lines of their own.
    printed = [[x for x in out.splitlines() if "Gloo" not in x] for out in ended]
    assert not any(printed[1:])
    return printed[0]


@slow
def test_on_one_host(run, capsys):
    run("one_host.py")
    loss = float(capsys.readouterr().out.split()[-1])
    assert 0 < loss < np.log(3) / 2


@slow
def test_the_counts(run, capsys):
    run("count.py")
    assert capsys.readouterr().out == said()[0]


@slow
def test_rehearsal_and_restart(folder, run, tmp_path):
    whole = train(folder, tmp_path / "run", 40)
    assert whole[0] + "\n" == said()[1]
    assert len(losses(whole)) == 4

    shutil.rmtree(tmp_path / "run" / "40")  # as if it had been cut off before
    resumed = train(folder, tmp_path / "run", 40)
    assert resumed[1] == "resumed after step 30"
    assert losses(resumed) == losses(whole)[3:]

    alone = np.array(run("one_host_sam.py")["losses"])[9::10]
    together = [float(line.split()[-1]) for line in losses(whole)]
    np.testing.assert_allclose(together[:1], alone[:1], rtol=1e-4)
    np.testing.assert_allclose(together, alone, rtol=1e-2)


def test_what_the_page_says_of_pods():
    text = (ROOT / "benchmarks" / "results" / "pod_compile.json").read_text("utf-8")
    rows = json.loads(text)["rows"]
    assert f"up to {max(row['chips'] for row in rows)} chips" in PAGE.read_text("utf-8")
    kept = ("topology", "parameters", "all-reduce", "all-reduce_bytes")
    base, m_sam = (
        [[row[name] for name in kept] for row in rows if row["step"] == step]
        for step in ("base", "m-sam")
    )
    assert base
    assert base == m_sam
    whole = [row for row in base if row[1] == "replicated"]
    assert {row[2] for row in whole} == {1}
