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


def save(rank: int, world: int, directory: str, run: Run | None = None, first: int = 4) -> None:
    """Two checkpoints, one of them in the background, and what they held."""
    run = run or Run(1, world)
    with StorageWriter(os.path.join(directory, "run/")) as writer:
        for step in (first, first + 1):
            run.step()
            if step == first:
                dcp.save(run.state(), checkpoint_id=step, storage_writer=writer)
            else:
                dcp.async_save(run.state(), checkpoint_id=step, storage_writer=writer).result()
    full = run.full()
    if rank == 0:
        torch.save(full, os.path.join(directory, f"full{first + 1}.pt"))


def load(rank: int, world: int, directory: str) -> Run:
    """As many ranks as there are now take over what was saved."""
    run = Run(2, world)
    run.step()
    state = run.state()
    state["note"] = {"of": "", "list": [0, 0.0]}
    reader = StorageReader(os.path.join(directory, "run/"))
    dcp.load(state, storage_reader=reader)
    set_state_dict(
        run.model, run.optimizer, model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )  # fmt: skip
    assert reader.step == int(os.environ.get("EXPECTED_STEP", reader.steps()[0]))
    path = os.path.join(directory, f"full{reader.step}.pt")
    full = run.full()
    if os.path.exists(path):
        expected = torch.load(path, weights_only=True)
        assert full.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(full[key], value), key
    assert state["note"] == {"of": "all", "list": [1, 2.5]}
    return run


def go_on(rank: int, world: int, directory: str) -> None:
    """Another number of ranks loads, and saves in the same folder."""
    for path in ("run.pcc", "rank{rank}.pcc"):
        try:
            StorageWriter(os.path.join(directory, path))
        except pccheck.InvalidArgument as error:
            assert f"'{directory}/run/'" in str(error), error
        else:
            raise AssertionError(f"{path} was taken for all ranks")
    save(rank, world, directory, load(rank, world, directory), 6)


if __name__ == "__main__":
    ranks.main({"save": save, "load": load, "go_on": go_on})
