"""Data-parallel training on many ranks, whose checkpoints are durable on all of them or not at all.

    torchrun --nproc-per-node 2 train_distributed.py run/ --steps 1000
    python train_distributed.py run/ --steps 1000              # the same on one process

Kill any rank, or all of them, at any moment: the next start continues on all ranks from one step.
It may have another number of ranks.
"""

import argparse
import logging
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import pccheck.distributed


def batch(step: int, rank: int, world_size: int) -> torch.Tensor:
    """The rows of this rank: together they are the same rows on any number of ranks."""
    rows = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
    return rows[rank::world_size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--replicas", choices=["split", "whole"], default="split",
        help="whole: for a folder that is on the disk of each machine",
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if dist.is_initialized() else 0
    world_size = dist.get_world_size() if dist.is_initialized() else 1

    torch.manual_seed(1)
    model: nn.Module = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
    if dist.is_initialized():
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    with pccheck.distributed.Checkpointer(                             # 1: a folder, not a file
        options.folder, replicas=options.replicas
    ) as ckpt:
        start = ckpt.resume(model=model, optimizer=optimizer)          # 2: one step for all ranks
        print(f"rank {rank} starts at step {start}", flush=True)
        for step in range(start, options.steps):
            inputs = batch(step, rank, world_size)
            loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(f"rank {rank} step {step}: loss {loss.item():.6f}", flush=True)
            if step % 5 == 0:
                ckpt.save(step, model=model, optimizer=optimizer)      # 3: waits for no other rank
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
