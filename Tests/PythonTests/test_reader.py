"""The independent reader agrees with PCcheck on every fixture: spec/FORMAT.md says enough."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import reader
import xxhash
import zstandard

FIXTURES = Path(__file__).resolve().parents[2] / "Fixtures"
VALID = sorted((FIXTURES / "valid" / "v1").glob("*.pcc.zst"))
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
            data += bytes.fromhex(patch["append"])
        elif patch.get("converts_line_ends"):
            data = data.replace(b"\r\n", b"\n")
        else:
            new = bytes.fromhex(patch["bytes"])
            data[patch["offset"]:patch["offset"] + len(new)] = new
    return data


def test_fixtures_are_there() -> None:
    assert VALID and len(CORRUPT) >= 30


@pytest.mark.parametrize("archive", VALID, ids=lambda path: path.name)
def test_valid_files_read_completely(archive: Path, tmp_path: Path) -> None:
    name = archive.name.removesuffix(".pcc.zst")
    expected = json.loads((archive.parent / f"{name}.json").read_text())
    path = tmp_path / "run.pcc"
    path.write_bytes(image(f"valid/v1/{name}"))
    assert path.stat().st_size == expected["file_byte_count"]
    with reader.Reader(path) as file:
        found = []
        for slot in file.candidates():
            checkpoint = file.load(slot)
            assert checkpoint is not None, file.problems
            found.append((slot.index, slot.sequence, slot.step,
                          xxhash.xxh3_128_hexdigest(checkpoint.payload)))
        assert found == [(c["slot"], c["sequence"], c["step"], c["payload_xxh128"])
                         for c in expected["checkpoints"]]


@pytest.mark.parametrize("path", CORRUPT, ids=lambda path: path.stem)
def test_damaged_files_load_what_pccheck_loads(path: Path, tmp_path: Path) -> None:
    case = json.loads(path.read_text())
    expected = case.get("resume")
    file_path = tmp_path / "run.pcc"
    file_path.write_bytes(patched(case))
    try:
        with reader.Reader(file_path) as file:
            checkpoint = file.load()
    except reader.FormatError:
        checkpoint = None
    if expected is None:
        assert checkpoint is None
    else:
        assert checkpoint is not None, file.problems
        assert checkpoint.slot.sequence == expected["sequence"]
        assert checkpoint.slot.step == expected["step"]
        assert checkpoint.slot.index == expected["slot"]
