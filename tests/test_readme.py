"""The documents say what is: their code runs, and their tables are those of the package."""

import re
from pathlib import Path

import pytest

import sb3_trpo.fast.gauss_newton
import sb3_trpo.objective
import sb3_trpo.trust_region
from sb3_trpo.report import METRICS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE_BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", range(len(CODE_BLOCKS)))
def test_readme_code_runs(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of Python runs as it stands, after those before it."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in CODE_BLOCKS[: block + 1]:
        exec(compile(code, "README.md", "exec"), names)
    assert names["TRPO"] is sb3_trpo.TRPO


def test_readme_explains_every_metric() -> None:
    """The table of metrics is the one that the logger follows, word for word."""
    rows = re.findall(r"^\| `((?:train|time)/\w+)` \| (.*) \|$", README, flags=re.MULTILINE)
    assert rows == [(key, metric.meaning) for key, metric in METRICS.items()]


def test_readme_maps_equations_to_what_exists() -> None:
    """Every function or module that the map of equations names is there."""
    section = README.split("## From the equations to the code")[1].split("\n## ")[0]
    names = [
        name
        for name in re.findall(r"`([\w.]+)`", section)
        if "." in name and name != "TRPO.train" and not name.endswith(".py")
    ]
    assert len(names) >= 8
    for name in names:
        module: object = sb3_trpo
        for part in name.split("."):
            module = getattr(module, part, None) or getattr(sb3_trpo.trust_region, part)
        assert module is not None
