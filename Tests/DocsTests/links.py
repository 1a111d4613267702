"""What the pages of a site refer to, and what of it is not there."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes with which a page loads something at once.
LOADING = {
    ("img", "src"), ("script", "src"), ("iframe", "src"), ("source", "src"), ("object", "data"),
    ("link", "href"), ("image", "href"), ("use", "href"),
}  # fmt: skip


@dataclass
class Reference:
    tag: str
    attribute: str
    target: str


@dataclass
class Page(HTMLParser):
    """The anchors and references of one page."""

    path: Path
    anchors: set[str] = field(default_factory=set)
    references: list[Reference] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name == "id" or (tag, name) == ("a", "name"):
                self.anchors.add(value)
            elif name in ("href", "src", "data"):
                self.references.append(Reference(tag, name, value))


def pages_of(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def faults_of(site: Path) -> list[str]:
    """Every reference of every page that leads nowhere, or loads something from elsewhere."""
    pages = pages_of(site)
    return [
        f"{path.relative_to(site)}: <{reference.tag} {reference.attribute}> {fault}"
        for path, page in pages.items()
        for reference in page.references
        if (fault := _fault(site, pages, path, reference))
    ]


def _fault(site: Path, pages: dict[Path, Page], page: Path, reference: Reference) -> str | None:
    target = urlsplit(reference.target)
    if target.scheme or target.netloc:
        is_loading = (reference.tag, reference.attribute) in LOADING
        is_fetched = is_loading and target.scheme not in ("data",)
        return f"loads {reference.target}" if is_fetched else None
    path = (page.parent / unquote(target.path)).resolve() if target.path else page
    if not path.is_relative_to(site.resolve()):
        return f"leaves the site: {reference.target}"
    if not path.is_file():
        return f"leads to {reference.target}, which does not exist"
    anchor = unquote(target.fragment)
    # Material's own links to the top, and to a part of its page that its script makes.
    if anchor and path in pages and anchor not in pages[path].anchors | {"__top"}:
        return f"leads to {reference.target}, but that page has no such anchor"
    return None
