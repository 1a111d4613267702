"""A Lightning run of two processes: one of them writes, both go on where they were."""

from __future__ import annotations

from pathlib import Path

from lightning_launch import CHILD, launch
from ranks import run_jobs

import pccheck


def test_both_ranks_go_on_bit_for_bit(tmp_path: Path) -> None:
    """Lightning launches the processes that begin; those that continue it only joins."""
    launch(tmp_path, "file-begin")
    assert (tmp_path / "cut.end").read_text().startswith("4 ")
    assert pccheck.checkpoints(tmp_path / "cut.pcc")[0].step == 4
    run_jobs(CHILD, tmp_path, "file-on:2", "file-whole:2")
    whole = (tmp_path / "whole.end").read_text()
    assert whole.startswith("8 ") and (tmp_path / "cut.end").read_text() == whole
