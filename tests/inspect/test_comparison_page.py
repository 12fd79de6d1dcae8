"""Several runs on one page: everything is in it, and it renders in a browser."""

import json
import re
from pathlib import Path

import pytest

from sb3_trpo.inspect import COMPARED, Run, TrustRegionRecorder, UpdateRecord, read_run, write_comparison
from tests.inspect.test_comparison_figures import compared
from tests.inspect.test_page import CHROMIUM, MEASURE, chromium
from tests.other_algorithms import OTHERS

pytestmark = pytest.mark.untraced


@pytest.fixture(scope="module")
def runs(run: Run, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Return a run of TRPO, one of PPO, one of sb3-contrib's TRPO, with pictures, and a name that is no HTML."""
    folder = tmp_path_factory.mktemp("compared")
    for name in ("ppo", "contrib-trpo"):
        OTHERS[name]().learn(3 * 64, callback=TrustRegionRecorder(folder / name, pictures_every=3))
    ppo, contrib = read_run(folder / "ppo"), read_run(folder / "contrib-trpo")
    return [run._replace(name="<b>trpo</b>"), ppo, contrib._replace(problems=("updates.jsonl:3: <garbage>",))]


@pytest.fixture(scope="module")
def page(runs: list[Run], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_comparison(runs, tmp_path_factory.mktemp("page") / "report.html").read_text(encoding="utf-8")


def test_page_holds_everything_of_every_run(page: str, runs: list[Run]) -> None:
    """A row for each, every panel, the last plane of each, the health in words that apply, and what could not be read."""
    rows = re.findall(r"<tbody>(.*)</tbody>", page)[0].split("</tr>")[:-1]
    assert len(rows) == 3 and "<b>trpo" not in page and "&lt;b&gt;trpo&lt;/b&gt;" in rows[0]
    assert "TRPO" in rows[0] and "PPO" in rows[1] and "sb3_contrib.TRPO" in rows[2]
    for row, run in zip(rows, runs, strict=True):
        assert f"{max(u.mean_kl for u in run.updates):,.3g}" in row and f"{run.updates[-1].num_timesteps:,}" in row
    assert "–" in rows[1]  # PPO has no limit
    assert all(panel.title in page for panel in COMPARED.values())
    assert page.count("<img ") == len(COMPARED) + 3 + 3
    of_trpo, of_ppo, of_contrib = page.split("<article>")[1:]
    assert "conjugate gradients converge" in of_trpo and "conjugate gradients" not in of_ppo + of_contrib
    assert "Are the updates of one size?" in of_ppo and "Is the limit kept?" in of_contrib
    assert "updates.jsonl:3: &lt;garbage&gt;" in page
    assert not re.findall(r'(?:href|src|url\()\s*=?\s*["\']?(?:https?:|//|file:)', page) and "<script" not in page


def test_page_of_ten_runs_and_of_one(healthy: UpdateRecord, tmp_path: Path) -> None:
    """As many rows as runs; a column in which nobody has a number is left out."""
    for n_runs in (1, 10):
        text = write_comparison(compared(healthy, n_runs, max_kl=0.01), tmp_path / "report.html").read_text(encoding="utf-8")
        assert text.count("<tr><td>") == n_runs and "ε</th>" not in text
    with pytest.raises(ValueError, match="no runs"):
        write_comparison([], tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
@pytest.mark.parametrize("width", [1280, 500], ids=["laptop", "phone"])
def test_page_renders_in_a_browser(width: int, page: str, tmp_path: Path) -> None:
    """On a laptop and a phone nothing but the table, which scrolls by itself, is wider than the screen."""
    (tmp_path / "measured.html").write_text(page.replace("</body>", MEASURE + "</body>"), encoding="utf-8")
    dom = chromium(tmp_path / "measured.html", f"--window-size={width},900", "--dump-dom", folder=tmp_path)
    title = re.search(r"<title>(\{.*?\})</title>", dom)
    assert title is not None
    measured = json.loads(title[1])
    assert measured["width"] == width and measured["content"] <= width and measured["font"] >= 14
    assert len(measured["images"]) == page.count("<img ")
    assert all(shown > 300 and height > 100 for _, shown, height in measured["images"][3:])
