"""Jobs of a Trainer and of Accelerate: python hugging_child.py DIRECTORY TASK:WORLD…"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import ranks
import torch
import transformers
from accelerate import Accelerator
from transformers import Trainer, TrainerCallback, TrainingArguments

import pccheck.accelerate
from pccheck.huggingface import CheckpointCallback

Losses = Callable[[int, float], None]


def network() -> torch.nn.Sequential:
    # Statistics that process 0 sends to the others, and numbers that each draws for itself.
    return torch.nn.Sequential(
        torch.nn.Linear(8, 64), torch.nn.BatchNorm1d(64), torch.nn.Dropout(0.2),
        torch.nn.Linear(64, 1),
    )  # fmt: skip


def losses_of(name: str, rank: int, directory: str) -> Losses:
    def note(step: int, loss: float) -> None:
        with open(f"{directory}/{name}.losses", "a") as file:
            file.write(f"{rank} {step} {loss.hex()}\n")

    return note


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.network(values).square().mean()}


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"values": torch.randn(8, generator=torch.Generator().manual_seed(index))}


class Watch(TrainerCallback):  # type: ignore[misc,unused-ignore]
    def __init__(self, note: Losses, kill_at: int | None) -> None:
        self.note, self.kill_at = note, kill_at

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self.note(state.global_step, float(logs["loss"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.kill_at and args.process_index == 1:
            os.kill(os.getpid(), 9)


def launched(rank: int, world: int, directory: str) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT="29555",
    )  # fmt: skip


def trainer(name: str, steps: int, kill_at: int | None = None, note_as: str = "") -> ranks.Task:
    def run(rank: int, world: int, directory: str) -> None:
        launched(rank, world, directory)
        transformers.set_seed(1 + rank)
        arguments = TrainingArguments(
            output_dir=f"{directory}/{name}.out", per_device_train_batch_size=4, max_steps=steps,
            save_strategy="no", logging_steps=1, report_to=[], disable_tqdm=True, use_cpu=True,
            learning_rate=1e-2, lr_scheduler_type="constant",
        )  # fmt: skip
        checkpoints = CheckpointCallback(f"{directory}/{name}/", policy=1, timeout=60)
        watch = Watch(losses_of(note_as or name, rank, directory), kill_at)
        torch.manual_seed(5)
        trainer = Trainer(
            Model(), arguments, train_dataset=Rows(), callbacks=[watch, checkpoints]
        )
        torch.manual_seed(1 + rank)
        trainer.train(resume_from_checkpoint=checkpoints.resume_folder(directory))

    return run


def accelerate(name: str, steps: int, kill_at: int | None = None, note_as: str = "") -> ranks.Task:
    def run(rank: int, world: int, directory: str) -> None:
        launched(rank, world, directory)
        note = losses_of(note_as or name, rank, directory)
        accelerator = Accelerator(cpu=True)
        torch.manual_seed(5)
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
        torch.manual_seed(1 + rank)
        folder = f"{directory}/{name}/"
        with pccheck.accelerate.Checkpointer(folder, accelerator, timeout=60) as checkpoints:
            for step in range(checkpoints.resume(), steps):
                values = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
                optimizer.zero_grad()
                loss = model(values + rank).square().mean()
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                note(step, loss.item())
                if step == kill_at and rank == 1:
                    os.kill(os.getpid(), 9)
                checkpoints.save(step)

    return run


if __name__ == "__main__":
    ranks.main(
        {
            "trainer-whole": trainer("whole", 6),
            "trainer-cut": trainer("cut", 6, kill_at=4),
            "trainer-on": trainer("cut", 6, note_as="on"),
            "trainer-other": trainer("cut", 8, note_as="other"),
            "accelerate-whole": accelerate("whole", 6),
            "accelerate-cut": accelerate("cut", 6, kill_at=4),
            "accelerate-on": accelerate("cut", 6, note_as="on"),
            "accelerate-other": accelerate("cut", 8, note_as="other"),
        }
    )
