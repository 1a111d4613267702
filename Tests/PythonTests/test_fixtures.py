"""The independent reader against every image under Fixtures/."""

import json
import pathlib

import pytest
import reader as independent
import xxhash
import zstandard

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "Fixtures"
VALID = sorted((FIXTURES / "valid" / "v1").glob("*.json"))
CORRUPT = sorted((FIXTURES / "corrupt").glob("*.json"))


def image(path):
    """The bytes of the fixture that `path` describes."""
    fixture = json.loads(path.read_text())
    if "base" not in fixture:
        frame = path.with_suffix(".pcc.zst").read_bytes()
        return zstandard.ZstdDecompressor().decompress(frame)
    data = bytearray(image(FIXTURES / (fixture["base"] + ".json")))
    for patch in fixture["patches"]:
        if "offset" in patch:
            content = bytes.fromhex(patch["bytes"])
            data[patch["offset"]:patch["offset"] + len(content)] = content
        if "truncate" in patch:
            del data[patch["truncate"]:]
        if "append" in patch:
            data += bytes.fromhex(patch["append"])
        if patch.get("converts_line_ends"):
            data = bytearray(bytes(data).replace(b"\r\n", b"\n"))
    return bytes(data)


def load(path, folder):
    """What the reader loads from the fixture: None when it refuses the file or finds nothing."""
    file = folder / "image.pcc"
    file.write_bytes(image(path))
    try:
        with independent.Reader(file) as opened:
            return opened.load()
    except independent.FormatError:
        return None


# FORMAT.md lets a reader take what is left of a truncated file; PCcheck's own loaders refuse it.
READ_THOUGH_TRUNCATED = {"truncated-tail"}


@pytest.mark.parametrize("path", VALID + CORRUPT, ids=lambda path: path.stem)
def test_reader_loads_what_a_resume_loads(path, tmp_path):
    fixture = json.loads(path.read_text())
    checkpoint = load(path, tmp_path)
    found = checkpoint and (
        checkpoint.slot.index, checkpoint.slot.sequence, checkpoint.slot.step)
    if path.stem in READ_THOUGH_TRUNCATED:
        assert found is not None and "resume" not in fixture
        return
    resume = fixture.get("resume")
    expected = resume and (resume["slot"], resume["sequence"], resume["step"])
    assert found == expected
    if checkpoint and "checkpoints" in fixture:
        newest = fixture["checkpoints"][0]
        assert len(checkpoint.payload) == newest["payload_byte_count"]
        digest = xxhash.xxh3_128_hexdigest(checkpoint.payload)
        assert digest == newest["payload_xxh128"]


def test_there_are_enough_fixtures():
    assert len(VALID) >= 8
    assert len(VALID) + len(CORRUPT) >= 30
