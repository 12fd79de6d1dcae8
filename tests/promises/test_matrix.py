"""What the package is tested with: the versions that it says it takes."""

import ast
import configparser
import re
import sys
from pathlib import Path

import yaml

from tests import matrix

ROOT = Path(__file__).parents[2]


def test_matrix_has_the_versions_that_the_package_takes() -> None:
    """The classifiers, the script and the workflow name the same Pythons, and the workflow the oldest versions too."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    classified = re.findall(r"Python :: (3\.\d+)", config["metadata"]["classifiers"])
    assert tuple(classified) == matrix.PYTHONS and config["options"]["python_requires"] == f">={classified[0]}"
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    rows = [row["only"] for row in workflow["jobs"]["matrix"]["strategy"]["matrix"]["include"]]
    assert sorted(rows) == sorted([*classified, "lowest"])


def test_matrix_takes_the_oldest_version_of_everything() -> None:
    """Every dependency of the package has a lower bound, and that is what is installed."""
    wanted = matrix.requirements("contrib", "plots")
    assert {"torch", "numpy", "gymnasium", "stable_baselines3", "sb3_contrib", "matplotlib"} <= {
        re.split(r"[><=]", requirement)[0] for requirement in wanted
    }
    assert all(re.fullmatch(r"\w+==[\d.]+", requirement) for requirement in matrix.lowest(wanted))
    assert matrix.lowest(["torch>=2.8,<3", "pytest"]) == ["torch==2.8", "pytest"]


def test_matrix_names_tests_that_exist() -> None:
    """Its quick part has every folder of the package's own tests."""
    assert all((ROOT / path).exists() for path in matrix.QUICK) and len(matrix.QUICK) > 15


def test_matrix_installs_what_its_tests_import() -> None:
    """Nothing that the quick part imports is missing in the environments."""
    wanted = [*matrix.requirements("contrib", "plots"), *matrix.FOR_TESTS]
    installed = {re.split(r"[><=]", requirement)[0] for requirement in wanted} | {"sb3_trpo", "tests", "benchmarks"}
    paths = [ROOT / name for name in matrix.QUICK]
    files = [file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])]
    for file in files:
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
        assert {name.split(".")[0] for name in names} <= installed | sys.stdlib_module_names, file


def test_this_python_is_one_of_them() -> None:
    """The interpreters that are found are what they say."""
    for version, path in matrix.interpreters():
        assert version in matrix.PYTHONS and Path(path).exists()
