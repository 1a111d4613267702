"""Columns of sentences get a width, so that a narrow window does not break them word by word."""

from __future__ import annotations

import re

# At so many letters in its longest cell a column is at least so wide; the first that fits counts.
_WIDTHS = [(80, "var(--long-column)"), (28, "var(--middle-column)")]


def with_widths(html: str) -> str:
    return re.sub(r"<table>.*?</table>", lambda found: _table(found[0]), html, flags=re.S)


def _table(html: str) -> str:
    heads = re.findall(r"<th\b[^>]*>", html)
    cells = re.findall(r"<td\b[^>]*>(.*?)</td>", html, re.S)
    lengths = [len(re.sub(r"<[^>]+>", "", cell)) for cell in cells]
    columns = iter(range(len(heads)))

    def head(found: re.Match[str]) -> str:
        longest = max(lengths[next(columns) :: len(heads)], default=0)
        width = next((width for least, width in _WIDTHS if longest >= least), None)
        return f'<th style="min-width: {width}"' if width else found[0]

    return re.sub(r"<th\b(?: style=\"[^\"]*\")?", head, html)
