"""The map of a checkpoint file, and its bytes with their names, in the place of

    <!-- map -->
    <!-- hexdump BLOCK -->

Both come from what pcinspect says of a fixture, so that they cannot be stale.
"""

from __future__ import annotations

import functools
import json
import re
import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import zstandard
from repository import BUILD, ROOT, DocumentationError, output_of
from svg import Drawing

_FIXTURE = ROOT / "Fixtures/valid/v1/safetensors.pcc.zst"
_PCINSPECT = BUILD / "bin/pcinspect"
_MAP = re.compile(r"^<!-- map -->$", re.M)
_HEXDUMP = re.compile(r"^<!-- hexdump (.+) -->$", re.M)
_BLOCK = 4096


def placed(markdown: str) -> str:
    markdown = _MAP.sub(lambda _: _map(), markdown)
    return _HEXDUMP.sub(lambda found: _hexdump(found[1]), markdown)


@functools.cache
def _inspected(*arguments: str) -> str:
    raw = zstandard.ZstdDecompressor().decompressobj().decompress(_FIXTURE.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.pcc"
        file.write_bytes(raw)
        command, *rest = arguments
        return output_of(_PCINSPECT, command, file, *rest)


def _map() -> str:
    identity: dict[str, Any] = json.loads(_inspected("super", "--json"))["identity"]
    chunks = json.loads(_inspected("chunks", "--slot", "0", "--json"))["chunks"]
    d = Drawing("map", "Every region of a checkpoint file, with offsets and sizes")
    d.text(0, 12, "offset", "strong")
    d.text(258, 12, "content", "strong", "middle")
    d.text(480, 12, "bytes", "strong", "end")
    y = 24.0
    for offset, size, words, kind, height in _regions(identity, chunks):
        d.box(92, y, 290, height, kind, 2)
        d.text(0, y + 17, f"{offset}", "small")
        d.text(237, y + height / 2 + 5, words, "", "middle")
        d.text(480, y + 17, f"{size}", "small", "end")
        y += height + 3
    return d.html(
        y, "A file with three slots of 256 KiB. Heights are not to scale."
    )


def _regions(
    identity: dict[str, Any], chunks: list[dict[str, Any]]
) -> Iterator[tuple[int, int, str, str, int]]:
    """Offset, size, words, colour and drawn height of each region, from the first byte on."""
    end = identity["file_byte_count"]
    yield 0, _BLOCK, "identity block", "blue", 26
    yield _BLOCK, _BLOCK, "superblock, even generations", "violet", 26
    yield 2 * _BLOCK, _BLOCK, "superblock, odd generations", "violet", 26
    yield 3 * _BLOCK, _BLOCK, "reserved", "empty", 26
    stride = identity["metadata_stride"]
    for slot in range(identity["slot_count"]):
        offset = identity["metadata_offset"] + slot * stride
        yield offset, _BLOCK, f"slot {slot}: header", "amber", 26
        yield offset + _BLOCK, stride - _BLOCK, f"slot {slot}: chunk table", "paper", 26
    stride = identity["data_stride"]
    for chunk in chunks:
        size = chunk["stored_byte_count"]
        yield chunk["byte_offset"], size, f"slot 0: chunk {chunk['chunk']}", "green", 34
    used = chunks[-1]["byte_offset"] + chunks[-1]["stored_byte_count"]
    first = identity["data_offset"]
    yield used, first + stride - used, "slot 0: free for a larger payload", "empty", 34
    for slot in range(1, identity["slot_count"]):
        yield first + slot * stride, stride, f"slot {slot}: chunks", "green", 46
    yield end - 3 * _BLOCK, _BLOCK, "superblock, even, tail copy", "violet", 26
    yield end - 2 * _BLOCK, _BLOCK, "superblock, odd, tail copy", "violet", 26
    yield end - _BLOCK, _BLOCK, "identity block, mirror", "blue", 26


def _hexdump(block: str) -> str:
    """A table: offset and bytes on the left, name and value on the right."""
    rows, held = "", ""
    for line in _inspected("hexdump", *block.split(), "--annotate").splitlines():
        data = re.fullmatch(r"([0-9a-f]{8})  (.{49,50}?) *\|.*\|", line)
        field = re.fullmatch(r" +([✔✘·]) (\S+(?: \d+)?(?:\S*)) = (.*)", line)
        if data:
            held += f"<span>{data[1]}</span>  {_bytes(data[2])}\n"
        elif line == "*":
            held += "*  the same again\n"
        elif field:
            mark, name, value = field.groups()
            rows += (
                f"<tr><td><pre>{held.rstrip()}</pre></td>"
                f"<td><code>{escape(name)}</code> {mark}<br/>{escape(value)}</td></tr>\n"
            )
            held = ""
    if not rows:
        raise DocumentationError(f"pcinspect hexdump {block} --annotate named no field")
    command = f"pcinspect hexdump run.pcc {block} --annotate"
    return (
        f'<div class="hexdump"><table class="bytes" aria-label="{command}"><thead><tr>'
        f'<th scope="col">offset and bytes</th><th scope="col">field</th></tr></thead><tbody>\n'
        f"{rows}</tbody></table></div>\n"
    )


def _bytes(text: str) -> str:
    """Eight bytes a line, so that a narrow screen has room for the name beside them."""
    first, _, second = text.strip().partition("  ")
    return first + (f"\n<span>        </span>  {second.strip()}" if second.strip() else "")
