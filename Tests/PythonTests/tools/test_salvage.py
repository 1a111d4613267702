"""What pcextract --salvage gets out of wrecks, and what its map says of them."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import images
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from test_schema_extract import validated
from test_tools import TOOLS, run_tool

CHUNK = images.CHUNK
TENSORS = ("w", "v", "small", "none")


def arrays(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "w": generator.normal(size=(400, 100)).astype(np.float32),
        "v": generator.normal(size=50_001).astype(np.float32),
        "small": np.arange(3, dtype=np.float32) + seed,
        "none": np.zeros((0, 4), np.float32),
    }


def payload(seed: int) -> bytes:
    tensors = [
        (name, "F32", list(array.shape), array.tobytes()) for name, array in arrays(seed).items()
    ]
    # Off the grid of the elements, so that a hole may end inside one.
    return images.safetensors(tensors, {"k": str(seed)}, shift=2)


class Wreck:
    """A file with the checkpoints of step 10 in slot 0 and step 20 in slot 1, to be damaged."""

    def __init__(self, path: Path, compress: bool = False) -> None:
        self.path = path
        self.payloads = [payload(1), payload(2)]
        images.write(path, self.payloads, compress)
        self.image = bytearray(path.read_bytes())
        _, self.stride, self.data_offset, self.data_stride = struct.unpack_from(
            "<4Q", self.image, 80
        )

    def header(self, slot: int) -> int:
        return 16384 + slot * self.stride

    def chunk(self, slot: int, number: int) -> int:
        return self.data_offset + slot * self.data_stride + number * CHUNK

    def flip(self, offset: int) -> None:
        self.image[offset] ^= 0x10

    def reseal(self, slot: int) -> None:
        start = self.header(slot)
        self.image[start : start + 4096] = images.seal(
            bytes(self.image[start : start + 4080]), 4096
        )

    def salvage(
        self, out: Path, *options: object, status: int = 4
    ) -> tuple[str, dict[str, Any] | None]:
        """What it said, and its map."""
        self.path.write_bytes(self.image)
        made = run_tool("pcextract", self.path, "-o", out, "--salvage", *options)
        assert made.returncode == status, made.stderr
        assert self.path.read_bytes() == self.image, "a wreck is never modified"
        map_path = out.with_name(out.name + ".holes.json")
        if not map_path.exists():
            assert not out.exists()
            return made.stderr, None
        return made.stderr, validated("pcextract-holes", json.loads(map_path.read_text()))


def lost_bytes(name: str, chunks: set[int], seed: int = 2) -> np.ndarray:
    """Which bytes of a tensor lie in one of the chunks, a row per element."""
    whole = payload(seed)
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    for other, array in arrays(seed).items():
        if other == name:
            places = start + np.arange(array.nbytes)
            is_lost = np.isin(places // CHUNK, list(chunks))
            return is_lost.reshape(-1, array.itemsize)
        start += array.nbytes
    raise AssertionError(name)


def with_zeros(name: str, array: np.ndarray, chunks: set[int]) -> np.ndarray:
    """The tensor as it must come back: the lost bytes are zero, the others are what they were."""
    content = np.frombuffer(array.tobytes(), np.uint8).reshape(-1, array.itemsize).copy()
    content[lost_bytes(name, chunks)] = 0
    return content.view(array.dtype).reshape(array.shape)


def as_mask(ranges: list[list[int]], count: int) -> np.ndarray:
    mask = np.zeros(count, bool)
    for first, end in ranges:
        assert not mask[first:end].any() and 0 <= first < end <= count
        mask[first:end] = True
    return mask


def opened(path: Path) -> dict[str, np.ndarray]:
    """The tensors in a file of any format but raw."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files if key != "__pccheck__"}
    if path.suffix == ".pt":
        return {key: value.numpy() for key, value in torch.load(path, weights_only=True).items()}
    return load_file(path)


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pt"])
@pytest.mark.parametrize("holes", ["skip", "zero"])
@pytest.mark.parametrize("chunks", [{1}, {2, 3}, {1, 3, 5}, {3, 4, 5}])
def test_what_survives_is_written(
    path: Path, suffix: str, holes: str, chunks: set[int]
) -> None:
    wreck = Wreck(path, compress=suffix == "pt")
    for number in chunks:
        wreck.flip(wreck.chunk(1, number) + 100)
    out = path.with_name(f"left.{suffix}")
    said, found = wreck.salvage(out, "--holes", holes)
    assert found is not None and "lost:" in said
    assert [hole["chunk"] for hole in found["holes"]] == sorted(chunks)
    assert found["payload_digest"] == "unknown" and found["step"] == 20
    assert all(hole["reason"] == "digest" for hole in found["holes"])
    assert [hole["file_offset"] for hole in found["holes"]] == [
        wreck.chunk(1, number) for number in sorted(chunks)
    ]
    content = opened(out)
    for entry, (name, array) in zip(found["tensors"], arrays(2).items(), strict=True):
        mask = lost_bytes(name, chunks).any(axis=1)
        assert entry["name"] == name
        assert np.array_equal(as_mask(entry["lost_element_ranges"], array.size), mask)
        assert entry["lost_element_count"] == mask.sum()
        assert entry["state"] == (
            "whole" if not mask.any() else "fully_lost" if mask.all() else "partly_lost"
        )
        assert entry["is_written"] == (holes == "zero" or not mask.any())
        if not entry["is_written"]:
            assert name not in content
            continue
        expected = with_zeros(name, array, chunks)
        assert content[name].tobytes() == expected.tobytes()


