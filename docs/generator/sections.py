"""Parts of the repository's Markdown inside other pages, and links to what is no page.

    <!-- until README.md "Heading" -->      everything above that heading
    <!-- section README.md "Heading" -->    what is below that heading, up to the next of its level
"""

from __future__ import annotations

import posixpath
import re

from repository import ROOT, DocumentationError

_DIRECTIVE = re.compile(r'^<!-- (until|section) (\S+) "(.+)" -->$', re.M)
_LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))")
# One schema has a heading on the page of all.
_SCHEMA = re.compile(r"(spec/schemas|schemas)/([\w-]+)\.json")
# Files and folders that a page of another name shows.
_SHOWN_BY = {
    "Sources/CPCCheck/include/pccheck.h": "api/c.md",
    "spec/schemas": "spec/schemas.md",
    "schemas": "schemas.md",
    "README.md": "index.md",
    "../README.md": "../index.md",
}


def included(markdown: str) -> str:
    return _DIRECTIVE.sub(lambda found: _part(*found.groups()), markdown)


def linked(markdown: str) -> str:
    def target(found: re.Match[str]) -> str:
        schema = _SCHEMA.fullmatch(found[2])
        if schema:
            return f"{found[1]}{_SHOWN_BY[schema[1]]}#{schema[2]}"
        return found[1] + _SHOWN_BY.get(found[2], found[2]) + (found[3] or "")

    return _outside_code(_LINK, target, markdown)


def _part(kind: str, path: str, heading: str) -> str:
    text = (ROOT / path).read_text()
    found = re.search(rf"^(#+) {re.escape(heading)}$", text, re.M)
    if found is None:
        raise DocumentationError(
            f'{path} has no heading "{heading}"; name its present one in docs/pages'
        )
    if kind == "until":
        part = text[: found.start()]
    else:
        rest = text[found.end() :]
        end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.M)
        part = rest[: end.start()] if end else rest
    folder = posixpath.dirname(path)

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        return link[1] + target + (link[3] or "")

    return _outside_code(_LINK, moved, part).strip()


def _outside_code(pattern: re.Pattern[str], change: object, markdown: str) -> str:
    """Applies `change` to what is in no fenced block."""
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.M | re.S)
    parts[::2] = [pattern.sub(change, part) for part in parts[::2]]  # type: ignore[call-overload]
    return "".join(parts)
