"""The documents say what is: their code runs, and their tables are those of the package."""

import re
from pathlib import Path
from typing import Any

import pytest

import sb3_trpo.fast.gauss_newton
import sb3_trpo.objective
import sb3_trpo.trust_region
from sb3_trpo.metrics import METRICS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "trust_region.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
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


@pytest.mark.parametrize("name", ["recurrent_trpo", "maskable_trpo", "maskable_recurrent_trpo"])
def test_pages_of_the_variants_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in names of its own."""
    monkeypatch.chdir(tmp_path)
    blocks = PYTHON.findall((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for code in blocks:
        exec(compile(code, f"docs/{name}.md", "exec"), names)
    assert blocks and "model" in names


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
    targets = set(re.findall(r"`make ([\w-]+)", CONTRIBUTING + README))
    assert {"quick", "test", "test-slow", "mutation"} <= targets
    assert all(f"\n{target}:" in makefile for target in targets)


def test_page_for_contributors_names_the_hooks() -> None:
    """Every hook below the heading in ``trpo.py``, in the same order, after what SB3 calls; and the example is a variant."""
    source = (ROOT / "sb3_trpo" / "trpo.py").read_text(encoding="utf-8")
    hooks = re.findall(r"    def (_\w+)", source.split("# Hooks:")[1])
    named = re.findall(r"^\| `(_\w+)` \|", CONTRIBUTING, flags=re.MULTILINE)
    assert named == ["_setup_model", *hooks] and len(hooks) >= 7
    (code,) = PYTHON.findall(CONTRIBUTING)
    names: dict[str, Any] = {}
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    model = names["WinsorizedTRPO"]("MlpPolicy", "CartPole-v1", n_steps=256, seed=0, device="cpu").learn(256)
    assert model.last_update.step.accepted and model._full_batch().advantages.abs().max() <= 3.0
    assert model.paths_in_use == {"collection": "lean", "Fisher products": "Gauss-Newton", "critic fit": "written out"}


def test_page_for_contributors_is_one_page() -> None:
    """Whoever opens it reads it."""
    assert len(CONTRIBUTING.splitlines()) <= 120
