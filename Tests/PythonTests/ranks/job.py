"""What the ranks of the tests have: a small model, data of their own, and a training loop."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from plants import planted
from torch import nn

import pccheck
import pccheck.distributed as pcd


def say(*words: object) -> None:
    """One line, written at once: what it reports was true before."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def connect(rank: int, world: int, folder: str) -> None:
    """Joins the job. Its store is a file, which no rank serves."""
    store = dist.FileStore(os.path.join(folder, "store"), world)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )


class Training:
    """A model under data parallelism, with its optimizer; each rank draws its own data."""

    def __init__(self, rank: int, width: int = 24) -> None:
        torch.manual_seed(7)
        self.model = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Dropout(0.1))
        self.head = nn.Linear(width, 4)
        parameters = [*self.model.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-2)
        # From here on the generators differ, as they do in a job.
        torch.manual_seed(1000 + rank)

    @property
    def state(self) -> dict[str, Any]:
        """The parts of a checkpoint."""
        return {"model": self.model, "head": self.head, "optimizer": self.optimizer}

    def step(self) -> str:
        """One step on all ranks; the loss of this rank, with all of its bits."""
        self.optimizer.zero_grad()
        loss = self.head(self.model(torch.randn(3, 8))).square().mean()
        loss.backward()
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                dist.all_reduce(parameter.grad)
        self.optimizer.step()
        return float(loss).hex()


def train(
    rank: int, folder: str, steps: int, every: int = 1, pause: float = 0.0, **options: Any
) -> None:
    """Resumes, trains and saves; reports where it began, each loss, and what is on all ranks."""
    training = Training(rank)
    handles: deque[Any] = deque()
    # A rank hears of a verdict also while it waits for another rank.
    threading.Thread(target=report, args=[handles], daemon=True).start()
    with pcd.Checkpointer(os.path.join(folder, "run"), timeout=30, **options) as ckpt:
        start = ckpt.resume(**training.state)
        say("start", start)
        for step in range(start, steps):
            say("loss", step, training.step())
            if step % every == 0:
                handles.append(ckpt.save(step, **training.state))
            time.sleep(pause)
        ckpt.wait_group()
        while handles:
            time.sleep(0.001)
    say("done")


def report(handles: deque[Any]) -> None:
    """Says which saves are durable on all ranks, in their order."""
    while True:
        while handles and handles[0].is_complete:
            say("all", handles[0].step)
            handles.popleft()
        time.sleep(0.0005)


__all__ = [
    "Any", "Training", "connect", "dist", "nn", "os", "pccheck", "pcd", "planted", "say", "sys",
    "torch", "train",
]  # fmt: skip
