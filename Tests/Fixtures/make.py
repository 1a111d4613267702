#!/usr/bin/env python3
"""Writes Fixtures/composed, Fixtures/hostile, and what is composed of Fixtures/corrupt.

    make.py             writes what is missing or differs
    make.py --check     says what would be written, and fails when there is something

Everything follows from the tables: the same tables give the same bytes.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import crash
import damage
import hostile
import rules
import shapes
import xxhash
import zstandard
from compose import BLOCK, ROOT, SAFETENSORS, SUPERBLOCK, Image, SparseBytes, field
from expect import Case, Resume

FIXTURES = ROOT / "Fixtures"
FAMILIES = (crash, damage, rules, shapes)
# A row of one byte of this length is written down as a repeat.
ROW = 24
# So many equal bytes end a patch.
GAP = 16


def cases() -> Iterator[Case]:
    for family in FAMILIES:
        yield from family.cases()


def bases() -> dict[str, tuple[str, Image]]:
    return {name: (description, image)
            for family in (crash, damage, shapes) for name, description, image in family.bases()}


def rows(data: bytes) -> Iterator[dict[str, object]]:
    """Pieces of `data`, rows of one byte apart."""
    start = 0
    for match in re.finditer(rb"(.)\1{%d,}" % (ROW - 1), data, re.DOTALL):
        if match.start() > start:
            yield {"bytes": data[start:match.start()].hex(), "at": start}
        yield {"bytes": match[1].hex(), "repeat": len(match[0]), "at": match.start()}
        start = match.end()
    if start < len(data):
        yield {"bytes": data[start:].hex(), "at": start}


def changed_ranges(base: bytes, image: bytes) -> Iterator[tuple[int, int]]:
    """Where two images differ, over their common size."""
    common = min(len(base), len(image))
    start = last = -1
    for block in range(0, common, BLOCK):
        if base[block:block + BLOCK] == image[block:block + BLOCK]:
            continue
        for offset in range(block, min(block + BLOCK, common)):
            if base[offset] == image[offset]:
                continue
            if start >= 0 and offset - last > GAP:
                yield start, last + 1
                start = offset
            start = offset if start < 0 else start
            last = offset
    if start >= 0:
        yield start, last + 1


def difference(base: bytes, image: bytes) -> list[dict[str, object]]:
    """The patches that make `image` of `base`."""
    patches: list[dict[str, object]] = []
    for start, end in changed_ranges(base, image):
        for row in rows(image[start:end]):
            patches.append({"offset": start + row.pop("at"), **row})
    if len(image) < len(base):
        patches.append({"truncate": len(image)})
    for row in rows(image[len(base):]):
        row.pop("at")
        patches.append({"append": row.pop("bytes"), **row})
    return patches


def checkpoints(image: Image) -> list[dict[str, object]]:
    """What was put into the slots and is still there, newest first."""
    newest = max((image.block(offset) for generation in (0, 1)
                  for offset in image.superblock_offsets(generation)),
                 key=lambda block: field(block, SUPERBLOCK, "generation"))
    kept = field(newest, SUPERBLOCK, "retained_count")
    kinds = ["anchored", *["retained"] * kept, *["older"] * image.slot_count]
    held = sorted(image.held.items(), key=lambda item: -item[1][0])
    return [{
        "kind": kind, "slot": slot, "sequence": sequence, "step": step,
        "payload_byte_count": len(content.data),
        "payload_kind": "safetensors" if content.kind == SAFETENSORS else "opaque",
        "payload_xxh128": xxhash.xxh3_128_hexdigest(content.data),
    } for kind, (slot, (sequence, step, content)) in zip(kinds, held, strict=False)]


def resume_json(resume: Resume) -> dict[str, object]:
    return {"slot": resume.slot, "sequence": resume.sequence, "step": resume.step,
            "kind": resume.kind}


def findings_json(items: list) -> list[dict[str, object]]:
    return [{"id": f"PCK-{item.id}", "severity": item.severity,
             **({} if item.slot is None else {"slot": item.slot})} for item in items]


def base_json(description: str, image: Image) -> dict[str, object]:
    held = checkpoints(image)
    newest = {key: held[0][key] for key in ("slot", "sequence", "step", "kind")}
    flags = max((image.block(offset) for generation in (0, 1)
                 for offset in image.superblock_offsets(generation)),
                key=lambda block: field(block, SUPERBLOCK, "generation"))
    is_closed = field(flags, SUPERBLOCK, "flags") == 1
    findings = [] if is_closed else [{"id": "PCK-B010", "severity": "info"}]
    return {"description": description, "file_byte_count": image.byte_count, "exit_code": 0,
            "findings": findings, "resume": newest, "checkpoints": held}


def case_json(case: Case, base: bytes) -> dict[str, object]:
    result: dict[str, object] = {
        "description": case.description, "base": case.base, "file_byte_count": len(case.image),
        "patches": difference(base, bytes(case.image)), "exit_code": case.exit_code,
        "findings": findings_json(case.ordered),
    }
    if case.resume:
        result["resume"] = resume_json(case.resume)
    if case.left is not None:
        result["findings_after_repair"] = findings_json(case.left)
    return result


def pieces(image: Image) -> Iterator[tuple[int, bytes]]:
    """The parts of an image that are not zero, at least a block each."""
    data = image.data
    if isinstance(data, SparseBytes):
        blocks = sorted((offset, bytes(block)) for offset, block in data.blocks.items())
    else:
        blocks = [(offset, bytes(data[offset:offset + BLOCK]))
                  for offset in range(0, len(data), BLOCK)]
    start, piece = 0, b""
    for offset, block in blocks:
        if offset >= len(data) or not any(block):
            continue
        if piece and start + len(piece) != offset:
            yield start, piece
            piece = b""
        start, piece = (offset, block) if not piece else (start, piece + block)
    if piece:
        yield start, piece


def hostile_json(item: hostile.Hostile) -> dict[str, object]:
    result: dict[str, object] = {
        "description": item.description, "verdict": item.verdict,
        "findings": sorted(f"PCK-{id}" for id in item.findings),
    }
    if not item.is_large:
        image = item.make()
        result["file_byte_count"] = len(image.data)
        result["patches"] = [
            {"offset": offset + row.pop("at"), **row}
            for offset, piece in pieces(image) for row in rows(piece)
            if row["bytes"] != "00"]
    return result


def files() -> Iterator[tuple[Path, bytes]]:
    """Everything that is written."""
    images: dict[str, bytes] = {}
    for name, (description, image) in bases().items():
        images[name] = bytes(image.data)
        frame = zstandard.ZstdCompressor(level=19).compress(images[name])
        yield FIXTURES / f"{name}.pcc.zst", frame
        yield FIXTURES / f"{name}.json", encode(base_json(description, image))
    for case in cases():
        yield FIXTURES / "corrupt" / f"{case.name}.json", encode(case_json(case, images[case.base]))
    for item in hostile.all_hostile():
        yield FIXTURES / "hostile" / f"{item.name}.json", encode(hostile_json(item))


def encode(value: dict[str, object]) -> bytes:
    text = json.dumps(value, indent=2, sort_keys=True, separators=(",", " : "))
    return text.encode() + b"\n"


def is_same(path: Path, data: bytes) -> bool:
    """A frame counts by what it holds: another zstd makes another frame of the same bytes."""
    if not path.exists() or path.suffix != ".zst":
        return path.exists() and path.read_bytes() == data
    decompress = zstandard.ZstdDecompressor().decompress
    return decompress(path.read_bytes()) == decompress(data)


def main() -> int:
    is_check = sys.argv[1:] == ["--check"]
    different = [(path, data) for path, data in files() if not is_same(path, data)]
    for path, data in different:
        print(path.relative_to(ROOT))
        if not is_check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return 1 if is_check and different else 0


if __name__ == "__main__":
    sys.exit(main())
