"""What pcfsck prints with --json is what spec/schemas/pcfsck.json says, for every fixture."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import ROOT
from fixture_files import CORRUPT, FIXTURES, VALID, image, patched

SCHEMA = json.loads((ROOT / "spec" / "schemas" / "pcfsck.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
TOOL = ROOT / "build" / "bin" / "pcfsck"


def check(*arguments: object) -> dict[str, Any]:
    if not TOOL.exists():
        pytest.skip(f"{TOOL} is not built; run make tools")
    run = subprocess.run(
        [TOOL, "--json", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    document: dict[str, Any] = json.loads(run.stdout)
    VALIDATOR.validate(document)
    assert document["exit_status"] == run.returncode
    return document


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_every_fixture(tmp_path: Path) -> None:
    """All of them in one run, which is also one document."""
    for archive in VALID:
        name = archive.name.removesuffix(".pcc.zst")
        folder = archive.parent.relative_to(FIXTURES)
        (tmp_path / f"valid-{name}.pcc").write_bytes(image(f"{folder}/{name}"))
    for case in CORRUPT:
        content = patched(json.loads(case.read_text()))
        (tmp_path / f"{case.stem}.pcc").write_bytes(content)
    paths = sorted(tmp_path.glob("*.pcc"))
    document = check("--verify", "full", tmp_path / "missing", *paths)
    assert document["exit_status"] & 12 == 12
    files = document["files"]
    assert [file["path"] for file in files] == [str(tmp_path / "missing"), *map(str, paths)]
    assert files[0]["error"]
    for file in files[1:]:
        assert file["is_clean"] == all(f["severity"] != "error" for f in file["findings"])
        if Path(file["path"]).stem.startswith("valid-"):
            assert file["is_clean"]


def test_repairs_and_undo(tmp_path: Path) -> None:
    path, undo = tmp_path / "run.pcc", tmp_path / "run.undo"
    before = patched(json.loads((CORRUPT[0].parent / "superblocks-lost.json").read_text()))
    path.write_bytes(before)
    repaired = check("-y", "--undo", undo, path)["files"][0]
    assert repaired["repairs_made"] and repaired["undo_file"] == str(undo)
    assert repaired["is_clean"] and check(path)["files"][0]["is_clean"]
    assert check("--apply-undo", undo, path)["restored_block_count"] > 0
    assert path.read_bytes() == before
