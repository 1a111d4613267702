"""Files of ranks that no job wrote: composed byte by byte, as a test needs them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from conftest import ROOT

sys.path.insert(0, str(ROOT / "Tests" / "Fixtures"))

import compose  # noqa: E402

RUN = bytes(range(0x40, 0x50))
STORED = {"float32": "F32", "float64": "F64", "int64": "I64", "uint8": "U8", "int16": "I16"}


def numpy_entry(value: np.ndarray[Any, Any]) -> tuple[str, list[int], bytes]:
    return STORED[str(value.dtype)], list(value.shape), value.tobytes()


def payload(
    tensors: Mapping[str, np.ndarray[Any, Any]], state: Any = None, objects: Any = None,
    claims: Any = None,
) -> compose.Content:  # fmt: skip
    """The payload of a rank: its stored tensors, its state document, and what it claimed."""
    header: dict[str, Any] = {}
    metadata = {"format": "pt"}
    if state is not None:
        metadata["pccheck.state"] = json.dumps({"version": 1, "state": state})
    if objects is not None:
        metadata["pccheck.objects"] = json.dumps({"version": 1, "objects": objects})
    if claims is not None:
        metadata["pccheck.group"] = json.dumps({"version": 1, "claims": claims})
    header["__metadata__"] = metadata
    data = b""
    for name, value in tensors.items():
        dtype, shape, content = numpy_entry(value)
        header[name] = {
            "dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)],
        }  # fmt: skip
        data += content
    return compose.manifest(json.dumps(header), data)


def rank_file(
    folder: Path, rank: int, world: int, contents: Mapping[tuple[int, int], compose.Content],
    *, run: bytes = RUN, unnamed: int = 0,
) -> Path:  # fmt: skip
    """The file of a rank with one content for each attempt and step, the oldest first. No
    superblock names the `unnamed` newest ones."""
    image = compose.Image(
        in_flight=2, retain=2, capacity=1 << 20, rank=rank, world_size=world, run_uuid=run,
        uuid=bytes([rank, world % 251]) * 8)
    image.commit(1)
    image.commit(2)
    held: list[tuple[int, int]] = []
    for index, ((attempt, step), content) in enumerate(contents.items()):
        image.complete(index, index + 1, content, attempt=attempt, step=step)
        if index >= len(contents) - unnamed:
            continue
        held = [(index, index + 1), *held]
        image.commit(3 + index, index, retained=tuple(held[1:]), attempt=attempt)
    path = folder / f"rank-{rank:05}-of-{world:05}.pcc"
    path.write_bytes(bytes(image.data))
    return path


def sharded(
    shape: list[int], boxes: list[tuple[list[int], list[int], Any]], dtype: str = "float32",
    ranks: tuple[int, ...] = (0, 1),
) -> dict[str, Any]:
    """The node of a tensor, of which a file has some boxes."""
    return {
        "$sharded": {
            "shape": shape, "dtype": dtype, "ranks": list(ranks),
            "boxes": [
                {"offsets": offsets, "sizes": sizes, "local": local}
                for offsets, sizes, local in boxes
            ],
        }
    }  # fmt: skip


def tensor(name: str, **more: Any) -> dict[str, Any]:
    return {"$tensor": name, **more}


def values(*shape: int, seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def step_of(step: int, rank: int, world: int = 2) -> compose.Content:
    """One row of a matrix for each rank, over several chunks."""
    row = np.full((1, 50_000), step, np.float32)
    return payload(
        {"x": row},
        {"x": sharded([world, 50_000], [([rank, 0], [1, 50_000], tensor("x"))],
                      ranks=tuple(range(world)))})  # fmt: skip


def jobs(
    folder: Path, world: int, names: list[tuple[int, int]], unnamed: int = 0
) -> list[Path]:
    return [
        rank_file(folder, rank, world, {
            name: step_of(name[1], rank, world) for name in names}, unnamed=unnamed)
        for rank in range(world)
    ]  # fmt: skip


def damage(path: Path, step: int) -> None:
    """Flips a bit of the values of a step."""
    data = bytearray(path.read_bytes())
    place = data.find(np.full(1000, step, np.float32).tobytes())
    assert place > 0
    data[place + 2000] ^= 1
    path.write_bytes(data)
