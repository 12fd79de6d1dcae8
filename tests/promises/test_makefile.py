"""Installing: once, each command what it needs, and never half. Run by make itself with a Python that only takes notes."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Notes what it is asked for. ``-m venv`` puts itself into the environment; a file "offline" lets installations fail
PYTHON = """#!/bin/sh
case "$*" in
    "-m pip --version") exit 0 ;;
    "-m venv --clear "*) rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; echo "venv" >> notes ;;
    "-m pip install "*) for last; do :; done; echo "install $last" >> notes; test ! -e offline ;;
    *) echo "$*" >> notes ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the Makefile, what it reads, and that Python."""
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python").write_text(PYTHON, encoding="utf-8")
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def notes_of(folder: Path, target: str, succeeds: bool = True) -> list[str]:
    """Run make, and return what its Python was asked for."""
    (folder / "notes").write_text("", encoding="utf-8")
    without = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    run = subprocess.run(["make", target, "PYTHON=./python"], cwd=folder, capture_output=True, text=True, env=without)
    assert (run.returncode == 0) == succeeds, run.stderr
    return (folder / "notes").read_text(encoding="utf-8").splitlines()


def test_demo_installs_what_it_needs_and_nothing_the_second_time(folder: Path) -> None:
    """The tests then add the rest, and leave the demo nothing to install."""
    assert notes_of(folder, "demo") == ["venv", "install .[demo]", "examples/demo.py"]
    assert notes_of(folder, "demo") == ["examples/demo.py"]
    assert notes_of(folder, "install") == ["install .[tests,benchmarks]"]
    assert notes_of(folder, "install") == [] and notes_of(folder, "demo") == ["examples/demo.py"]


def test_tests_bring_what_the_demo_needs(folder: Path) -> None:
    """Installed first, they are all that is installed."""
    assert notes_of(folder, "install") == ["venv", "install .[tests,benchmarks]"]
    assert notes_of(folder, "demo") == ["examples/demo.py"]


def test_half_an_installation_is_not_trusted(folder: Path) -> None:
    """What failed or was killed is begun anew, also when there was a whole one before it."""
    (folder / "offline").touch()
    assert notes_of(folder, "demo", succeeds=False) == ["venv", "install .[demo]"]
    (folder / "offline").unlink()
    assert notes_of(folder, "demo") == ["venv", "install .[demo]", "examples/demo.py"]
    (folder / "offline").touch()
    assert notes_of(folder, "install", succeeds=False) == ["install .[tests,benchmarks]"]
    assert notes_of(folder, "demo", succeeds=False) == ["venv", "install .[demo]"]


def test_half_an_environment_is_not_trusted(folder: Path) -> None:
    """One without pip, as an interrupted ``python -m venv`` leaves it."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (folder / ".venv" / "bin" / "python").chmod(0o755)
    assert notes_of(folder, "demo") == ["venv", "install .[demo]", "examples/demo.py"]


def test_what_is_wanted_anew_is_installed_anew(folder: Path) -> None:
    """Into the same environment, once what is to be installed has changed."""
    notes_of(folder, "demo")
    later = (folder / ".venv" / ".installed-demo").stat().st_mtime + 2
    os.utime(folder / "setup.cfg", (later, later))
    assert notes_of(folder, "demo") == ["install .[demo]", "examples/demo.py"]


def test_every_target_is_there_once(folder: Path) -> None:
    """Make itself finds nothing to say, and each target that is no file is declared."""
    run = subprocess.run(["make", "--dry-run", "demo"], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0 and run.stderr == ""
    makefile = (folder / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([\w-]+):(?!=)", makefile, flags=re.MULTILINE)
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, flags=re.MULTILINE)
    assert sorted(targets) == sorted(phony.split()) and "INSTALLED)" not in makefile
