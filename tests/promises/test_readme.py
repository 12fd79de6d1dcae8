"""The documents say what is: their code runs, and their tables are those of the package."""

import re
from pathlib import Path

import pytest

import sb3_trpo.fast.gauss_newton
import sb3_trpo.objective
import sb3_trpo.trust_region
from sb3_trpo.metrics import METRICS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "trust_region.md").read_text(encoding="utf-8")
PYTHON = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)


def test_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of Python run as they stand, one after the other; a traceback names the block."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, code in enumerate(PYTHON.findall(README), start=1):
        exec(compile(code, f"README.md, block {number}", "exec"), names)
    assert names["TRPO"] is sb3_trpo.TRPO and number >= 8


def test_page_on_the_trust_region_runs_and_has_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the page runs and writes what it says, and the pictures of README and page are in the repository."""
    monkeypatch.chdir(tmp_path)
    for code in PYTHON.findall(PAGE):
        exec(compile(code, "docs/trust_region.md", "exec"), {})
    assert (tmp_path / "runs" / "cartpole" / "slices.jsonl").exists() and (tmp_path / "by_hand.png").exists()
    pictures = [ROOT / "docs" / path for path in re.findall(r'src="([^"]+)"', PAGE)]
    pictures += [ROOT / path for path in re.findall(r'src="([^"]+)"', README)]
    assert len(pictures) >= 8 and all(path.is_file() for path in pictures)


def test_readme_explains_every_metric() -> None:
    """The table of metrics is the one that the logger follows, word for word."""
    rows = re.findall(r"^\| `((?:train|time)/\w+)` \| (.*) \|$", README, flags=re.MULTILINE)
    assert rows == [(key, metric.meaning) for key, metric in METRICS.items()]


def test_readme_quotes_the_returns_on_record() -> None:
    """Every row of its table of returns is one that the report wrote from the runs on record."""
    section = README.split("## Returns")[1].split("\n## ")[0]
    record = (ROOT / "benchmarks" / "results" / "returns" / "tables.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in section.splitlines() if re.match(r"\| (task|\w+-v\d) ", line)]
    assert len(rows) >= 2 and set(rows) <= set(record)


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
