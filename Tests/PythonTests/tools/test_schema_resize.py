"""The JSON of pccheck resize is what spec/schemas/pccheck-resize.json says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import pattern
from pccheck_commands import Command

import pccheck

resize = Command("resize")


def test_schema_is_strict() -> None:
    resize.check_schema()


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
