"""What a release consists of agrees: versions, workflows, hooks, imports."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import optax_sam

ROOT = Path(__file__).parents[2]
VERSION = optax_sam.__version__
FILES = [ROOT / ".pre-commit-config.yaml", *sorted((ROOT / ".github").rglob("*.yml"))]


def text(name):
    return (ROOT / name).read_text("utf-8")


def parsed(path):
    return pytest.importorskip("yaml").safe_load(path.read_text("utf-8"))


def test_versions_agree():
    project = tomllib.loads(text("pyproject.toml"))
    assert project["project"]["dynamic"] == ["readme", "version"]
    assert project["tool"]["hatch"]["version"]["path"] == "optax_sam/__init__.py"
    assert parsed(ROOT / "CITATION.cff")["version"] == VERSION
    assert re.search(r"^## (\S+)", text("CHANGELOG.md"), re.MULTILINE)[1] == VERSION


def test_all_name_one_repository():
    urls = tomllib.loads(text("pyproject.toml"))["project"]["urls"]
    repository = urls.pop("Repository")
    assert parsed(ROOT / "CITATION.cff")["repository-code"] == repository
    assert f"url     = {{{repository}}}" in text("README.md")
    assert f"  repository: {repository}\n" in text("mkdocs.yml")
    assert all(url.startswith(repository + "/") for url in urls.values())


def test_links_of_the_readme_lead_to_the_repository_on_pypi():
    project = tomllib.loads(text("pyproject.toml"))
    shown, repository = text("README.md"), project["project"]["urls"]["Repository"]
    hook = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    for one in hook["substitutions"]:
        shown = re.sub(one["pattern"], one["replacement"], shown)
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)", shown)
    assert all(link.startswith(("https://", "#")) for _, link in links)
    for picture, kind in (("!", "raw"), ("", "blob")):
        files = {
            link.removeprefix(f"{repository}/{kind}/main/").split("#")[0]
            for mark, link in links
            if mark == picture and link.startswith(repository)
        }
        assert files
        assert all((ROOT / file).is_file() for file in files), files


def test_a_classifier_for_each_python_that_the_gate_tries():
    found = tomllib.loads(text("pyproject.toml"))["project"]["classifiers"]
    found = [x.removeprefix("Programming Language :: Python :: ") for x in found]
    versions = [x for x in found if re.fullmatch(r"3\.\d+", x)]
    assert f"for version in {' '.join(versions)}; do" in text(".ci/run")


def test_the_types_are_shipped():
    assert (ROOT / "optax_sam" / "py.typed").exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_yaml_parses(path):
    assert isinstance(parsed(path), dict)


def commands(workflow):
    jobs = parsed(ROOT / ".github" / "workflows" / workflow)["jobs"].values()
    return [step.get("run") for job in jobs for step in job["steps"]]


def test_workflows_do_what_is_done_by_hand():
    assert "bash .ci/run" in commands("ci.yml")
    assert {"python -m build", "twine check --strict dist/*"} <= set(
        commands("release.yml")
    )
    assert "Not tried until the repository is public" in text(
        ".github/workflows/release.yml"
    )


def test_the_issue_form_asks_for_versions_and_diagnostics():
    form = parsed(ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml")
    assert {"versions", "diagnostics"} <= {item.get("id") for item in form["body"]}


def test_hooks_fetch_nothing():
    for repo in parsed(ROOT / ".pre-commit-config.yaml")["repos"]:
        assert repo["repo"] == "local"
        assert all(hook["language"] == "system" for hook in repo["hooks"])


@pytest.mark.slow
def test_hooks_pass(tmp_path):
    pytest.importorskip("pre_commit")  # extra `lint`
    in_path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", "--all-files"],
        cwd=ROOT,
        env={"PATH": in_path, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Passed") == 3


def modules_after(statement):
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_it_imports_nothing_more():
    more = modules_after("import jax, optax, optax_sam") - modules_after(
        "import jax, optax"
    )
    ours = {name for name in more if name.split(".")[0] == "optax_sam"}
    assert "optax_sam._core.passes" in ours
    others = {name.split(".")[0] for name in more - ours}
    assert others <= sys.stdlib_module_names
