"""One page for each Swift library, made from the symbol graph that the compiler extracts.

DocC's own pages load their text with requests, which no browser allows from a file.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from repository import ROOT, DocumentationError, Pages, output_of

_MODULES = [
    "CheckpointWriter", "CheckpointRecovery", "CheckpointGroup", "CheckpointCheck",
    "CheckpointFormat",
]
_TYPES = {"swift.class", "swift.struct", "swift.enum", "swift.protocol"}
# What a type has because of a protocol of the standard library.
_UNTOLD = {"swift.func.op"}

Symbol = dict[str, Any]


def pages() -> Pages:
    return {f"api/swift/{name}.md": _page(name, _symbols(name)) for name in _MODULES}


def _symbols(module: str) -> tuple[list[Symbol], dict[str, str]]:
    """Public symbols, and the parent of each that has one."""
    scratch = ROOT / ".build-c"
    products = scratch / "release"
    if not (products / "Modules" / f"{module}.swiftmodule").exists():
        raise DocumentationError(
            f"{products}/Modules holds no {module}.swiftmodule; remove build/lib and run make lib"
        )
    maps = [
        *sorted(products.glob("*.build/module.modulemap")),
        *sorted(ROOT.glob("Sources/*/module.modulemap")),
        *sorted(scratch.glob("checkouts/*/Sources/*/include/module.modulemap")),
    ]
    clang = [word for path in maps for word in ("-Xcc", f"-fmodule-map-file={path}")]
    with tempfile.TemporaryDirectory() as folder:
        output_of(
            os.environ.get("SWIFT", "swift"), "symbolgraph-extract", "-module-name", module,
            "-I", products / "Modules", *clang, "-minimum-access-level", "public",
            "-target", f"{os.uname().machine}-unknown-linux-gnu", "-output-dir", folder,
        )
        graph = json.loads((Path(folder) / f"{module}.symbols.json").read_text())
    parents = {
        edge["source"]: edge["target"]
        for edge in graph["relationships"]
        if edge["kind"] == "memberOf"
    }
    return graph["symbols"], parents


def _page(module: str, graph: tuple[list[Symbol], dict[str, str]]) -> str:
    symbols, parents = graph
    told = [s for s in symbols if _kind(s) not in _UNTOLD and "::SYNTHESIZED::" not in _id(s)]
    told.sort(key=lambda s: (_title(s) != module, _title(s)))
    types = [s for s in told if _kind(s) in _TYPES]
    lonely = [s for s in told if _kind(s) not in _TYPES and _id(s) not in parents]
    text = f"# {module}\n\n"
    for symbol in types:
        members = [s for s in told if parents.get(_id(s)) == _id(symbol)]
        text += _type(symbol, [m for m in members if _kind(m) not in _TYPES])
    if lonely:
        text += "## Functions and aliases\n\n" + "".join(map(_member, lonely))
    return text


def _type(symbol: Symbol, members: list[Symbol]) -> str:
    text = f"## {_title(symbol)}\n\n{_code(symbol)}{_comment(symbol)}"
    members.sort(key=lambda m: m.get("location", {}).get("position", {}).get("line", 0))
    return text + "".join(map(_member, members))


def _member(symbol: Symbol) -> str:
    return f'<div class="member" markdown="1">\n\n{_code(symbol)}{_comment(symbol)}</div>\n\n'


def _code(symbol: Symbol) -> str:
    code = "".join(part["spelling"] for part in symbol["declarationFragments"])
    # Long lists of parameters, one a line.
    if len(code) > 72 and "(" in code:
        begin = code.index("(") + 1
        end = _closing(code, begin)
        inside = re.sub(r", (?=\w+(?: \w+)?:)", ",\n    ", code[begin:end])
        code = f"{code[:begin]}\n    {inside}\n{code[end:]}"
    return f"```swift\n{code}\n```\n\n"


def _closing(code: str, begin: int) -> int:
    """Where the parenthesis ends that was opened before `begin`."""
    depth = 1
    for index in range(begin, len(code)):
        depth += (code[index] == "(") - (code[index] == ")")
        if depth == 0:
            return index
    raise DocumentationError(f"a declaration has unequal parentheses: {code}")


def _comment(symbol: Symbol) -> str:
    lines = [line["text"] for line in symbol.get("docComment", {}).get("lines", [])]
    # Two backticks are DocC's links to symbols; headings would be those of the page.
    text = re.sub(r"``([^`]+)``", r"`\1`", "\n".join(lines))
    # The parameters are a list in a list, which Markdown wants further in.
    if "- Parameters:" in text:
        text = re.sub(r"^ +", lambda spaces: spaces[0] * 2, text, flags=re.M)
    # Markdown begins a list only after an empty line, or after another item.
    text = re.sub(r"^(?![-*] |\s)(.+)\n(?=[-*] )", r"\1\n\n", text, flags=re.M)
    text = re.sub(r"^#+ (.*)$", r"**\1**", text, flags=re.M)
    return f"{text}\n\n" if text else ""


def _id(symbol: Symbol) -> str:
    return str(symbol["identifier"]["precise"])


def _kind(symbol: Symbol) -> str:
    return str(symbol["kind"]["identifier"])


def _title(symbol: Symbol) -> str:
    return ".".join(symbol["pathComponents"])
