"""The files in Fixtures: the valid ones, and the damage that is done to them."""

from __future__ import annotations

import zstandard
from conftest import ROOT

FIXTURES = ROOT / "Fixtures"
VALID = sorted([*(FIXTURES / "valid" / "v1").glob("*.pcc.zst"),
                *(FIXTURES / "composed").glob("*.pcc.zst")])
CORRUPT = sorted((FIXTURES / "corrupt").glob("*.json"))


def image(name: str) -> bytearray:
    compressed = (FIXTURES / f"{name}.pcc.zst").read_bytes()
    return bytearray(zstandard.ZstdDecompressor().decompress(compressed))


def patched(case: dict) -> bytearray:
    data = image(case["base"])
    for patch in case["patches"]:
        if "truncate" in patch:
            del data[patch["truncate"]:]
        elif "append" in patch:
            data += bytes.fromhex(patch["append"]) * patch.get("repeat", 1)
        elif patch.get("converts_line_ends"):
            data = data.replace(b"\r\n", b"\n")
        else:
            new = bytes.fromhex(patch["bytes"]) * patch.get("repeat", 1)
            data[patch["offset"]:patch["offset"] + len(new)] = new
    return data
