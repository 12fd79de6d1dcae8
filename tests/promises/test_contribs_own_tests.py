"""
sb3-contrib's own tests of RecurrentPPO and MaskablePPO, run with RecurrentTRPO and MaskableTRPO in their place.

They are not in this repository: ``make test-contrib`` brings them and runs this file. Without them it is skipped.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Beside the environment's binaries, where ``make test-contrib`` puts them
FOLDER = Path(sys.prefix) / "contrib_tests"
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.contrib,
    pytest.mark.skipif(not (FOLDER / "tests").is_dir(), reason="make test-contrib"),
]

# Asks for 90 of 100 after a single update, that of 2,048 steps: PPO's has no limit there but a clip range of 0.4
ONE_UPDATE = "tests/test_invalid_actions.py::test_identity"
PLUGIN = ("-p", "tests.in_place_of_contrib", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", ".")


@pytest.mark.parametrize("name, n_tests", [("test_lstm", 18), ("test_invalid_actions", 15)])
def test_contribs_own_tests_pass(name: str, n_tests: int) -> None:
    """All of them but the slow one and the one that trains for a single update; PPO's own arguments are left out."""
    selected = ("-m", "not slow", "--deselect", ONE_UPDATE, f"tests/{name}.py")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *PLUGIN, *selected],
        cwd=FOLDER,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    passed = re.search(r"(\d+) passed", result.stdout)
    assert result.returncode == 0 and passed, result.stdout[-3000:] + result.stderr[-1000:]
    assert int(passed[1]) >= n_tests
