"""Check a built site: whatever a page links to or shows inside of it is there, anchors included."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Collects the anchors of a page, and what it points to."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        given = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := given.get(name))}
        self.targets += [value for name in ("href", "src") if (value := given.get(name))]


def problems_of(site: Path) -> list[str]:
    """Return a line for each target that is missing."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.resolve().rglob("*.html"))}
    problems = []
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            other = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not other.exists():
                problems.append(f"{path.name}: there is no {target}")
            elif parts.fragment and other in pages and unquote(parts.fragment) not in pages[other].anchors:
                problems.append(f"{path.name}: nothing in {other.name} is called {parts.fragment}")
    if len(pages) < 5:
        problems.append(f"{site} holds no site")
    return problems


if __name__ == "__main__":
    found = problems_of(Path(sys.argv[1]))
    print("\n".join(found) or "every link inside of the site leads somewhere")
    sys.exit(bool(found))