def test_raw_bytes_keep_their_places(path: Path) -> None:
    wreck = Wreck(path)
    wreck.flip(wreck.chunk(1, 0) + 10)
    wreck.flip(wreck.chunk(1, 4))
    out = path.with_name("left.raw")
    _, found = wreck.salvage(out)
    assert found is not None and found["tensor_names"] == "lost" and found["tensors"] == []
    expected = bytearray(wreck.payloads[1])
    for number in (0, 4):
        expected[number * CHUNK : (number + 1) * CHUNK] = bytes(CHUNK)
    assert out.read_bytes() == expected
    piped = path.with_name("map.json")
    made = subprocess.run(
        [TOOLS / "pcextract", path, "-o", "-", "--salvage", "--format", "raw", "--map", piped],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert made.returncode == 4 and made.stdout == expected
    assert json.loads(piped.read_text())["holes"] == found["holes"]


def test_lost_names_can_be_borrowed(path: Path) -> None:
    wreck = Wreck(path)
    wreck.flip(wreck.chunk(1, 0) + 10)
    out = path.with_name("left.safetensors")
    said, found = wreck.salvage(out)
    assert found is None and "--manifest-from 0" in said and "--format raw" in said
    said, found = wreck.salvage(out, "--manifest-from", 1, status=16)
    assert found is None and "--manifest-from 0" in said
    said, found = wreck.salvage(out, "--manifest-from", 0, "--holes", "zero")
    assert found is not None and "slot 0" in said
    assert (found["tensor_names"], found["tensor_names_slot"]) == ("other_slot", 0)
    content = load_file(out)
    for name, array in arrays(2).items():
        expected = with_zeros(name, array, {0})
        assert content[name].tobytes() == expected.tobytes()


def test_a_damaged_table_gives_what_its_entries_prove(path: Path) -> None:
    wreck = Wreck(path)
    table = wreck.header(1) + 4096
    wreck.flip(table + 2 * 48 + 9)
    wreck.flip(table + 4 * 48 + 30)
    out = path.with_name("left.safetensors")
    _, found = wreck.salvage(out, "--holes", "zero")
    assert found is not None and found["is_chunk_table_damaged"]
    assert [(hole["chunk"], hole["reason"]) for hole in found["holes"]] == [
        (2, "no_table_entry"), (4, "digest"),
    ]  # fmt: skip
    content = load_file(out)
    for name, array in arrays(2).items():
        expected = with_zeros(name, array, {2, 4})
        assert content[name].tobytes() == expected.tobytes()


@pytest.mark.parametrize("is_mixed", [False, True])
def test_chunks_of_two_checkpoints_are_told_apart(path: Path, is_mixed: bool) -> None:
    """A header of a newer checkpoint over the table and the chunks of an older one."""
    wreck = Wreck(path)
    wreck.flip(wreck.header(1) + 112)
    if is_mixed:
        wreck.flip(wreck.header(1) + 128)
    wreck.reseal(1)
    out = path.with_name("left.safetensors")
    said, found = wreck.salvage(out, status=4 if is_mixed else 0)
    assert found is not None and found["is_chunk_table_damaged"] and not found["holes"]
    assert found["payload_digest"] == ("differs" if is_mixed else "matches")
    assert ("nothing proves that all are of this step" in said) == is_mixed


def test_a_torn_slot_is_refused(path: Path) -> None:
    wreck = Wreck(path)
    wreck.image[wreck.header(1) + 36] = 1
    wreck.reseal(1)
    out = path.with_name("left.safetensors")
    said, found = wreck.salvage(out, "--slot", 1)
    assert found is None and "torn" in said and "no digest" in said
    # Of its own accord it takes the older one, and says so.
    said, found = wreck.salvage(out, status=4)
    assert found is not None and found["step"] == 10
    assert "step 20, the newest durable checkpoint, is lost" in said
    assert "falling back to step 10" in said


def test_a_lost_header_is_told(path: Path) -> None:
    wreck = Wreck(path)
    wreck.flip(wreck.header(1) + 200)
    said, found = wreck.salvage(path.with_name("left.safetensors"), status=4)
    assert found is not None and found["step"] == 10
    assert "slot 1 is header-damaged" in said and "falling back to step 10 in slot 0" in said


def test_a_truncated_file_gives_what_is_left(path: Path) -> None:
    wreck = Wreck(path)
    del wreck.image[wreck.chunk(1, 3) + 5000 :]
    out = path.with_name("left.npz")
    _, found = wreck.salvage(out, "--holes", "zero")
    assert found is not None
    count = found["chunk_count"]
    assert [hole["chunk"] for hole in found["holes"]] == list(range(3, count))
    assert {hole["reason"] for hole in found["holes"]} == {"unreadable"}
    content = opened(out)
    for name, array in arrays(2).items():
        expected = with_zeros(name, array, set(range(3, count)))
        assert content[name].tobytes() == expected.tobytes()


def test_a_whole_checkpoint_has_no_holes(path: Path) -> None:
    wreck = Wreck(path)
    out = path.with_name("left.safetensors")
    _, found = wreck.salvage(out, status=0)
    assert found is not None and found["holes"] == [] and found["payload_digest"] == "matches"
    assert out.read_bytes() == wreck.payloads[1]


def test_all_slots_are_salvaged(path: Path) -> None:
    wreck = Wreck(path)
    wreck.flip(wreck.chunk(1, 2))
    path.write_bytes(wreck.image)
    directory = path.with_name("left")
    made = run_tool("pcextract", path, "-o", directory, "--all")
    assert made.returncode == 4 and "1 slot could not be written" in made.stderr
    assert [file.name for file in directory.iterdir()] == ["step-10.safetensors"]
    made = run_tool("pcextract", path, "-o", directory, "--all", "--salvage")
    assert made.returncode == 4
    assert sorted(file.name for file in directory.iterdir()) == [
        "step-10.safetensors", "step-10.safetensors.holes.json",
        "step-20.safetensors", "step-20.safetensors.holes.json",
    ]  # fmt: skip
