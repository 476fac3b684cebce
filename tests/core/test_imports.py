"""The shape of the library: who imports whom, how long things are, what is explained.

Read from the sources, so that a wrong import is found before it makes a cycle.
"""

import ast
import graphlib
import inspect
import sys

import pytest
from code_lines import LIBRARY, code_lines, is_optional, library_files

import optax_sam

PACKAGE = LIBRARY.name
# Design: `__init__ -> _methods -> _core -> {_examples, _ascent, ...} -> what they share
# -> _types`. A module may import what stands on a lower level, or beside it as long as
# no cycle comes of it.
LEVELS = [
    {"_types"},
    {"_arguments", "_devices", "_checks", "_trees", "_keys", "_once", "_warn"}
    | {"_old_spellings", "_surroundings"},
    {"_examples", "_ascent", "_combine", "_when", "_schedules"},
    {"_core"},
    {"_methods"},
    {"__init__"},
]
RUN_TIME = {"jax", "optax", "numpy"}  # numpy comes with jax
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 250, 40


def name_of(path):
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and parts[1:] else parts)


SOURCES = {name_of(path): path.read_text() for path in library_files()}
PACKAGES = {name.split(".")[0] for name in SOURCES if "." in name}
CORE = [name_of(path) for path in library_files() if not is_optional(path)]


def level(name):
    """The level of a module, which is that of its folder."""
    first = name.split(".")[0]
    return next((i for i, names in enumerate(LEVELS) if first in names), None)


def imported(name):
    """Full names of all modules that a module imports, wherever in the file."""
    path = f"{PACKAGE}.{name}".split(".")
    package = path if name in PACKAGES else path[:-1]
    found = set()
    for node in ast.walk(ast.parse(SOURCES[name])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import x` may import a module or a name in one.
            modules = {f"{base}.{alias.name}" for alias in node.names}
            known = {m for m in modules if m.removeprefix(f"{PACKAGE}.") in SOURCES}
            found |= known if known == modules else known | {base}
    return found


def own(name):
    """The library's modules that a module imports, by their short names."""
    ours = [module for module in imported(name) if module.split(".")[0] == PACKAGE]
    return {m.removeprefix(PACKAGE).lstrip(".") or "__init__" for m in ours} - {name}


def test_every_module_has_a_level():
    unknown = [name for name in CORE if level(name) is None]
    assert not unknown, "name its level above, and in the design"
    assert {"_types", "_core.passes", "_ascent.steepest", "__init__"} <= set(CORE)


@pytest.mark.parametrize("name", CORE)
def test_imports_point_one_way(name):
    for other in own(name):
        assert other in CORE, f"{name} imports {other}, which is optional or missing"
        assert level(other) <= level(name), f"{name} imports {other} from above"


def test_no_cycles():
    order = graphlib.TopologicalSorter({name: own(name) for name in SOURCES})
    assert set(order.static_order()) == set(SOURCES)


@pytest.mark.parametrize("name", CORE)
def test_ideas_meet_in_the_methods_only(name):
    """The core, sub-batches and combines know no ascent: only the norm's maths."""
    if name.split(".")[0] in ("_methods", "__init__", "_ascent"):
        return
    assert {n for n in own(name) if n.startswith("_ascent")} <= {"_ascent.dual"}


@pytest.mark.parametrize("name", [n for n in CORE if n.startswith("_methods.")])
def test_one_method_one_file(name):
    assert not [n for n in own(name) if n.startswith("_methods.")]


@pytest.mark.parametrize("name", CORE)
def test_core_needs_jax_and_optax_alone(name):
    roots = {module.split(".")[0] for module in imported(name)}
    assert roots <= RUN_TIME | {PACKAGE} | sys.stdlib_module_names


@pytest.mark.parametrize("name", SOURCES)
def test_no_private_modules_of_others(name):
    assert not any("._src" in module for module in imported(name))
    chains = [n for n in ast.walk(ast.parse(SOURCES[name])) if hasattr(n, "attr")]
    assert not [n for n in chains if n.attr == "_src"]


@pytest.mark.parametrize("name", SOURCES)
def test_files_are_short(name):
    assert len(code_lines(SOURCES[name])) <= MOST_LINES


@pytest.mark.parametrize("name", SOURCES)
def test_functions_are_short(name):
    lines = code_lines(SOURCES[name])
    for node in ast.walk(ast.parse(SOURCES[name])):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = len(lines & set(range(node.lineno, node.end_lineno + 1)))
            assert length <= MOST_LINES_OF_A_FUNCTION, f"{node.name}: {length} lines"


def public_names():
    items = vars(optax_sam).items()
    return sorted(n for n, x in items if n[0] != "_" and not inspect.ismodule(x))


def test_init_holds_public_names_and_nothing_else():
    body = ast.parse(SOURCES["__init__"]).body
    not_public = next(n for n in body if ast.unparse(n) == "import typing as _typing")
    for node in body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        version = isinstance(node, ast.Assign) and node.targets[0].id == "__version__"
        listed = isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
        hidden = ast.unparse(node).startswith(
            "if not _typing.TYPE_CHECKING:\n    from "
        )
        imported = isinstance(node, ast.ImportFrom) or hidden
        assert docstring or version or listed or imported or node is not_public
    assert set(getattr(optax_sam, "__all__", public_names())) == set(public_names())
    promised = {
        "steepest_ascent",
        "adaptive_ascent",
        "random_ascent",
        "sharpness_aware",
    }
    promised |= {"value_and_grad", "m_sharpness", "mean_over", "per_device"}
    promised |= {"sam", "asam", "m_sam"}
    assert promised <= set(public_names())


@pytest.mark.parametrize("name", public_names())
def test_public_name_is_explained(name):
    thing = getattr(optax_sam, name)
    text = inspect.getdoc(thing) or ""
    sections = ["Args:", "Returns:", "Raises:", "Example:", "Reference:"]
    if inspect.isclass(thing):  # what is returned, and made by nobody else
        assert all(f"\n  {field}: " in text for field in thing._fields)
        return
    places = [text.find(f"\n{section}") for section in sections]
    assert -1 not in places, [
        s for s, at in zip(sections, places, strict=True) if at < 0
    ]
    assert places == sorted(places), "sections in another order than everywhere else"
    example = text[places[3] : places[4]]
    assert ">>> " in example
    assert name in example
    described = text[places[0] : places[1]]
    missing = [p for p in inspect.signature(thing).parameters if p not in described]
    assert not missing, "arguments that the docstring does not describe"
