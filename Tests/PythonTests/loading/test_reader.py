"""The independent reader agrees with PCcheck on every fixture: spec/FORMAT.md says enough."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path
from random import Random

import pytest
import reader
import xxhash
from fixture_files import CORRUPT, FIXTURES, VALID, image, patched


def test_fixtures_are_there() -> None:
    assert len(VALID) >= 24 and len(CORRUPT) >= 400


@pytest.mark.parametrize("archive", VALID, ids=lambda path: path.name)
def test_valid_files_read_completely(archive: Path, tmp_path: Path) -> None:
    name = archive.name.removesuffix(".pcc.zst")
    expected = json.loads((archive.parent / f"{name}.json").read_text())
    path = tmp_path / "run.pcc"
    path.write_bytes(image(str(archive.parent.relative_to(FIXTURES) / name)))
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


PCFSCK = Path(os.environ.get("PCFSCK", FIXTURES.parent / "build" / "bin" / "pcfsck"))
# A run's seeds: `PCC_SEED=n` replays case n alone, `PCC_CASES=n` runs more of them.
SEED = os.environ.get("PCC_SEED")
CASES = [int(SEED)] if SEED else range(int(os.environ.get("PCC_CASES", "200")))


def random_damage(seed: int) -> bytearray:
    """A valid file with changed fields whose checksums were made to fit: only the rules of the
    specification are left to refuse it."""
    random = Random(seed)
    data = image(f"valid/v1/{random.choice(['safetensors', 'planes', 'killed', 'retain3'])}")
    (slot_count,) = struct.unpack_from("<I", data, 56)
    (stride,) = struct.unpack_from("<Q", data, 88)
    end = len(data)
    blocks = [(offset, 4080, 440) for offset in (0, end - 4096)]
    blocks += [(offset, 496, 400) for offset in (4096, 8192, end - 12288, end - 8192)]
    blocks += [(16384 + slot * stride, 4080, 180) for slot in range(slot_count)]
    for _ in range(random.randint(1, 3)):
        start, checksum, used = random.choice(blocks)
        width = random.choice([1, 2, 4, 8])
        offset = start + random.randrange(used // width) * width
        old = int.from_bytes(data[offset:offset + width], "little")
        top = 1 << (8 * width)
        new = random.choice([0, 1, top - 1, top // 2, random.getrandbits(8 * width),
                             old + 1, old - 1, old + 4096, old - 4096]) % top
        data[offset:offset + width] = new.to_bytes(width, "little")
        data[start + checksum:start + checksum + 16] = reader.digest(data[start:start + checksum])
    if random.random() < 0.1:
        del data[random.randrange(end):]
    return data


@pytest.mark.skipif(not PCFSCK.exists(), reason=f"{PCFSCK} is not built; run make tools")
@pytest.mark.parametrize("seed", CASES)
def test_reader_and_pcfsck_choose_alike(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "run.pcc"
    path.write_bytes(random_damage(seed))
    run = subprocess.run([PCFSCK, "--verify", "full", "--json", path], capture_output=True,
                         timeout=60)
    assert run.returncode in (0, 4), run.stderr
    choice = json.loads(run.stdout)["files"][0]["resume"]["choice"]
    expected = choice and (choice["slot"], choice["sequence"], choice["step"])
    try:
        with reader.Reader(path) as file:
            checkpoint = file.load()
        slot = checkpoint and checkpoint.slot
        found = slot and (slot.index, slot.sequence, slot.step)
    except reader.FormatError:
        found = None
    assert found == expected, f"replay with PCC_SEED={seed}"
