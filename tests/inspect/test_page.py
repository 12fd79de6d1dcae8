"""The report is one page with everything in it, and renders in a browser."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from sb3_trpo.inspect import PANELS, Run, UpdateRecord, check_health, write_comparison, write_report
from sb3_trpo.inspect.health import critic_explains
from tests.inspect.test_health import UNHEALTHY, series

pytestmark = pytest.mark.untraced

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# The report


@pytest.fixture(scope="module")
def trouble(healthy: UpdateRecord) -> list[UpdateRecord]:
    """Return the updates of a run whose critic explains nothing."""
    return [UNHEALTHY[critic_explains](update) for update in series(healthy)]


@pytest.fixture(scope="module")
def page(run: Run, trouble: list[UpdateRecord], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the report of a run with trouble, a damaged record and a name that is no HTML."""
    problems = ("updates.jsonl:3: not a record: <garbage>",)
    named = run._replace(name="<b>run</b>", updates=tuple(trouble), problems=problems)
    return write_report(named, tmp_path_factory.mktemp("page") / "report.html").read_text(encoding="utf-8")


def test_report_is_one_page_with_everything_in_it(page: str, trouble: list[UpdateRecord]) -> None:
    """Findings in words, every figure inside the page with a description, and nothing loaded from anywhere."""
    (wrong,) = [finding for finding in check_health(trouble) if not finding.healthy]
    assert wrong.name in page and wrong.advice.split(".")[0] in page and "1 of 8 checks ask for a look" in page
    assert "&lt;b&gt;run&lt;/b&gt;" in page and "updates.jsonl:3: not a record: &lt;garbage&gt;" in page
    assert page.index(wrong.name) < min(page.index(f.name) for f in check_health(trouble) if f.healthy)
    sources = re.findall(r'src="([^"]{0,40})', page)
    assert len(sources) >= len(PANELS) and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not re.findall(r'(?:href|src|url\()\s*=?\s*["\']?(?:https?:|//|file:)', page) and "<script" not in page
    assert all(alt for alt in re.findall(r'alt="([^"]*)"', page))
    assert 'name="viewport"' in page and "@media print" in page


def test_report_needs_the_update_that_it_is_asked_for(run: Run, tmp_path: Path) -> None:
    """Without an update there is an error, not an empty page."""
    with pytest.raises(ValueError, match="no update"):
        write_report(run._replace(updates=()), tmp_path / "report.html")
    with pytest.raises(ValueError, match="update 77"):
        write_report(run, tmp_path / "report.html", n_updates=77)
    assert not (tmp_path / "report.html").exists()


def chromium(page: Path, *options: str, folder: Path) -> str:
    assert CHROMIUM is not None
    switches = (
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}",
    )  # fmt: skip
    command = [CHROMIUM, *switches, *options, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


MEASURE = """
<script>addEventListener("load", () => { document.title = JSON.stringify({
  width: innerWidth, content: document.documentElement.scrollWidth,
  images: [...document.images].map(image => [image.naturalWidth, image.clientWidth, image.clientHeight]),
  font: parseFloat(getComputedStyle(document.querySelector("p")).fontSize)}) })</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
@pytest.mark.parametrize("width", [1280, 500], ids=["laptop", "phone"])
def test_report_renders_in_a_browser(width: int, page: str, tmp_path: Path) -> None:
    """On a laptop and a phone: nothing is wider than the screen, every figure is there and large enough to read."""
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    (tmp_path / "measured.html").write_text(page.replace("</body>", MEASURE + "</body>"), encoding="utf-8")
    dom = chromium(tmp_path / "measured.html", f"--window-size={width},900", "--dump-dom", folder=tmp_path)
    title = re.search(r"<title>(\{.*?\})</title>", dom)
    assert title is not None
    measured = json.loads(title[1])
    assert measured["width"] == width and measured["content"] <= width and measured["font"] >= 14
    assert len(measured["images"]) == page.count("<img ")
    for natural, shown, height in measured["images"]:
        assert natural > 300 and height > 100 and 300 < shown <= width
    if width < 1000:
        return
    shot = tmp_path / "shot.png"
    chromium(tmp_path / "report.html", f"--window-size={width},900", f"--screenshot={shot}", folder=tmp_path)
    pixels = imread(shot)
    assert pixels.shape[:2] == (900, width)
    # Text, the green marks of what is healthy, and white in between
    n_colours = len(np.unique((pixels * 8).astype(int).reshape(-1, pixels.shape[2]), axis=0))
    assert 0.5 < pixels[..., :3].mean() < 0.99 and n_colours > 20


def test_limit_that_falls_is_that_of_the_update(healthy: UpdateRecord, tmp_path: Path) -> None:
    """The largest KL stands beside the limit that it kept; where no episode has ended there is no return."""
    limits = (0.1, 0.05, 0.0)
    updates = tuple(
        healthy._replace(n_updates=n, max_kl=limit, mean_kl=0.9 * limit, mean_return=math.nan)
        for n, limit in enumerate(limits, start=1)
    )
    run = Run("run", updates)
    text = write_report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<dd>0.09 / 0.1</dd>" in text and "<dd>–</dd>" in text and "nan" not in text.split("<h2>")[0]
    assert "of the limit δ = 0.1 to 0" in text
    assert "0.1 to 0" in write_comparison([run, run._replace(name="other")], tmp_path / "both.html").read_text(
        encoding="utf-8"
    )
