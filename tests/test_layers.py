"""The walls of the house: who may import whom, and who knows the logger's keys. Read from the source, nothing is run."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sb3_trpo"
SOURCES = {path.relative_to(PACKAGE.parent).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
STANDARD_LIBRARY = set(sys.stdlib_module_names)
OPTIONAL = {"matplotlib", "mpl_toolkits", "rl_zoo3", "sb3_contrib"}
MAY_NEED_OPTIONAL = (
    "sb3_trpo/inspect/",
    "sb3_trpo/zoo/",
    "sb3_trpo/contrib.py",
    "sb3_trpo/recurrent.py",
    "sb3_trpo/maskable.py",
)
LEAVES = ("inspect", "zoo")


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(tree: ast.AST, path: str) -> Iterator[str]:
    """Yield the full name of everything imported: ``from a import b`` gives ``a.b``, relative ones made absolute."""
    package = module_name(path).split(".") if path.endswith("/__init__.py") else module_name(path).split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def all_imports(path: str) -> set[str]:
    return set(imported(ast.parse(SOURCES[path]), path))


def imports_of_loading(source: str, path: str) -> set[str]:
    """Return what is imported when the module is: everything outside of functions."""

    class WithoutFunctions(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

    return set(imported(WithoutFunctions().visit(ast.parse(source)), path))


def without_type_checking(source: str) -> str:
    """Leave out what only a type checker imports."""

    class AtRuntime(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node

    return ast.unparse(AtRuntime().visit(ast.parse(source)))


def tops(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def numerics() -> list[str]:
    return [path for path in SOURCES if path.startswith("sb3_trpo/trust_region/")]


def test_walls_are_read_from_the_whole_package() -> None:
    """The sources are there, so that the walls below stand around something."""
    assert len(numerics()) >= 5 and "sb3_trpo/trpo.py" in SOURCES and "sb3_trpo/metrics.py" in SOURCES


def test_walls_see_every_form_of_import() -> None:
    """Plain, renamed, from, relative and inside a function: none of them climbs over."""
    source = "import a.b as c\nfrom d import e\nfrom . import f\nfrom ..g import h\ndef i():\n    import j\n"
    everything = set(imported(ast.parse(source), "sb3_trpo/zoo/plugin.py"))
    assert everything == {"a.b", "d.e", "sb3_trpo.zoo.f", "sb3_trpo.g.h", "j"}
    assert imports_of_loading(source, "sb3_trpo/zoo/plugin.py") == everything - {"j"}
    assert set(imported(ast.parse("from .x import y"), "sb3_trpo/zoo/__init__.py")) == {"sb3_trpo.zoo.x.y"}


@pytest.mark.parametrize("path", numerics())
def test_trust_region_is_plain_numerics(path: str) -> None:
    """Torch, the standard library and itself: nothing of Stable-Baselines3, Gymnasium or the rest of the package."""
    names = all_imports(path)
    assert tops(names) <= STANDARD_LIBRARY | {"torch", "sb3_trpo"}
    assert all(name.startswith("sb3_trpo.trust_region.") for name in names if name.split(".")[0] == "sb3_trpo")


def test_direction_and_distance_do_not_know_each_other() -> None:
    """Conjugate gradients and line search import nothing of ours, and the line search no torch either."""
    direction = all_imports("sb3_trpo/trust_region/conjugate_gradient.py")
    distance = all_imports("sb3_trpo/trust_region/line_search.py")
    assert tops(direction) <= STANDARD_LIBRARY | {"torch"}
    assert tops(distance) <= STANDARD_LIBRARY


@pytest.mark.parametrize("path", list(SOURCES))
def test_package_imports_neither_tests_nor_benchmarks(path: str) -> None:
    """What a user installs does not need what only we have."""
    assert not tops(all_imports(path)) & {"tests", "benchmarks", "examples", "pytest", "hypothesis"}


@pytest.mark.parametrize("path", list(SOURCES))
def test_optional_packages_are_imported_where_they_are_used(path: str) -> None:
    """Importing the package needs no optional one."""
    if not path.startswith(MAY_NEED_OPTIONAL):
        assert not tops(imports_of_loading(SOURCES[path], path)) & OPTIONAL


@pytest.mark.parametrize("path", [path for path in SOURCES if path.startswith("sb3_trpo/inspect/")])
def test_recorder_and_figures_are_there_without_matplotlib(path: str) -> None:
    """Only what draws imports Matplotlib, when it does, and its global state never."""
    assert not tops(imports_of_loading(without_type_checking(SOURCES[path]), path)) & OPTIONAL
    assert not [name for name in all_imports(path) if name.startswith("matplotlib.pyplot")]


@pytest.mark.parametrize("path", list(SOURCES))
def test_inspect_and_zoo_are_imported_by_nobody_inside(path: str) -> None:
    """They look at the package from outside."""
    if path.split("/")[1] not in LEAVES:
        names = all_imports(path)
        assert not [name for name in names for leaf in LEAVES if (name + ".").startswith(f"sb3_trpo.{leaf}.")]


def logger_keys(source: str) -> list[str]:
    strings = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    return [value for value in strings if isinstance(value, str) and value.startswith(("train/", "time/"))]


def test_only_the_report_knows_a_logger_key() -> None:
    """The keys stand in one table and nowhere else."""
    assert [path for path, source in SOURCES.items() if logger_keys(source)] == ["sb3_trpo/metrics.py"]
    assert logger_keys('x = f"train/{y}"') == ["train/"]
