"""The JSON of pccheck rescue is what spec/schemas/pccheck-rescue.json says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import pattern
from pccheck_commands import Command

import pccheck.torch

rescue = Command("rescue")


def write_steps(path: Path) -> None:
    with pccheck.torch.Checkpointer(path, retain=3, chunk="64 KiB") as checkpointer:
        for step in (10, 20, 30):
            checkpointer.save(step, state={"x": pattern(step, 5000)})


def test_schema_is_strict() -> None:
    rescue.check_schema()


def test_every_way_of_rescue(path: Path, tmp_path: Path) -> None:
    write_steps(path)
    document = rescue(path, "--step", 10, "--dry-run")
    assert document["is_dry_run"] and len(document["slots_set_aside"]) == 2
    assert document["repairs_planned"] and not document["repairs_made"]

    back = rescue(path, "--step", 10, "--output", tmp_path / "back.pcc")
    assert back["step"] == 10 and back["repairs_made"] == back["repairs_planned"]
    loaded = pccheck.torch.load(tmp_path / "back.pcc")
    assert np.array_equal(loaded["state"]["x"], pattern(10, 5000))

    forward = rescue(
        tmp_path / "back.pcc",
        *("--promote", back["slots_set_aside"][-1]),
        *("--in-place", "--undo", tmp_path / "undo"),
    )
    assert forward["step"] == 30 and forward["undo_file"] == str(tmp_path / "undo")
    assert rescue(path, "--rebuild", "--output", tmp_path / "new.pcc")["step"] == 30
