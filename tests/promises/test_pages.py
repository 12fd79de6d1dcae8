"""The pages of the documentation: their code runs, and what they point to is there."""

import ast
import inspect
import pydoc
import re
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
# Everything that is read on the repository's site
READ_THERE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "benchmarks/README.md")
DOCUMENTS = {f"docs/{name}": text for name, text in PAGES.items()} | {
    name: (ROOT / name).read_text(encoding="utf-8") for name in READ_THERE if (ROOT / name).exists()
}
REPOSITORY = "https://github.com/OWNER/sb3_trpo"
IN_REPOSITORY = re.compile(rf"{REPOSITORY}/(?:blob|tree)/main/|https://raw\.githubusercontent\.com/OWNER/sb3_trpo/main/")
ON_SITE = re.compile(r"https://sb3-trpo\.readthedocs\.io/en/latest/")
PYTHON = re.compile(r"^```python\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", flags=re.DOTALL | re.MULTILINE)
WITH_CODE = [name for name, text in PAGES.items() if PYTHON.search(text)]

# Long runs, whose parts have quick tests of their own
LONG = ("trust_region.md", "maskable_trpo.md")


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in WITH_CODE])
def test_code_of_a_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of Python run as they stand, one after the other; a traceback names the block."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for number, code in enumerate(PYTHON.findall(PAGES[name]), start=1):
        exec(compile(code, f"docs/{name}, block {number}", "exec"), names)


@pytest.mark.parametrize("name", WITH_CODE)
def test_code_of_a_page_is_seen_whole(name: str) -> None:
    """No line is longer than a page is wide on a screen of 1,280 points."""
    assert not [line for code in PYTHON.findall(PAGES[name]) for line in code.splitlines() if len(line) > 88]


def test_scripts_are_shown_whole() -> None:
    """Whoever copies one has its imports."""
    shown = re.findall(r"^```\{literalinclude\} \S+\n(.*?)^```", "".join(PAGES.values()), flags=re.DOTALL | re.MULTILINE)
    assert len(shown) >= 4 and {*shown} == {":language: python\n"}


def test_pages_have_code() -> None:
    """Most of them show how it is done."""
    assert len(WITH_CODE) >= 6 and {"get_started.md", "trust_region.md", "from_ppo.md"} <= {*WITH_CODE}


def test_equations_point_to_their_lines() -> None:
    """Each line of code that the table quotes is one of what it names."""
    page = PAGES["how_trpo_works.md"]
    rows = re.findall(r"\{py:(?:func|meth)\}`~(sb3_trpo[\w.]+)` \| `(.+?)` \|$", page, flags=re.MULTILINE)
    assert len(rows) == page.split("## From the equations to the code")[1].split("\n## ")[0].count("{py:") >= 12
    for name, line in rows:
        source = inspect.getsource(pydoc.locate(name))  # type: ignore[arg-type]
        assert line in [code.strip() for code in source.splitlines()], name


