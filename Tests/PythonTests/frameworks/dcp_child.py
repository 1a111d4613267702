"""The ranks of jobs that use DCP on the CPU: python dcp_child.py DIRECTORY TASK:WORLD…"""

from __future__ import annotations

import os
from typing import Any

import ranks
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import pccheck
from pccheck.dcp import StorageReader, StorageWriter


class Run:
    """A model that FSDP shards, and its optimizer."""

    def __init__(self, seed: int, world: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))
        fully_shard(self.model, mesh=init_device_mesh("cpu", (world,)))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(4, 6)).square().mean().backward()
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "note": {"of": "all", "list": [1, 2.5]}}

    def full(self) -> dict[str, torch.Tensor]:
        """Every tensor of the run, whole."""
        found = {}
        for key, value in self.model.state_dict().items():
            found[key] = value.full_tensor()
        for number, parameter in enumerate(self.optimizer.state.values()):
            for key, value in parameter.items():
                whole = value.full_tensor() if hasattr(value, "full_tensor") else value
                found[f"{number}.{key}"] = whole
        return found


def save(rank: int, world: int, directory: str) -> None:
    """Two checkpoints, one of them in the background, and what they held."""
    run = Run(1, world)
    with StorageWriter(os.path.join(directory, "rank{rank}.pcc"), retain=2) as writer:
        for step in (4, 5):
            run.step()
            if step == 4:
                dcp.save(run.state(), checkpoint_id=step, storage_writer=writer)
            else:
                dcp.async_save(run.state(), checkpoint_id=step, storage_writer=writer).result()
    full = run.full()
    if rank == 0:
        torch.save(full, os.path.join(directory, "full.pt"))


def load(rank: int, world: int, directory: str) -> None:
    """As many ranks as there are now take over what was saved."""
    run = Run(2, world)
    run.step()
    state = run.state()
    state["note"] = {"of": "", "list": [0, 0.0]}
    reader = StorageReader(os.path.join(directory, "rank{rank}.pcc"))
    dcp.load(state, storage_reader=reader)
    set_state_dict(
        run.model, run.optimizer, model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )  # fmt: skip
    expected = torch.load(os.path.join(directory, "full.pt"), weights_only=True)
    full = run.full()
    assert reader.step == int(os.environ.get("EXPECTED_STEP", "5"))
    if reader.step == 5:
        assert full.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(full[key], value), key
    assert state["note"] == {"of": "all", "list": [1, 2.5]}


def refuse(rank: int, world: int, directory: str) -> None:
    """One path for all ranks; ranks that saved in another number."""
    try:
        StorageWriter(os.path.join(directory, "run.pcc"))
    except pccheck.InvalidArgument as error:
        assert "'rank{rank}.pcc'" in str(error), error
    else:
        raise AssertionError("one file was taken for all ranks")
    writer = StorageWriter(os.path.join(directory, "rank{rank}.pcc"))
    try:
        dcp.save({"a": torch.zeros(2)}, checkpoint_id=6, storage_writer=writer)
    except BaseException as error:
        assert "RankMismatch" in str(error), error
    else:
        raise AssertionError("the files of a job of another size were taken")


if __name__ == "__main__":
    ranks.main({"save": save, "load": load, "refuse": refuse})
