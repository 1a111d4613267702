"""A process that takes no part in a job loads from its folder."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

import pccheck.distributed as pcd
from pccheck.errors import FileMissing, NoCheckpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a job of one rank saved, three times."""
    with pcd.Checkpointer(tmp_path / "run", retain=3) as ckpt:
        for step in range(3):
            ckpt.save(step, x=torch.full((100,), float(step)), note=step).wait_group()
    return tmp_path / "run"


def test_the_newest_and_a_named_step_are_loaded(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert torch.equal(pcd.load(folder)["x"], torch.full((100,), 2.0))
    assert pcd.load(folder, 1)["note"] == 1
    filled = {"x": torch.zeros(100)}
    pcd.load(folder, into=filled)
    assert filled["x"][0] == 2
    assert pcd.load(folder, map_location="meta")["x"].is_meta
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_it_loads_while_the_job_runs(folder: Path) -> None:
    with pcd.Checkpointer(folder, retain=3) as ckpt:
        ckpt.load()
        ckpt.save(3, x=torch.full((100,), 3.0), note=3).wait_group()
        assert pcd.load(folder)["note"] == 3


def test_damage_costs_one_checkpoint(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    [path] = folder.iterdir()
    data = bytearray(path.read_bytes())
    place = data.rfind(torch.full((100,), 2.0).numpy().tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING, "pccheck"):
        assert pcd.load(folder)["note"] == 1
    assert "step 2 of attempt 1 (1 rank) cannot be used" in caplog.text
    with pytest.raises(Exception, match="digest"):
        pcd.load(folder, 2)


def test_what_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NoCheckpoint, match="step 7 is not durable on all ranks.*2, 1, 0"):
        pcd.load(folder, 7)
    with pytest.raises(FileMissing, match="no such folder"):
        pcd.load(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoCheckpoint, match="nothing is durable on all ranks"):
        pcd.load(tmp_path / "empty")