def test_symptoms_are_what_the_package_says() -> None:
    """Each text that a reader looks up is a part of an error, a warning, a status or a key of the log."""
    sources = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "sb3_trpo").rglob("*.py")]
    said = [node.value for tree in sources for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    texts = [text for text in said if isinstance(text, str)]
    rows = re.findall(r"^\| ((?!You see)[^|]*[^-| ][^|]*) \|", PAGES["when_things_go_wrong.md"], flags=re.MULTILINE)
    symptoms = {symptom for row in rows for symptom in re.findall(r"`([^`]+)`", row)}
    others = {"KeyboardInterrupt", "kill -9", "VecNormalize", "verbose=1"}
    assert len(symptoms) >= 20 and others <= symptoms
    assert not [symptom for symptom in symptoms - others if not any(symptom in text for text in texts)]


def anchors_of(text: str) -> set[str]:
    """Return the anchors that headings get, on the repository's site and in the documentation."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), flags=re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in kept}


def targets_of(text: str) -> list[str]:
    """Return everything that a page links to or shows."""
    text = CODE.sub("", text)
    inline = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return inline + re.findall(r"^\[[^\]]+\]: (\S+)$", text, flags=re.MULTILINE)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_page_points_to_is_there(name: str) -> None:
    """Files, pages and headings, by a path from the page, on the repository's site or on that of the documentation."""
    missing = []
    for target in targets_of(DOCUMENTS[name]):
        address, _, anchor = target.partition("#")
        if IN_REPOSITORY.match(address):
            path = ROOT / IN_REPOSITORY.sub("", address)
        elif ON_SITE.match(address):
            path = DOCS / ON_SITE.sub("", address).replace(".html", ".md")
        elif "://" in address or address.startswith("mailto:"):
            continue
        else:
            path = (ROOT / name).parent / address if address else ROOT / name
        known = path.exists() and (
            not anchor or path.suffix != ".md" or anchor in anchors_of(path.read_text(encoding="utf-8"))
        )
        missing += [] if known else [target]
    assert not missing


def test_links_are_seen() -> None:
    """What is written in one of the ways is found, and what is code is not."""
    text = '[a](b.md#c) <img src="d.png"> `[no](x.md)`\n```\n[no](y.md)\n```\n[e]: f.md\n'
    assert targets_of(text) == ["b.md#c", "d.png", "f.md"]
    assert anchors_of("# What's *new*, here?\n```\n# no\n```\n## From [SB3](x)\n") == {"whats-new-here", "from-sb3"}


def test_every_page_is_in_the_contents() -> None:
    """Once, and no page is missing that the contents name."""
    contents = re.findall(r"^```\{toctree\}\n(.*?)^```", PAGES["index.md"], flags=re.DOTALL | re.MULTILINE)
    named = [line for toctree in contents for line in toctree.splitlines() if line and not line.startswith(":")]
    # "Title <page>" or the page alone
    named = [re.sub(r".*<(\w+)>", r"\1", line) for line in named]
    assert sorted(named) == sorted(name.removesuffix(".md") for name in PAGES if name != "index.md")


def test_every_picture_is_drawn_by_a_script_and_shown() -> None:
    """Its name stands in one of the scripts, or what it is made from: an argument's in the gallery, a task's."""
    scripts = "".join(path.read_text(encoding="utf-8") for folder in (DOCS, ROOT / "examples") for path in folder.glob("*.py"))
    for path in (DOCS / "images").iterdir():
        stem = path.stem.removeprefix("tune_")
        assert re.search(rf"\b{stem}\b", scripts) or re.sub(r"_[a-z]+$", "_{task}.png", stem) in scripts, path.name
        assert any(f"images/{path.name}" in text for text in DOCUMENTS.values()), path.name


def test_readme_renders_where_nothing_else_is() -> None:
    """Every link and picture of it has a whole address, for PyPI shows it alone."""
    assert all("://" in target for target in targets_of(DOCUMENTS["README.md"]))


def test_repository_has_one_address() -> None:
    """Whoever publishes it replaces one word."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    assert config["metadata"]["url"] == REPOSITORY
    owner = REPOSITORY.split("/")[3]
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "CITATION.cff", *(ROOT / ".github").rglob("*.yml"))]
    owners = re.findall(r"github(?:usercontent)?\.com/([\w-]+)/sb3_trpo", "".join([*DOCUMENTS.values(), *texts]))
    assert {*owners} == {owner}
    # The command for it would leave a name that stands anywhere else
    assert all(owner not in re.sub(rf"com/{owner}/", "", text) for text in [*DOCUMENTS.values(), *texts])


def test_documentation_is_built_where_it_is_published() -> None:
    """The extra that Read the Docs installs is the one of ``make docs``."""
    assert "- docs" in (ROOT / ".readthedocs.yaml").read_text(encoding="utf-8")
