"""Jobs of Accelerate with FSDP version 2: python accelerate_fsdp_child.py DIRECTORY TASK:WORLD…"""

from __future__ import annotations

import os
import signal
from typing import Any

import ranks
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, TorchDynamoPlugin
from hugging_child import launched, losses_of
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

import pccheck.accelerate

#: What wraps the middle layer too: its names change, and a hook reads what was saved.
WRAPPED = {
    "activation_checkpointing": True, "auto_wrap_policy": "size_based_wrap", "min_num_params": 80,
}  # fmt: skip


class Model(torch.nn.Module):
    """Nothing of it divides evenly; one layer is tied, and one is plain tensors on every rank."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 7)
        self.again = torch.nn.Linear(8, 7)
        self.again.weight = self.first.weight
        self.ignored = torch.nn.Linear(7, 8).requires_grad_(False)
        self.middle = torch.nn.Linear(7, 11)
        self.last = torch.nn.Linear(11, 1)
        self.register_buffer("scale", torch.rand(1))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.dropout(self.first(values).relu(), 0.2, self.training)
        hidden = self.again(self.ignored(hidden)) * self.scale
        result: torch.Tensor = self.last(self.middle(hidden))
        return result


def sharding_accelerator(backend: str, **options: Any) -> Accelerator:
    """Accelerate takes the plugin only where there are GPUs; what follows is the same without."""
    accelerator = Accelerator(cpu=True, dynamo_plugin=TorchDynamoPlugin(backend=backend))
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, ignored_modules="ignored", **options
    )
    return accelerator


def keep(path: str, *parts: Any) -> None:
    """Writes the states of parts, with whole tensors."""
    states = [part.state_dict() for part in parts]
    whole = tree_map(lambda item: item.full_tensor() if isinstance(item, DTensor) else item, states)
    torch.save(whole, path)


def die_together(rank: int, processes: list[int]) -> None:
    """Rank 1 kills all of them here, and no other one gets further."""
    while rank != 1:
        signal.pause()
    for process in sorted(processes, key=os.getpid().__eq__):
        os.kill(process, signal.SIGKILL)


def train(
    name: str, steps: int, kill_at: int | None = None, note_as: str = "", backend: str = "no",
    **options: Any,
) -> ranks.Task:  # fmt: skip
    def run(rank: int, world: int, directory: str) -> None:
        launched(rank, world, directory)
        noted = f"{directory}/{note_as or name}"
        note = losses_of(note_as or name, rank, directory)
        processes: list[Any] = [0] * world
        dist.all_gather_object(processes, os.getpid())
        accelerator = sharding_accelerator(backend, **options)
        torch.manual_seed(5)
        model: Any = Model()
        trained = [item for item in model.parameters() if item.requires_grad]
        optimizer: Any = torch.optim.AdamW(trained, lr=1e-2)
        scheduler: Any = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
        torch.manual_seed(1 + rank)
        folder = f"{directory}/{name}/"
        with pccheck.accelerate.Checkpointer(folder, accelerator, timeout=60) as checkpoints:
            first = checkpoints.resume()
            keep(f"{noted}.begin-{rank}", model, optimizer, scheduler)
            for step in range(first, steps):
                values = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
                loss = model(values + rank).square().mean()
                accelerator.backward(loss)
                if step == kill_at:
                    die_together(rank, processes)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                note(step, loss.item())
                with torch.no_grad():
                    # The root keeps whole parameters after it, until something shards them.
                    model(values)
                saved = checkpoints.save(step)
                if step + 1 == kill_at:
                    saved.wait_group()
        keep(f"{noted}.end-{rank}", model, optimizer, scheduler)

    return run


def tasks(kind: str, **options: Any) -> dict[str, ranks.Task]:
    cut = f"{kind}-cut"
    return {
        f"{kind}-whole": train(f"{kind}-whole", 6, **options),
        cut: train(cut, 6, kill_at=4, **options),
        f"{kind}-on": train(cut, 6, note_as=f"{kind}-on", **options),
        f"{kind}-other": train(cut, 8, note_as=f"{kind}-other", **options),
        f"{kind}-alone": train(cut, 9, note_as=f"{kind}-alone", **options),
    }


if __name__ == "__main__":
    ranks.main(tasks("plain") | tasks("wrapped", backend="eager", **WRAPPED))
