"""The manual pages as pages of the site: mandoc makes the HTML."""

from __future__ import annotations

import re

from repository import ROOT, DocumentationError, Pages, output_of

_MANUALS = ROOT / "Sources/CheckpointCommands/man"
_HEADING = re.compile(r'<h1 class="Sh" id="[^"]*"><a [^>]*>(.*?)</a></h1>')
_SUBHEADING = re.compile(r'<h2 class="Ss" id="[^"]*"><a [^>]*>(.*?)</a></h2>', re.S)


def pages() -> Pages:
    manuals = sorted(_MANUALS.glob("*.[1-8]"), key=lambda path: (path.suffix, path.name))
    names = {path.stem: path.suffix[1:] for path in manuals}
    bodies = {path.stem: _body(output_of("mandoc", "-T", "html", "-O", "fragment", path))
              for path in manuals}
    result = {f"tools/{name}.md": _page(name, names, bodies[name]) for name in names}
    rows = "".join(
        f"| [{name}({names[name]})]({name}.md) | {_purpose(bodies[name], name)} |\n"
        for name in names
    )
    result["tools/index.md"] = _INDEX + rows
    return result


_INDEX = """# Tools

Each page is the manual page that `make install` installs.

| tool | what it does |
|---|---|
"""


def _body(html: str) -> str:
    found = re.search(r'<div class="manual-text">(.*)</div>\s*<table class="foot">', html, re.S)
    if found is None:
        raise DocumentationError("mandoc printed no manual text: its HTML has another form")
    # mandoc makes a block of nothing after each example in an indented one.
    text = re.sub(r"<pre>\s*</pre>\s*", "", found[1])
    # Permalinks of mandoc beside those of the site would be two for one thing.
    return re.sub(r'<a class="permalink" href="#[^"]*">(.*?)</a>', r"\1", text, flags=re.S)


def _purpose(body: str, name: str) -> str:
    found = re.search(rf"{re.escape(name)} [-–—] (.*?)</p>", body, re.S)
    if found is None:
        raise DocumentationError(f"the manual page of {name} has no line of its purpose")
    return " ".join(found[1].split())


def _page(name: str, names: dict[str, str], body: str) -> str:
    parts = re.split(r'<h1 class="Sh" id="[^"]*">(.*?)</h1>', body, flags=re.S)
    text = f"# {name}({names[name]})\n"
    for title, content in zip(parts[1::2], parts[2::2], strict=True):
        text += f"\n## {_title(title)}\n\n"
        pieces = re.split(r'<h2 class="Ss" id="[^"]*">(.*?)</h2>', content, flags=re.S)
        text += _block(pieces[0], names)
        for subtitle, piece in zip(pieces[1::2], pieces[2::2], strict=True):
            text += f"\n### {_title(subtitle, is_section=False)}\n\n" + _block(piece, names)
    return text


def _title(html: str, is_section: bool = True) -> str:
    text = " ".join(re.sub(r"<[^>]+>", "", html).split())
    return text.capitalize().replace("Json", "JSON") if is_section else text


def _block(html: str, names: dict[str, str]) -> str:
    """One block of HTML for Markdown: without sections, which the headings divide, and links."""
    html = re.sub(r"</?section[^>]*>", "", html)
    html = re.sub(r"<b>(([a-z]+)(?: [a-z]+)?)</b>\(([1-8])\)", lambda m: _see(m, names), html)
    # A tag in front of nothing is an indented paragraph.
    html = html.replace("<dt></dt>", "")
    return f'<div class="manual">\n{html.strip()}\n</div>\n'


def _see(found: re.Match[str], names: dict[str, str]) -> str:
    """A link, when the page is here. That of `pccheck keep` is the page of pccheck."""
    words, name, section = found.groups()
    if names.get(name) != section:
        return found[0]
    return f'<a href="{name}.html"><b>{words}</b>({section})</a>'
