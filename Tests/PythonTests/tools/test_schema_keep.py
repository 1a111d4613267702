"""The JSON of pccheck keep is what spec/schemas/pccheck-keep.json says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import ROOT, flip_byte_of, pattern

import pccheck

SCHEMA = json.loads((ROOT / "spec" / "schemas" / "pccheck-keep.json").read_text())
TOOLS = ROOT / "build" / "bin"


def keep(*arguments: object, status: int = 0) -> dict[str, Any]:
    tool = TOOLS / "pccheck"
    if not tool.exists():
        pytest.skip(f"{tool} is not built; run make tools")
    run = subprocess.run(
        [tool, "keep", *map(str, arguments), "--json"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert run.returncode == status, run.stderr
    document: dict[str, Any] = json.loads(run.stdout)
    jsonschema.validate(document, SCHEMA)
    return document


def test_schema_is_strict() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for schema in (SCHEMA, SCHEMA["$defs"]["rejection"]):
        assert schema["additionalProperties"] is False
        assert set(schema["required"]) == set(schema["properties"])


def test_what_was_kept_and_what_was_passed_over(path: Path, tmp_path: Path) -> None:
    with pccheck.Checkpointer(path, retain=2) as ckpt:
        for step in (1, 2):
            ckpt.save(step, {"x": pattern(step)}).wait()
    document = keep(path, "-o", tmp_path / "two.pcc")
    assert document["step"] == 2 and document["rejected"] == []
    flip_byte_of(path, 2)
    document = keep(path, "-o", tmp_path / "one.pcc", status=4)
    assert document["step"] == 1 and document["output"] == str(tmp_path / "one.pcc")
    assert [item["step"] for item in document["rejected"]] == [2]
