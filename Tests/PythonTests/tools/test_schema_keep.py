"""The JSON of pccheck keep is what spec/schemas/pccheck-keep.json says."""

from __future__ import annotations

from pathlib import Path

from conftest import flip_byte_of, pattern
from pccheck_commands import Command

import pccheck

keep = Command("keep")


def test_schema_is_strict() -> None:
    keep.check_schema()


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
