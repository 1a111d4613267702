"""Runs a command of the program pccheck with --json, and holds its document to its schema."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import jsonschema
import pytest
from conftest import ROOT

TOOL = ROOT / "build" / "bin" / "pccheck"


class Command:
    """A command such as ``resize``, whose schema is ``spec/schemas/pccheck-resize.json``."""

    def __init__(self, name: str) -> None:
        self.name = name
        text = (ROOT / "spec" / "schemas" / f"pccheck-{name}.json").read_text()
        self.schema: dict[str, Any] = json.loads(text)

    def __call__(self, *arguments: object, status: int = 0) -> dict[str, Any]:
        if not TOOL.exists():
            pytest.skip(f"{TOOL} is not built; run make tools")
        run = subprocess.run(
            [TOOL, self.name, *map(str, arguments), "--json"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert run.returncode == status, run.stderr
        document: dict[str, Any] = json.loads(run.stdout)
        jsonschema.validate(document, self.schema)
        return document

    def check_schema(self) -> None:
        """The schema is valid, and no object in it may have other members than it names."""
        jsonschema.Draft202012Validator.check_schema(self.schema)
        for schema in (self.schema, *self.schema["$defs"].values()):
            if schema["type"] == "object":
                assert schema["additionalProperties"] is False
                assert set(schema["required"]) == set(schema["properties"])
