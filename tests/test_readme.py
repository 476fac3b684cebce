"""What the README says is run, named and linked as it says.

Its ```python blocks are executed from top to bottom in one namespace, as by a reader
who pastes one after the other; tracebacks show the README's own line numbers.
"""

import importlib.util
import inspect
import json
import re
from pathlib import Path

import pages
import pytest

import optax_sam

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def text():
    return README.read_text(encoding="utf-8")


def public_names():
    items = vars(optax_sam).items()
    return sorted(n for n, x in items if n[0] != "_" and not inspect.ismodule(x))


def test_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what they write stays out of the checkout
    pages.run(README)


def test_both_forms_are_shown():
    code = "\n".join(pages.blocks(README))
    for needed in ("value_fn=", "optax.chain(optax_sam.", "optax_sam.value_and_grad("):
        assert needed in code
    assert len(pages.blocks(README)) > 2


def test_every_fence_is_closed():
    fences = re.findall(r"^ *```(\w*)$", text(), re.MULTILINE)
    assert fences[1::2] == [""] * (len(fences) // 2)
    assert len(fences) % 2 == 0


@pytest.mark.parametrize("name", public_names())
def test_public_name_is_in_it(name):
    assert re.search(rf"(?<![\w.])(optax_sam\.)?{name}(?!\w)", text())


def test_local_links_lead_somewhere():
    links = re.findall(r"\]\(([^)\s]+)", text()) + re.findall(r'src="([^"]+)"', text())
    assert links
    local = [link for link in links if "://" not in link]
    paths = {link.split("#")[0] for link in local} - {""}
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing
    anchors = {link[1:] for link in local if link.startswith("#")}
    assert anchors <= {anchor(title) for title in headings()}


def test_colab_badges_open_existing_notebooks():
    for path in re.findall(r"colab\.research\.google\.com/github/[^)\s\"]+", text()):
        notebook = path.split("/blob/")[1].split("/", 1)[1]
        assert (ROOT / notebook).exists(), notebook


def headings():
    return re.findall(r"^#+ (.+)$", text(), re.MULTILINE)


def anchor(title):
    """GitHub's name for the place of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_commands_name_existing_files():
    commands = re.findall(r"^(?: {4}|\$ )(.*python\S* .*)$", text(), re.MULTILINE)
    modules = {m for c in commands for m in re.findall(r"-m (benchmarks\S+)", c)}
    assert modules, "the first command of the README runs a benchmark"
    assert not [m for m in modules if not importlib.util.find_spec(m)]


def which_method_rows():
    """The README's table of what each method kept of SAM's gain, from the JSON."""
    results = ROOT / "benchmarks" / "results" / "which_method.json"
    methods = json.loads(results.read_text(encoding="utf-8"))["methods"]
    of = {(m["task"], m["method"]): m for m in methods}

    def cells(m):
        low, high = (f"{100 * x:.0f}" for x in m["share_interval"])
        gain, error = m["gain"]
        share = f"{100 * m['share']:.0f} % ({low} to {high})"
        return f"{gain:+.2f} ± {error:.2f} | {share}"

    names = dict.fromkeys(name for _, name in of)
    return {n: f"| {cells(of['digits', n])} | {cells(of['mnist', n])} |" for n in names}


def test_figures_of_which_method_are_those_of_its_json():
    rows = re.findall(r"^\| .*? (\| [+-][\d.]+ ± .*\|)$", text(), re.MULTILINE)
    shown = [row for row in rows if row.count("%") == 2]
    assert len(shown) > 8
    assert set(shown) <= set(which_method_rows().values())


def test_counted_costs_are_those_of_the_json():
    results = ROOT / "benchmarks" / "results" / "cost.json"
    networks = json.loads(results.read_text(encoding="utf-8"))["networks"].values()
    first = next(iter(networks))
    counted = {
        " | ".join(f"{rows[name]['flops']:.3f}" for rows in networks)
        + f" | {first[name]['evaluations']:.2f} |"
        for name in first
    }
    shown = re.findall(r"^\| .*? \| (\d\.\d{3} \| .*)$", text(), re.MULTILINE)
    assert len(shown) > 8
    assert set(shown) <= counted


def test_times_are_those_of_the_json():
    results = ROOT / "benchmarks" / "results" / "cost.json"
    networks = json.loads(results.read_text(encoding="utf-8"))["networks"].values()
    flat = " ".join(text().split())
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    for rows in networks:
        assert f"{rows['SAM']['time']['median']:.2f}" in flat
        over = rows["SAM"]["over_contrib"]
        low, high = over["interval"]
        shown = f"{over['mean']:.2f} ({low:.2f} to {high:.2f}"
        assert shown in flat
        assert shown in " ".join(page.split())


def test_published_settings_are_the_same_on_both_pages():
    published = text().split("## Which method, which rho, which m")[1]
    rows = re.findall(r"^\|.*(?:20\d\d|Composer).* \|$", published, re.MULTILINE)
    page = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    assert len(rows) > 8
    assert not [row for row in rows if row not in page]


def pairs(tree):
    """All pairs of a mean and its error in a result."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        if len(tree) == 2 and all(isinstance(x, float) for x in tree):
            yield tree
        for part in tree:
            yield from pairs(part)


@pytest.mark.parametrize("page", ["README.md", "docs/evidence.md"])
def test_every_mean_and_error_is_in_a_result(page):
    results = (ROOT / "benchmarks" / "results").glob("*.json")
    known = {
        (f"{abs(mean):.{digits}f}", f"{error:.{digits}f}")
        for path in results
        for mean, error in pairs(json.loads(path.read_text(encoding="utf-8")))
        for digits in (1, 2)
    }
    written = (ROOT / page).read_text(encoding="utf-8")
    shown = re.findall(r"(\d+\.\d+) ± (\d+\.\d+)", written)
    assert len(shown) > 20
    assert set(shown) <= known


def test_gains_on_other_tasks_are_those_of_the_json():
    results = ROOT / "benchmarks" / "results" / "generalization.json"
    summary = json.loads(results.read_text(encoding="utf-8"))["summary"]
    rows = {}
    for m in summary:
        if m["method"] in ("SAM", "ASAM", "m-SAM", "momentum SAM") and m.get("gain"):
            gains = m["gain"][0], m["gain_over_best_length"][0]
            rows.setdefault(m["task"], []).append("{:+.1f} / {:+.1f}".format(*gains))
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert len(rows) > 5
    for task, cells in rows.items():
        assert f"| {task} | {' | '.join(cells)} |" in page
