"""A Trainer with FSDP version 2, killed and restarted on any number of processes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import ranks
import torch
from test_accelerate_fsdp import assert_same
from test_hugging_groups import losses

import pccheck.distributed as pcd
import pccheck.torch as pcc
from pccheck._core.reader import Reader

CHILD = Path(__file__).with_name("hugging_fsdp_child.py")


def damage_a_shard(path: Path) -> None:
    """Of the newest checkpoint, in a chunk that has nothing else."""
    with Reader(str(path)) as reader:
        reader.select_newest()
        entries, _ = reader.manifest()
    name = next(name for name in entries if name.endswith("large"))
    needle = pcc.load_tensor(path, name).contiguous().numpy().tobytes()
    content = bytearray(path.read_bytes())
    place = content.find(needle)
    assert place >= 0
    content[place + len(needle) // 2] ^= 1
    path.write_bytes(content)


def test_a_killed_job_continues_on_any_number_of_processes(tmp_path: Path) -> None:
    def kept(name: str, rank: int) -> Any:
        return torch.load(tmp_path / f"{name}-{rank}", weights_only=False)

    ranks.run_jobs(CHILD, tmp_path, "whole:2", "cut:2:fails")
    shutil.copytree(tmp_path / "cut", tmp_path / "damaged")
    damage_a_shard(tmp_path / "damaged" / "rank-00001-of-00002.pcc")
    ranks.run_jobs(CHILD, tmp_path, "on:2", "past-damage:2")
    whole, cut, on = (losses(tmp_path, name) for name in ("whole", "cut", "on"))
    assert {step for _, step in whole} == set(range(1, 7))
    assert {step for _, step in on} == {5, 6} and {step for _, step in cut} == {1, 2, 3, 4}
    assert cut | on == whole
    past = losses(tmp_path, "past")
    assert {step for _, step in past} == {4, 5, 6} and cut | past == whole
    for rank in range(2):
        assert_same(kept("on.end", rank), kept("whole.end", rank))
    model, optimizer, _ = kept("on.end", 0)
    state = pcd.load(tmp_path / "cut")
    assert_same(dict(state["model"]), dict(model))
    assert_same(state["optimizer"], optimizer)
    assert optimizer["state"][0]["exp_avg"].abs().sum() > 0

    ranks.run_jobs(CHILD, tmp_path, "wider:2", "wider:3", "not-given:2", "not-listed:2")
    # Each goes on with what another number of processes saved.
    ranks.run_jobs(CHILD, tmp_path, "other:3", "alone:1")
    for rank in range(3):
        assert_same(kept("other.begin", rank), kept("on.end", 0))
    assert_same(kept("alone.begin", 0), kept("other.end", 0))
    assert {step for _, step in losses(tmp_path, "other")} == {7, 8}
    assert list(losses(tmp_path, "alone")) == [(0, 9)]


def test_what_could_not_be_resumed_is_refused(tmp_path: Path) -> None:
    ranks.run_jobs(CHILD, tmp_path, "plain:2", "unattached:2", "first-version:2")
    assert not list(tmp_path.glob("*/rank-*"))
