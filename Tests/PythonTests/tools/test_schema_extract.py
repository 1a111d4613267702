"""What pcextract prints with --json, against the schemas in spec/schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import images
import jsonschema
import numpy as np
import pytest
from conftest import ROOT
from test_tools import run_tool


def validated(name: str, document: dict[str, Any]) -> dict[str, Any]:
    """The document, which fits its schema."""
    schema = json.loads((ROOT / "spec" / "schemas" / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)
    return document


@pytest.fixture
def image(path: Path) -> bytearray:
    payloads = [
        images.safetensors(
            [("w", "F32", [50_000], np.full(50_000, seed, np.float32).tobytes())], {"k": "v"}
        )
        for seed in (1, 2)
    ]
    images.write(path, payloads)
    return bytearray(path.read_bytes())


VIEWS = [
    ["--list"], ["-o", "out.safetensors"], ["-o", "out.pt"], ["-o", "out.npz"],
    ["-o", "out.raw"], ["-o", "out.safetensors", "--tensor", "w"],
    ["-o", "out.safetensors", "--salvage"], ["-o", "out.pt", "--salvage", "--holes", "zero"],
    ["-o", "out", "--all"], ["-o", "out", "--all", "--salvage"],
    ["-o", "out.bin", "--shard-size", "100KB"],
]  # fmt: skip


@pytest.mark.parametrize("view", VIEWS, ids=" ".join)
@pytest.mark.parametrize("damage", ["sound", "chunk", "header", "truncated"])
def test_json_keeps_to_its_schema(
    path: Path, image: bytearray, damage: str, view: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    if damage == "chunk":
        image[image.rfind(b'"w"') + 100_000] ^= 1
    elif damage == "header":
        image[16384 + 40] ^= 1
    elif damage == "truncated":
        del image[len(image) // 2 :]
    path.write_bytes(image)
    run = run_tool("pcextract", path, *view, "--json")
    assert run.returncode in ((0,) if damage == "sound" else (0, 4)), run.stderr
    document = validated("pcextract", json.loads(run.stdout))
    if damage == "chunk" and "--list" not in view:
        assert run.returncode == 4
        if "--salvage" in view:
            assert not all(entry["is_complete"] for entry in document["checkpoints"])
        else:
            assert document["rejected"]
    for entry in document.get("checkpoints", []):
        for file in entry.get("files", []):
            assert Path(file["path"]).stat().st_size == file["byte_count"]
        if entry.get("salvage"):
            validated("pcextract-holes", json.loads(Path(entry["salvage"]["map"]).read_text()))


def test_the_schema_refuses_what_it_does_not_know(path: Path, image: bytearray) -> None:
    path.write_bytes(image)
    run = run_tool("pcextract", path, "-o", path.with_name("out.pt"), "--json")
    document = json.loads(run.stdout)
    document["checkpoints"][0]["surprise"] = 1
    with pytest.raises(jsonschema.ValidationError):
        validated("pcextract", document)
