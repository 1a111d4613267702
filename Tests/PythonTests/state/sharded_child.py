"""The ranks of a sharded run on the CPU: python sharded_child.py WORLD DIRECTORY TASK."""

from __future__ import annotations

import multiprocessing
import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import pccheck
import pccheck.torch


class Run:
    """A model that FSDP shards, and everything that its training needs."""

    def __init__(self, seed: int, world: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))
        mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("dp",))
        fully_shard(self.model, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer}

    def step(self) -> float:
        loss = self.model(torch.randn(4, 6)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def whole(run: Run) -> dict[str, torch.Tensor]:
    return {key: value.full_tensor() for key, value in run.model.state_dict().items()}


def train(rank: int, world: int, directory: str) -> None:
    """Steps, saves, resumes a fresh run, and goes on with the same losses."""
    path = os.path.join(directory, f"rank{rank}.pcc")
    run = Run(1, world)
    with pccheck.torch.Checkpointer(path, rank=rank, world_size=world) as checkpointer:
        assert checkpointer.resume(**run.parts) == 0
        for step in range(3):
            run.step()
            checkpointer.save(step, **run.parts)
    expected = [run.step() for _ in range(3)]
    other = Run(2, world)
    addresses = [p.to_local().data_ptr() for p in other.model.parameters()]
    with pccheck.torch.Checkpointer(path, rank=rank, world_size=world) as checkpointer:
        assert checkpointer.resume(**other.parts) == 3
        assert checkpointer.resume_report is not None and checkpointer.resume_report.is_exact
    assert addresses == [p.to_local().data_ptr() for p in other.model.parameters()]
    assert type(next(iter(other.optimizer.state.values()))["exp_avg"]) is DTensor
    assert [other.step() for _ in range(3)] == expected
    with pccheck.torch.Checkpointer(path, rank=rank, world_size=world) as checkpointer:
        checkpointer.save(9, **other.parts)
    full = whole(other)
    if rank == 0:
        torch.save(full, os.path.join(directory, "full.pt"))


def placements(rank: int, world: int, directory: str) -> None:
    """Tensors placed in every way on a mesh of two dimensions."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    whole = torch.arange(35.0).view(5, 7)
    state = {
        f"{first} {second}": distribute_tensor(whole, mesh, [first, second])
        for first in (Shard(0), Shard(1), Replicate())
        for second in (Shard(0), Shard(1), Replicate())
    }
    path = os.path.join(directory, f"rank{rank}.pcc")
    with pccheck.torch.Checkpointer(path, rank=rank, world_size=world) as checkpointer:
        checkpointer.save(1, state=state, rng=False).wait()
        live = {key: value * 0 for key, value in state.items()}
        checkpointer.resume(state=live, rng=False)
        for key, value in state.items():
            assert torch.equal(live[key].to_local(), value.to_local()), key
        loaded = checkpointer.load()["state"]
        for key, value in state.items():
            shard = loaded[key]
            assert isinstance(shard, pccheck.torch.LocalShard), key
            assert torch.equal(shard.to_dtensor(mesh).to_local(), value.to_local()), key
        # Another sharding: told, with nothing changed; the rest is loaded where that is asked for.
        name = next(iter(state))
        changed = {name: distribute_tensor(whole * 0, mesh, [Shard(1), Shard(0)])}
        text = refusal(checkpointer, changed)
        assert "sharded S(0) S(0) on ranks 0 to 3" in text, text
        assert "sharded S(1) S(0)" in text and "load_full()" in text, text
        assert not changed[name].to_local().any()
        assert "live float32 (5, 7)\n" in refusal(checkpointer, {name: torch.zeros(5, 7)})


def refusal(checkpointer: pccheck.torch.Checkpointer, state: dict[str, Any]) -> str:
    try:
        checkpointer.resume(state=state, rng=False)
    except pccheck.StateMismatch as error:
        return str(error)
    raise AssertionError("nothing was refused")


def run_rank(rank: int, world: int, directory: str, task: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=world
    )
    {"train": train, "placements": placements}[task](rank, world, directory)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    count = int(sys.argv[1])
    # Forked, so that torch is imported once; nothing has started a thread yet.
    ranks = [
        multiprocessing.get_context("fork").Process(
            target=run_rank, args=(number, count, sys.argv[2], sys.argv[3])
        )
        for number in range(count)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(max(process.exitcode != 0 for process in ranks))
