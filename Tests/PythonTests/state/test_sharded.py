"""Sharded state of real process groups: each rank has its own file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pccheck
import pccheck.torch
from pccheck._group.boxes import Box
from pccheck._group.node import ShardedNode
from pccheck._torch.sharded import LocalShard, Sharding

CHILD = Path(__file__).with_name("sharded_child.py")


def run_ranks(world: int, directory: Path, task: str) -> list[Path]:
    """Runs a task in a process per rank; gives their files."""
    result = subprocess.run(
        [sys.executable, str(CHILD), str(world), str(directory), task],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return [directory / f"rank{rank}.pcc" for rank in range(world)]


def test_fsdp_resumes_each_rank_from_its_own_shards(tmp_path: Path) -> None:
    paths = run_ranks(2, tmp_path, "train")
    # Half of the model in each file, and the whole from both.
    full = torch.load(tmp_path / "full.pt", weights_only=True)
    state = pccheck.torch.load_full(paths)
    assert state["model"].keys() == full.keys()
    for key, value in full.items():
        assert torch.equal(state["model"][key], value), key
    moments = state["optimizer"]["state"][0]
    assert moments["exp_avg"].shape == full["0.weight"].shape and moments["step"] == 6
    # One rank's file, without a process group: what it has, and where that lies.
    plain = pccheck.load(paths[1])["model"]["0.weight"]
    box = plain.content["boxes"][0]
    assert plain.tag == "$sharded" and box["local"].shape == (3, 6) and box["offsets"] == [4, 0]
    shard = pccheck.torch.load(paths[1])["model"]["0.weight"]
    assert isinstance(shard, LocalShard) and shard.local.shape == (3, 6)
    assert str(shard.sharding) == "sharded S(0) on ranks 0 to 1, dp 2 of 2"
    lacking = r"lacks \[4:7, 0:6\]: of 42 elements these files hold 24; .* file of rank 1, w"
    with pytest.raises(pccheck.IncompleteShards, match=lacking) as found:
        pccheck.torch.load_full(paths[:1])
    assert found.value.ranks == [1]
    with pytest.raises(pccheck.RankMismatch):
        pccheck.torch.Checkpointer(paths[0], rank=1, world_size=2)
    with pccheck.torch.Checkpointer(paths[0], rank=0, world_size=2) as checkpointer:
        checkpointer.save(11, x=1).wait()
        checkpointer.save(12, x=1).wait()
        checkpointer.save(13, x=1).wait()
    with pytest.raises(pccheck.NoCheckpoint, match="no step is in the files of all ranks"):
        pccheck.torch.load_full(paths)
    with pytest.raises(pccheck.InvalidArgument, match="no files were given"):
        pccheck.torch.load_full([])


def test_every_placement_on_a_mesh_of_two_dimensions(tmp_path: Path) -> None:
    paths = run_ranks(4, tmp_path, "placements")
    whole = torch.arange(35.0).view(5, 7)
    state = pccheck.torch.load_full(paths)["state"]
    assert len(state) == 9
    for key, value in state.items():
        assert torch.equal(value, whole), key


PLACEMENT = {
    "stride": [1], "placements": ["S(0)"],
    "mesh": {"shape": [2], "names": ["dp"], "ranks": [0, 1], "coordinate": [1]},
}  # fmt: skip
GOOD = {
    "shape": [4], "dtype": "float32", "ranks": [0, 1], "placement": PLACEMENT,
    "boxes": [{"offsets": [2], "sizes": [2], "local": {"$tensor": "t"}}],
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"shape": None}, {"shape": [-1]}, {"shape": [2.5]}, {"shape": [3]}, {"shape": [4, 1]},
        {"dtype": 3}, {"ranks": "x"}, {"boxes": None}, {"boxes": [{"offsets": [2]}]},
        {"boxes": [{"offsets": [2], "sizes": [3], "local": None}]}, {"placement": 3},
        {"placement": {**PLACEMENT, "placements": []}}, {"placement": {**PLACEMENT, "mesh": {}}},
        {"placement": {**PLACEMENT, "placements": ["P(sum)"]}},
        {"placement": {**PLACEMENT, "placements": ["S(1)"]}},
        {"placement": {**PLACEMENT, "placements": ["SS(0,0)"]}},
        {"placement": {**PLACEMENT, "stride": "x"}},
        {"placement": {**PLACEMENT, "mesh": {**PLACEMENT["mesh"], "coordinate": []}}},
        {"placement": {**PLACEMENT, "mesh": {**PLACEMENT["mesh"], "shape": [0]}}},
    ],
)  # fmt: skip
def test_broken_descriptions(change: dict[str, object]) -> None:
    sharding = Sharding.decoded(ShardedNode.parsed(GOOD))
    assert sharding is not None
    assert [item.box for item in sharding.boxes()[1]] == [Box((2,), (2,))]
    with pytest.raises(pccheck.StateFormatError):
        Sharding.decoded(ShardedNode.parsed({**GOOD, **change}))
