"""What ``python -m pccheck convert --json`` prints, against its schema in spec/schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import foreign
import jsonschema
import pytest
import torch
from conftest import ROOT
from foreign import run

SCHEMA = ROOT / "spec" / "schemas" / "python-convert.json"


def validated(text: str) -> dict[str, Any]:
    """A document that fits its schema."""
    document: dict[str, Any] = json.loads(text)
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)
    return document


def test_convert_keeps_to_its_schema(path: Path, tmp_path: Path) -> None:
    folder = foreign.hugging_face(tmp_path / "hf", "safetensors-sharded")
    torch.save({"x": torch.ones(3)}, tmp_path / "a.pt")
    foreign.dcp_directory(tmp_path / "dcp", {"x": torch.ones(3)})
    foreign.save_file({"x": torch.ones(3)}, tmp_path / "a.safetensors")
    kinds = {
        "hf": "hugging-face", "hf/model.safetensors.index.json": "safetensors-index",
        "a.pt": "torch", "dcp": "dcp", "a.safetensors": "safetensors",
    }  # fmt: skip
    assert folder.is_dir()
    for number, (name, kind) in enumerate(kinds.items()):
        made = run("convert", tmp_path / name, "-o", path, "--json", "--force")
        document = validated(made.stdout)
        assert (document["direction"], document["checkpoints"][0]["kind"]) == ("into", kind)
        out = tmp_path / f"back-{number}{Path(name).suffix if name.startswith('a.') else ''}"
        document = validated(run("convert", path, "-o", out, "--json").stdout)
        assert document["direction"] == "back" and document["files"]
        assert all(Path(file).is_file() for file in document["files"])


def test_the_schema_refuses_what_it_does_not_know(path: Path, tmp_path: Path) -> None:
    foreign.save_file({"x": torch.ones(3)}, tmp_path / "a.safetensors")
    made = run("convert", tmp_path / "a.safetensors", "-o", path, "--json")
    document = json.loads(made.stdout)
    document["checkpoints"][0]["surprise"] = 1
    with pytest.raises(jsonschema.ValidationError):
        validated(json.dumps(document))
