"""A user's program is checked by mypy --strict, and does what it says."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.promises import user_program

PROGRAM = pathlib.Path(user_program.__file__)


def test_user_program_runs(tmp_path: pathlib.Path) -> None:
    """What is checked below works."""
    assert 0.0 < user_program.main(tmp_path) <= 0.02


def mypy(path: pathlib.Path) -> tuple[int, str]:
    """Check a file as a user's who has installed the package, away from this project's settings."""
    environment = os.environ | {"MYPYPATH": str(PROGRAM.parents[2])}
    # Errors are told of the program alone, as where the package is installed and no part of what is checked
    options = ["--strict", "--config-file=", "--follow-imports=silent", f"--cache-dir={path.parent / 'cache'}"]
    command = [sys.executable, "-m", "mypy", *options, str(path)]
    result = subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.slow
def test_user_program_is_strictly_typed(tmp_path: pathlib.Path) -> None:
    """Not an error, and errors would be seen: with the subclass's type taken for another one there is one."""
    source = PROGRAM.read_text(encoding="utf-8")
    path = tmp_path / "program.py"
    path.write_text(source)
    code, said = mypy(path)
    assert code == 0, said
    path.write_text(
        source.replace("assert_type(loaded, MyTRPO)", "assert_type(loaded, TRPO)") + "\nTRPO(3, None, target_kl='1')\n"
    )
    code, said = mypy(path)
    assert code == 1 and "MyTRPO" in said and '"target_kl"' in said and "Found 4 errors" in said
