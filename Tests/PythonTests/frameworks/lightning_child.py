"""Jobs of a Lightning Trainer: the ranks of ranks.py, or those that Lightning launches.

    python lightning_child.py DIRECTORY TASK    as two processes, which Lightning starts
"""

from __future__ import annotations

import os
import sys
from typing import Any

import ranks
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from pccheck.lightning import CheckpointCallback, CheckpointIO
from pccheck.policies import Every


class Module(LightningModule):
    def __init__(self, *layers: torch.nn.Module) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(*layers)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        loss: torch.Tensor = self.layers(batch).square().mean()
        return loss


class Scheduled(Module):
    """With statistics that a process collects, and with numbers that each draws for itself."""

    def __init__(self) -> None:
        super().__init__(
            torch.nn.Linear(8, 64), torch.nn.BatchNorm1d(64), torch.nn.Dropout(0.3),
            torch.nn.Linear(64, 1),
        )  # fmt: skip

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


class Small(Module):
    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(8, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


class Losses(Callback):
    """Notes the loss of each step, with all of its bits."""

    def __init__(self, path: str, kill_at: int | None) -> None:
        self.path, self.kill_at = path, kill_at

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        step = trainer.global_step
        with open(self.path, "a") as file:
            file.write(f"{trainer.global_rank} {step} {outputs['loss'].item().hex()}\n")
        if step == self.kill_at and trainer.global_rank == 1:
            os.kill(os.getpid(), 9)


def trainer_of(devices: int, steps: int, storage: CheckpointIO, *callbacks: Callback) -> Trainer:
    return Trainer(
        max_steps=steps, accelerator="cpu", devices=devices, logger=False,
        strategy="ddp" if devices > 1 else "auto", enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, plugins=[storage],
        callbacks=list(callbacks),
    )  # fmt: skip


def batches(count: int, size: int) -> torch.utils.data.DataLoader[torch.Tensor]:
    rows = torch.arange(8.0 * count).view(count, 8) / 100
    # Without a place in the middle of an epoch to continue at.
    generator = torch.Generator()
    return torch.utils.data.DataLoader(rows, size, generator=generator)  # type: ignore[arg-type]


def in_folder(name: str, steps: int, kill_at: int | None = None, note_as: str = "") -> ranks.Task:
    """Saves into a folder after each step; one batch is an epoch."""

    def run(rank: int, world: int, directory: str) -> None:
        storage = CheckpointIO(f"{directory}/{name}/", timeout=60)
        losses = Losses(f"{directory}/{note_as or name}.losses", kill_at)
        trainer = trainer_of(world, steps, storage, CheckpointCallback(storage, policy=1), losses)
        seed_everything(1 + trainer.global_rank, verbose=False)
        trainer.fit(Scheduled(), batches(8 * world, 8), ckpt_path=storage.resume_path())

    return run


def in_file(name: str, steps: int) -> ranks.Task:
    """Saves into one file, which process 0 writes, and notes how it ended."""

    def run(rank: int, world: int, directory: str) -> None:
        storage = CheckpointIO(f"{directory}/{name}.pcc")
        # Time is not the same on both ranks: they agree on what is due.
        callback = CheckpointCallback(storage, policy=Every(seconds=0.0))
        trainer = trainer_of(world, steps, storage, callback)
        # Each rank drops out other values.
        seed_everything(1 + trainer.global_rank, verbose=False)
        module = Small()
        trainer.fit(module, batches(32, 4), ckpt_path=storage.resume_path())
        if trainer.is_global_zero:
            total = sum(parameter.sum().item() for parameter in module.parameters())
            with open(f"{directory}/{name}.end", "w") as file:
                file.write(f"{trainer.global_step} {float(total).hex()}")

    return run


def launched(task: ranks.Task) -> ranks.Task:
    """The task, in a process that a launcher started: Lightning starts none of its own."""

    def run(rank: int, world: int, directory: str) -> None:
        os.environ["LOCAL_RANK"] = str(rank)
        task(rank, world, directory)

    return run


TASKS = {
    "whole": in_folder("whole", 6),
    "cut": in_folder("cut", 6, kill_at=4),
    "on": in_folder("cut", 6, note_as="on"),
    "other": in_folder("cut", 8, note_as="other"),
    "file-begin": in_file("cut", 4),
    "file-on": in_file("cut", 8),
    "file-whole": in_file("whole", 8),
}

if __name__ == "__main__":
    if sys.argv[1:]:
        TASKS[sys.argv[2]](0, 2, sys.argv[1])
    else:
        ranks.main({name: launched(task) for name, task in TASKS.items()})
