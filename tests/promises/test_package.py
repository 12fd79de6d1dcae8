"""What is built and shipped works away from the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel of the tree, with the tools that are installed."""
    folder = tmp_path_factory.mktemp("wheel")
    # In a copy: setuptools leaves its traces where it builds
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "sb3_trpo", folder / "sb3_trpo", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_the_package_and_its_types_only(wheel: Path) -> None:
    """Every module ships, with py.typed and the licence, and nothing beside the package."""
    names = zipfile.ZipFile(wheel).namelist()
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "sb3_trpo").rglob("*.py")}
    assert modules <= set(names)
    assert {"sb3_trpo/py.typed", "sb3_trpo/zoo/hyperparams/trpo.yml"} <= set(names)
    assert any(name.endswith("LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"sb3_trpo"}


def test_wheel_imports_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Unpacked on its own the package imports, and does not drag optional packages in."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import sb3_trpo; print(sb3_trpo.__file__, sb3_trpo.__version__); "
        "assert not {'sb3_contrib', 'rl_zoo3'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert str(tmp_path) in result.stdout


@pytest.mark.slow
def test_wheel_installs_and_trains_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """What pip brings with the wheel alone is enough to train."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), str(wheel)]
    subprocess.run(install, check=True)
    code = "from sb3_trpo import TRPO; print(TRPO('MlpPolicy', 'CartPole-v1', n_steps=256).learn(256).last_update.step.status)"
    result = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert result.stdout.strip() == "accepted"
