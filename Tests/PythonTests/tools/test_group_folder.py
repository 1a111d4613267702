"""pcfsck and pcinspect on folders of a group, composed from spec/FORMAT.md alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "Tests" / "Fixtures"))

import compose  # noqa: E402

RUN = bytes(range(0x40, 0x50))
OTHER_RUN = bytes(range(0x60, 0x70))
TOOLS = ROOT / "build" / "bin"

# One checkpoint of a rank: its attempt and step.
Name = tuple[int, int]


def schema(name: str) -> dict[str, Any]:
    text: dict[str, Any] = json.loads((ROOT / "spec/schemas" / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(text)
    return text


def rank_file(
    folder: Path, rank: int, world: int, names: list[Name], *, torn: Name | None = None,
    run: bytes = RUN, watermark: Name | None = None, attempt: int | None = None,
) -> Path:
    """The file of a rank that saved `names`, the oldest first, and was killed in `torn`."""
    image = compose.Image(
        in_flight=2, retain=2, capacity=4096, rank=rank, world_size=world, run_uuid=run,
        uuid=bytes([rank, world % 251]) * 8)
    marks = {} if watermark is None else {
        "watermark_attempt": watermark[0], "watermark_step": watermark[1]}
    last = max((number for number, _ in names), default=0) if attempt is None else attempt
    image.commit(1, attempt=last, **marks)
    image.commit(2, attempt=last, **marks)
    held: list[tuple[int, int]] = []
    for index, (number, step) in enumerate(names):
        image.complete(
            index, index + 1, compose.opaque(index + 1, 1000), attempt=number, step=step)
        held = [(index, index + 1), *held]
        image.commit(3 + index, index, retained=tuple(held[1:]), attempt=last, **marks)
    if torn:
        slot = len(names)
        image.put_header(slot, image.header(
            slot, state=compose.WRITING, sequence=slot + 1, step=torn[1], attempt=torn[0]))
    path = folder / f"rank-{rank:05}-of-{world:05}.pcc"
    path.write_bytes(bytes(image.data))
    return path


def run_tool(tool: str, *arguments: object) -> tuple[int, dict[str, Any]]:
    """The exit status and the JSON, which is what the schema says."""
    program = TOOLS / tool
    if not program.exists():
        pytest.skip(f"{program} is not built; run make tools")
    process = subprocess.run(
        [program, "--json", *map(str, arguments)],
        capture_output=True, text=True, timeout=60, check=False)
    document: dict[str, Any] = json.loads(process.stdout)
    jsonschema.validate(
        document, schema("pcfsck" if tool == "pcfsck" else "pcinspect-group"))
    return process.returncode, document


def both(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The decision, on which both tools agree, and the identifiers of what pcfsck found."""
    status, inspection = run_tool("pcinspect", folder)
    decision: dict[str, Any] = inspection["decision"]
    code, check = run_tool("pcfsck", folder)
    (group,) = check["groups"]
    assert group["decision"] == decision
    assert code == check["exit_status"]
    assert (status == 0) == (code == 0)
    return decision, [finding["id"] for finding in group["findings"]]


def test_after_a_kill(tmp_path: Path) -> None:
    """One rank was killed in the save that the others finished."""
    for rank in range(3):
        rank_file(tmp_path, rank, 4, [(5, 100), (5, 110)], watermark=(5, 100))
    rank_file(tmp_path, 3, 4, [(5, 100)], torn=(5, 110), watermark=(5, 100))
    decision, findings = both(tmp_path)
    assert decision["run"] == "40414243-4445-4647-4849-4a4b4c4d4e4f"
    assert decision["outcome"] == "resume" and decision["next_attempt"] == 6
    assert decision["watermark"] == {"attempt": 5, "step": 100} and decision["lost"] is None
    newest, chosen = decision["checkpoints"]
    assert (newest["step"], newest["is_complete"]) == (110, False)
    assert newest["missing"] == [{
        "rank": 3, "last_rank": 3,
        "reason": "never completed: its slot is in state writing"}]
    assert (chosen["step"], chosen["is_complete"], chosen["world_size"]) == (100, True, 4)
    assert [file["reason"] for file in chosen["files"]] == ["retained"] * 3 + ["anchored"]
    assert findings == ["PCK-G006"]


def test_a_restart_on_fewer_ranks(tmp_path: Path) -> None:
    for rank in range(4):
        rank_file(tmp_path, rank, 4, [(1, 10), (1, 20)])
    for rank in range(2):
        rank_file(tmp_path, rank, 2, [(2, 15)], watermark=(1, 10))
    decision, findings = both(tmp_path)
    assert [(c["attempt"], c["step"]) for c in decision["checkpoints"]] == [
        (2, 15), (1, 20), (1, 10)]
    assert [world["world_size"] for world in decision["worlds"]] == [4, 2]
    assert decision["outcome"] == "resume" and findings == []


def test_lost_and_foreign_files(tmp_path: Path) -> None:
    for rank in range(3):
        rank_file(tmp_path, rank, 3, [(1, 10), (1, 20)], watermark=(1, 20))
    (tmp_path / "rank-00001-of-00003.pcc").unlink()
    decision, findings = both(tmp_path)
    assert decision["outcome"] == "refuse"
    assert decision["lost"] == {"attempt": 1, "step": 20}
    assert findings == ["PCK-G001", "PCK-G005"]
    rank_file(tmp_path, 1, 3, [(1, 10), (1, 20)], run=OTHER_RUN)
    decision, findings = both(tmp_path)
    assert [problem["kind"] for problem in decision["problems"]] == ["other-run"]
    assert decision["outcome"] == "refuse" and "PCK-G002" in findings


def test_hostile_numbers(tmp_path: Path) -> None:
    """A world of four billion ranks, and the highest attempt and steps that a file can name."""
    most = 2**63 - 1
    rank_file(tmp_path, 0, 2**32 - 1, [(most, most)], watermark=(2**64 - 1, most))
    decision, findings = both(tmp_path)
    assert decision["next_attempt"] is None
    assert decision["checkpoints"][0]["missing"] == [
        {"rank": 1, "last_rank": 2**32 - 2, "reason": "no file"}]
    assert findings == ["PCK-G001", "PCK-G005", "PCK-G006"]


def test_one_file_says_that_the_others_decide(tmp_path: Path) -> None:
    path = rank_file(tmp_path, 1, 4, [(5, 100), (5, 110)], watermark=(5, 100))

    def screen(tool: str) -> str:
        shown = subprocess.run(
            [TOOLS / tool, path], capture_output=True, text=True, timeout=60, check=True)
        return " ".join(shown.stdout.split())

    assert "rank 1 of 4: a restart chooses with the files of all ranks" in screen("pcfsck")
    known = "attempt 5; step 100 of attempt 5 is known to be durable on all ranks"
    assert known in screen("pcinspect")
