"""The JSON of pccheck resize is what spec/schemas/pccheck-resize.json says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from conftest import ROOT, pattern

import pccheck

SCHEMA = json.loads((ROOT / "spec" / "schemas" / "pccheck-resize.json").read_text())
TOOLS = ROOT / "build" / "bin"


def resize(*arguments: object) -> dict[str, Any]:
    tool = TOOLS / "pccheck"
    if not tool.exists():
        pytest.skip(f"{tool} is not built; run make tools")
    run = subprocess.run(
        [tool, "resize", *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    jsonschema.validate(document, SCHEMA)
    return document


def test_schema_is_strict() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    objects = [SCHEMA, *SCHEMA["$defs"].values()]
    for schema in objects:
        if schema["type"] == "object":
            assert schema["additionalProperties"] is False
            assert set(schema["required"]) == set(schema["properties"])


def test_every_way_of_resize(path: Path) -> None:
    with pccheck.Checkpointer(path, retain=3, chunk="64 KiB") as checkpointer:
        for step in (10, 20, 30):
            checkpointer.save(step, {"x": pattern(step, 5000)})
    document = resize(path, "--retain", 2, "--dry-run")
    assert document["is_dry_run"] and document["is_change"]
    assert [row["step"] for row in document["kept"]] == [30, 20]
    assert [row["step"] for row in document["dropped"]] == [10]
    assert document["before"]["retain"] == 3 and document["after"]["retain"] == 2
    assert len(pccheck.checkpoints(path)) == 3

    document = resize(path, "--capacity", "8M", "--in-flight", 1)
    assert document["after"]["capacity_byte_count"] == 8 << 20 and not document["is_dry_run"]
    assert document["after"]["file_byte_count"] == path.stat().st_size
    assert [row["sequence"] for row in document["kept"]] == [
        info.sequence for info in pccheck.checkpoints(path)
    ]
    assert np.array_equal(pccheck.load(path, 10)["x"], pattern(10, 5000))
    assert not resize(path, "--in-flight", 1)["is_change"]
