"""A resumed run ends with the very bits of a run that was never interrupted."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler

import pccheck.torch

# An epoch is ten steps: one ends after the resume.
STEPS = 14
KILLED_AFTER = 8

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


class Samples(torch.utils.data.Dataset[torch.Tensor]):
    """Samples that tell their index."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.arange(16.0) * 0.01 + index / 40


class Run:
    """Everything that decides the result of a mixed-precision run with averaged weights."""

    def __init__(self, seed: int, workers: int) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        self.model = nn.Sequential(
            nn.Linear(16, 24), nn.BatchNorm1d(24), nn.Dropout(0.2), nn.Linear(24, 16)
        )
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        warm_up = torch.optim.lr_scheduler.LinearLR(self.optimizer, total_iters=5)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 20)
        self.scheduler = torch.optim.lr_scheduler.SequentialLR(
            self.optimizer, [warm_up, decay], milestones=[5]
        )
        self.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)
        # A resumed loader makes a new iterator, which draws a seed for its workers: from a
        # generator of its own, so that neither dropout nor the order of samples depends on that.
        samples = Samples()
        order = RandomSampler(samples, generator=torch.Generator().manual_seed(seed))
        self.loader: Any = StatefulDataLoader(
            samples, 4, sampler=order, num_workers=workers, generator=torch.Generator()
        )
        self.noise = torch.Generator().manual_seed(seed)
        self.batches: Any = None
        self.losses: list[float] = []
        self.parts: dict[str, Any] = {
            "model": self.model, "average": self.average, "optimizer": self.optimizer,
            "scheduler": self.scheduler, "scaler": self.scaler, "loader": self.loader,
            "noise": self.noise, "losses": self.losses,
        }  # fmt: skip

    def batch(self) -> torch.Tensor:
        while True:
            if self.batches is None:
                self.batches = iter(self.loader)
            batch = next(self.batches, None)
            if batch is not None:
                return batch  # type: ignore[no-any-return]
            self.batches = None

    def step(self) -> None:
        batch = self.batch() * random.random() + float(np.random.rand())
        batch = batch + torch.randn(batch.shape, generator=self.noise) * 0.1
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = (self.model(batch) - batch).square().mean()
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.average.update_parameters(self.model)
        self.losses.append(loss.item())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_ends_with_the_same_bits(path: Path, workers: int) -> None:
    whole = Run(1, workers)
    for _ in range(STEPS):
        whole.step()

    first = Run(1, workers)
    with pccheck.torch.Checkpointer(path, in_flight=2, debug="digest") as checkpointer:
        for step in range(KILLED_AFTER):
            first.step()
            checkpointer.save(step, **first.parts)

    second = Run(99, workers)
    with pccheck.torch.Checkpointer(path) as checkpointer:
        start = checkpointer.resume(**second.parts)
        assert start == KILLED_AFTER
        for _ in range(start, STEPS):
            second.step()
    assert second.losses == whole.losses
    for name in ("model", "average"):
        left, right = second.parts[name].state_dict(), whole.parts[name].state_dict()
        assert all(torch.equal(left[key], right[key]) for key in right), name
    assert second.scheduler.get_last_lr() == whole.scheduler.get_last_lr()
    assert second.scaler.get_scale() == whole.scaler.get_scale()
    assert torch.equal(second.noise.get_state(), whole.noise.get_state())


@pytest.mark.parametrize("left_out", ["loader", "noise", "scaler", "scheduler", "average"])
def test_each_part_counts(path: Path, left_out: str) -> None:
    """Shows that the test above would notice: without any one part the run is another."""
    whole = Run(1, 0)
    for _ in range(STEPS):
        whole.step()
    first = Run(1, 0)
    with pccheck.torch.Checkpointer(path) as checkpointer:
        for _ in range(KILLED_AFTER):
            first.step()
        checkpointer.save(KILLED_AFTER - 1, **first.parts)
    second = Run(99, 0)
    parts = {name: part for name, part in second.parts.items() if name != left_out}
    with pccheck.torch.Checkpointer(path) as checkpointer:
        checkpointer.resume(**parts)
    for _ in range(KILLED_AFTER, STEPS):
        second.step()
    left, right = second.average.state_dict(), whole.average.state_dict()
    is_same = second.losses == whole.losses and all(
        torch.equal(left[key], right[key]) for key in right
    )
    assert not is_same or (
        left_out == "scaler" and second.scaler.get_scale() != whole.scaler.get_scale()
    )
