"""The documents say what is: their code runs, and their tables are those of the package."""

import re
from pathlib import Path
from typing import Any

import pytest

import sb3_trpo
from sb3_trpo.metrics import METRICS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
METRICS_PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
BENCHMARKS_PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECORDS = [ROOT / "benchmarks" / "results" / folder / "tables.md" for folder in ("returns", "untouched", "defaults")]
PYTHON = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)


def test_readme_is_read_in_one_go() -> None:
    """It has at most 150 lines, and what it leaves out is in the pages that it names."""
    assert len(README.splitlines()) <= 150


def test_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of Python run as they stand, one after the other; a traceback names the block."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, code in enumerate(PYTHON.findall(README), start=1):
        exec(compile(code, f"README.md, block {number}", "exec"), names)
    assert names["TRPO"] is sb3_trpo.TRPO


def test_documentation_explains_every_metric() -> None:
    """The table of metrics is the one that the logger follows, word for word."""
    rows = re.findall(r"^\| `((?:train|time)/\w+)` \| (.*) \|$", METRICS_PAGE, flags=re.MULTILINE)
    assert rows == [(key, metric.meaning) for key, metric in METRICS.items()]


@pytest.mark.parametrize("page", ["README.md", "docs/trpo.md", "docs/benchmarks.md"])
def test_returns_quoted_are_those_on_record(page: str) -> None:
    """Every row of a table of returns is one that the report wrote from the runs on record."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if re.match(r"\| (task|\w+-v\d) \|", line)]
    on_record = {line for record in RECORDS for line in record.read_text(encoding="utf-8").splitlines()}
    assert len(rows) >= 7 and set(rows) <= on_record


def test_speed_quoted_in_the_readme_is_that_of_the_page() -> None:
    """Its table is a part of the page's, which has all rows."""

    def rows_of(page: str) -> dict[str, list[str]]:
        lines = [
            line.strip("| ").split(" | ") for line in page.split("one thread of a CPU:")[-1].split("\n##")[0].splitlines()
        ]
        return {cells[0]: cells[1:] for cells in lines if len(cells) > 4}

    quoted, measured = rows_of(README.split("one thread of a CPU:")[1]), rows_of(BENCHMARKS_PAGE.split("### On a CPU")[1])
    assert len(quoted) >= 4
    # The page has two columns more
    assert quoted == {task: [*measured[task][:3], measured[task][4]] for task in quoted}


def files_named(page: str) -> list[str]:
    """Return what a page names between backticks that is a file or a folder; rooms are named from ``sb3_trpo`` on."""
    return [name for name in re.findall(r"`([\w./]+)`", page) if re.search(r"/$|\.(py|md|toml|cfg|yml)$", name)]


def test_page_for_contributors_names_files_that_exist() -> None:
    """Every room, test and page; and every module and room of the package is named there."""
    names = files_named(CONTRIBUTING)
    assert len(names) >= 20 and "fast/" in names and "tests/test_layers.py" in names
    missing = [name for name in names if not (ROOT / name).exists() and not (ROOT / "sb3_trpo" / name).exists()]
    assert not missing
    rooms = [path for path in (ROOT / "sb3_trpo").iterdir() if path.name[0] not in "_."]
    rooms = [path for path in rooms if path.suffix == ".py" or (path / "__init__.py").exists()]
    unnamed = {f"{path.name}/" if path.is_dir() else path.name for path in rooms} - {*names}
    assert not unnamed
    assert files_named("`a.py` and `b/`, but no `c`") == ["a.py", "b/"]


def test_page_for_contributors_names_commands_that_exist() -> None:
    """Each make target is in the Makefile, and README and page agree that it is there."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:`|\$ )make ([\w-]+)", CONTRIBUTING + README))
    assert {"demo", "quick", "test", "test-slow", "mutation", "docs"} <= targets
    assert all(f"\n{target}:" in makefile for target in targets)


def test_page_for_contributors_names_the_hooks() -> None:
    """Every hook below the heading in ``trpo.py``, in its order, after what builds the policy. The example is a variant."""
    source = (ROOT / "sb3_trpo" / "trpo.py").read_text(encoding="utf-8")
    hooks = re.findall(r"    def (_\w+)", source.split("# Hooks:")[1])
    named = re.findall(r"^\| `(_\w+)` \|", CONTRIBUTING, flags=re.MULTILINE)
    assert named == ["_build", *hooks] and len(hooks) >= 7
    (code,) = PYTHON.findall(CONTRIBUTING)
    names: dict[str, Any] = {}
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    model = names["WinsorizedTRPO"]("MlpPolicy", "CartPole-v1", n_steps=256, seed=0, device="cpu").learn(256)
    assert model.last_update.step.accepted and model._full_batch().advantages.abs().max() <= 3.0
    assert model.paths_in_use == {"collection": "lean", "Fisher products": "Gauss-Newton", "critic fit": "written out"}


def test_page_for_contributors_is_one_page() -> None:
    """Whoever opens it reads it."""
    assert len(CONTRIBUTING.splitlines()) <= 120
