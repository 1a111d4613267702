"""The state of many ranks, put together again on any number of ranks and any placement."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import pccheck
import pccheck.torch

sys.path.insert(0, str(Path(__file__).parents[1] / "frameworks"))
from ranks import run_jobs

CHILD = Path(__file__).with_name("layout_child.py")

#: How a model is placed that is saved, and how that of the restart is.
RESTARTS = {
    "DDP": ("ddp:4", ["ddp:4", "ddp:2", "plain:1", "fsdp:3"]),
    "DDP of two ranks": ("ddp:2", ["ddp:3"]),
    "FSDP": ("fsdp:4", ["fsdp:4", "fsdp:3", "hooked:2", "ddp:2", "plain:1"]),
    "HSDP": ("hsdp:4", ["hsdp:4", "fsdp:4", "plain:1"]),
    "TP and FSDP": ("tp:4", ["tp:4", "fsdp:2", "plain:1"]),
    "one process": ("plain:1", ["fsdp:2", "ddp:2"]),
}


@pytest.mark.parametrize("name", RESTARTS)
def test_restarts_on_any_number_of_ranks(tmp_path: Path, name: str) -> None:
    saved, restarts = RESTARTS[name]
    run_jobs(CHILD, tmp_path, f"save-{saved}", *(f"restart-{job}" for job in restarts))
    paths = sorted(tmp_path.glob("rank*.pcc"))
    whole = torch.load(tmp_path / "whole.pt", weights_only=True)
    full = pccheck.torch.load_full(paths)
    found = {key.removeprefix("module."): value for key, value in full["model"].items()}
    assert found.keys() == whole["model"].keys()
    for key, value in whole["model"].items():
        assert torch.equal(found[key], value), key
    for number, state in whole["optimizer"].items():
        for key, value in state.items():
            assert torch.equal(full["optimizer"]["state"][number][key], value), (number, key)


def test_what_cannot_be_put_together(tmp_path: Path) -> None:
    run_jobs(CHILD, tmp_path, "save-ddp:4", "refusals:1")


def test_eight_ranks_write_an_eighth_each(tmp_path: Path) -> None:
    run_jobs(CHILD, tmp_path, "share:8")


def test_replicas_that_differ_are_told(tmp_path: Path) -> None:
    run_jobs(CHILD, tmp_path, "claims:4")


def test_whole_replicas_need_no_other_file(tmp_path: Path) -> None:
    run_jobs(CHILD, tmp_path, "whole:3")


def test_parts_of_each_rank(tmp_path: Path) -> None:
    run_jobs(CHILD, tmp_path, "own:2")


def test_buffers_of_ddp(tmp_path: Path) -> None:
    run_jobs(CHILD, tmp_path, "buffers:2")


def test_stages_of_a_pipeline(tmp_path: Path) -> None:
    run_jobs(CHILD, tmp_path, "pipeline:4")


def test_an_older_checkpoint_after_one_that_filled_live_tensors(tmp_path: Path) -> None:
    run_jobs(CHILD, tmp_path, "fallback:2")


def test_shards_come_from_the_own_file(tmp_path: Path) -> None:
    run_jobs(CHILD, tmp_path, "own-file:4")
