"""The page of the C ABI, made from the comments and declarations of pccheck.h."""

from __future__ import annotations

import re

from repository import ROOT, DocumentationError, Pages

_HEADER = ROOT / "Sources/CPCCheck/include/pccheck.h"
_SECTION = re.compile(r"^/\* -{20,} (.+?) \*/$", re.M)
_LEADING_COMMENT = re.compile(r"\s*/\*(.*?)\*/[ \t]*\n", re.S)
_WORD = re.compile(r"(?<![\w`])((?:pcc|PCC)_\w+(?:\(\))?)(?![\w`*])")


def pages() -> Pages:
    text = _HEADER.read_text()
    parts = _SECTION.split(text)
    names = set(_functions(text))
    head = _LEADING_COMMENT.match(parts[0])
    if head is None or len(parts) < 3:
        raise DocumentationError(f"{_HEADER} has no leading comment, or no section")
    # What follows the guard and the macros that only a compiler reads.
    statuses = parts[0][parts[0].index("/* What went wrong.") :]
    page = "# C API\n\n" + _prose(head[1].partition("\n *\n")[2], names) + _LINKING
    page += _section("Status and errors", statuses, names)
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        page += _section(title[0].upper() + title[1:], body, names)
    return {"api/c.md": page, "api/index.md": _INDEX}


_INDEX = """# API

| language | page |
|---|---|
| Python | [pccheck](python/pccheck.md), [pccheck.torch](python/torch.md) and the adapters |
| C | [pccheck.h](c.md), for every language that calls C |
| Swift | [CheckpointWriter](swift/CheckpointWriter.md), for writing |
| Swift | [CheckpointRecovery](swift/CheckpointRecovery.md), for reading |
| Swift | [CheckpointGroup](swift/CheckpointGroup.md), for what the ranks of a job decide |
| Swift | [CheckpointCheck](swift/CheckpointCheck.md), for checks and repairs |
| Swift | [CheckpointFormat](swift/CheckpointFormat.md), for the bytes of a file |

Each page is made from the comments in the source.
"""

_LINKING = """
```console
$ cc program.c $(pkg-config --cflags --libs pccheck)
```

"""


def _functions(code: str) -> list[str]:
    return re.findall(r"^PCC_API [^;]*?\b(pcc_\w+)\(", code, re.M)


def _section(title: str, body: str, names: set[str]) -> str:
    body = re.sub(r"^#(?:endif|ifdef|if|else).*?(?=^#endif|\Z)|^#endif.*$", "", body,
                  flags=re.M | re.S)
    text = f"## {title}\n\n"
    for block in _blocks(body):
        text += _entry(block, names)
    return text


def _blocks(body: str) -> list[str]:
    """Pieces between empty lines that are in no comment and no braces."""
    blocks, block = [], ""
    for line in body.splitlines(keepends=True):
        is_inside = block.count("/*") > block.count("*/") or block.count("{") > block.count("}")
        if not line.strip() and not is_inside:
            blocks.append(block)
            block = ""
        else:
            block += line
    return [piece for piece in [*blocks, block] if piece.strip()]


def _entry(block: str, names: set[str]) -> str:
    """A heading for what a block declares, its comment as text, its code as code."""
    functions = _functions(block)
    types = re.findall(r"^(?:typedef )?struct (pcc_\w+) \{", block, re.M)
    macros = re.findall(r"^#define (PCC_\w+)", block, re.M)
    aliases = re.findall(r"^typedef (?:struct )?\w+ (pcc_\w+);", block, re.M)
    declared = functions or types or aliases or _family(macros)
    text = ""
    if declared:
        anchor = declared[0].rstrip("_*")
        title = ", ".join(f"`{name}`" for name in declared)
        text += f"### {title} {{ #{anchor} }}\n\n"
        others = "".join(f'<a id="{name}"></a>' for name in declared[1:])
        text += f"{others}\n\n" if others else ""
    leading = _LEADING_COMMENT.match(block)
    # One comment above several functions that have more of their own stays in the code.
    if leading and len(re.findall(r"^/\*", block, re.M)) == 1:
        text += _prose(leading[1], names) + "\n\n"
        block = block[leading.end() :]
    table = _table(block, names)
    if table:
        return text + table
    return text + f"```c\n{block.strip()}\n```\n\n"


def _family(macros: list[str]) -> list[str]:
    """The common beginning of several macros stands for all of them."""
    if len(macros) < 2:
        return macros
    first, last = min(macros), max(macros)
    length = next((i for i, c in enumerate(first) if last[i : i + 1] != c), len(first))
    return [first[:length].rpartition("_")[0] + "_*"]


def _table(block: str, names: set[str]) -> str:
    """Numbered macros with a comment each, as a table; nothing for any other block."""
    block = re.sub(r"^typedef int32_t pcc_status;\n", "", block)
    row = re.compile(r"#define (PCC_\w+) +(\d+)(?: +/\*(.*?)\*/)?\s*", re.S)
    rows = row.findall(block)
    if len(rows) < 2 or row.sub("", block).strip():
        return ""
    text = "| name | value | meaning |\n|---|---|---|\n"
    for name, value, comment in rows:
        words = " ".join(re.sub(r"\n\s*\*? ?", " ", comment).split())
        text += f"| `{name}` | {value} | {_prose(words, names).replace('|', '&#124;')} |\n"
    return text + "\n"


def _prose(comment: str, names: set[str]) -> str:
    lines = [re.sub(r"^ ?\* ?", "", line.rstrip()) for line in comment.strip("\n").splitlines()]
    # Lines that are further in than the others are a list of words and what they mean.
    text = "\n".join(lines)
    text = re.sub(r"^  (\w+)   ?(.*(?:\n {6,}.*)*)",
                  lambda m: f"\n- *{m[1]}*: {' '.join(m[2].split())}\n", text, flags=re.M)
    text = re.sub(r"\n{3,}", "\n\n", text.replace("<", "&lt;")).strip()

    def marked(found: re.Match[str]) -> str:
        name = found[1].removesuffix("()")
        return f"[`{found[1]}`](#{name})" if name in names else f"`{found[1]}`"

    return _WORD.sub(marked, text)
