"""What pcinspect prints with --json, against the schemas in spec/schemas."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import images
import jsonschema
import numpy as np
import pytest
from conftest import ROOT

TOOL = ROOT / "build" / "bin" / "pcinspect"
VIEWS = [
    ["summary"], ["super"], ["slots"], ["chunks"], ["chunks", "--verify"], ["tensors"],
    ["tensors", "--stats"], ["tensors", "--stats", "--salvage"], ["diff"], ["metadump"],
    ["hexdump"], ["hexdump", "--offset", "100"],
]
BLOCKS = [
    "identity", "identity-tail", "head-even", "super 1", "reserved", "slot 0", "table 0",
    "table 2", "chunk 1 0",
]


def schema_of(command: str) -> dict[str, Any]:
    schema = json.loads((ROOT / "spec" / "schemas" / f"pcinspect-{command}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema


def is_valid(command: str, *arguments: object) -> int:
    """Runs one view and checks its JSON; nothing but an error may leave standard output empty."""
    if not TOOL.exists():
        pytest.skip(f"{TOOL} is not built; run make tools")
    run = subprocess.run(
        [TOOL, command, *map(str, arguments), "--json"],
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert run.returncode in (0, 1, 4, 5, 8, 16), run.stderr
    if run.returncode < 8 and run.stdout:
        jsonschema.validate(json.loads(run.stdout), schema_of(command))
    else:
        assert run.stderr.startswith("pcinspect: ") and not run.stdout, (arguments, run)
    return run.returncode


def payload(seed: int) -> bytes:
    generator = np.random.default_rng(seed)
    w = generator.normal(size=20_000).astype(np.float32)
    w[seed] = np.nan
    tensors = [
        ("w", "F32", [200, 100], w.tobytes()),
        ("i", "I64", [2], np.array([-(2**63), 2**63 - 1]).tobytes()),
        ("nan", "F32", [1], np.float32(np.nan).tobytes()),
        ("none", "F32", [0], b""),
        (f"t{seed}", "U8", [4], b"abcd"),
    ]
    return images.safetensors(tensors, {"k": str(seed)})


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("schema") / "run.pcc"
    images.write(path, [payload(1), payload(2)], compress=True)
    return path.read_bytes()


DAMAGE = {
    "sound": lambda image: image,
    "chunk": lambda image: flipped(image, image.rfind(b'"w"') + 5000),
    "identity": lambda image: flipped(image, 60),
    "no identity": lambda image: flipped(flipped(image, 60), len(image) - 4096 + 60),
    "superblock": lambda image: flipped(image, 4096 + 24),
    "header": lambda image: flipped(image, 16384 + 40),
    "table": lambda image: flipped(image, 16384 + 4096 + 17),
    "truncated": lambda image: image[: len(image) // 2],
    "empty": lambda image: b"",
}


def flipped(image: bytes, offset: int) -> bytes:
    return image[:offset] + bytes([image[offset] ^ 0x10]) + image[offset + 1 :]


@pytest.mark.parametrize("damage", DAMAGE)
def test_views_keep_to_their_schema(path: Path, sound: bytes, damage: str) -> None:
    path.write_bytes(DAMAGE[damage](sound))
    statuses = {}
    for command, *options in VIEWS:
        arguments = [path, *options] + (["-o", f"{path}.dump"] if command == "metadump" else [])
        statuses[" ".join([command, *options])] = is_valid(command, *arguments)
    for block in BLOCKS:
        statuses[block] = is_valid("hexdump", path, *block.split(), "--annotate")
    if damage == "sound":
        assert set(statuses.values()) == {0, 1} and statuses["diff"] == 1, statuses
    elif damage == "empty":
        assert all(statuses[view] == 8 for view in ("summary", "diff")), statuses
    else:
        assert 4 in statuses.values(), statuses


def test_a_schema_refuses_what_it_does_not_know(path: Path, sound: bytes) -> None:
    path.write_bytes(sound)
    run = subprocess.run([TOOL, "slots", path, "--json"], capture_output=True, check=True)
    document = json.loads(run.stdout)
    document["slots"][0]["header"]["surprise"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema_of("slots"))
