"""The documentation as a reader sees it: built, whole, and no wider than a phone."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sb3_trpo
import sb3_trpo.inspect
import sb3_trpo.trust_region
import sb3_trpo.vec_env

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MEASURE = """<script>addEventListener("load", () => { document.title = JSON.stringify({
  content: document.documentElement.scrollWidth, width: innerWidth}) })</script>"""


def check(site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "docs" / "check_site.py"), str(site)]
    return subprocess.run(command, capture_output=True, text=True)


def test_check_of_a_site_names_what_is_missing(tmp_path: Path) -> None:
    """A page, a picture and an anchor; what is there, or elsewhere, is no problem."""
    for number in range(5):
        links = '<a href="1.html#here">1</a><a href="https://example.org/x">2</a><a href="#here" id="here">3</a>'
        (tmp_path / f"{number}.html").write_text(links, encoding="utf-8")
    assert check(tmp_path).returncode == 0
    wrong = '<a href="6.html">1</a><img src="no.png"><a href="1.html#there">2</a>'
    (tmp_path / "5.html").write_text(wrong, encoding="utf-8")
    result = check(tmp_path)
    assert result.returncode == 1
    assert result.stdout.splitlines() == [
        "5.html: there is no 6.html",
        "5.html: there is no no.png",
        "5.html: nothing in 1.html is called there",
    ]
    assert check(tmp_path / "nothing").returncode == 1


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it with warnings as errors."""
    pytest.importorskip("sphinx", reason="make test-docs installs Sphinx")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(ROOT / "docs"), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.docs
def test_site_is_whole(site: Path) -> None:
    """Every link inside of it leads somewhere, and there is something to search."""
    result = check(site)
    assert result.returncode == 0, result.stdout
    assert (site / "searchindex.js").stat().st_size > 10_000


@pytest.mark.docs
def test_site_describes_every_public_name(site: Path) -> None:
    """Of the package and of the rooms that users import from."""
    described = set()
    for page in site.glob("*.html"):
        described |= {name.split(".")[-1] for name in re.findall(r'id="(sb3_trpo\.[\w.]+)"', page.read_text(encoding="utf-8"))}
    public = {
        name
        for module in (sb3_trpo, sb3_trpo.inspect, sb3_trpo.trust_region, sb3_trpo.vec_env)
        for name in module.__all__
        if callable(getattr(module, name))
    }
    assert len(public) > 40 and public <= described


@pytest.mark.docs
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
def test_site_is_no_wider_than_a_phone(site: Path, tmp_path: Path) -> None:
    """No page scrolls sideways, in a window 390 points wide."""
    assert CHROMIUM is not None
    wide = {}
    for page in sorted(site.glob("*.html")):
        # A window has a least width, a frame has none
        (site / f"measured_{page.name}").write_text(
            page.read_text(encoding="utf-8").replace("</body>", MEASURE + "</body>"), encoding="utf-8"
        )
        frame = site / f"frame_{page.name}"
        frame.write_text(
            f'<title>-</title><iframe id="f" width="390" height="800" src="measured_{page.name}"></iframe><script>'
            'addEventListener("load", () => { document.title = document.getElementById("f").contentDocument.title })</script>',
            encoding="utf-8",
        )
        switches = ("--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom")
        command = [CHROMIUM, *switches, f"--user-data-dir={tmp_path}", frame.as_uri()]
        dom = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
        title = re.search(r"<title>(\{.*?\})</title>", dom)
        assert title is not None, page.name
        measured = json.loads(title[1])
        if measured["content"] > measured["width"]:
            wide[page.name] = measured
    assert not wide
